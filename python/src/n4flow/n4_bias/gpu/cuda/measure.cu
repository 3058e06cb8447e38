// The convergence measure: ITK's running float32 mean and sum of squares (see `convergence`), computed in parallel.
//
// Every step of ITK's mean depends on the step before. The CPU computes blocks of up to 128 voxels, one after the other
// (`convergence_kernels`), which would use a single warp of a device. Here the kept changes are cut into chunks, and a
// warp goes through each chunk in such blocks, starting from a guess of the mean. The mean at the end of a chunk is
// nearly a linear function of the mean at its start. So the ends and slopes of all chunks give better guesses for all
// starts, with which the chunks are computed again. After PASSES passes the guesses are consistent; the remaining
// inconsistency is added to the margin within which the host decides.

#define COUNT_LIMIT 16777216.0  // 2^24, at which a float32 count stops
#define EXACT 256               // the mean of the first voxels is computed without rounding: their steps are many units
#define BLOCK 128               // voxels of a block
#define PER_LANE (BLOCK / 32)   // voxels of a block for each lane
#define SHORT_BLOCK 32          // voxels of a block at the beginning, where the mean moves much within a block
#define CLOSE 3e-3              // margin about the threshold within which the host decides, relative to the threshold
#define DOUBTFUL 1e-2           // inconsistency of the guesses from which on the host decides, relative to the measure

// Sums over a chunk that do not depend on the mean: number of voxels; sum, sum of squares, extremes of their changes.
struct __align__(16) Totals { double there, total, squares; float least, greatest; };
// A pass over a chunk: the mean at its start and at its end, the derivative of the second by the first, sum of squares.
struct __align__(16) Walk { double start, end, slope, squares; };
struct Map { double slope, offset; };

static __device__ __forceinline__ Map follow(Map first, Map second) {
    Map both = {second.slope * first.slope, second.slope * first.offset + second.offset};
    return both;
}

extern "C" __global__ void total_changes(const float *kept, const int *bounds, Totals *totals, const u32 *words) {
    if (!words[ACTIVE]) return;
    int c = blockIdx.x, t = threadIdx.x, warp = t >> 5, lane = t & 31, warps = blockDim.x >> 5;
    double there = 0.0, total = 0.0, squares = 0.0;
    float least = infinity(), greatest = -infinity();
    for (int i = bounds[c] + t; i < bounds[c + 1]; i += blockDim.x) {
        float e = kept[i];
        if (e >= PRESENT) continue;
        there += 1.0;
        total += e;
        squares += (double)e * e;
        least = fminf(least, e);
        greatest = fmaxf(greatest, e);
    }
    __shared__ Totals parts[32];
    Totals mine = {sum_of_warp(there), sum_of_warp(total), sum_of_warp(squares), least_of_warp(least),
                   greatest_of_warp(greatest)};
    if (lane == 0) parts[warp] = mine;
    __syncthreads();
    if (t) return;
    for (int k = 1; k < warps; ++k) {
        mine.there += parts[k].there;
        mine.total += parts[k].total;
        mine.squares += parts[k].squares;
        mine.least = fminf(mine.least, parts[k].least);
        mine.greatest = fmaxf(mine.greatest, parts[k].greatest);
    }
    totals[c] = mine;
}

// Number of voxels and exact mean before chunk c.
static __device__ void before(const Totals *totals, int c, int lane, double *count, double *mean) {
    double there = 0.0, total = 0.0;
    for (int k = lane; k < c; k += 32) there += totals[k].there, total += totals[k].total;
    *count = sum_of_warp(there);
    total = sum_of_warp(total);
    *mean = *count > 0.0 ? total / *count : 0.0;
}

// The linear map from the mean at the start of chunk `begin` to that at the start of chunk `end`.
static __device__ Map joined(const Walk *walks, int begin, int end) {
    Map map = {1.0, 0.0};
    for (int k = begin; k < end; ++k) {
        Map next = {walks[k].slope, walks[k].end - walks[k].slope * walks[k].start};
        map = follow(map, next);
    }
    return map;
}

// The mean at the start of chunk c that follows from the last pass: each lane composes the maps of a run of chunks,
// then those of the lanes are composed. `off` is the largest error of the guesses for the chunks before.
static __device__ double composed(const Walk *walks, int c, int lane, double *off) {
    int each = (c + 31) / 32, begin = min(c, lane * each), end = min(c, begin + each);
    Map map = joined(walks, begin, end);
    for (int k = 1; k < 32; k <<= 1) {
        Map before = {__shfl_up_sync(ALL, map.slope, k), __shfl_up_sync(ALL, map.offset, k)};
        if (lane >= k) map = follow(before, map);
    }
    double mean = __shfl_up_sync(ALL, map.offset, 1), last = __shfl_sync(ALL, map.offset, 31);  // the first mean is 0
    if (lane == 0) mean = 0.0;
    *off = 0.0;
    for (int k = begin; k < end; ++k) {
        *off = fmax(*off, fabs(mean - walks[k].start));
        mean = walks[k].end + walks[k].slope * (mean - walks[k].start);
    }
    for (int k = 16; k; k >>= 1) *off = fmax(*off, __shfl_xor_sync(ALL, *off, k));
    return last;
}

static __device__ __forceinline__ double unit_of(double mean) {  // spacing of float32 numbers below and above 1
    return mean < 0.0 ? 1.0 / 16777216.0 : 1.0 / 8388608.0;
}

static __device__ __forceinline__ bool stands_still(float least, float greatest, double mean, double count) {
    double largest = fmax(greatest - mean, mean - least);
    return largest < 0.499 * unit_of(mean) * fmin(count, COUNT_LIMIT);
}

// Load the changes of a lane from `at` on.
static __device__ __forceinline__ void load_block(const float *kept, int at, int end, int lane, float *values) {
#pragma unroll
    for (int k = 0; k < PER_LANE; ++k) {
        int i = at + lane + 32 * k;
        values[k] = i < end ? kept[i] : ABSENT;
    }
}

// Go through a chunk from `mean` with a warp; every lane returns the result. The next block is loaded while the current
// one is computed.
static __device__ Walk walk_chunk(
    const float *kept, int begin, int end, const Totals &all, double count, double mean, int lane
) {
    Walk walk = {mean, mean, 1.0, 0.0};
    if (all.there == 0.0) return walk;
    if (count >= EXACT && stands_still(all.least, all.greatest, mean, count)) {
        walk.squares = all.squares - 2.0 * mean * all.total + all.there * mean * mean;
        return walk;
    }
    double squares = 0.0, first = count;
    float values[PER_LANE], next[PER_LANE];
    load_block(kept, begin, end, lane, next);
    for (int at = begin, size; at < end; at += size) {
        bool exact = at < EXACT;  // only in the first chunk
        size = exact ? BLOCK : min(BLOCK, max(SHORT_BLOCK, (int)(count / 64))) & ~7;
        size = min(size, end - at);
        float there = 0.0f, total = 0.0f, about = 0.0f, least = infinity(), greatest = -infinity(), centre = (float)mean;
#pragma unroll
        for (int k = 0; k < PER_LANE; ++k) {
            float e = values[k] = lane + 32 * k < size ? next[k] : ABSENT;
            if (e >= PRESENT) continue;
            float d = e - centre;
            there += 1.0f;
            total += d;
            about = fmaf(d, d, about);
            least = fminf(least, e);
            greatest = fmaxf(greatest, e);
        }
        load_block(kept, at + size, end, lane, next);
        there = sum_of_warp(there);
        total = sum_of_warp(total);
        about = sum_of_warp(about);
        if (there == 0.0f) continue;
        if (exact) {  // the exact mean of the voxels so far and of the block together
            squares += about - (double)total * total / (count + there);
            count += there;
            mean += total / count;
            continue;
        }
        if (!stands_still(least_of_warp(least), greatest_of_warp(greatest), mean, count)) {
            // Steps are computed with the count and the mean in the middle of the block, and rounded to whole units.
            double unit = unit_of(mean), seen = fmin(count + 0.5 * there, COUNT_LIMIT);
            float middle = (float)(mean + 0.5 * total / (count + there)), scale = (float)(1.0 / (unit * seen)), steps = 0.0f;
#pragma unroll
            for (int k = 0; k < PER_LANE; ++k)
                if (values[k] < PRESENT) steps += rintf((values[k] - middle) * scale);
            double step = unit * sum_of_warp(steps);
            squares += about - total * step;  // since the mean moves within the block
            mean += step;
        } else {
            squares += about;
        }
        count += there;
    }
    walk.end = mean;
    walk.slope = first / count;
    walk.squares = squares;
    return walk;
}

// One pass; `walks` is (passes, chunks).
extern "C" __global__ void walk_chunks(
    const float *kept, const int *bounds, int chunks, const Totals *totals, Walk *walks, int pass, const u32 *words
) {
    if (!words[ACTIVE]) return;
    int c = blockIdx.x, lane = threadIdx.x;
    double count, mean, off;
    before(totals, c, lane, &count, &mean);
    const Walk *last = walks + (size_t)max(pass - 1, 0) * chunks;
    if (pass) mean = composed(last, c, lane, &off);
    Walk walk = walk_chunk(kept, bounds[c], bounds[c + 1], totals[c], count, mean, lane);
    if (pass && walk.end != walk.start) {
        // the slope that was seen between the last two walks, where they lie apart
        double apart = walk.start - last[c].start;
        if (fabs(apart) > 1e-11) walk.slope = fmin(fmax((walk.end - last[c].end) / apart, 0.0), 1.0);
        else walk.slope = last[c].slope;
    }
    if (lane == 0) walks[(size_t)pass * chunks + c] = walk;
}

// The measure, and whether the level ends: `measures[made]`. Without kept changes it is the coefficient of variation.
// A close call is the host's (ASK), and so is one in doubt; it finds the sums over the rest in `state`.
extern "C" __global__ void decide(
    const Totals *totals, const Walk *walks, int chunks, int passes, const double2 *changes, int strips, double usable,
    double stop, double *measures, double *state, u32 *words
) {
    if (!words[ACTIVE]) return;
    __shared__ double2 parts[256];
    __shared__ double known[4];  // kept voxels, their last mean, their sum of squares, error of the guesses
    int t = threadIdx.x;
    double2 sum = make_double2(0.0, 0.0);
    for (int k = t; k < strips; k += blockDim.x) sum.x += changes[k].x, sum.y += changes[k].y;
    parts[t] = sum;
    if (t < 32) {
        const Walk *last = walks + (size_t)(passes - 1) * chunks;
        double count, mean, squares = 0.0, off = 0.0;
        before(totals, chunks, t, &count, &mean);
        for (int c = t; c < chunks; c += 32) squares += last[c].squares;
        squares = sum_of_warp(squares);
        if (chunks) mean = composed(last, chunks, t, &off);
        if (t == 0) known[0] = count, known[1] = mean, known[2] = squares, known[3] = off;
    }
    __syncthreads();
    for (int half = blockDim.x >> 1; half; half >>= 1) {
        if (t < half) parts[t].x += parts[t + half].x, parts[t].y += parts[t + half].y;
        __syncthreads();
    }
    if (t) return;
    double rest_count = usable - known[0], rest_total = parts[0].x, rest_squares = parts[0].y;
    double mean = known[1], squares = known[2], measure;
    if (chunks) {  // After the kept voxels the mean is frozen, and plain sums over the rest suffice.
        squares += fmax(rest_squares - 2.0 * mean * rest_total + rest_count * mean * mean, 0.0);
        double count = fmin(known[0] + rest_count, COUNT_LIMIT);
        measure = sqrt(squares / (count - 1.0)) / (1.0 + mean);
    } else {
        double spread = fmax(rest_squares - rest_total * rest_total / rest_count, 0.0) / (rest_count - 1.0);
        measure = sqrt(spread) / (1.0 + rest_total / rest_count);
    }
    state[REST_COUNT] = rest_count;
    state[REST_TOTAL] = rest_total;
    state[REST_SQUARES] = rest_squares;
    state[MEASURE] = measure;
    measures[words[MADE]] = measure;
    words[MADE] += 1;
    double off = known[3];
    bool close = fabs(measure - stop) <= CLOSE * stop + off || off > DOUBTFUL * measure;
    words[STOP] = chunks && close ? ASK : measure <= stop ? END : GO_ON;
}
