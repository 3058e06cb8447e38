"""Arrays on two devices: whose array is this, and does the GPU work?"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from n4flow.errors import GpuError

BACKENDS = ("auto", "cpu", "gpu", "itk")


@dataclass(frozen=True)
class GpuInfo:
    """The device a GPU backend would run on."""

    name: str
    driver: str
    memory_bytes: int


def array_module(array: Any) -> ModuleType:
    """Return the array library that owns `array`: numpy or cupy."""
    if type(array).__module__.partition(".")[0] == "cupy":
        import cupy  # reached only when a CuPy array already exists

        return cupy
    return np


def is_dask(array: Any) -> bool:
    """Return whether `array` is a dask array, without importing dask."""
    return type(array).__module__.startswith("dask.")


def to_numpy(array: Any) -> np.ndarray:
    """Return `array` on the host; a CuPy array is copied."""
    if array_module(array) is not np:
        return array.get()  # synchronize
    return np.asarray(array)


def probe_gpu() -> GpuInfo:
    """Compile, run and read back a tiny kernel on logical device 0.

    Returns
    -------
    GpuInfo
        Name, driver version and free memory of the device.

    Raises
    ------
    GpuError
        One sentence that says what is missing and what to do.
    """
    try:
        import cupy
    except ImportError as error:
        msg = (
            "no working GPU: CuPy cannot be imported here "
            f"({str(error).splitlines()[0]}); install n4flow[gpu] on a node with an NVIDIA driver, "
            "or choose backend cpu, itk or auto"
        )
        raise GpuError(msg) from error
    try:
        values = cupy.arange(8, dtype=cupy.float32)
        doubled = cupy.ElementwiseKernel("float32 x", "float32 y", "y = 2 * x", "n4flow_probe")(values)
        if not np.array_equal(doubled.get(), 2 * np.arange(8, dtype=np.float32)):
            msg = "no working GPU: a test kernel ran and returned wrong numbers; choose another device"
            raise GpuError(msg)
        properties = cupy.cuda.runtime.getDeviceProperties(0)
        free, _total = cupy.cuda.runtime.memGetInfo()
        driver = cupy.cuda.runtime.driverGetVersion()
    except GpuError:
        raise
    except Exception as error:  # CuPy raises a different class for each layer that can fail
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        msg = (
            f"no working GPU: {first}; check nvidia-smi, the driver against the CUDA version of CuPy, and "
            "CUDA_VISIBLE_DEVICES, or choose backend cpu, itk or auto"
        )
        raise GpuError(msg) from error
    return GpuInfo(properties["name"].decode(), str(driver), int(free))
