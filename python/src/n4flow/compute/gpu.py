"""Work on a GPU: streams, retries with less memory, errors as one sentence, and host arrays in blocks of planes.

Host arrays pass through the device in blocks of planes, two at a time: while one block is computed, the next is copied
to the device and the previous one back, through page-locked buffers and two streams.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np

from n4flow.compute.arrays import array_module
from n4flow.compute.threads import available_threads, thread_pool
from n4flow.errors import GpuError, OutOfMemoryError

BLOCK_VOXELS = 1 << 22  # Voxels of a block of planes (or one larger plane): 16 MB keep the bus busy.
RETRY_SHARE = 8  # After a shortage of memory, blocks are smaller by this factor.
COPY_TASKS = 8  # Threads that copy to and from page-locked buffers, at most; fewer are slower than the bus.

Result = TypeVar("Result")
_of_thread = threading.local()
NULL = np.uint64(0)  # a null pointer


def streams() -> tuple[Any, Any]:
    """Return the two streams of this thread. They are reused, because CuPy's memory pool caches memory by stream."""
    import cupy

    device = cupy.cuda.Device().id
    if getattr(_of_thread, "device", None) != device:
        _of_thread.device = device
        _of_thread.streams = tuple(cupy.cuda.Stream(non_blocking=True) for _ in range(2))
    return _of_thread.streams


def reset_streams() -> None:
    """Let the next call of `streams` in this thread create new ones."""
    _of_thread.device = None


def multiprocessors() -> int:
    """Return the number of multiprocessors of the current device."""
    import cupy

    return int(cupy.cuda.Device().attributes["MultiProcessorCount"])


def run_on_gpu(task: Callable[[int], Result], *, release: bool) -> Result:
    """Return task(voxels), where voxels is the size of a block; if device memory is short, retry with smaller blocks.

    With `release`, CuPy's memory pool is freed at the end. Callers with arrays on the device keep the pool.

    Raises
    ------
    OutOfMemoryError
        Memory is short with smaller blocks, too.
    GpuError
        The device failed.
    """
    import cupy

    try:
        with contextlib.suppress(MemoryError):
            return _with_errors(task, BLOCK_VOXELS)
        _free()  # after the handler, so that no reference to arrays of the first attempt is left
        return _with_errors(task, BLOCK_VOXELS // RETRY_SHARE)
    except cupy.cuda.memory.OutOfMemoryError as error:
        free, total = cupy.cuda.runtime.memGetInfo()
        msg = (
            f"the GPU is out of memory, also with smaller blocks ({free / 1e9:.1f} of {total / 1e9:.1f} GB are free): "
            "shrink more, end what else runs there, or choose backend cpu"
        )
        raise OutOfMemoryError(msg) from error
    finally:
        if release:
            _free()


def _with_errors(task: Callable[[int], Result], voxels: int) -> Result:
    import cupy

    faults = (cupy.cuda.runtime.CUDARuntimeError, cupy.cuda.driver.CUDADriverError, cupy.cuda.compiler.CompileException)
    try:
        return task(voxels)
    except faults as error:
        text = str(error).strip()
        if "MemoryAllocation" in text or "OUT_OF_MEMORY" in text:  # of page-locked memory, a graph or a stream
            raise cupy.cuda.memory.OutOfMemoryError(0, 0) from error
        reset_streams()
        msg = f"the GPU failed: {text.splitlines()[0]}; run again, or choose backend cpu"
        raise GpuError(msg) from error


def _free() -> None:
    import cupy

    cupy.get_default_memory_pool().free_all_blocks()
    cupy.get_default_pinned_memory_pool().free_all_blocks()


def on_device(array: Any) -> bool:
    """Return whether an array is on the device."""
    return array_module(array) is not np


def as_float32(array: Any) -> Any:
    """Return a CuPy array as kernels need it: float32 and contiguous."""
    import cupy

    return cupy.ascontiguousarray(array, dtype=cupy.float32)


class _Slot:
    """Buffers on host and device for one of the two blocks that are under way."""

    def __init__(self, stream: Any, shape: tuple[int, ...], sources: Sequence[np.ndarray], results: int) -> None:
        import cupy
        import cupyx

        self.stream = stream
        self.inputs = [cupyx.empty_pinned(shape, source.dtype.newbyteorder("=")) for source in sources]
        self.outputs = [cupyx.empty_pinned(shape, np.float32) for _ in range(results)]
        with self.stream:
            self.raw = [cupy.empty(shape, buffer.dtype) for buffer in self.inputs]
            self.results = [cupy.empty(shape, cupy.float32) for _ in range(results)]
        self.planes: slice | None = None


def stream_planes(
    sources: Sequence[np.ndarray],
    work: Callable[[list[Any], slice, list[Any]], None],
    sinks: Sequence[np.ndarray],
    voxels: int,
    multiple: int = 1,
) -> None:
    """Compute on the device with host arrays, block by block.

    Parameters
    ----------
    sources : sequence of (Z, Y, X) NumPy arrays
    work : callable
        Called on one of two streams with the blocks on the device (of the sources' types), their planes, and a float32
        array of their shape for each sink, to be written.
    sinks : sequence of (Z, Y, X) float NumPy arrays
        Arrays for the results; they may be among the sources.
    voxels : int
        Approximate number of voxels in a block.
    multiple : int
        The number of planes in a block is a multiple of this.
    """
    shape = sources[0].shape if sources else sinks[0].shape
    deep = max(1, voxels // (shape[1] * shape[2] * multiple)) * multiple
    block = (min(deep, shape[0]), *shape[1:])
    slots = [_Slot(stream, block, sources, len(sinks)) for stream in streams()[: -(-shape[0] // deep)]]
    with thread_pool(min(COPY_TASKS, available_threads())) as copiers:
        for number, start in enumerate(range(0, shape[0], deep)):
            slot, planes = slots[number % len(slots)], slice(start, min(start + deep, shape[0]))
            _collect(slot, sinks, copiers)
            n = planes.stop - planes.start
            for buffer, source in zip(slot.inputs, sources, strict=True):
                _copy(buffer[:n], source[planes], copiers)
            with slot.stream:
                blocks = [raw[:n] for raw in slot.raw]
                for block, buffer in zip(blocks, slot.inputs, strict=True):
                    block.set(buffer[:n], stream=slot.stream)
                results = [result[:n] for result in slot.results]
                work(blocks, planes, results)
                for result, buffer in zip(results, slot.outputs, strict=True):
                    result.get(stream=slot.stream, out=buffer[:n], blocking=False)
            slot.planes = planes
        for slot in sorted(slots, key=lambda slot: -1 if slot.planes is None else slot.planes.start):
            _collect(slot, sinks, copiers)


def _collect(slot: _Slot, sinks: Sequence[np.ndarray], copiers: Executor) -> None:
    """Wait for the block of a slot and copy its results to the sinks."""
    if slot.planes is None:
        return
    slot.stream.synchronize()
    for buffer, sink in zip(slot.outputs, sinks, strict=True):
        _copy(sink[slot.planes], buffer[: slot.planes.stop - slot.planes.start], copiers)
    slot.planes = None


def _copy(target: np.ndarray, source: np.ndarray, copiers: Executor) -> None:
    """Copy between host arrays with several threads."""
    rows = math.prod(target.shape[:2])
    if rows < COPY_TASKS or not (target.flags.c_contiguous and source.flags.c_contiguous):
        np.copyto(target, source, casting="unsafe")
        return
    cuts = np.linspace(0, rows, COPY_TASKS + 1).astype(int)
    flat, values = target.reshape(rows, -1), source.reshape(rows, -1)
    parts = [slice(a, b) for a, b in pairwise(cuts)]
    list(copiers.map(lambda part: np.copyto(flat[part], values[part], casting="unsafe"), parts))
