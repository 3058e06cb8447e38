"""N4 on a GPU: the algorithm of `cpu.fit`, with kernels in `cuda/*.cu` that this module launches.

It differs from the CPU only in where the work is done:

- packing, both sweeps, sharpening and the convergence measure run on the device. An iteration is one CUDA graph of
  about ten launches; the measure, which takes long on a device, runs in parallel to the next sweep;
- the device itself decides whether a level goes on; after its end, later launches of that level return at once. The
  host reads the decision two batches late, so that the device never waits for it;
- if the measure is within 0.3 % of the threshold, or uncertain, the host decides: it copies the changes and computes
  the measure with the CPU's code. So levels end after the same number of iterations as on the CPU.

Two runs give identical results. Results of the CPU differ in the order of sums and in the library's logarithm.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from n4flow.compute.gpu import as_float32, multiprocessors, streams
from n4flow.compute.progress import advance
from n4flow.compute.simd import LANES
from n4flow.errors import InputError
from n4flow.n4_bias.cpu.convergence_kernels import itk_measure
from n4flow.n4_bias.cpu.fit import KEPT_VOXELS, fine_per_bin
from n4flow.n4_bias.cpu.level_kernels import MOST_FINE
from n4flow.n4_bias.gpu.cuda_source import launch
from n4flow.n4_bias.gpu.level import SHARED_BYTES, LevelArrays, lay_out
from n4flow.n4_bias.gpu.sharpen import from_ordered
from n4flow.n4_bias.problem import Solution, Survey, Voxels
from n4flow.n4_bias.settings import FitSettings, Level
from n4flow.n4_bias.sharpening import fourier_table, padded_size

MOST_VOXELS = 2**31 - 2**10  # The kernels index the voxels of the fitted image with 32 bits.
FINE_ROOM = MOST_FINE + 512  # size of arrays over fine bins: MOST_FINE, and voxels that ITK misses
BATCH = 4  # iterations that are launched before the host reads the decision of an earlier batch
THREADS = 256  # threads of a block
WARP = 32
FIT_THREADS, FIELD_THREADS = 1536, 1024  # threads for which a multiprocessor has enough registers in each sweep
SHARED_FINE = 8192  # A block counts at most this many fine bins in shared memory, and the others in global memory.
ABSENT = 1e9  # the value of ABSENT in common.cu
PASSES = 4  # passes over the kept changes, see measure.cu
# Where chunks of the kept changes begin: short ones where the mean still moves much, then one every CHUNK voxels.
FIRST_CHUNKS = (*range(0, 4096, 512), *range(4096, 8192, 1024))
CHUNK = 2048
TOTALS_BYTES, WALK_BYTES = 32, 32  # sizes of the structures Totals and Walk of measure.cu

# Indices into `words` and `state`, and the decisions, with the values of the enumerations in common.cu.
FINE, ACTIVE, STOP, MADE, MOST, END_LOW, END_HIGH, FIRST_LENGTH, LOG_LOW, LOG_HIGH, AT_HIGH = range(11)
LOW, HIGH, FLOOR, ORIGIN, STEP, REST_COUNT, REST_TOTAL, REST_SQUARES, MEASURE = range(9)
GO_ON, END, ASK = range(3)
FLOAT_INFINITY = 0x7F800000

i4, f8 = np.int32, np.float64


@dataclass
class DevicePacked:
    """A packed image on the device; see `packing.Packed`."""

    log_image: Any  # (n,) float32
    weights: Any  # (n,) float32; None if all voxels have the same weight
    rows: Any  # (Z * Y, 4) int32: index of a row's first packed voxel, the x of that voxel, the row's length
    words: Any  # (11,) uint32: integers that the kernels share
    shape: tuple[int, int, int]
    survey: Survey


def pack(image: Any, mask: Any, weights: Any, _threads: int) -> DevicePacked:
    """Pack the usable voxels of an image, given as NumPy or CuPy arrays, on the device; see `packing.pack`.

    Raises
    ------
    InputError
        The image has more voxels than the kernels can index.
    """
    import cupy

    _check_size(math.prod(image.shape))
    shape = (1,) * (3 - image.ndim) + tuple(image.shape)
    n_rows, n_x = shape[0] * shape[1], shape[2]
    values = as_float32(cupy.asarray(image))
    inside = cupy.ascontiguousarray(cupy.asarray(mask), dtype=bool)
    given = None if weights is None else as_float32(cupy.asarray(weights))
    rows, totals = cupy.zeros((n_rows, 4), cupy.int32), cupy.zeros(3, cupy.uint64)
    blocks = -(-n_rows * WARP // THREADS)
    launch("find_rows", blocks, THREADS, values, inside, given, i4(n_rows), i4(n_x), i4(LANES), rows, totals)
    ends = cupy.cumsum(rows[:, 2], dtype=cupy.int64)
    n = int(ends[-1])  # synchronize
    _check_size(n)  # Rows are padded, so that there may be more packed voxels than voxels.
    start = np.zeros(11, np.uint32)
    start[[MOST, END_LOW, LOG_LOW]] = 1, FLOAT_INFINITY, 0xFFFFFFFF
    words = cupy.asarray(start)
    log_image = cupy.empty(n, cupy.float32)
    packed = None if given is None else cupy.empty(n, cupy.float32)
    launch(
        "fill_rows", blocks, THREADS,
        values, inside, given, i4(n_rows), i4(n_x), ends, rows, log_image, packed, words,
    )  # fmt: skip
    launch("count_highest", min(1024, -(-n // THREADS)), THREADS, log_image, i4(n), words)
    found = words.get()  # synchronize
    voxels = Voxels(*(int(count) for count in totals.get()))
    low, high = (math.exp(from_ordered(found[k])) if n else 0.0 for k in (LOG_LOW, LOG_HIGH))
    return DevicePacked(log_image, packed, rows, words, shape, Survey(voxels, low, high, int(found[AT_HIGH])))


def _check_size(voxels: int) -> None:
    if voxels > MOST_VOXELS:
        msg = f"the fitted image has {voxels} voxels, a GPU takes {MOST_VOXELS} at most; shrink more"
        raise InputError(msg)


def chunk_cuts(kept: int) -> np.ndarray:
    """Return the first index of each chunk of the kept changes, and the end of the last: (chunks + 1,) int32."""
    return np.array([*(c for c in FIRST_CHUNKS if c < kept), *range(8192, kept, CHUNK), kept], i4)


def fit(packed: DevicePacked, controls: Sequence[tuple[int, ...]], settings: FitSettings) -> Solution:
    """Fit a packed image; see `cpu.fit`."""
    import cupy

    stream, side = streams()
    stream.wait_event(cupy.cuda.get_current_stream().record())
    with stream:
        solution = _Fit(packed, controls, settings, stream, side).run()
        stream.synchronize()
    return solution


class _Fit:
    """The arrays of one fit on the device, and its launches."""

    def __init__(
        self, packed: DevicePacked, controls: Sequence[tuple[int, ...]], settings: FitSettings, stream: Any, side: Any
    ) -> None:
        import cupy
        import cupyx

        self.packed, self.controls, self.settings = packed, controls, settings
        self.stream, self.side = stream, side
        self.words = packed.words
        self.steps = [(1,) * (3 - len(c)) + tuple(c) for c in controls]
        self.per_bin = fine_per_bin(packed.survey.usable, settings.bins)
        self.size = padded_size(settings.bins)
        n, n_x = packed.log_image.size, packed.shape[2]
        kept = min(n, KEPT_VOXELS) if settings.convergence == "itk" else 0
        cuts = chunk_cuts(kept)
        self.chunks = cuts.size - 1
        self.multiprocessors = multiprocessors()
        self.width = min(THREADS, -(-n_x // WARP) * WARP)
        self.levels = lay_out(packed.shape, self.steps, self.width)
        strips = max(level.strips for level in self.levels)
        most = max(1, *settings.iterations)

        self.index = cupy.empty(n, cupy.uint16)
        self.kept = cupy.full(kept, ABSENT, cupy.float32)
        self.bounds = cupy.asarray(cuts)
        self.totals = cupy.empty(max(1, self.chunks) * TOTALS_BYTES, cupy.uint8)
        self.walks = cupy.empty(max(1, PASSES * self.chunks) * WALK_BYTES, cupy.uint8)
        self.partial = cupy.empty(max(level.partial_size for level in self.levels), cupy.float32)
        self.changes = cupy.empty((strips, 2), cupy.float64)
        self.counts = cupy.zeros(FINE_ROOM, cupy.int32)
        self.table = cupy.empty(FINE_ROOM, cupy.float32)
        self.first_row = cupy.empty(n_x + LANES, cupy.float32)
        self.measures = cupy.zeros((len(controls), most), cupy.float64)
        self.largest = cupy.zeros(1, cupy.uint64)
        # These buffers live as long as the fit: a level may end while a copy into one of them is under way.
        self.slots = [cupyx.empty_pinned(self.words.shape, np.uint32) for _ in range(2)]
        low, high = np.log([packed.survey.low, packed.survey.high])
        self.state = cupy.asarray(np.array([low, high, low, 0, 0, 0, 0, 0, 0], f8))
        self.waves = cupy.asarray(np.stack(fourier_table(self.size)))
        doubles = 5 * self.size + 2 * settings.bins
        self.sharpen_bytes = 8 * doubles + 4 * settings.bins
        self.spare = cupy.empty(doubles + settings.bins, cupy.float64) if self.sharpen_bytes > SHARED_BYTES else None

    def run(self) -> Solution:
        """Fit all levels."""
        made = []
        # CUDA loads a kernel at its first launch, which must not happen while a graph is captured. Other kernels are
        # launched before that; the measure is launched here for this reason alone, and returns since no level has
        # begun.
        self._measure(0)
        for number, level in enumerate(self.levels):
            most = self.settings.iterations[number]
            if number == 0:  # The fine bins of the log image itself are those after a step of 0.
                self._field(level)
                self._sharpen()
            self._begin(number)
            if most:
                self._fit_sweep(level, weighing=True)
                self._combine(level, weighing=True)
                self._fit_sweep(level)
            made.append(self._iterate(number, most) if most else 0)
        measures = self.measures.get(stream=self.stream)  # synchronize
        lattice = self.levels[-1].lattice.get(stream=self.stream)[tuple(slice(c) for c in self.steps[-1])]
        levels = tuple(
            Level.ended(c, row[:n], self.settings) for c, row, n in zip(self.controls, measures, made, strict=True)
        )
        return Solution(lattice.reshape(self.controls[-1]), levels)

    def _iterate(self, number: int, most: int) -> int:
        """Iterate a level; return the number of iterations."""
        import cupy

        graph = self._capture(number)
        slots = list(self.slots)
        flight: deque[tuple[np.ndarray, Any]] = deque()
        launched = seen = 0
        while True:
            while launched < most and len(flight) < len(slots):
                batch = min(BATCH, most - launched)
                for _ in range(batch):
                    graph.launch(self.stream)
                launched += batch
                slot = slots.pop(0)
                slots.append(slot)
                self.words.get(stream=self.stream, out=slot, blocking=False)
                event = cupy.cuda.Event(block=False, disable_timing=True)
                event.record(self.stream)
                flight.append((slot, event))
            words, event = flight.popleft()
            event.synchronize()
            advance(int(words[MADE]) - seen)
            seen = int(words[MADE])
            if words[STOP] == ASK:
                flight.clear()
                launched = int(words[MADE])  # Launches after this iteration have returned at once.
                if self._decide(number, launched) or launched == most:
                    return launched
            elif words[STOP] == END or words[MADE] == most:
                return int(words[MADE])

    def _capture(self, number: int) -> Any:
        """Return one iteration as a CUDA graph: the step, the new field, and the measure beside the next fit."""
        import cupy

        level = self.levels[number]
        fork, join = (cupy.cuda.Event(disable_timing=True) for _ in range(2))
        self.stream.begin_capture()
        try:
            self._combine(level)
            self._field(level)
            self.side.wait_event(self.stream.record(fork))
            with self.side:
                self._measure(number)
            self._sharpen()
            self._fit_sweep(level)
            self.stream.wait_event(self.side.record(join))
        except BaseException:
            with contextlib.suppress(Exception):  # The first error is the one to report.
                self.stream.end_capture()
            raise
        return self.stream.end_capture()

    def _decide(self, number: int, made: int) -> bool:
        """Compute the measure with the CPU's code, where the device was uncertain; return whether the level ends."""
        kept, state = self.kept.get(stream=self.stream), self.state.get(stream=self.stream)  # synchronize
        rest = state[[REST_COUNT, REST_TOTAL, REST_SQUARES]].tolist()
        measure = itk_measure(kept, np.uintp(kept.size), *rest, self.settings.stop)
        ends = bool(measure <= self.settings.stop)
        self.measures[number, made - 1 : made] = measure
        self.words[STOP : STOP + 1] = END if ends else GO_ON
        return ends

    def _begin(self, number: int) -> None:
        level, last = self.levels[number], self.levels[number - 1]
        n = self.steps[number]
        coarse = (None, i4(0), i4(0), i4(0))
        if number:
            doubled = sum((a != b) << axis for axis, (a, b) in enumerate(zip(self.steps[number - 1], n, strict=True)))
            coarse = (last.lattice, i4(last.padded[1]), i4(last.padded[2]), i4(doubled))
        blocks = -(-math.prod(n) // THREADS)
        most = i4(self.settings.iterations[number])
        sizes = (i4(level.padded[1]), i4(level.padded[2]))
        launch("begin_level", blocks, THREADS, *coarse, level.lattice, *(i4(c) for c in n), *sizes, most, self.words)

    def _fit_sweep(self, level: LevelArrays, *, weighing: bool = False) -> None:
        packed = self.packed
        tables = level.squares if weighing else level.shares
        launch(
            "fit_sweep", self._blocks(level, FIT_THREADS), self.width,
            self.index, packed.weights, packed.rows, *(i4(n) for n in packed.shape), i4(level.run), i4(level.n_runs),
            self.table, i4(weighing), level.first_y, tables.y, tables.x, level.support_x, i4(level.padded[2]),
            i4(level.most_lines), self.partial, self.words, shared=level.fit_bytes(self.width),
        )  # fmt: skip

    def _combine(self, level: LevelArrays, *, weighing: bool = False) -> None:
        tables = level.squares if weighing else level.shares
        launch(
            "combine", level.padded[0] * level.padded[1], THREADS,
            self.partial, i4(self.packed.shape[1]), i4(level.run), i4(level.n_runs), i4(level.most_lines),
            level.first_z, tables.z, level.support_z, level.first_y, level.runs_of, i4(level.padded[1]),
            i4(level.padded[2]), f8(self.settings.over_relax), i4(weighing), level.omega, level.lattice, level.step,
            self.largest, self.words, shared=8 * THREADS,
        )  # fmt: skip

    def _field(self, level: LevelArrays) -> None:
        packed, weights = self.packed, level.weights
        fine = min(SHARED_FINE, (SHARED_BYTES - level.field_bytes(0)) // 4)
        launch(
            "field_sweep", self._blocks(level, FIELD_THREADS), self.width,
            packed.log_image, packed.rows, *(i4(n) for n in packed.shape), i4(level.run), i4(level.n_runs),
            level.lattice, level.step, i4(level.padded[1]), i4(level.padded[2]), i4(level.most_lines),
            level.first_z, weights.z, level.first_y, weights.y, level.first_x, weights.x,
            i4(self.settings.bins), i4(self.per_bin), i4(fine), self.largest, self.state, self.words,
            self.index, self.kept, i4(self.kept.size), self.changes, self.counts, self.first_row,
            shared=level.field_bytes(fine),
        )  # fmt: skip

    def _sharpen(self) -> None:
        settings = self.settings
        launch(
            "sharpen", 1, THREADS,
            self.words, self.state, self.counts, self.index, self.first_row, i4(settings.bins), i4(self.size),
            f8(settings.fwhm), f8(settings.wiener), self.waves[0], self.waves[1], self.spare, self.table,
            self.largest, shared=self.sharpen_bytes if self.spare is None else 0,
        )  # fmt: skip

    def _measure(self, number: int) -> None:
        chunks, level = i4(self.chunks), self.levels[number]
        launch("total_changes", self.chunks, THREADS, self.kept, self.bounds, self.totals, self.words)
        for k in range(PASSES):
            arguments = (self.kept, self.bounds, chunks, self.totals, self.walks, i4(k), self.words)
            launch("walk_chunks", self.chunks, WARP, *arguments)
        launch(
            "decide", 1, THREADS,
            self.totals, self.walks, chunks, i4(PASSES), self.changes, i4(level.strips),
            f8(self.packed.survey.usable), f8(self.settings.stop), self.measures[number], self.state, self.words,
        )  # fmt: skip

    def _blocks(self, level: LevelArrays, threads: int) -> int:
        """Return the number of blocks of a sweep: as many as run at once with `threads` on each multiprocessor."""
        return min(level.strips, self.multiprocessors * (threads // self.width))
