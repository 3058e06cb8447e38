// Packing of the voxels in the mask, as `cpu/packing` describes it. A warp computes a row.

static __device__ __forceinline__ bool usable(bool inside, float value) {
    return inside && value > 0.0f && value < infinity();
}

static __device__ __forceinline__ bool is_inside(const unsigned char *mask, const float *weights, size_t at) {
    return mask[at] && (!weights || weights[at] > 0.0f);
}

// Write to `rows` the first usable voxel of each row and the length of its packed part, padded to a multiple of
// `lanes`; to `totals` the numbers of voxels in the mask, of those that are not finite, and of finite ones that are not
// above 0.
extern "C" __global__ void find_rows(
    const float *image, const unsigned char *mask, const float *weights, int n_rows, int n_x, int lanes, Row *rows,
    u64 *totals
) {
    int lane = threadIdx.x & 31, r = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
    if (r >= n_rows) return;
    size_t at = (size_t)r * n_x;
    int first = n_x, last = -1, masked = 0, nonfinite = 0, nonpositive = 0;
    for (int x = lane; x < n_x; x += 32) {
        if (!is_inside(mask, weights, at + x)) continue;
        float value = image[at + x];
        bool finite = fabsf(value) < infinity();
        masked += 1;
        nonfinite += !finite;
        nonpositive += finite && !(value > 0.0f);
        if (usable(true, value)) {
            first = min(first, x);
            last = x;
        }
    }
    for (int k = 16; k; k >>= 1) {
        first = min(first, __shfl_xor_sync(ALL, first, k));
        last = max(last, __shfl_xor_sync(ALL, last, k));
        masked += __shfl_xor_sync(ALL, masked, k);
        nonfinite += __shfl_xor_sync(ALL, nonfinite, k);
        nonpositive += __shfl_xor_sync(ALL, nonpositive, k);
    }
    if (lane) return;
    rows[r].first = last < 0 ? 0 : first;
    rows[r].length = last < 0 ? 0 : (last - first + lanes) / lanes * lanes;
    if (masked) atomicAdd(totals, (u64)masked);
    if (nonfinite) atomicAdd(totals + 1, (u64)nonfinite);
    if (nonpositive) atomicAdd(totals + 2, (u64)nonpositive);
}

// Pack the logarithms. ends[r] is the index after the last packed voxel of row r.
extern "C" __global__ void fill_rows(
    const float *image, const unsigned char *mask, const float *weights, int n_rows, int n_x, const long long *ends,
    Row *rows, float *log_image, float *packed_weights, u32 *words
) {
    int lane = threadIdx.x & 31, r = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
    if (r >= n_rows) return;
    Row row = rows[r];
    row.start = (int)(ends[r] - row.length);
    __syncwarp();
    if (lane == 0) {
        rows[r].start = row.start;
        // Padding beyond the image does not count, since no sweep writes there.
        if (row.start == 0 && row.length) words[FIRST_LENGTH] = min(row.length, n_x - row.first);
    }
    float low = infinity(), high = -infinity();
    for (int i = lane; i < row.length; i += 32) {
        int x = row.first + i;
        size_t at = (size_t)r * n_x + x;
        bool inside = x < n_x && is_inside(mask, weights, at);
        float value = inside && usable(true, image[at]) ? logf(image[at]) : infinity();
        log_image[row.start + i] = value;
        if (weights) packed_weights[row.start + i] = inside && weights[at] < infinity() ? weights[at] : 0.0f;
        if (value < infinity()) {
            low = fminf(low, value);
            high = fmaxf(high, value);
        }
    }
    low = least_of_warp(low);
    high = greatest_of_warp(high);
    if (lane == 0 && low <= high) {
        atomicMin(words + LOG_LOW, ordered(low));
        atomicMax(words + LOG_HIGH, ordered(high));
    }
}

extern "C" __global__ void count_highest(const float *log_image, int n, u32 *words) {
    u32 found = 0;
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < (u32)n; i += gridDim.x * blockDim.x)
        found += log_image[i] < infinity() && ordered(log_image[i]) == words[LOG_HIGH];
    for (int k = 16; k; k >>= 1) found += __shfl_xor_sync(ALL, found, k);
    if ((threadIdx.x & 31) == 0 && found) atomicAdd(words + AT_HIGH, found);
}
