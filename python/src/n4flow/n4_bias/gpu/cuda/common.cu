// Constants and functions that all kernels use. The files of this folder are plain CUDA C++; `cuda_source` joins them
// to one module, and the tests also compile them for the host, with a header that emulates the device.
//
// Rules that make results identical from run to run and from device to device: floating-point numbers are not summed by
// atomics; each strip writes its sums to its own place, and these are added in a fixed order; multiply-adds are written
// as fmaf, and the compiler does not contract others (--fmad=false). Histograms and extremes are integers.

#ifndef ROOM
#define ROOM extern __shared__ double room[]  // dynamic shared memory
#endif

typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short u16;

// The first four are the constants of `bspline`, `reference`, `level_kernels` and `sweep_kernels`, which explain them.
#define LEAST_WEIGHT 1.2e-8
#define LEAST_SPREAD 1e-6
#define MOST_FINE 65000
#define SMALL_STEP 0.1
#define TERMS 12              // terms of expm1 for larger steps
#define ABSENT 1e9f           // marks voxels outside the mask in the array of changes
#define PRESENT 1e8f          // changes of voxels in the mask are smaller than this
#define RECORDS 64            // at most this many voxels that ITK may miss at the start of an image are recorded
#define ALL 0xffffffffu       // all lanes of a warp

// Indices into `words`, the integers that the kernels share.
enum Word { FINE, ACTIVE, STOP, MADE, MOST, END_LOW, END_HIGH, FIRST_LENGTH, LOG_LOW, LOG_HIGH, AT_HIGH };
// Indices into `state`. LOW is the lowest value that ITK finds, FLOOR the lowest there is.
enum State { LOW, HIGH, FLOOR, ORIGIN, STEP, REST_COUNT, REST_TOTAL, REST_SQUARES, MEASURE };
// Values of words[STOP]: the level goes on, ends, or the host decides.
enum Verdict { GO_ON, END, ASK };

// A row of the image: index of its first packed voxel, the x of that voxel, its length.
struct __align__(16) Row { int start, first, length, unused; };

static __device__ __forceinline__ float infinity() { return __uint_as_float(0x7f800000u); }

// An unsigned number for a float, in the same order.
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

// Whether the level has a further iteration.
static __device__ __forceinline__ bool goes_on(const u32 *words) {
    return words[STOP] == GO_ON && words[MADE] < words[MOST];
}

// The fine bins of the next sweep: no voxel changes by more than the largest control point of the step.
struct Grid { double origin, step, fine; };

static __device__ __forceinline__ Grid lay_grid(const double *state, double largest, int bins, int per_bin) {
    Grid grid;
    double extent = state[HIGH] - state[FLOOR] + 2.0 * largest;
    grid.step = fmax((state[HIGH] - state[LOW]) / ((double)(bins - 1) * per_bin), extent / (MOST_FINE - 8));
    grid.origin = state[FLOOR] - largest - grid.step;
    grid.fine = floor(extent / grid.step) + 4.0;
    return grid;
}
