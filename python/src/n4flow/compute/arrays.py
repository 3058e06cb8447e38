"""Arrays on host and device: the library of an array, checks of volumes and masks, and whether a GPU works."""

from __future__ import annotations

import inspect
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial, wraps
from types import ModuleType
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np

from n4flow.errors import GpuError, InputError, N4flowWarning

P = ParamSpec("P")
R = TypeVar("R")

ALSO_ARRAYS = ("mask", "agarose_mask", "weights", "mask_weights", "bias_field")  # arguments of public functions
BACKENDS = ("auto", "cpu", "gpu", "itk")
LARGEST, SMALLEST = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)  # of float32, in full precision
MASK_CUT = 0.5  # Of values between 0 and 1, where a resampled mask ends.
MASK_NOISE = 1e-6  # What is left of 0 in a mask that was resampled or stored as a scaled number.

PROBE = """
extern "C" __global__ void n4flow_probe(float *values, int n) {
    if (threadIdx.x < n) values[threadIdx.x] *= 2.0f;
}
"""
NO_DEVICE = (
    "check that nvidia-smi shows a device, that CUDA_VISIBLE_DEVICES does not hide it, and that job and container were "
    "given one (--gres, --gpus all, --nv)"
)
# Words in an error message of CUDA, and the remedy for it. The first match counts.
REMEDIES = (
    (
        ("insufficientdriver", "driver version is insufficient", "unsupportedptxversion", "provided ptx"),
        "the driver is older than the CUDA of this CuPy: update it, or install the extra gpu (CUDA 12) for gpu13",
    ),
    (("nodevice", "no cuda-capable device", "libcuda"), NO_DEVICE),
    (
        ("header", "cannot open source file", "cuda_path", "nvrtc", "toolkit"),
        "the compiler or headers of CUDA are missing: install n4flow[gpu], which brings them as wheels",
    ),
    (
        ("devicesunavailable", "busy or unavailable", "out of memory", "outofmemory", "memoryallocation"),
        "the device is used by another process: wait for it, or choose another with CUDA_VISIBLE_DEVICES",
    ),
    (
        ("invaliddevice", "invalid device"),
        "CUDA_VISIBLE_DEVICES names no device here: give an index, a UUID or a MIG name",
    ),
)
REMEDY = "check nvidia-smi, the driver against the CUDA version of CuPy, and CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class GpuInfo:
    """The device that a GPU backend uses."""

    name: str
    driver: str
    memory_bytes: int


def array_module(array: Any) -> ModuleType:
    """Return the array library that owns `array`: numpy or cupy."""
    if type(array).__module__.partition(".")[0] == "cupy":
        import cupy  # A CuPy array exists, so CuPy is installed.

        return cupy
    return np


def is_dask(array: Any) -> bool:
    """Return whether `array` is a dask array, without importing dask."""
    return type(array).__module__.startswith("dask.")


def to_numpy(array: Any) -> np.ndarray:
    """Return `array` as a NumPy array; a CuPy array is copied to the host."""
    if array_module(array) is not np:
        return array.get()  # synchronize
    return np.asarray(array)


def writeable(array: np.ndarray, dtype: Any = np.float32) -> np.ndarray:
    """Return `array` as kernels need it: contiguous, native byte order, writeable; copied if it is not."""
    return np.require(array, np.dtype(dtype).newbyteorder("="), ["C", "W"])


def takes_arrays(function: Callable[P, R]) -> Callable[P, R]:
    """Let a public function take every kind of array that people hold.

    Its first argument, and those of `ALSO_ARRAYS`, may be anything that NumPy can read: a list, a zarr or HDF5 array, a
    tensor on the host. Any argument may be an array of xarray. Where the first one is, results of its shape keep its
    dims and coords, unless the caller gave an array for them.

    Raises
    ------
    InputError
        An argument is an image of nibabel or SimpleITK or a `Volume`, or the first is no array at all.
    """
    names = list(inspect.signature(function).parameters)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        given: dict[str, Any] = dict(zip(names, args, strict=False)) | kwargs
        plain: dict[str, Any] = {}
        for name, value in given.items():
            plain[name] = as_array(value) if name in (names[0], *ALSO_ARRAYS) else _unwrapped(value)
        image: Any = given.get(names[0])
        untyped = cast("Callable[..., Any]", function)
        positional = [*(plain[n] for n in names[: len(args)]), *args[len(names) :]]
        result = untyped(*positional, **{n: plain[n] for n in kwargs})

        def label(a: Any) -> Any:
            for name in ("out", "bias_out"):
                if a is not None and a is plain.get(name):
                    return given[name]
            return image.__class__(a, coords=image.coords, dims=image.dims) if _like(a, image) else a

        found: Any = tuple(map(label, result)) if isinstance(result, tuple) else label(result)
        return found

    return call


def as_array(value: Any) -> Any:
    """Return an array of any kind as NumPy, CuPy or dask array; see `takes_arrays`."""
    return _read(_unwrapped(value))


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or array_module(value) is not np or is_dask(value)


def _like(value: Any, image: Any) -> bool:
    """Return whether a result is an array of the shape of a `DataArray`."""
    labelled = _module(image) == "xarray" and hasattr(image, "coords")
    return labelled and _is_array(value) and tuple(value.shape) == tuple(image.shape)


def _module(value: Any) -> str:
    return type(value).__module__.partition(".")[0]


def _unwrapped(value: Any) -> Any:
    """Return the array that an array of xarray holds; refuse what has voxels and is no array."""
    remedy = None
    if hasattr(value, "dataobj") and hasattr(value, "affine"):
        remedy = "np.asarray(img.dataobj), with .T if the axes are to be (Z, Y, X)"
    elif hasattr(value, "GetPixelIDTypeAsString"):
        remedy = "sitk.GetArrayFromImage(image)"
    elif _module(value) == "n4flow" and hasattr(value, "voxel_um") and hasattr(value, "data"):
        remedy = "volume.data, a dask array, or volume.read(slice(None))"
    elif _module(value) == "xarray":
        if hasattr(value, "data") and not hasattr(value, "data_vars"):
            return value.data
        remedy = "one of its variables"
    if remedy is None:
        return value
    msg = f"expected an array, got {type(value).__name__}; give {remedy}"
    raise InputError(msg)


def _read(value: Any) -> Any:
    """Return what NumPy can read as its array; arrays of NumPy, CuPy and dask, and n4flow's own, as they are."""
    readable = isinstance(value, (list, tuple, str, bytes, bool, int, float)) or hasattr(value, "__array__")
    if _is_array(value) or not readable:
        return value
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:  # rows of different length; a tensor on a device
        msg = f"expected an array of numbers, got {type(value).__name__} that NumPy cannot read ({error})"
        raise InputError(msg) from error
    if array.dtype.kind not in "buif" or array.ndim == 0:
        msg = f"expected an array of numbers, got {type(value).__name__} of {array.dtype}"
        raise InputError(msg)
    return array


def import_cupy() -> Any:
    """Import CuPy, with a cache for compiled kernels (`CUPY_CACHE_DIR`) also if the home folder is not writeable.

    Raises
    ------
    GpuError
        CuPy is not installed, or its libraries cannot be loaded.
    """
    if "CUPY_CACHE_DIR" not in os.environ and not os.access(os.path.expanduser("~"), os.W_OK):
        os.environ["CUPY_CACHE_DIR"] = os.path.join(tempfile.gettempdir(), f"cupy-{os.getuid()}")
    try:
        import cupy
    except ImportError as error:
        msg = (
            "no working GPU: CuPy cannot be imported here "
            f"({_first_line(error)}); install n4flow[gpu] (n4flow[gpu13] for drivers of CUDA 13) on a node with an "
            "NVIDIA driver, or choose backend cpu, itk or auto"
        )
        raise GpuError(msg) from error
    return cupy


@cache
def probe_gpu() -> GpuInfo:
    """Compile, run and read back a tiny kernel on logical device 0. The result is cached.

    Returns
    -------
    GpuInfo
        Name, driver version and free memory of the device.

    Raises
    ------
    GpuError
        No GPU works; the sentence says what is missing and what to do.
    """
    cupy = import_cupy()
    try:
        values = cupy.arange(8, dtype=cupy.float32)  # This compiles a kernel of CuPy, which needs the headers of CUDA.
        module = cupy.RawModule(code=PROBE, options=("--std=c++14",))
        module.get_function("n4flow_probe")((1,), (32,), (values, np.int32(8)))
        answer = values.get()  # synchronize
        properties = cupy.cuda.runtime.getDeviceProperties(0)
        free, _total = cupy.cuda.runtime.memGetInfo()
        driver = cupy.cuda.runtime.driverGetVersion()
    except Exception as error:  # CuPy has an exception class for each layer that can fail.
        low = str(error).lower()
        fault = _first_line(error)
        remedy = next((remedy for words, remedy in REMEDIES if any(word in low for word in words)), REMEDY)
        if cupy.cuda.runtime.driverGetVersion() == 0:  # CUDA itself reports a missing driver as too old.
            fault, remedy = "there is no NVIDIA driver", NO_DEVICE
        msg = f"no working GPU: {fault}; {remedy}, or choose backend cpu, itk or auto"
        raise GpuError(msg) from error
    if not np.array_equal(answer, 2 * np.arange(8, dtype=np.float32)):
        msg = "no working GPU: a test kernel ran and returned wrong numbers; choose another device"
        raise GpuError(msg)
    return GpuInfo(properties["name"].decode(), f"{driver // 1000}.{driver % 1000 // 10}", int(free))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")


def as_mask(mask: Any, shape: tuple[int, ...], name: str = "mask") -> Any:
    """Return `mask` as a bool array of `shape`, by the rule of `tissue_of`; a dask array by it block by block.

    Raises
    ------
    InputError
        The mask has another shape, or is no mask.
    """
    mask = mask if hasattr(mask, "shape") else np.asarray(mask)
    if tuple(mask.shape) != tuple(shape):
        msg = f"{name} must have the shape {tuple(shape)} of the volume, got {tuple(mask.shape)}; resample it"
        raise InputError(msg)
    if is_dask(mask) and mask.dtype != bool:
        return mask.map_blocks(partial(tissue_of, what=name, whole=False), dtype=bool)
    return tissue_of(mask, name)


def tissue_of(values: Any, what: str = "mask", *, whole: bool = True) -> Any:
    """Return which voxels of a mask are tissue.

    A mask of two values is taken as it is: what is not 0 is tissue. A mask that was resampled has values between 0 and
    1, and some beyond by a filter that overshoots; it is cut at 0.5, and a warning says so. NaN is not tissue, nor is
    what rounding leaves of 0. Each voxel of a block is judged as it is in the `whole` mask, except where that has two
    values of which the larger is below 0.5: its blocks are cut at 0.5 too.

    Raises
    ------
    InputError
        A label image, or values that are no mask.
    """
    if values.dtype == bool:
        return values
    xp, real = array_module(values), values.dtype.kind == "f"
    inside = xp.abs(values) > MASK_NOISE if real else values != 0
    found = values[inside]
    if found.size == 0:
        return inside
    low, high = float(found.min()), float(found.max())
    if high - low <= MASK_NOISE * abs(high) and (whole or abs(low) >= MASK_CUT):
        return inside
    if real and low >= -MASK_CUT and high <= 1 + MASK_CUT:
        soft = f"{what} has values between 0 and 1, as a resampled mask has, and is cut at {MASK_CUT}"
        warnings.warn(soft, N4flowWarning, stacklevel=2)
        return values >= MASK_CUT
    if real and bool((found != xp.rint(found)).any()):
        msg = f"{what} has values from {low:g} to {high:g}; expected two values, or values from 0 to 1"
    else:
        labels = [f"{float(label):g}" for label in xp.unique(found)]
        shown = labels if len(labels) <= 6 else [*labels[:4], "...", labels[-1]]
        msg = f"{what} has the labels {', '.join(shown)}; choose one with mask-label, or give a mask of two values"
    raise InputError(msg)


@contextmanager
def within_float32(name: str = "the volume") -> Iterator[None]:
    """Refuse a finite value that NumPy casts to an infinite float32 in this thread.

    Raises
    ------
    InputError
        With `name`, what the values are of.
    """
    try:
        with np.errstate(over="raise"):
            yield
    except FloatingPointError as error:
        beyond = f"has values beyond {LARGEST:.2g}, the largest float32, in which n4flow computes"
        msg = f"{name} {beyond}; divide it by a constant"
        raise InputError(msg) from error


def check_float32(values: Any, name: str) -> None:
    """Refuse an array of NumPy or CuPy with a finite value that is an infinite float32; see `within_float32`."""
    if values.dtype.kind != "f" or values.dtype.itemsize <= 4:
        return
    xp = array_module(values)
    for plane in values:
        with within_float32(name):
            cast = plane.astype(xp.float32)
            if xp is not np and bool((xp.isinf(cast) & xp.isfinite(plane)).any()):  # a device sets no flag
                raise FloatingPointError


def as_block(block: Any, name: str = "volume") -> Any:
    """Return `block` if it is a (Z, Y, X) array of real numbers with at least one voxel.

    Raises
    ------
    InputError
        It is not, has values that float32 cannot hold, or a dask array has unknown sizes, as after a selection by a
        lazy mask.
    """
    block = block if hasattr(block, "dtype") else np.asarray(block)
    if any(n != n for n in block.shape):  # An unknown size of a dask array is NaN.
        msg = (
            f"{name} has the shape {tuple(block.shape)}, with sizes not known yet; call its compute_chunk_sizes() first"
        )
        raise InputError(msg)
    if block.ndim != 3 or 0 in block.shape or block.dtype.kind not in "buif":
        msg = f"{name} must be a (Z, Y, X) array of real numbers, not empty, got {tuple(block.shape)} {block.dtype}"
        raise InputError(msg)
    if not is_dask(block):
        check_float32(block, name)
    return block
