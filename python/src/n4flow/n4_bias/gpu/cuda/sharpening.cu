// Sharpening by one block: the residual of each fine bin from the counts of all; see `sharpening_kernels`.

// Fourier transform of re + i im, in place and unscaled, by Stockham's algorithm, which needs no bit reversal.
static __device__ void transform(
    double *re, double *im, double *re2, double *im2, int size, const double *cosine, const double *sine, double sign
) {
    double *to = re, *to_im = im;
    int run = 1;
    for (int half = size >> 1; half; half >>= 1, run <<= 1) {
        for (int i = threadIdx.x; i < size >> 1; i += blockDim.x) {
            int k = i & (run - 1), j = i - k;  // j is a multiple of `run`
            double wr = cosine[j], wi = sign * sine[j];
            double xr = re[i], xi = im[i], yr = re[i + (size >> 1)], yi = im[i + (size >> 1)];
            double zr = xr - yr, zi = xi - yi;
            int s = 2 * j + k, u = s + run;
            re2[s] = xr + yr;
            im2[s] = xi + yi;
            re2[u] = zr * wr - zi * wi;
            im2[u] = zr * wi + zi * wr;
        }
        __syncthreads();
        double *swap = re;
        re = re2, re2 = swap;
        swap = im, im = im2, im2 = swap;
    }
    if (re == to) return;
    for (int i = threadIdx.x; i < size; i += blockDim.x) to[i] = re[i], to_im[i] = im[i];
    __syncthreads();
}

// Write the histogram: the count of each fine bin is divided between the two nearest bins. `upper` is a work array.
static __device__ void split_counts(
    const int *counts, int n_fine, double start, double stride, const int *bounds, int bins, double *histogram,
    double *upper
) {
    for (int i = threadIdx.x; i < bins - 1; i += blockDim.x) {
        int begin = bounds[i];
        long long total = 0, moment = 0;
        for (int k = 0; k < bounds[i + 1] - begin; ++k) {
            long long n = counts[begin + k];
            total += n;
            moment += n * k;
        }
        double next = total * (start + begin * stride - i) + moment * stride;
        histogram[i] = total - next;
        upper[i] = next;
    }
    if (threadIdx.x == 0) histogram[bins - 1] = 0.0;
    __syncthreads();
    for (int i = threadIdx.x; i < bins; i += blockDim.x) {
        long long beyond = 0;  // The centre of the lowest fine bin may lie below the first bin.
        if (i == 0)
            for (int f = 0; f < bounds[0]; ++f) beyond += counts[f];
        if (i == bins - 1)
            for (int f = bounds[i]; f < n_fine; ++f) beyond += counts[f];
        histogram[i] = (i ? beyond + upper[i - 1] : (double)beyond) + histogram[i];
    }
    __syncthreads();
}

// Write E[true | observed] of each bin, see `sharpening.expected_log_intensity`.
static __device__ void expect(
    const double *histogram, double low, double high, int bins, int size, double fwhm, double wiener,
    const double *cosine, const double *sine, double *work, double *expected
) {
    double *re = work, *im = re + size, *re2 = im + size, *im2 = re2 + size, *blur = im2 + size;
    int offset = (size - bins) >> 1;
    double slope = (high - low) / (bins - 1), width = fwhm / slope;
    double scale = 2 * sqrt(0.6931471805599453 / 3.141592653589793) / width;
    double rate = -4 * 0.6931471805599453 / (width * width);
    for (int k = threadIdx.x; k < size; k += blockDim.x) {
        double distance = min(k, size - k);
        im[k] = scale * exp(rate * (distance * distance));
        re[k] = k >= offset && k < offset + bins ? histogram[k - offset] : 0.0;
    }
    __syncthreads();
    transform(re, im, re2, im2, size, cosine, sine, -1.0);
    // The transform of the real part is (z[k] + conj z[-k]) / 2. The Gaussian is even, so its transform is real.
    for (int k = threadIdx.x; k < size; k += blockDim.x) {
        int m = k ? size - k : 0;
        double f = (im[k] + im[m]) * 0.5, half_filter = 0.5 * f / (f * f + wiener);
        blur[k] = f;
        re2[k] = (re[k] + re[m]) * half_filter;
        im2[k] = (im[k] - im[m]) * half_filter;
    }
    __syncthreads();
    transform(re2, im2, re, im, size, cosine, sine, 1.0);
    for (int k = threadIdx.x; k < size; k += blockDim.x) {
        double sharpened = fmax(re2[k], 0.0) / size;
        re[k] = sharpened;
        im[k] = sharpened * (low + ((double)k - offset) * slope);
    }
    __syncthreads();
    transform(re, im, re2, im2, size, cosine, sine, -1.0);
    for (int k = threadIdx.x; k < size; k += blockDim.x) {
        re[k] *= blur[k];
        im[k] *= blur[k];
    }
    __syncthreads();
    transform(re, im, re2, im2, size, cosine, sine, 1.0);
    for (int i = threadIdx.x; i < bins; i += blockDim.x) {
        double bottom = re[offset + i];
        expected[i] = bottom != 0.0 ? im[offset + i] / bottom : 0.0;
    }
    __syncthreads();
}

// Find the lowest position in the first row as ITK 5.4 does, among voxels that do not raise the maximum so far, and
// record the voxels that raise it, which ITK may miss (`sharpening.itk_range`). A warp compares 32 voxels at a time.
struct Start { float lowest; int noted; };

static __device__ Start first_lowest(
    const float *first_row, int length, float outside, int lane, int *places, float *positions
) {
    Start start = {outside, 0};
    float highest = -1.0f;  // below every position
    for (int x0 = 0; x0 < length; x0 += 32) {
        float p = x0 + lane < length ? first_row[x0 + lane] : outside;
        bool there = p < outside;
        float top = there ? p : -1.0f;  // the highest position up to this lane
        for (int k = 1; k < 32; k <<= 1) {
            float before = __shfl_up_sync(ALL, top, k);
            if (lane >= k) top = fmaxf(top, before);
        }
        float before = __shfl_up_sync(ALL, top, 1);
        bool raises = there && p > (lane ? fmaxf(before, highest) : highest);
        u32 raising = __ballot_sync(ALL, raises);
        int place = start.noted + __popc(raising & ((1u << lane) - 1));
        if (raises && place < RECORDS) {
            places[place] = x0 + lane;
            positions[place] = p;
        }
        if (there && !raises) start.lowest = fminf(start.lowest, p);
        start.noted = min(start.noted + __popc(raising), RECORDS);
        highest = fmaxf(highest, __shfl_sync(ALL, top, 31));
    }
    start.lowest = least_of_warp(start.lowest);
    return start;
}

// Compute range, histogram and the residual of every fine bin after the second sweep, and clear the counts. `spare` is
// global memory for (5 size + 2 bins) double and (bins) int, used if shared memory is too small for them.
extern "C" __global__ void sharpen(
    u32 *words, double *state, int *counts, u16 *index, const float *first_row, int bins, int size, double fwhm,
    double wiener, const double *__restrict__ cosine, const double *__restrict__ sine, double *spare, float *table,
    u64 *largest
) {
    if (!words[ACTIVE]) return;
    ROOM;
    __shared__ float positions[RECORDS];
    __shared__ int places[RECORDS], missed;
    __shared__ double range[2];
    int t = threadIdx.x, width = blockDim.x, n_fine = (int)words[FINE];
    double *work = spare ? spare : room, *histogram = work + 5 * size, *expected = histogram + bins;
    int *bounds = (int *)(expected + bins);
    double origin = state[ORIGIN], step = state[STEP];
    Start first;
    if (t < 32) first = first_lowest(first_row, (int)words[FIRST_LENGTH], (float)n_fine, t, places, positions);
    __syncwarp();
    if (t == 0) {
        float low = fminf(__uint_as_float(words[END_LOW]), first.lowest), high = __uint_as_float(words[END_HIGH]);
        float lowest = first.noted ? fminf(low, positions[0]) : low;
        if (!(high > low)) low = lowest;  // The values that ITK finds have no spread.
        missed = 0;
        range[0] = state[LOW] = origin + low * step;
        state[FLOOR] = origin + lowest * step;
        range[1] = state[HIGH] = origin + high * step;
        if (range[1] - range[0] > LEAST_SPREAD)
            // Voxels that ITK misses lie below its range: they are removed from the counts and get bins of their own.
            for (; missed < first.noted && positions[missed] < low; ++missed) {
                counts[index[places[missed]]] -= 1;
                index[places[missed]] = (u16)(n_fine + 1 + missed);
            }
        words[END_LOW] = 0x7f800000u;
        words[END_HIGH] = 0;
        *largest = 0;
    }
    __syncthreads();
    double low = range[0], high = range[1];
    if (high - low <= LEAST_SPREAD) {  // The field explains all variation.
        for (int f = t; f <= n_fine; f += width) table[f] = 0.0f;
    } else {
        double per_bin = (bins - 1) / (high - low);
        double start = (origin + 0.5 * step - low) * per_bin, stride = step * per_bin;  // of fine bins, measured in bins
        for (int i = t; i < bins; i += width) bounds[i] = min(max((int)ceil((i - start) / stride), 0), n_fine);
        __syncthreads();
        split_counts(counts, n_fine, start, stride, bounds, bins, histogram, expected);
        expect(histogram, low, high, bins, size, fwhm, wiener, cosine, sine, work, expected);
        for (int f = t; f < bounds[0]; f += width) table[f] = (float)(origin + (f + 0.5) * step - expected[0]);
        for (int f = bounds[bins - 1] + t; f < n_fine; f += width)
            table[f] = (float)(origin + (f + 0.5) * step - expected[bins - 1]);
        for (int i = t; i < bins - 1; i += width) {
            double slope = expected[i + 1] - expected[i], rise = step - slope * stride;
            int begin = bounds[i];
            double value = origin + (begin + 0.5) * step - expected[i] - slope * (start + begin * stride - i);
            for (int k = 0; k < bounds[i + 1] - begin; ++k) table[begin + k] = (float)(value + k * rise);
        }
        if (t == 0) {
            table[n_fine] = 0.0f;
            for (int k = 0; k < missed; ++k)
                table[n_fine + 1 + k] = (float)(origin + positions[k] * step - expected[bins - 1]);
        }
        __syncthreads();
    }
    for (int f = t; f < n_fine; f += width) counts[f] = 0;
}
