// By how much a step changed the field: ITK's running float32 measure (see `convergence`), side by side.
//
// ITK's mean waits for itself at every voxel. The compiled CPU version takes blocks of up to 128 voxels at a time, one
// after the other; a device that did so would stand idle. Here the kept changes are cut into chunks, and each chunk is
// walked by a warp of its own, in such blocks, from a guess of the mean at its start. How a chunk's last mean follows
// from its first is nearly a straight line. So from all chunks' ends and slopes the means at all starts follow at once,
// and with these the chunks are walked again: the slopes are then those that were seen. After PASSES walks the guesses
// and what follows from them agree; by how much they do not is added to the margin within which the host decides.

#define COUNT_LIMIT 16777216.0  // 2^24, where a float32 count stops
#define EXACT 256               // voxels at the beginning whose mean is taken exactly: there a step is many units
#define BLOCK 128
#define HELD (BLOCK / 32)        // voxels of a block that a lane holds
#define SHORT_BLOCK 32          // as long as the mean moves much within a block
#define CLOSE 3e-3
#define DOUBTFUL 1e-2           // of the measure, by which guesses are still off where walks did not come together

// what a chunk holds, whatever the mean: voxels, their changes' sum, sum of squares, least and greatest
struct __align__(16) Totals { double there, total, squares; float least, greatest; };
// a walk over a chunk: the mean it began with, the one it ended with, how the second follows from the first, squares
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

// voxels and exact mean before chunk c
static __device__ void before(const Totals *totals, int c, int lane, double *count, double *mean) {
    double there = 0.0, total = 0.0;
    for (int k = lane; k < c; k += 32) there += totals[k].there, total += totals[k].total;
    *count = sum_of_warp(there);
    total = sum_of_warp(total);
    *mean = *count > 0.0 ? total / *count : 0.0;
}

// the map from the mean at the start of chunk `begin` to that at the start of chunk `end`
static __device__ Map joined(const Walk *walks, int begin, int end) {
    Map map = {1.0, 0.0};
    for (int k = begin; k < end; ++k) {
        Map next = {walks[k].slope, walks[k].end - walks[k].slope * walks[k].start};
        map = follow(map, next);
    }
    return map;
}

// The mean at the start of chunk c, as it follows from the walks: each lane joins a run of chunks, then lanes are
// joined. `off`: by how much, at most, the guesses of the chunks before differ from what follows.
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

static __device__ __forceinline__ double unit_of(double mean) {  // float32's spacing below and above p = 1 + mean = 1
    return mean < 0.0 ? 1.0 / 16777216.0 : 1.0 / 8388608.0;
}

static __device__ __forceinline__ bool stands_still(float least, float greatest, double mean, double count) {
    double largest = fmax(greatest - mean, mean - least);
    return largest < 0.499 * unit_of(mean) * fmin(count, COUNT_LIMIT);
}

// what a lane holds of the changes from `at` on
static __device__ __forceinline__ void hold(const float *kept, int at, int end, int lane, float *held) {
#pragma unroll
    for (int k = 0; k < HELD; ++k) {
        int i = at + lane + 32 * k;
        held[k] = i < end ? kept[i] : ABSENT;
    }
}

// Walk a chunk from `mean`; a warp does it, and every lane knows the result. A block's changes are fetched while the one
// before is looked at: there is nothing else to do while they are on their way.
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
    float held[HELD], coming[HELD];
    hold(kept, begin, end, lane, coming);
    for (int at = begin, size; at < end; at += size) {
        bool exact = at < EXACT;  // only the first chunk begins so early
        size = exact ? BLOCK : min(BLOCK, max(SHORT_BLOCK, (int)(count / 64))) & ~7;
        size = min(size, end - at);
        float there = 0.0f, total = 0.0f, about = 0.0f, least = infinity(), greatest = -infinity(), centre = (float)mean;
#pragma unroll
        for (int k = 0; k < HELD; ++k) {
            float e = held[k] = lane + 32 * k < size ? coming[k] : ABSENT;
            if (e >= PRESENT) continue;
            float d = e - centre;
            there += 1.0f;
            total += d;
            about = fmaf(d, d, about);
            least = fminf(least, e);
            greatest = fmaxf(greatest, e);
        }
        hold(kept, at + size, end, lane, coming);
        there = sum_of_warp(there);
        total = sum_of_warp(total);
        about = sum_of_warp(about);
        if (there == 0.0f) continue;
        if (exact) {  // the exact mean of what was seen and of the block together
            squares += about - (double)total * total / (count + there);
            count += there;
            mean += total / count;
            continue;
        }
        if (!stands_still(least_of_warp(least), greatest_of_warp(greatest), mean, count)) {
            // each voxel's step from where count and mean are in the middle of the block, in whole units
            double unit = unit_of(mean), seen = fmin(count + 0.5 * there, COUNT_LIMIT);
            float middle = (float)(mean + 0.5 * total / (count + there)), scale = (float)(1.0 / (unit * seen)), steps = 0.0f;
#pragma unroll
            for (int k = 0; k < HELD; ++k)
                if (held[k] < PRESENT) steps += rintf((held[k] - middle) * scale);
            double step = unit * sum_of_warp(steps);
            squares += about - total * step;  // the mean came nearer within the block
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
    __shared__ double known[4];  // kept voxels, their last mean, their squares, by how much guesses were off
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
    if (chunks) {  // after the kept voxels the mean stands still, and plain sums over the rest suffice
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
