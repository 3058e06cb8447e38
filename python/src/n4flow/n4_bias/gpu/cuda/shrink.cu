// Masked block means, see `shrink`. A thread computes a block of voxels, with the CPU's order of summation.
extern "C" __global__ void shrink_blocks(
    const float *image, const unsigned char *mask, const float *weights, int n_z, int n_y, int n_x, int deep, int high,
    int wide, int small_z, int small_y, int small_x, float *mean, float *shares, float *totals
) {
    long long n = (long long)small_z * small_y * small_x;
    for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < n; i += (long long)gridDim.x * blockDim.x) {
        int x0 = (int)(i % small_x) * wide, y0 = (int)(i / small_x % small_y) * high;
        int z0 = (int)(i / small_x / small_y) * deep;
        int x1 = min(x0 + wide, n_x), y1 = min(y0 + high, n_y), z1 = min(z0 + deep, n_z), count = 0;
        double total = 0.0, weight = 0.0;
        for (int z = z0; z < z1; ++z)
            for (int y = y0; y < y1; ++y)
                for (int x = x0; x < x1; ++x) {
                    size_t at = ((size_t)z * n_y + y) * n_x + x;
                    if (!usable(mask[at], image[at])) continue;
                    float w = weights ? weights[at] : 1.0f;
                    if (!(w > 0.0f)) continue;
                    total += (double)image[at] * w;
                    weight += w;
                    count += 1;
                }
        int voxels = (z1 - z0) * (y1 - y0) * (x1 - x0);
        mean[i] = count ? (float)(total / weight) : 0.0f;
        shares[i] = (float)((double)count / voxels);
        if (totals) totals[i] = (float)(weight / voxels);
    }
}
