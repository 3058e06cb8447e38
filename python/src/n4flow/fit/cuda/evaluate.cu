// The bias field at full resolution, in the order of operations of `evaluate_kernels`: the results are equal to the bit.

// 2^t: with k the whole number next to t, 2^(t - k) by its Taylor terms, times 2^k by its exponent's bits. Adding 1.5 x
// 2^23 leaves k in the low bits.
static __device__ __forceinline__ float power_of_two(float t) {
    float k = t + 12582912.0f, f = t - (k - 12582912.0f);
    float p = fmaf(f, 0.0001540353039338161f, 0.0013333558146428443f);
    p = fmaf(f, p, 0.009618129107628477f);
    p = fmaf(f, p, 0.05550410866482158f);
    p = fmaf(f, p, 0.2402265069591007f);
    p = fmaf(f, p, 0.6931471805599453f);
    return __uint_as_float(__float_as_uint(fmaf(f, p, 1.0f)) + (__float_as_uint(k) << 23));
}

// The log field (sign 0), exp(sign log field), or with an image, image exp(sign log field) on a block of planes. `image`
// may be `out`. A lattice has room for four controls along every axis.
extern "C" __global__ void evaluate_block(
    const float *__restrict__ lattice, int all_lines, int n_c, int most_lines, int n_z, int n_y, int n_x, int run,
    int n_runs, const int *__restrict__ first_z, const float4 *__restrict__ weights_z, const int *__restrict__ first_y,
    const float4 *__restrict__ weights_y, const int *__restrict__ first_x, const float4 *__restrict__ weights_x,
    float sign, const float *image, float *out
) {
    ROOM;
    float *plane = (float *)room;  // most_lines * n_c
    const float log2_e = 1.4426950408889634f, factor = sign * log2_e, limit = 80.0f * log2_e;
    for (int piece = blockIdx.x; piece < n_z * n_runs; piece += gridDim.x) {
        int z = piece / n_runs, y0 = piece % n_runs * run, y1 = min(y0 + run, n_y);
        int line0 = first_y[y0], n_lines = first_y[y1 - 1] + 4 - line0;
        __syncthreads();
        blend_slabs(lattice, all_lines, n_c, first_z[z], weights_z[z], line0, n_lines, plane);
        __syncthreads();
        for (int x = threadIdx.x; x < n_x; x += blockDim.x) {
            float4 wx = weights_x[x];
            const float *at = plane + first_x[x];
            Lines field = {0.0f, 0.0f, 0.0f, 0.0f};
            size_t place = ((size_t)z * n_y + y0) * n_x + x;
            for (int y = y0, next = 0; y < y1; ++y, place += n_x) {
                for (; next < first_y[y] - line0 + 4; ++next) {
                    float line = along_x(at + next * n_c, wx);
                    if (sign != 0.0f) line = fminf(fmaxf(line * factor, -limit), limit);  // float32 ends at e^88
                    move_on(field, line);
                }
                float value = along_y(field, weights_y[y]);
                if (sign != 0.0f) value = power_of_two(value);
                out[place] = image ? image[place] * value : value;
            }
        }
    }
}
