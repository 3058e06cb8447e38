"""The bias field at full resolution, computed on the device with the bits of `n4_bias.evaluate`; and shrinking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from n4flow.compute.gpu import as_float32, multiprocessors, on_device, stream_planes
from n4flow.n4_bias import bspline
from n4flow.n4_bias.gpu.cuda_source import launch
from n4flow.n4_bias.gpu.level import Table, choose_run
from n4flow.n4_bias.shrink import LEAST_SHARE, shrunken_shape

THREADS = 256
WARP = 32
SHARED_BYTES = 40_000  # shared memory of a block for the control points of a strip, at most
FREE_RUN = 16  # rows of a strip when there is no lattice
i4 = np.int32


class DeviceEvaluator:
    """A lattice prepared for evaluation on one grid on the current stream; see `evaluate.Evaluator`."""

    def __init__(self, lattice: np.ndarray, coordinates: Sequence[np.ndarray]) -> None:
        pad = [(0, 3 if controls == 1 else 0) for controls in lattice.shape]
        self.shape = tuple(t.size for t in coordinates)
        tables = [bspline.axis_weights(t, controls) for t, controls in zip(coordinates, lattice.shape, strict=True)]
        padded = np.pad(np.asarray(lattice, np.float32), pad)
        self._lines, self._columns = padded.shape[1:]
        self._run = choose_run(
            self.shape[0], tables[1][0], lambda most_lines: 4 * most_lines * self._columns <= SHARED_BYTES
        )
        whole, real = Table(np.int32), Table(np.float32)
        firsts, weights = [whole.add(first) for first, _w in tables], [real.add(w) for _first, w in tables]
        place = real.add(padded)
        at, of = whole.send(), real.send()
        self._firsts, self._weights, self._lattice = [at(f) for f in firsts], [of(w) for w in weights], of(place)
        self._width = min(THREADS, -(-self.shape[2] // WARP) * WARP)
        self._most_blocks = 16 * multiprocessors()

    def log_field(self, out: Any, planes: slice = slice(None)) -> Any:
        """Write the log field of some planes to `out`, a float32 CuPy array; return it."""
        return self._evaluate(0.0, None, out, planes)

    def field(self, out: Any, planes: slice = slice(None)) -> Any:
        """Write the field, exp of the log field."""
        return self._evaluate(1.0, None, out, planes)

    def correct(self, image: Any, out: Any, planes: slice = slice(None)) -> Any:
        """Write image / field to `out`, which may be `image`."""
        return self._evaluate(-1.0, image, out, planes)

    def render(self, pointwise: Sequence[Any], block: Any, planes: slice = slice(None)) -> None:
        """Correct a block in place, by the field and by the pointwise corrections that `render_block` takes."""
        self._launch("render_block", planes, *pointwise, block)

    def _evaluate(self, sign: float, image: Any, out: Any, planes: slice) -> Any:
        self._launch("evaluate_block", planes, np.float32(sign), image, out)
        return out

    def _launch(self, name: str, planes: slice, *arguments: Any) -> None:
        start, stop, _step = planes.indices(self.shape[0])
        (fz, fy, fx), (wz, wy, wx), run = self._firsts, self._weights, self._run
        launch(
            name, min((stop - start) * run.runs, self._most_blocks), self._width,
            self._lattice, i4(self._lines), i4(self._columns), i4(run.most_lines), i4(stop - start),
            i4(self.shape[1]), i4(self.shape[2]), i4(run.rows), i4(run.runs), fz[start:stop], wz[start:stop], fy, wy,
            fx, wx, *arguments, shared=4 * run.most_lines * self._columns,
        )  # fmt: skip


def render_without_field(pointwise: Sequence[Any], block: Any) -> None:
    """Correct a block in place by pointwise corrections alone; see `DeviceEvaluator.render`."""
    n_z, n_y, n_x = block.shape
    runs = -(-n_y // FREE_RUN)
    width = min(THREADS, -(-n_x // WARP) * WARP)
    launch(
        "render_block", min(n_z * runs, 16 * multiprocessors()), width,
        None, i4(0), i4(0), i4(0), i4(n_z), i4(n_y), i4(n_x), i4(FREE_RUN), i4(runs), *(None,) * 6, *pointwise,
        block,
    )  # fmt: skip


def correct_streamed(
    evaluator: DeviceEvaluator, image: np.ndarray, out: np.ndarray, field: np.ndarray | None, voxels: int
) -> None:
    """Correct a host array on the device, block by block, and write the field to `field`; see `stream_planes`.

    `out` may be `image`.
    """
    import cupy

    cupy.cuda.get_current_stream().synchronize()  # Other streams use the evaluator's tables.

    def work(blocks: list[Any], planes: slice, results: list[Any]) -> None:
        evaluator.correct(as_float32(blocks[0]), results[0], planes)
        if field is not None:
            evaluator.field(results[1], planes)

    stream_planes([image], work, [out] if field is None else [out, field], voxels)


def shrink_masked(image: Any, mask: Any, weights: Any, shrink: Sequence[int], voxels: int) -> tuple[Any, Any, Any]:
    """Return the result of `shrink.shrink_masked` as CuPy arrays, computed on the device from arrays here or there.

    Host arrays pass through in blocks of about `voxels` voxels.
    """
    import cupy

    deep, high, wide = shrink
    small = shrunken_shape(image.shape, shrink)
    mean, shares = cupy.empty(small, cupy.float32), cupy.empty(small, cupy.float32)
    totals = None if weights is None else cupy.empty(small, cupy.float32)
    cupy.cuda.get_current_stream().synchronize()  # Other streams write to them.

    def work(blocks: list[Any], planes: slice, _results: list[Any]) -> None:
        place = slice(planes.start // deep, -(-planes.stop // deep))
        values, inside = as_float32(blocks[0]), cupy.ascontiguousarray(blocks[1], dtype=bool)
        given = None if weights is None else as_float32(blocks[2])
        rows = place.stop - place.start
        launch(
            "shrink_blocks", min(-(-rows * small[1] * small[2] // THREADS), 1 << 16), THREADS,
            values, inside, given, *(i4(n) for n in values.shape), i4(deep), i4(high), i4(wide), i4(rows),
            i4(small[1]), i4(small[2]), mean[place], shares[place], None if totals is None else totals[place],
        )  # fmt: skip

    sources = [image, mask] if weights is None else [image, mask, weights]
    if any(on_device(source) for source in sources):
        work([cupy.asarray(source) for source in sources], slice(0, image.shape[0]), [])
    else:
        stream_planes(sources, work, [], voxels, deep)
    return mean, shares >= cupy.float32(LEAST_SHARE), totals
