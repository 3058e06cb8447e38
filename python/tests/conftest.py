"""A device for the tests of the GPU backend: the real one, or a stand-in (`emulated_gpu`)."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from types import ModuleType

import emulated_gpu
import pytest

from n4flow.compute import arrays
from n4flow.errors import GpuError
from n4flow.n4_bias import engine


@pytest.fixture(autouse=True)
def own_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work is shared out over all cores, whatever a command of another test was told in this process."""
    monkeypatch.setattr("n4flow.compute.threads._limit", [])


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """Return the CUDA sources compiled for this processor."""
    from n4flow.n4_bias.gpu import cuda_source as gpu_module

    if emulated_gpu.compiler() is None:
        pytest.skip("no C++ compiler here to stand in for a device")
    return emulated_gpu.build(gpu_module.source() + arrays.PROBE, tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def device(kernels: ctypes.CDLL) -> Iterator[ModuleType]:
    """Let `import cupy` give the stand-in; return it."""
    remembered = (arrays.probe_gpu, engine._automatic)
    for function in remembered:
        function.cache_clear()
    with emulated_gpu.emulated(kernels) as cupy:
        yield cupy
    for function in remembered:
        function.cache_clear()


@pytest.fixture
def gpu_device() -> ModuleType:
    """Return CuPy on a working device."""
    try:
        arrays.probe_gpu()
    except GpuError as error:
        pytest.skip(str(error))
    import cupy

    return cupy


@pytest.fixture(params=["emulated", pytest.param("real", marks=pytest.mark.gpu)])
def any_device(request: pytest.FixtureRequest) -> ModuleType:
    """Return CuPy, or what stands for it: what a test asks of one it asks of the other."""
    return request.getfixturevalue("device" if request.param == "emulated" else "gpu_device")


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of two planes or so, so that arrays pass through the device in several."""
    monkeypatch.setattr("n4flow.compute.gpu.BLOCK_VOXELS", 2500)
