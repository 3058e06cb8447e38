"""A stand-in for CuPy and a device: NumPy arrays, and the CUDA sources compiled for the host.

The Python of the GPU backend runs as it is, and so do its kernels, thread by thread (`device.h`). What this cannot show
is speed, and what a real compiler and a real device make of the same text.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import scipy.ndimage as real_ndimage

HEADER = Path(__file__).with_name("device.h")
KERNEL = re.compile(r"__global__ void (\w+)\(")


def compiler() -> str | None:
    """Return a C++ compiler, if there is one."""
    return shutil.which("g++") or shutil.which("clang++")


def build(source: str, folder: Path) -> ctypes.CDLL:
    """Compile CUDA sources for this processor."""
    names = KERNEL.findall(source)
    exports = "".join(f"EXPORT({name})\nSIZES({name})\n" for name in names)
    text = f'#include "{HEADER}"\n{source}\n#line 1 "exports"\n{exports}'
    file, library = folder / "kernels.cpp", folder / "kernels.so"
    file.write_text(text)
    found = compiler()
    assert found is not None
    options = ["-std=c++17", "-O2", "-ffp-contract=off", "-march=native", "-fPIC", "-shared", "-w"]
    subprocess.run([found, *options, str(file), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


class ndarray(np.ndarray):  # CuPy's name
    """An array on the device. NumPy functions given one fail, as they do with CuPy's."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return dict(self.__array_interface__)

    def get(self, stream: Any = None, order: str = "C", out: Any = None, blocking: bool = True) -> np.ndarray:
        outside_of_capture()
        if out is not None:
            assert out.dtype == self.dtype
            assert out.shape == self.shape
            out[...] = self.view(np.ndarray)
            return out
        return np.array(self.view(np.ndarray), order=order)

    def set(self, array: np.ndarray, stream: Any = None) -> None:
        outside_of_capture()
        assert type(array) is np.ndarray
        assert array.dtype == self.dtype
        assert array.shape == self.shape
        self.view(np.ndarray)[...] = array

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **options: Any) -> Any:
        for item in inputs:
            if type(item) is np.ndarray and item.ndim:
                msg = f"Unsupported type {type(item)}"  # CuPy's words
                raise TypeError(msg)
        plain = [i.view(np.ndarray) if isinstance(i, ndarray) else i for i in inputs]
        if out is not None:
            options["out"] = tuple(o.view(np.ndarray) for o in out)
        return (
            on_device(getattr(ufunc, method)(*plain, **options))
            if out is None
            else self._into(ufunc, method, plain, options, out)
        )

    @staticmethod
    def _into(ufunc: Any, method: str, plain: list[Any], options: dict[str, Any], out: tuple[Any, ...]) -> Any:
        getattr(ufunc, method)(*plain, **options)
        return out[0]


ndarray.__module__ = "cupy"


def on_device(value: Any) -> Any:
    """Return a result as CuPy gives it: an array, also where it has no axes."""
    if isinstance(value, (np.ndarray, np.generic)):
        return np.asarray(value).view(ndarray)
    return tuple(on_device(item) for item in value) if isinstance(value, tuple) else value


def to_device(value: Any, dtype: Any = None, *_args: Any, **_options: Any) -> ndarray:
    outside_of_capture()
    plain = value.view(np.ndarray) if isinstance(value, ndarray) else np.array(value)
    return np.asarray(plain, dtype).view(ndarray)


class Stream:
    """Everything is done at once; while a graph is captured, launches are noted instead."""

    stack: list[Stream] = []  # noqa: RUF012
    capturing: Graph | None = None
    ptr = 0

    def __init__(self, non_blocking: bool = False) -> None:
        self.last: set[int] = set()  # launches of the graph that the next one on this stream waits for
        self.captured = False

    def __enter__(self) -> Stream:
        Stream.stack.append(self)
        return self

    def __exit__(self, *_error: object) -> None:
        Stream.stack.pop()

    def record(self, event: Any = None) -> Any:
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: Any) -> None:
        self.last |= event.after
        self.captured |= event.captured

    def synchronize(self) -> None:
        outside_of_capture()

    def begin_capture(self, mode: Any = None) -> None:
        outside_of_capture()
        self.last, self.captured = set(), True
        Stream.capturing = Graph(self)

    def end_capture(self) -> Any:
        graph, Stream.capturing, self.captured = Stream.capturing, None, False
        assert graph is not None
        assert graph.origin is self
        done = graph.behind(self.last)
        joined = all(branch.last <= done for branch in graph.branches)
        for branch in graph.branches:
            branch.last, branch.captured = set(), False
        assert joined, "capturing stream has unjoined work"
        return graph


def outside_of_capture() -> None:
    """Fail where CUDA would: neither memory nor waiting while a graph is captured."""
    assert Stream.capturing is None, "operation not permitted when stream is capturing"


class Event:
    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        self.after: set[int] = set()
        self.captured = False

    def record(self, stream: Any = None) -> None:
        self.after, self.captured = (set(stream.last), stream.captured) if stream else (set(), False)

    def synchronize(self) -> None:
        outside_of_capture()


class Graph:
    """Launches, each with those that it waits for. Any order that heeds these may be a device's."""

    def __init__(self, origin: Stream) -> None:
        self.origin, self.branches = origin, {origin}
        self.launches: list[tuple[Any, set[int]]] = []

    def add(self, start: Any, device: types.ModuleType) -> None:
        self.device, stream = device, Stream.stack[-1]
        assert stream.captured, "a launch on a stream that is not captured"
        self.branches.add(stream)
        self.launches.append((start, set(stream.last)))
        stream.last = {len(self.launches) - 1}

    def behind(self, numbers: set[int]) -> set[int]:
        """Return these launches, and all that they wait for."""
        return numbers.union(*(self.behind(self.launches[number][1]) for number in numbers))

    def launch(self, stream: Any = None) -> None:
        outside_of_capture()
        left = dict(enumerate(self.launches))
        while left:
            ready = [number for number, (_start, after) in left.items() if not after & left.keys()]
            number = ready[-1 if self.device.reversed else 0]  # as late as may be, or as early
            left.pop(number)[0]()

    def upload(self, stream: Any = None) -> None:
        pass


class Kernel:
    """One kernel of a module."""

    def __init__(self, library: ctypes.CDLL, name: str, device: types.ModuleType) -> None:
        self.name, self.device, self.loaded = name, device, False
        self.start = getattr(library, f"launch_{name}")
        self.start.restype = ctypes.c_char_p
        self.size_of = getattr(library, f"size_of_{name}")

    def __call__(self, grid: tuple[int], block: tuple[int], args: tuple[Any, ...], *, shared_mem: int = 0) -> None:
        assert grid[0] > 0
        cells = []
        for i, value in enumerate(args):
            if isinstance(value, ndarray):
                assert value.flags.c_contiguous
                cell: Any = ctypes.c_uint64(value.ctypes.data)
            else:
                assert isinstance(value, np.generic), (self.name, i, type(value))  # a Python number has no width
                cell = np.array(value).ctypes.data_as(ctypes.c_void_p), np.array(value)
                cell = (ctypes.c_char * value.nbytes).from_buffer_copy(value.tobytes())
            assert ctypes.sizeof(cell) == self.size_of(i), f"argument {i} of {self.name}"
            cells.append(cell)
        pointers = (ctypes.c_void_p * len(cells))(*(ctypes.addressof(cell) for cell in cells))
        keep = (cells, args)

        def start() -> None:
            assert keep
            self.device.launches[self.name] = self.device.launches.get(self.name, 0) + 1
            fault = self.start(grid[0], block[0], shared_mem, self.device.reversed, pointers, len(cells))
            assert fault is None, f"{self.name}: {fault.decode()}"

        if Stream.capturing is None:
            self.loaded = True
            start()
        else:
            assert self.loaded, f"{self.name} would be loaded while a graph is captured"
            Stream.capturing.add(start, self.device)


class Device:
    attributes = {"MultiProcessorCount": 3}  # noqa: RUF012 - few, so that blocks get several pieces
    id = 0
    compute_capability = "90"

    def __init__(self, number: int = 0) -> None:
        pass

    def synchronize(self) -> None:
        pass


class Pool:
    """The memory pool: it knows how often it was released."""

    released = 0

    def free_all_blocks(self, stream: Any = None) -> None:
        self.released += 1


class OutOfMemoryError(MemoryError):
    """CuPy's, by name."""


class CUDARuntimeError(RuntimeError):
    """CuPy's, by name."""


class CUDADriverError(RuntimeError):
    """CuPy's, by name."""


class CompileException(Exception):
    """CuPy's, by name."""


WRAPPED = (
    "where isfinite isinf isnan maximum minimum sqrt exp log floor ceil clip cumsum concatenate searchsorted histogram "
    "sum abs repeat unique diff bincount interp sort argsort stack count_nonzero nan_to_num nonzero flatnonzero any "
    "all pad shares_memory"
)


def fake_cupy(library: ctypes.CDLL) -> dict[str, types.ModuleType]:
    """Return modules to stand for cupy and cupyx."""
    cupy, cupyx = types.ModuleType("cupy"), types.ModuleType("cupyx")
    device = types.ModuleType("device")
    device.launches, device.reversed, device.poison = {}, 0, 0xFF  # type: ignore[attr-defined]
    facts: dict[str, Any] = {
        "device": device,
        "ndarray": ndarray,
        "asarray": to_device,
        "array": lambda value, dtype=None, copy=True, order="K": to_device(value, dtype).copy(order),
        "ascontiguousarray": lambda value, dtype=None: np.ascontiguousarray(value.view(np.ndarray), dtype).view(
            ndarray
        ),
        "empty": lambda shape, dtype=float: poisoned(shape, dtype, device.poison),
        "zeros": lambda shape, dtype=float: np.zeros(shape, dtype).view(ndarray),
        "ones": lambda shape, dtype=float: np.ones(shape, dtype).view(ndarray),
        "full": lambda shape, value, dtype=None: np.full(shape, value, dtype).view(ndarray),
        "arange": lambda *a, **k: np.arange(*a, **k).view(ndarray),
        "RawModule": lambda code, options, **_k: types.SimpleNamespace(
            get_function=lambda name: Kernel(library, name, device)
        ),
        "get_default_memory_pool": lambda pool=Pool(): pool,  # noqa: B008 - one pool
        "get_default_pinned_memory_pool": lambda pool=Pool(): pool,  # noqa: B008
    }
    for name, value in facts.items():
        setattr(cupy, name, value)
    for kind in (
        np.float32,
        np.float64,
        np.int8,
        np.int16,
        np.int32,
        np.int64,
        np.uint8,
        np.uint16,
        np.uint32,
        np.uint64,
    ):
        setattr(cupy, kind.__name__, kind)
    for name in WRAPPED.split():
        setattr(cupy, name, _wrapped(getattr(np, name)))
    runtime = types.SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError,
        getDeviceCount=lambda: 1,
        getDeviceProperties=lambda _i: {"name": b"emulated", "multiProcessorCount": 3},
        memGetInfo=lambda: (1 << 30, 1 << 30),
        driverGetVersion=lambda: 12090,
        runtimeGetVersion=lambda: 12090,
    )
    cupy.cuda = types.SimpleNamespace(  # type: ignore[attr-defined]
        Stream=Stream,
        Event=Event,
        Device=Device,
        get_current_stream=lambda: Stream.stack[-1] if Stream.stack else Stream(),
        memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
        runtime=runtime,
        driver=types.SimpleNamespace(CUDADriverError=CUDADriverError),
        compiler=types.SimpleNamespace(CompileException=CompileException),
    )
    cupyx.empty_pinned = lambda shape, dtype=float: poisoned(shape, dtype).view(np.ndarray)  # type: ignore[attr-defined]
    scipy, ndimage = types.ModuleType("cupyx.scipy"), types.ModuleType("cupyx.scipy.ndimage")
    for name in ("gaussian_filter", "binary_fill_holes", "binary_closing", "binary_dilation", "correlate1d", "label"):
        setattr(ndimage, name, _wrapped(getattr(real_ndimage, name)))
    cupyx.scipy, scipy.ndimage = scipy, ndimage  # type: ignore[attr-defined]
    return {"cupy": cupy, "cupyx": cupyx, "cupyx.scipy": scipy, "cupyx.scipy.ndimage": ndimage}


def poisoned(shape: Any, dtype: Any, byte: int = 0xFF) -> ndarray:
    """Return an array of numbers that nothing should read."""
    outside_of_capture()
    made = np.empty(shape, dtype)
    made.reshape(-1).view(np.uint8)[...] = byte
    return made.view(ndarray)


def _wrapped(function: Any) -> Any:
    def call(*args: Any, **options: Any) -> Any:
        for item in args:
            if type(item) is np.ndarray and item.ndim:
                msg = f"Unsupported type {type(item)}"
                raise TypeError(msg)
        plain = [item.view(np.ndarray) if isinstance(item, ndarray) else item for item in args]
        named = {key: item.view(np.ndarray) if isinstance(item, ndarray) else item for key, item in options.items()}
        return on_device(function(*plain, **named))

    return call


@contextmanager
def emulated(library: ctypes.CDLL) -> Iterator[types.ModuleType]:
    """Let `import cupy` give the stand-in."""
    from n4flow.compute import gpu as gpu_device
    from n4flow.n4_bias.gpu import cuda_source as gpu_module

    modules = fake_cupy(library)
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    gpu_module._module.cache_clear()
    gpu_module._kernel.cache_clear()
    gpu_device.reset_streams()  # a real device's are no use here, nor ours there
    try:
        yield modules["cupy"]
    finally:
        gpu_module._module.cache_clear()
        gpu_module._kernel.cache_clear()
        gpu_device.reset_streams()
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
