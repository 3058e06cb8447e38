// What the kernels share. Every file here is plain CUDA C++, joined into one module by `gpu_module`; the tests also
// compile it for the host, with a header that takes the place of the device.
//
// Rules that keep results equal to the bit from run to run, and from device to device: no sum of floating numbers by
// atomics; a strip writes its sums to its own place and these are added in a written order; multiply-adds are written
// as fmaf, and the compiler is told to make none of its own (--fmad=false). Histograms and extremes are whole numbers.

#ifndef ROOM
#define ROOM extern __shared__ double room[]  // dynamic shared memory
#endif

typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short u16;

#define LEAST_WEIGHT 1.2e-8   // see bspline
#define LEAST_SPREAD 1e-6     // range of log intensity that float32 hardly resolves
#define MOST_FINE 65000       // fine bins: their index is 16 bits
#define SMALL_STEP 0.1        // |step of the log field| up to which four terms give expm1 to 8e-8
#define TERMS 12              // for larger ones
#define ABSENT 1e9f           // marks voxels outside the mask among the changes
#define PRESENT 1e8f          // changes of voxels in the mask are below
#define RECORDS 64            // voxels of a rising start that ITK may miss
#define ALL 0xffffffffu

// `words`: whole numbers that the kernels have in common
enum Word { FINE, ACTIVE, STOP, MADE, MOST, END_LOW, END_HIGH, FIRST_LENGTH, LOG_LOW, LOG_HIGH, AT_HIGH };
// `state`: what they know of the range. LOW is its lowest value as ITK sees it, FLOOR the lowest there is
enum State { LOW, HIGH, FLOOR, ORIGIN, STEP, REST_COUNT, REST_TOTAL, REST_SQUARES, MEASURE };
// what a level does next
enum Verdict { GO_ON, END, ASK };

// a row of the image among the packed voxels: where it begins, the x of its first voxel, its length
struct __align__(16) Row { int start, first, length, unused; };

static __device__ __forceinline__ float infinity() { return __uint_as_float(0x7f800000u); }

// float numbers in an order that unsigned numbers have, too
static __device__ __forceinline__ u32 ordered(float value) {
    u32 bits = __float_as_uint(value);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

static __device__ __forceinline__ float sum_of_warp(float value) {
    for (int k = 16; k; k >>= 1) value += __shfl_xor_sync(ALL, value, k);
    return value;
}

static __device__ __forceinline__ double sum_of_warp(double value) {
    for (int k = 16; k; k >>= 1) value += __shfl_xor_sync(ALL, value, k);
    return value;
}

static __device__ __forceinline__ float least_of_warp(float value) {
    for (int k = 16; k; k >>= 1) value = fminf(value, __shfl_xor_sync(ALL, value, k));
    return value;
}

static __device__ __forceinline__ float greatest_of_warp(float value) {
    for (int k = 16; k; k >>= 1) value = fmaxf(value, __shfl_xor_sync(ALL, value, k));
    return value;
}

// whether the level's next iteration is to be made
static __device__ __forceinline__ bool goes_on(const u32 *words) {
    return words[STOP] == GO_ON && words[MADE] < words[MOST];
}

// the fine bins of the next sweep: no voxel moves by more than the largest control of the step
struct Grid { double origin, step, fine; };

static __device__ __forceinline__ Grid lay_grid(const double *state, double largest, int bins, int per_bin) {
    Grid grid;
    double extent = state[HIGH] - state[FLOOR] + 2.0 * largest;
    grid.step = fmax((state[HIGH] - state[LOW]) / ((double)(bins - 1) * per_bin), extent / (MOST_FINE - 8));
    grid.origin = state[FLOOR] - largest - grid.step;
    grid.fine = floor(extent / grid.step) + 4.0;
    return grid;
}
