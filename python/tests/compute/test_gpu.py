"""The public functions on a GPU: CuPy arrays stay there, host arrays pass through, results are the CPU's.

`any_device` is a device, or a stand-in that runs the kernels on the host (`device`); see `emulated_gpu`.
"""

import os

import numpy as np
import pytest
from gpu_examples import phantom, some_field

import n4flow
from n4flow.compute import arrays
from n4flow.compute import gpu as gpu_device
from n4flow.corrections.base import Where
from n4flow.corrections.bias_field import BiasCorrection
from n4flow.errors import GpuError, InputError, OutOfMemoryError
from n4flow.n4_bias.api import fit_spaced
from n4flow.n4_bias.gpu.evaluate import shrink_masked as shrink_on_gpu
from n4flow.n4_bias.inputs import FitInput
from n4flow.n4_bias.settings import fit_settings
from n4flow.n4_bias.shrink import shrink_masked

RNG = np.random.default_rng(5)
FAST = {"iters": (4, 3), "conv_threshold": 0}


# ------------------------------------------------------------------------------------------------- the field applied


@pytest.mark.parametrize("shape", [(9, 30, 37), (1, 20, 300), (41, 53)])
def test_the_field_is_the_cpus_to_the_bit(any_device, shape):
    field = some_field(shape, tuple(2 if n > 10 else 1 for n in shape))
    image = RNG.uniform(0, 500, shape).astype(np.float32)
    image.reshape(-1)[:3] = 0, np.nan, np.inf
    there = any_device.asarray(image)
    assert np.array_equal(field.log_field(gpu=True).get(), field.log_field())
    assert np.array_equal(field.field(gpu=True).get(), field.field())
    steep = some_field(shape, scale=200)  # beyond what float32 can hold
    assert np.array_equal(steep.field(gpu=True).get(), steep.field())
    corrected = field.apply(there)
    assert isinstance(corrected, any_device.ndarray)
    assert np.array_equal(corrected.get(), field.apply(image), equal_nan=True)
    part = tuple(slice(n // 3, n - 1) if n > 3 else slice(None) for n in shape)
    assert np.array_equal(field.apply(there[part], where=part).get(), field.apply(image)[part], equal_nan=True)
    into = any_device.zeros(shape, np.float64)
    assert field.apply(there, into) is into
    assert np.array_equal(into.get(), corrected.get().astype(np.float64), equal_nan=True)
    assert field.apply(there, there) is there
    assert np.array_equal(there.get(), corrected.get(), equal_nan=True)
    with pytest.raises(InputError, match="out must be a float32 or float64 array of shape"):
        field.apply(there, any_device.zeros((2, 3), np.float32))


@pytest.mark.parametrize("dtype", ["float32", "uint16", ">i2", "float64"])
def test_host_arrays_pass_through_in_blocks(device, small_blocks, dtype):
    image = (phantom()[0] * 10).astype(dtype)
    field = some_field(image.shape, (1, 2, 2))
    out, bias = np.zeros(image.shape), np.zeros(image.shape, np.float32)
    field.apply_through_gpu(image, out, bias)
    assert device.device.launches["evaluate_block"] == 2 * 5  # five blocks, the image and the field of each
    assert np.array_equal(out, field.apply(image))
    assert np.array_equal(bias, field.field())
    assert device.get_default_memory_pool().released > 0


def test_the_recipe_corrects_blocks_on_the_device(any_device):
    image = phantom()[0]
    fields = (some_field((4, 30, 37)), some_field((3, 30, 37), seed=4))
    correction = BiasCorrection(((0, 4, fields[0]), (5, 8, fields[1])))
    where = Where(1, 3, 2, (9, 30, 37))
    block = np.ascontiguousarray(image[1:, 3:20, 2:30])
    expected = correction.apply(block.copy(), where)
    got = correction.apply(any_device.asarray(block), where)
    assert np.array_equal(got.get(), expected)


@pytest.mark.parametrize("weighted", [False, True])
def test_shrinks_to_the_same_bits(any_device, small_blocks, weighted):
    image, mask = phantom((11, 30, 37))
    image[3, 4, 5], image[2, 2] = np.nan, -1
    weights = RNG.uniform(-0.1, 1, image.shape).astype(np.float32) if weighted else None
    k = (2, 3, 2)
    expected = shrink_masked(image, mask, weights, k, 1)
    given = [None if a is None else any_device.asarray(a) for a in (image, mask, weights)]
    for source in ((image, mask, weights), given):
        got = shrink_on_gpu(*source, k, gpu_device.BLOCK_VOXELS)
        for a, b in zip(got, expected, strict=True):
            assert (a is None) if b is None else np.array_equal(a.get(), b)


# -------------------------------------------------------------------------------------------------- N4 as it is called


@pytest.mark.parametrize("shape", [(9, 30, 37), (40, 50)])
@pytest.mark.parametrize("shrink", [1, 2])
def test_n4(any_device, small_blocks, shape, shrink):
    image, mask = phantom(shape)
    expected, log_bias = n4flow.n4(image, mask, backend="cpu", return_bias=True, shrink=shrink, **FAST)
    host, host_bias = n4flow.n4(image, mask, backend="gpu", return_bias=True, shrink=shrink, **FAST)
    there = n4flow.n4(any_device.asarray(image), any_device.asarray(mask), return_bias=True, shrink=shrink, **FAST)
    assert type(host) is np.ndarray
    assert all(isinstance(array, any_device.ndarray) for array in there)
    assert np.array_equal(there[0].get(), host)
    assert np.array_equal(there[1].get(), host_bias)
    # sums in another order, and the few voxels of a test, move the log field by some 1e-6
    assert np.abs(host_bias - log_bias).max() < 2e-5
    assert host[host != 0] == pytest.approx(expected[expected != 0], rel=2e-5)
    assert (host == 0).sum() == (expected == 0).sum() == 1


def test_a_mask_is_found_on_the_device(any_device):
    image = phantom()[0]
    field, expected = n4flow.fit_bias(any_device.asarray(image), **FAST), n4flow.fit_bias(image, backend="cpu", **FAST)
    assert field.backend == "gpu"
    assert field.voxels == expected.voxels
    assert np.abs(field.lattice - expected.lattice).max() < 2e-5


def test_a_mixture_of_host_and_device(any_device):
    image, mask = phantom()
    weights = RNG.uniform(0.1, 1, image.shape).astype(np.float32)
    expected = n4flow.fit_bias(
        any_device.asarray(image), any_device.asarray(mask), weights=any_device.asarray(weights), **FAST
    )
    for given in ((any_device.asarray(image), mask), (image, any_device.asarray(mask))):
        assert np.array_equal(n4flow.fit_bias(*given, weights=weights, **FAST).lattice, expected.lattice)
    on_cpu = n4flow.fit_bias(any_device.asarray(image), any_device.asarray(mask), backend="cpu", **FAST)
    assert on_cpu.backend == "cpu"


def test_nothing_to_fit(any_device):
    image, mask = phantom()
    with pytest.warns(n4flow.errors.N4flowWarning, match="empty mask"):
        corrected = n4flow.n4(any_device.asarray(image), any_device.asarray(np.zeros_like(mask)), backend="gpu")
    assert np.array_equal(corrected.get(), image)


@pytest.mark.parametrize("host", [True, False])
def test_n4_correct_gpu(any_device, small_blocks, host):
    image, mask = phantom((9, 40, 47))
    options = {"shrink_factor": 2, "n_iterations": [5, 4], "spline_distance_mm": 20.0}
    expected, bias = n4flow.n4_correct_gpu(image, mask, use_gpu=False, **options)
    given = image.copy() if host else any_device.asarray(image)
    out = np.empty(image.shape, np.float32) if host else any_device.empty(image.shape, np.float32)
    got, field = n4flow.n4_correct_gpu(given, mask if host else any_device.asarray(mask), bias_out=out, **options)
    assert field is out
    assert isinstance(got, any_device.ndarray) is not host
    got, field = (got, field) if host else (got.get(), field.get())
    assert field == pytest.approx(bias, rel=2e-5)
    assert got == pytest.approx(expected, rel=2e-5)
    in_place, _field = n4flow.n4_correct_gpu(given, mask if host else any_device.asarray(mask), out=given, **options)
    assert in_place is given
    assert np.array_equal(given if host else given.get(), got)


@pytest.mark.parametrize("shrink", [1, 2])
def test_n4_correct_gpu_takes_a_mask_from_the_host(any_device, shrink):
    image, mask = phantom((9, 40, 47))
    options = {"shrink_factor": shrink, "n_iterations": [3, 2], "spline_distance_mm": 20.0}
    there = any_device.asarray(image)
    expected, _field = n4flow.n4_correct_gpu(there, any_device.asarray(mask), **options)
    got, _field = n4flow.n4_correct_gpu(there, mask, **options)
    assert np.array_equal(got.get(), expected.get())


def test_a_shrunken_volume_is_fitted_by_the_gpu(any_device):
    image, mask = phantom()
    small = FitInput(image, mask, None, (9, 60, 74), (1, 2, 2))
    options = {"voxel_um": (20, 10, 10), "spline_um": None, "settings": fit_settings((4, 3), threshold=0)}
    got, expected = (fit_spaced(small, backend=backend, **options) for backend in ("gpu", "cpu"))
    assert got.backend == "gpu"
    assert np.abs(got.lattice - expected.lattice).max() < 2e-5


@pytest.mark.parametrize("weighted", [False, True])
def test_sharpen_residual(any_device, small_blocks, weighted):
    values = np.log(np.maximum(phantom()[0], 1))
    mask = values > 4.9
    values[2, 3, 4] = np.nan
    weights = RNG.uniform(0, 3, values.shape).astype(np.float32) if weighted else None
    expected = n4flow.sharpen_residual(values, mask, mask_weights=weights)
    host = n4flow.sharpen_residual(values, mask, use_gpu=True, mask_weights=weights)
    given = [None if a is None else any_device.asarray(a) for a in (values, mask, weights)]
    there = n4flow.sharpen_residual(given[0], given[1], mask_weights=given[2])
    assert np.array_equal(there.get(), host, equal_nan=True)  # shares are whole numbers: no order of voxels shows
    assert np.allclose(host, expected, rtol=2e-6, equal_nan=True)
    assert np.array_equal(host[~mask], values[~mask], equal_nan=True)
    assert np.abs(host - values)[mask & np.isfinite(values)].max() > 0.01
    many = {"n_bins": 7000, "mask_weights": weights}  # more than a block has the memory to count
    assert np.allclose(
        n4flow.sharpen_residual(values, mask, use_gpu=True, **many),
        n4flow.sharpen_residual(values, mask, **many),
        rtol=2e-6,
        equal_nan=True,
    )
    flat = np.full((3, 4), 2.0, np.float32)
    assert np.array_equal(n4flow.sharpen_residual(flat, flat > 0, use_gpu=True), flat)


# ---------------------------------------------------------------------------------------------------- other stages


def tissue_on_agarose(seed=0):
    rng = np.random.default_rng(seed)
    z, y, x = np.ogrid[:8, :50, :60]
    tissue = (y - 25.0) ** 2 + (x - 25.0 - z) ** 2 < 300
    volume = np.where(tissue, 180.0, 40.0) * (1 + 0.05 * rng.standard_normal((8, 50, 60)))
    volume[:4] *= 1.3
    volume[:, :3] = 0
    return volume.astype(np.float32)


@pytest.mark.parametrize("sections", [1, 2])
@pytest.mark.parametrize("voxels", [2500, 1 << 22])
def test_compute_tissue_mask(any_device, monkeypatch, sections, voxels):
    monkeypatch.setattr(gpu_device, "BLOCK_VOXELS", voxels)
    monkeypatch.setattr("n4flow.masks.tissue.GPU_BLOCKS", 1)
    volume = tissue_on_agarose()
    expected = n4flow.compute_tissue_mask(volume, n_serial_slices=sections)
    there = n4flow.compute_tissue_mask(any_device.asarray(volume), n_serial_slices=sections)
    host = n4flow.compute_tissue_mask(volume, n_serial_slices=sections, use_gpu=True)
    assert isinstance(there, any_device.ndarray)
    assert type(host) is np.ndarray
    assert 0.1 < expected.mean() < 0.5
    # planes by the few, or all at once; another library's Gaussian may move a voxel at the threshold
    assert (host == expected).mean() > 0.9999
    assert (there.get() == expected).mean() > 0.9999


@pytest.mark.parametrize("masked", [False, True])
def test_apply_histogram_matching(any_device, small_blocks, masked):
    volume = tissue_on_agarose()
    options = {"n_bins": 64, "tissue_threshold": 20.0, "mask": volume > 90 if masked else None}
    expected = n4flow.apply_histogram_matching(volume, 2, **options)
    host = n4flow.apply_histogram_matching(volume, 2, use_gpu=True, **options)
    there = n4flow.apply_histogram_matching(any_device.asarray(volume), 2, **options)
    assert isinstance(there, any_device.ndarray)
    assert np.array_equal(host, expected)
    assert np.array_equal(there.get(), expected)
    assert np.abs(expected - volume).max() > 5


def test_bkgd_spatial_mean(any_device):
    channels = [tissue_on_agarose(), tissue_on_agarose(1)[:3]]
    expected, factors, _info = n4flow.bkgd_spatial_mean(channels, 9.0)
    host, host_factors, _info = n4flow.bkgd_spatial_mean(channels, 9.0, cuda=True)
    there, _factors, _info = n4flow.bkgd_spatial_mean([any_device.asarray(c) for c in channels], 9.0)
    for a, b, c in zip(expected, host, there, strict=True):
        assert type(b) is np.ndarray
        assert np.allclose(a, b, rtol=1e-6)  # float64 sums, rounded to float32
        assert np.allclose(a, c.get(), rtol=1e-6)
    assert factors == host_factors


def test_apply_bias_field(any_device):
    image = phantom()[0]
    field = some_field(image.shape)
    expected = n4flow.apply_bias_field(image, field.field())
    there = n4flow.apply_bias_field(any_device.asarray(image), any_device.asarray(field.field()))
    assert np.array_equal(there.get(), expected)
    assert np.array_equal(n4flow.apply_bias_field(any_device.asarray(image), field).get(), field.apply(image))


# --------------------------------------------------------------------------------------------- what may go wrong there


def test_short_memory_is_tried_once_more_with_smaller_blocks(device, monkeypatch):
    image, mask = phantom()
    field = some_field(image.shape)
    asked = []
    empty = device.empty

    def short(shape, dtype=float):
        asked.append(int(np.prod(shape)))
        if asked[-1] > 3 * 30 * 37:
            raise device.cuda.memory.OutOfMemoryError(0, 0)
        return empty(shape, dtype)

    monkeypatch.setattr(device, "empty", short)
    monkeypatch.setattr(gpu_device, "BLOCK_VOXELS", 8 * 30 * 37)
    out = np.empty(image.shape, np.float32)
    field.apply_through_gpu(image, out)
    assert max(asked) == 8 * 30 * 37  # the first attempt
    assert np.array_equal(out, field.apply(image))
    monkeypatch.setattr(gpu_device, "BLOCK_VOXELS", 80 * 30 * 37)
    with pytest.raises(OutOfMemoryError, match="the GPU is out of memory, also with smaller blocks") as error:
        field.apply_through_gpu(image, out)
    assert error.value.exit_code == 4
    with pytest.raises(OutOfMemoryError, match="shrink more"):
        n4flow.n4(image, mask, backend="gpu", **FAST)
    there = device.asarray(np.zeros((200, 30, 37), np.float32))
    for call in (
        lambda field: field.apply(there),
        lambda field: field.field(gpu=True),
        lambda field: field.log_field(gpu=True),
    ):
        with pytest.raises(OutOfMemoryError, match="the GPU is out of memory"):
            call(some_field(there.shape))


def test_a_device_that_fails_is_one_sentence(device, monkeypatch):
    def broken(*_args, **_options):
        fault = "cudaErrorIllegalAddress: an illegal memory access\nmore"
        raise device.cuda.runtime.CUDARuntimeError(fault)

    monkeypatch.setattr(device, "empty", broken)
    image = phantom()[0]
    with pytest.raises(GpuError, match="^the GPU failed: cudaErrorIllegalAddress: an illegal memory access; ") as error:
        some_field(image.shape).apply_through_gpu(image, np.empty_like(image))
    assert error.value.exit_code == 3


# --------------------------------------------------------------------------------------------------------- the probe


def test_the_probe_computes_and_compares(device, monkeypatch):
    info = arrays.probe_gpu()
    assert (info.name, info.driver, info.memory_bytes) == ("emulated", "12.9", 1 << 30)
    arrays.probe_gpu.cache_clear()
    monkeypatch.setattr(device, "arange", lambda n, dtype: device.zeros(n, dtype))
    with pytest.raises(GpuError, match="returned wrong numbers"):
        arrays.probe_gpu()


@pytest.mark.parametrize(
    ("fault", "remedy"),
    [
        ("cudaErrorNoDevice: no CUDA-capable device is detected", "check that nvidia-smi shows a device"),
        ("cudaErrorInsufficientDriver: CUDA driver version is insufficient", "the driver is older than the CUDA"),
        ("CUDA_ERROR_UNSUPPORTED_PTX_VERSION: the provided PTX was compiled", "the driver is older than the CUDA"),
        ("Failed to find CUDA headers; please install cuda-toolkit", "compiler or headers of CUDA are missing"),
        ('catastrophic error: cannot open source file "cuda_fp16.h"', "compiler or headers of CUDA are missing"),
        ("cudaErrorDevicesUnavailable: CUDA-capable device(s) is/are busy or unavailable", "used by another process"),
        ("cudaErrorMemoryAllocation: out of memory", "used by another process"),
        ("cudaErrorInvalidDevice: invalid device ordinal", "give an index, a UUID or a MIG name"),
        ("something else", "check nvidia-smi, the driver"),
    ],
)
def test_a_fault_of_the_probe_is_a_sentence_with_its_remedy(device, monkeypatch, fault, remedy):
    def broken(*_args, **_options):
        raise device.cuda.runtime.CUDARuntimeError(fault + "\nand more")

    monkeypatch.setattr(device, "arange", broken)
    with pytest.raises(GpuError) as error:
        arrays.probe_gpu()
    assert str(error.value).startswith(f"no working GPU: {fault}; ")
    assert remedy in str(error.value)
    assert str(error.value).endswith(", or choose backend cpu, itk or auto")
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 3


def test_no_driver_at_all(device, monkeypatch):
    def broken(*_args, **_options):
        fault = "cudaErrorInsufficientDriver: CUDA driver version is insufficient"
        raise device.cuda.runtime.CUDARuntimeError(fault)

    monkeypatch.setattr(device, "arange", broken)
    monkeypatch.setattr(device.cuda.runtime, "driverGetVersion", lambda: 0)
    with pytest.raises(GpuError, match="^no working GPU: there is no NVIDIA driver; check that nvidia-smi"):
        arrays.probe_gpu()


def test_kernels_are_kept_without_a_home(device, monkeypatch):
    monkeypatch.setenv("CUPY_CACHE_DIR", "")  # so that it is put back
    monkeypatch.delenv("CUPY_CACHE_DIR")
    monkeypatch.setenv("HOME", "/nowhere")
    arrays.probe_gpu()
    assert os.path.isdir(os.path.dirname(os.environ["CUPY_CACHE_DIR"]))
    monkeypatch.setenv("CUPY_CACHE_DIR", "mine")
    arrays.import_cupy()
    assert os.environ["CUPY_CACHE_DIR"] == "mine"
