// The two sweeps over the voxels and the steps between them; `cpu/fit` explains how they are combined.
//
// A block computes a strip, that is `run` rows of one plane; a plane has n_runs strips. A thread computes a column of
// the strip: the values of its four lines of control points are in registers and shift at rows where the next line
// begins.

// --------------------------------------------------------------------------------------------- first sweep: the fit

// partial[strip][line][c]: the part of Lee's fit of a strip, contracted along y and x.
extern "C" __global__ void fit_sweep(
    const u16 *__restrict__ index, const float *__restrict__ weights, const Row *__restrict__ rows,
    int n_z, int n_y, int n_x, int run, int n_runs, const float *__restrict__ table, int ones,
    const int *__restrict__ first_y, const float4 *__restrict__ weights_y, const float *__restrict__ weights_x,
    const int2 *__restrict__ support_x, int n_c, int most_lines, float *__restrict__ partial,
    const u32 *__restrict__ words
) {
    if (!words[ACTIVE]) return;
    ROOM;
    float *lines = (float *)room;  // most_lines rows of blockDim.x
    int t = threadIdx.x, width = blockDim.x, warp = t >> 5, lane = t & 31, warps = width >> 5;
    u32 outside = words[FINE];
    for (int strip = blockIdx.x; strip < n_z * n_runs; strip += gridDim.x) {
        int y0 = strip % n_runs * run, y1 = min(y0 + run, n_y);
        const Row *row_of = rows + (size_t)(strip / n_runs) * n_y;
        int low = first_y[y0], n_lines = first_y[y1 - 1] + 4 - low;
        float *out = partial + (size_t)strip * most_lines * n_c;
        for (int x0 = 0; x0 < n_x; x0 += width) {
            float a0 = 0.0f, a1 = 0.0f, a2 = 0.0f, a3 = 0.0f;
            int line = 0;
            for (int y = y0; y < y1; ++y) {
                for (; line < first_y[y] - low; ++line) {
                    lines[line * width + t] = a0;
                    a0 = a1, a1 = a2, a2 = a3, a3 = 0.0f;
                }
                Row row = row_of[y];
                int i = x0 + t < n_x ? x0 + t - row.first : -1;  // Rows are padded beyond the image.
                if (i >= 0 && i < row.length) {
                    u32 f = index[row.start + i];
                    float residual = ones ? (f == outside ? 0.0f : 1.0f) : table[f];
                    if (weights) residual *= weights[row.start + i];
                    float4 w = weights_y[y];
                    a0 = fmaf(w.x, residual, a0);
                    a1 = fmaf(w.y, residual, a1);
                    a2 = fmaf(w.z, residual, a2);
                    a3 = fmaf(w.w, residual, a3);
                }
            }
            lines[line * width + t] = a0;
            lines[(line + 1) * width + t] = a1;
            lines[(line + 2) * width + t] = a2;
            lines[(line + 3) * width + t] = a3;
            __syncthreads();
            for (int o = warp; o < n_lines * n_c; o += warps) {
                int c = o % n_c, begin = max(support_x[c].x, x0), end = min(support_x[c].y, x0 + width);
                const float *from = lines + o / n_c * width - x0, *w = weights_x + (size_t)c * n_x;
                float sum = 0.0f;
                for (int x = begin + lane; x < end; x += 32) sum = fmaf(from[x], w[x], sum);
                sum = sum_of_warp(sum);
                if (lane == 0) out[o] = x0 ? out[o] + sum : sum;
            }
            __syncthreads();
        }
    }
}

// Contract the sums of the strips along z, in order. A block computes a line of control points; its threads form as
// many groups as fit, each with a share of the strips and a thread for each control point along x. The result is either
// the weights of the control points (omega), or the step alpha delta / omega of control points that voxels determine.
extern "C" __global__ void combine(
    const float *__restrict__ partial, int n_y, int run, int n_runs, int most_lines, const int *__restrict__ first_z,
    const float4 *__restrict__ weights_z, const int2 *__restrict__ support_z, const int *__restrict__ first_y,
    const int2 *__restrict__ runs_of, int n_lines, int n_c, double alpha, int weighing, double *omega, double *lattice,
    double *step, u64 *largest, const u32 *words
) {
    if (!goes_on(words)) return;
    ROOM;
    int a = blockIdx.x / n_lines, j = blockIdx.x % n_lines, t = threadIdx.x;
    int2 planes = support_z[a], runs = runs_of[j];
    int deep = runs.y - runs.x, n = (planes.y - planes.x) * deep;
    double greatest = 0.0;
    for (int c0 = 0; c0 < n_c; c0 += blockDim.x) {
        int some = min(n_c - c0, (int)blockDim.x), groups = blockDim.x / some, group = t / some, c = c0 + t % some;
        double sum = 0.0;
        for (int m = group; group < groups && m < n; m += groups) {
            int z = planes.x + m / deep, q = runs.x + m % deep, k = a - first_z[z];
            float4 w = weights_z[z];
            double weight = k == 0 ? w.x : k == 1 ? w.y : k == 2 ? w.z : w.w;
            int line = j - first_y[q * run];
            sum += weight * partial[((size_t)(z * n_runs + q) * most_lines + line) * n_c + c];
        }
        room[t] = sum;
        __syncthreads();
        if (group == 0) {
            for (int g = 1; g < groups; ++g) sum += room[g * some + t];
            size_t at = (size_t)blockIdx.x * n_c + c;
            if (weighing) {
                omega[at] = sum;
            } else {
                double value = omega[at] > LEAST_WEIGHT ? alpha * sum / omega[at] : 0.0;
                step[at] = value;
                lattice[at] += value;
                greatest = fmax(greatest, fabs(value));
            }
        }
        __syncthreads();
    }
    if (greatest > 0.0) atomicMax(largest, (u64)__double_as_longlong(greatest));
}

// --------------------------------------------------------------------------------------- second sweep: the new field

// The values of four lines of control points in a column.
struct Lines { float v0, v1, v2, v3; };

static __device__ __forceinline__ float along_x(const float *controls, float4 w) {
    return fmaf(w.w, controls[3], fmaf(w.z, controls[2], fmaf(w.y, controls[1], w.x * controls[0])));
}

static __device__ __forceinline__ void move_on(Lines &lines, float next) {
    lines.v0 = lines.v1, lines.v1 = lines.v2, lines.v2 = lines.v3, lines.v3 = next;
}

static __device__ __forceinline__ float along_y(Lines lines, float4 w) {
    return fmaf(w.w, lines.v3, fmaf(w.z, lines.v2, fmaf(w.y, lines.v1, w.x * lines.v0)));
}

// Combine four slabs of the lattice to the lines low .. low + n_lines of one plane.
template <class Number>
static __device__ void blend_slabs(
    const Number *lattice, int all_lines, int n_c, int slab, float4 w, int low, int n_lines, float *out
) {
    size_t deep = (size_t)all_lines * n_c;
    const Number *from = lattice + slab * deep + (size_t)low * n_c;
    for (int i = threadIdx.x; i < n_lines * n_c; i += blockDim.x) {
        float value = w.x * (float)from[i];
        value = fmaf(w.y, (float)from[i + deep], value);
        value = fmaf(w.z, (float)from[i + 2 * deep], value);
        out[i] = fmaf(w.w, (float)from[i + 3 * deep], value);
    }
}

static __device__ __forceinline__ float expm1_of(float d, bool small) {
    if (small) {
        float value = fmaf(fmaf(fmaf(d, (float)(1.0 / 24), (float)(1.0 / 6)), d, 0.5f), d, 1.0f);
        return d * value;
    }
    float value = 1.0f;
    for (int k = TERMS; k > 1; --k) value = fmaf(d * (float)(1.0 / k), value, 1.0f);
    return d * value;
}

// Subtract the new field: write the fine bin of each voxel, counts, extremes and changes. The changes of the first
// n_kept packed voxels are kept in order; of the others, each strip writes the sum and the sum of squares. The
// positions of the first row are written for `sharpen`, because the minimum that ITK finds there depends on their
// order.
extern "C" __global__ void field_sweep(
    const float *__restrict__ log_image, const Row *__restrict__ rows, int n_z, int n_y, int n_x, int run, int n_runs,
    const double *__restrict__ lattice, const double *__restrict__ steps, int all_lines, int n_c, int most_lines,
    const int *__restrict__ first_z, const float4 *__restrict__ weights_z, const int *__restrict__ first_y,
    const float4 *__restrict__ weights_y, const int *__restrict__ first_x, const float4 *__restrict__ weights_x,
    int bins, int per_bin, int capacity, const u64 *__restrict__ largest, double *state, u32 *words,
    u16 *__restrict__ index, float *__restrict__ kept, int n_kept, double2 *__restrict__ changes, int *counts,
    float *__restrict__ first_row
) {
    int t = threadIdx.x, width = blockDim.x, warp = t >> 5, lane = t & 31;
    bool active = goes_on(words);
    double greatest = __longlong_as_double((long long)*largest);
    Grid grid = lay_grid(state, greatest, bins, per_bin);
    if (blockIdx.x == 0 && t == 0) {
        words[ACTIVE] = active;
        if (active) {
            state[ORIGIN] = grid.origin;
            state[STEP] = grid.step;
            words[FINE] = (u32)grid.fine;
        }
    }
    if (!active) return;
    ROOM;
    int *histogram = (int *)room;  // followed by most_lines * n_c numbers of the lattice, and of the step
    float *plane = (float *)(histogram + capacity), *plane_step = plane + most_lines * n_c;
    float origin = (float)grid.origin, per_unit = (float)(1.0 / grid.step), outside = (float)grid.fine;
    bool small = greatest <= SMALL_STEP, shared = (int)grid.fine <= capacity;
    for (int i = t; i < capacity; i += width) histogram[i] = 0;
    float low = outside, high = 0.0f;
    for (int strip = blockIdx.x; strip < n_z * n_runs; strip += gridDim.x) {
        int z = strip / n_runs, y0 = strip % n_runs * run, y1 = min(y0 + run, n_y);
        const Row *row_of = rows + (size_t)z * n_y;
        int line0 = first_y[y0], n_lines = first_y[y1 - 1] + 4 - line0;
        __syncthreads();
        blend_slabs(lattice, all_lines, n_c, first_z[z], weights_z[z], line0, n_lines, plane);
        blend_slabs(steps, all_lines, n_c, first_z[z], weights_z[z], line0, n_lines, plane_step);
        __syncthreads();
        float total = 0.0f, squares = 0.0f;
        for (int x = t; x < n_x; x += width) {
            float4 wx = weights_x[x];
            const float *field_at = plane + first_x[x], *step_at = plane_step + first_x[x];
            Lines field = {0.0f, 0.0f, 0.0f, 0.0f}, step = field;
            int next = 0;  // the next line to load
            for (int y = y0; y < y1; ++y) {
                for (; next < first_y[y] - line0 + 4; ++next) {
                    move_on(field, along_x(field_at + next * n_c, wx));
                    move_on(step, along_x(step_at + next * n_c, wx));
                }
                Row row = row_of[y];
                int i = x - row.first;
                if (i < 0 || i >= row.length) continue;
                int at = row.start + i;
                float4 wy = weights_y[y];
                float position = (log_image[at] - along_y(field, wy) - origin) * per_unit;
                bool inside = position < outside;
                u32 f = (u32)fminf(position, outside);
                index[at] = (u16)f;
                if (row.start == 0) first_row[i] = position;
                else low = fminf(low, position);
                if (inside) {
                    high = fmaxf(high, position);
                    if (shared) atomicAdd(histogram + f, 1);
                    else atomicAdd(counts + f, 1);
                }
                float change = expm1_of(-along_y(step, wy), small);
                if (at < n_kept) {
                    kept[at] = inside ? change : ABSENT;
                } else if (inside) {
                    total += change;
                    squares = fmaf(change, change, squares);
                }
            }
        }
        __shared__ double2 parts[32];
        double sum = sum_of_warp((double)total), sum2 = sum_of_warp((double)squares);
        if (lane == 0) parts[warp] = make_double2(sum, sum2);
        __syncthreads();
        if (t == 0) {
            for (int k = 1; k < (width >> 5); ++k) sum += parts[k].x, sum2 += parts[k].y;
            changes[strip] = make_double2(sum, sum2);
        }
    }
    __shared__ float lowest[32], highest[32];
    low = least_of_warp(low);
    high = greatest_of_warp(high);
    if (lane == 0) lowest[warp] = low, highest[warp] = high;
    __syncthreads();
    if (t == 0) {  // One thread per block, since atomics of all blocks on the same words wait for each other.
        for (int k = 1; k < (width >> 5); ++k) low = fminf(low, lowest[k]), high = fmaxf(high, highest[k]);
        atomicMin(words + END_LOW, __float_as_uint(low));  // bits of numbers >= 0 have their order
        atomicMax(words + END_HIGH, __float_as_uint(high));
    }
    if (shared)
        for (int i = t; i < (int)grid.fine; i += width)
            if (histogram[i]) atomicAdd(counts + i, histogram[i]);
}

// ------------------------------------------------------------------------------------------------ between the levels

// Begin a level: refine the lattice of the last level along the axes of `doubled` (bits 0 to 2 for z, y, x), see
// `bspline.refine`. n_z, n_y and n_x are the control points of the new level; arrays have at least four along every
// axis.
static __device__ __forceinline__ int refined_taps(int i, bool doubled, int *at, double *w) {
    at[0] = doubled ? i >> 1 : i;
    at[1] = at[0] + 1, at[2] = at[0] + 2;
    w[0] = !doubled ? 1.0 : i & 1 ? 0.125 : 0.5;
    w[1] = i & 1 ? 0.75 : 0.5;
    w[2] = 0.125;
    return !doubled ? 1 : i & 1 ? 3 : 2;
}

extern "C" __global__ void begin_level(
    const double *coarse, int coarse_y, int coarse_x, int doubled, double *lattice, int n_z, int n_y, int n_x,
    int room_y, int room_x, int most, u32 *words
) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i == 0) {
        words[MADE] = 0;
        words[MOST] = most;
        words[STOP] = GO_ON;
        words[ACTIVE] = 1;
    }
    if (!coarse || i >= n_z * n_y * n_x) return;
    int x = i % n_x, y = i / n_x % n_y, z = i / n_x / n_y;
    int at_z[3], at_y[3], at_x[3];
    double w_z[3], w_y[3], w_x[3];
    int taps_z = refined_taps(z, doubled & 1, at_z, w_z);
    int taps_y = refined_taps(y, doubled & 2, at_y, w_y);
    int taps_x = refined_taps(x, doubled & 4, at_x, w_x);
    double value = 0.0;
    for (int a = 0; a < taps_z; ++a)
        for (int j = 0; j < taps_y; ++j) {
            double line = 0.0;
            for (int c = 0; c < taps_x; ++c)
                line += w_x[c] * coarse[((size_t)at_z[a] * coarse_y + at_y[j]) * coarse_x + at_x[c]];
            value += w_z[a] * w_y[j] * line;
        }
    lattice[((size_t)z * room_y + y) * room_x + x] = value;
}
