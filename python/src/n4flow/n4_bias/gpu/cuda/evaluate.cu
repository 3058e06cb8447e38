// The bias field at full resolution, with the order of operations of `evaluate_kernels`: the results are identical.

// 2^t as 2^(t - k) by its Taylor series, times 2^k in the exponent bits, with k the integer nearest to t. Adding
// 1.5 x 2^23 leaves k in the low bits.
static __device__ __forceinline__ float power_of_two(float t) {
    float k = t + 12582912.0f, f = t - (k - 12582912.0f);
    float p = fmaf(f, 0.0001540353039338161f, 0.0013333558146428443f);
    p = fmaf(f, p, 0.009618129107628477f);
    p = fmaf(f, p, 0.05550410866482158f);
    p = fmaf(f, p, 0.2402265069591007f);
    p = fmaf(f, p, 0.6931471805599453f);
    return __uint_as_float(__float_as_uint(fmaf(f, p, 1.0f)) + (__float_as_uint(k) << 23));
}

// Call finish(z, place, value) for every voxel of a block of planes. The value is that of the log field (sign 0) or of
// exp(sign log field); 1 without a lattice. A lattice has at least four control points along every axis. `plane` is
// shared memory for most_lines * n_c numbers. A strip has `run` rows, a plane n_runs strips.
template <class Finish>
static __device__ __forceinline__ void each_voxel(
    float *plane, const float *lattice, int all_lines, int n_c, int most_lines, int n_z, int n_y, int n_x, int run,
    int n_runs, const int *first_z, const float4 *weights_z, const int *first_y, const float4 *weights_y,
    const int *first_x, const float4 *weights_x, float sign, Finish finish
) {
    const float log2_e = 1.4426950408889634f, factor = sign * log2_e, limit = 80.0f * log2_e;
    for (int strip = blockIdx.x; strip < n_z * n_runs; strip += gridDim.x) {
        int z = strip / n_runs, y0 = strip % n_runs * run, y1 = min(y0 + run, n_y), line0 = 0;
        if (lattice) {
            line0 = first_y[y0];
            __syncthreads();
            blend_slabs(
                lattice, all_lines, n_c, first_z[z], weights_z[z], line0, first_y[y1 - 1] + 4 - line0, plane
            );
            __syncthreads();
        }
        for (int x = threadIdx.x; x < n_x; x += blockDim.x) {
            float4 wx = lattice ? weights_x[x] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            const float *at = plane + (lattice ? first_x[x] : 0);
            Lines field = {0.0f, 0.0f, 0.0f, 0.0f};
            size_t place = ((size_t)z * n_y + y0) * n_x + x;
            for (int y = y0, next = 0; y < y1; ++y, place += n_x) {
                float value = 1.0f;
                if (lattice) {
                    for (; next < first_y[y] - line0 + 4; ++next) {
                        float line = along_x(at + next * n_c, wx);
                        if (sign != 0.0f) line = fminf(fmaxf(line * factor, -limit), limit);  // float32 ends at e^88
                        move_on(field, line);
                    }
                    value = along_y(field, weights_y[y]);
                    if (sign != 0.0f) value = power_of_two(value);
                }
                finish(z, place, value);
            }
        }
    }
}

// Write the log field (sign 0), exp(sign log field), or, given an image, image exp(sign log field). `image` may be
// `out`.
extern "C" __global__ void evaluate_block(
    const float *__restrict__ lattice, int all_lines, int n_c, int most_lines, int n_z, int n_y, int n_x, int run,
    int n_runs, const int *__restrict__ first_z, const float4 *__restrict__ weights_z, const int *__restrict__ first_y,
    const float4 *__restrict__ weights_y, const int *__restrict__ first_x, const float4 *__restrict__ weights_x,
    float sign, const float *image, float *out
) {
    ROOM;
    each_voxel(
        (float *)room, lattice, all_lines, n_c, most_lines, n_z, n_y, n_x, run, n_runs, first_z, weights_z, first_y,
        weights_y, first_x, weights_x, sign,
        [=](int, size_t place, float value) { out[place] = image ? image[place] * value : value; }
    );
}

// Apply the pointwise corrections of a recipe in one pass, in place: the bias field, the range of the plane (`lower`),
// the map of its section (`maps`), and the gain of its tissue (`gains`). Corrections whose pointer is null are omitted.
// A map is 4 rows of n numbers in `segments`: x and y of the knots, slopes, and the maximum of y in each segment.
extern "C" __global__ void render_block(
    const float *__restrict__ lattice, int all_lines, int n_c, int most_lines, int n_z, int n_y, int n_x, int run,
    int n_runs, const int *__restrict__ first_z, const float4 *__restrict__ weights_z, const int *__restrict__ first_y,
    const float4 *__restrict__ weights_y, const int *__restrict__ first_x, const float4 *__restrict__ weights_x,
    const float *__restrict__ lower, const float *__restrict__ upper, float span, const int2 *__restrict__ maps,
    const float *__restrict__ segments, float below, const float *__restrict__ gains,
    const unsigned char *__restrict__ tissue, float *block
) {
    ROOM;
    each_voxel(
        (float *)room, lattice, all_lines, n_c, most_lines, n_z, n_y, n_x, run, n_runs, first_z, weights_z, first_y,
        weights_y, first_x, weights_x, -1.0f,
        [=](int z, size_t place, float factor) {
            float v = block[place];
            if (lattice) v *= factor;
            if (lower && v != 0.0f && fabsf(v) < infinity())
                v = (fmaxf(fminf(v, upper[z]), lower[z]) - lower[z]) / span;
            if (maps && maps[z].y && v > below && v != 0.0f && v < infinity()) {
                int n = maps[z].y, j = 0;
                const float *knot_x = segments + maps[z].x;
                for (int step = n, half; step > 1; step -= half) {  // the last knot at or below v, or the first
                    half = step >> 1;
                    if (knot_x[j + half] <= v) j += half;
                }
                v = fminf(knot_x[n + j] + (v - knot_x[j]) * knot_x[2 * n + j], knot_x[3 * n + j]);
            }
            if (gains && tissue[place]) v *= gains[z];
            block[place] = v;
        }
    );
}
