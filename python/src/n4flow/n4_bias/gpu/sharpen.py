"""`n4flow.sharpen_residual` on the device. Passes over voxels run there; the histogram is deconvolved on the host."""

from __future__ import annotations

from typing import Any

import numpy as np

from n4flow.compute.gpu import as_float32, multiprocessors, stream_planes
from n4flow.n4_bias import sharpening
from n4flow.n4_bias.gpu.cuda_source import launch

THREADS = 256
SHARED_BYTES = 48_000  # shared memory that every device grants a block
SHARE = 2.0**-30  # unit of the histogram, relative to the largest weight: integer sums do not depend on their order
LOWEST, HIGHEST, HEAVIEST = range(3)  # indices of the range in `_Sharpening.words`


Settings = tuple[int, float, float]  # number of bins, fwhm and Wiener noise; see `n4flow.sharpen_residual`


class _Sharpening:
    """Range, histogram and mapping of values that are given in one or several blocks."""

    def __init__(self, settings: Settings) -> None:
        import cupy

        self.bins, self.fwhm, self.wiener = settings
        self.words = cupy.asarray(np.array([0xFFFFFFFF, 0, 0], np.uint32))
        self.counts = cupy.zeros(self.bins, cupy.uint64)
        self.low = self.high = 0.0
        self.unit = 1.0
        self.expected: Any = None
        cupy.cuda.get_current_stream().synchronize()  # Blocks are computed on other streams.

    @property
    def _per_unit(self) -> float:
        return (self.bins - 1) / (self.high - self.low)

    def find_range(self, values: Any, inside: Any, weights: Any) -> None:
        """Include a block in the range."""
        arguments = (values, inside, weights, np.int64(values.size), self.words)
        launch("find_range", _blocks(values.size), THREADS, *arguments)

    def has_spread(self) -> bool:
        """Read the range of all blocks; return whether the values differ."""
        words = self.words.get()  # synchronize
        if words[LOWEST] > words[HIGHEST]:
            return False
        self.low, self.high = from_ordered(words[LOWEST]), from_ordered(words[HIGHEST])
        self.unit = from_ordered(words[HEAVIEST]) or 1.0
        return self.high > self.low

    def count(self, values: Any, inside: Any, weights: Any) -> None:
        """Add a block to the histogram."""
        in_shared = 8 * self.bins <= SHARED_BYTES
        launch(
            "split_histogram", _blocks(values.size), THREADS,
            values, inside, weights, np.int64(values.size), np.float64(self.low),
            np.float64(self._per_unit), np.int32(self.bins), np.float64(self.unit), np.int32(in_shared), self.counts,
            shared=8 * self.bins if in_shared else 0,
        )  # fmt: skip

    def expect(self) -> None:
        """Compute the expected value of each bin from the histogram of all blocks."""
        import cupy

        counts = self.counts.get().view(np.int64) * SHARE  # synchronize
        expected = sharpening.expected_log_intensity(counts, self.low, self.high, self.fwhm, self.wiener)
        self.expected = cupy.asarray(expected)
        cupy.cuda.get_current_stream().synchronize()

    def map(self, values: Any, inside: Any, out: Any) -> None:
        """Write the expected values of a block, and outside the mask its values."""
        launch(
            "map_values", _blocks(values.size), THREADS,
            values, inside, np.int64(values.size), np.float64(self.low), np.float64(self._per_unit),
            np.int32(self.bins), self.expected, out,
        )  # fmt: skip


def _blocks(size: int) -> int:
    return min(-(-size // THREADS), 8 * multiprocessors())


def from_ordered(bits: Any) -> float:
    """Return the float32 number that `ordered` of common.cu turned into `bits`."""
    bits = np.uint32(bits)
    bits = bits ^ np.uint32(0x80000000) if bits & np.uint32(0x80000000) else ~bits
    return float(np.array(bits, np.uint32).view(np.float32)[()])


def sharpen(values: Any, inside: Any, weights: Any, settings: Settings) -> Any:
    """Return the sharpened values of a CuPy array; see `n4flow.sharpen_residual`."""
    import cupy

    given = cupy.array(values, dtype=cupy.float32, order="C")
    mask = cupy.ascontiguousarray(cupy.asarray(inside), dtype=bool)
    confidence = None if weights is None else as_float32(cupy.asarray(weights))
    work = _Sharpening(settings)
    work.find_range(given, mask, confidence)
    if work.has_spread():
        work.count(given, mask, confidence)
        work.expect()
        work.map(given, mask, given)
    return given


def sharpen_streamed(
    values: np.ndarray, inside: np.ndarray, weights: np.ndarray | None, settings: Settings, voxels: int
) -> np.ndarray:
    """Return the sharpened values of host arrays, which pass through the device in blocks three times."""
    work = _Sharpening(settings)
    out = np.array(values, np.float32)
    volume = (-1, 1, out.shape[-1])  # Rows take the place of planes, since blocks may be cut anywhere.
    sources = [a.reshape(volume) for a in (values, inside, weights) if a is not None]

    def arguments(blocks: list[Any]) -> tuple[Any, Any, Any]:
        return as_float32(blocks[0]), blocks[1], as_float32(blocks[2]) if weights is not None else None

    stream_planes(sources, lambda blocks, _planes, _results: work.find_range(*arguments(blocks)), [], voxels)
    if work.has_spread():
        stream_planes(sources, lambda blocks, _planes, _results: work.count(*arguments(blocks)), [], voxels)
        work.expect()
        stream_planes(
            sources[:2],
            lambda blocks, _planes, results: work.map(as_float32(blocks[0]), blocks[1], results[0]),
            [out.reshape(volume)],
            voxels,
        )
    return out
