// `n4flow.sharpen_residual`: range, histogram and mapping of values of any shape.

static __device__ __forceinline__ bool counts_for(const unsigned char *mask, float value, size_t i) {
    return mask[i] && fabsf(value) < infinity();
}

// Update in `words` the lowest and highest value in the mask and the highest weight, as `ordered` numbers.
extern "C" __global__ void find_range(
    const float *values, const unsigned char *mask, const float *weights, long long n, u32 *words
) {
    float low = infinity(), high = -infinity(), heaviest = 0.0f;
    for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < n; i += (long long)gridDim.x * blockDim.x) {
        if (!counts_for(mask, values[i], i)) continue;
        low = fminf(low, values[i]);
        high = fmaxf(high, values[i]);
        if (weights) heaviest = fmaxf(heaviest, fabsf(weights[i]));
    }
    low = least_of_warp(low);
    high = greatest_of_warp(high);
    heaviest = greatest_of_warp(heaviest);
    if (threadIdx.x & 31) return;
    atomicMin(words, ordered(low));
    atomicMax(words + 1, ordered(high));
    atomicMax(words + 2, ordered(heaviest));
}

// Divide each voxel between the two nearest bins; the brightest lies at the last, whatever rounding makes of it. Weights
// are integers in units of 2^-30 `unit`, so that their sum does not depend on the order. With `in_shared`, a block counts
// in shared memory first.
extern "C" __global__ void split_histogram(
    const float *values, const unsigned char *mask, const float *weights, long long n, double low, double per_unit,
    int bins, double unit, int in_shared, u64 *counts
) {
    ROOM;
    u64 *mine = in_shared ? (u64 *)room : counts;
    for (int i = threadIdx.x; in_shared && i < bins; i += blockDim.x) mine[i] = 0;
    __syncthreads();
    for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < n; i += (long long)gridDim.x * blockDim.x) {
        if (!counts_for(mask, values[i], i)) continue;
        double position = fmin(((double)values[i] - low) * per_unit, bins - 1.0);
        double weight = weights ? weights[i] / unit : 1.0;
        int first = min((int)position, bins - 2);
        double upper = position - first;
        atomicAdd(mine + first, (u64)(long long)rint(weight * (1.0 - upper) * 1073741824.0));
        atomicAdd(mine + first + 1, (u64)(long long)rint(weight * upper * 1073741824.0));
    }
    __syncthreads();
    for (int i = threadIdx.x; in_shared && i < bins; i += blockDim.x)
        if (mine[i]) atomicAdd(counts + i, mine[i]);
}

// Write `sharpening.sharpen` of values in the mask, and other values unchanged.
extern "C" __global__ void map_values(
    const float *values, const unsigned char *mask, long long n, double low, double per_unit, int bins,
    const double *__restrict__ expected, float *out
) {
    for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < n; i += (long long)gridDim.x * blockDim.x) {
        float value = values[i];
        if (counts_for(mask, value, i)) {
            double position = ((double)value - low) * per_unit;
            if (position >= 0.0 && position < bins - 1) {
                int first = (int)position;
                value = (float)(expected[first] + (expected[first + 1] - expected[first]) * (position - first));
            } else {
                value = (float)expected[bins - 1];
            }
        }
        out[i] = value;
    }
}
