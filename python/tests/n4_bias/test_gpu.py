"""The GPU engine: its kernels on a stand-in for a device against the CPU engine and the plain statement.

`device` is that stand-in: every thread of every block runs, on the host. What only a device can show is marked `gpu`.
"""

import subprocess
import sys

import numpy as np
import pytest
from emulated_gpu import Stream
from n4_examples import phantom

from n4flow.compute.simd import LANES
from n4flow.errors import GpuError, InputError
from n4flow.n4_bias import engine
from n4flow.n4_bias import reference as plain
from n4flow.n4_bias.cpu import fit as cpu
from n4flow.n4_bias.cpu.convergence_kernels import itk_measure
from n4flow.n4_bias.cpu.packing import pack
from n4flow.n4_bias.gpu import cuda_source, sharpen
from n4flow.n4_bias.gpu import fit as gpu
from n4flow.n4_bias.inputs import FitInput
from n4flow.n4_bias.problem import degenerate, level_controls, make_problem
from n4flow.n4_bias.settings import FitSettings

RNG = np.random.default_rng(11)
i4, f8 = np.int32, np.float64


def log_field(solution, shape):
    from n4flow.n4_bias import bspline

    t = [bspline.sample_coordinates(n, c) for n, c in zip(shape, solution.lattice.shape, strict=True)]
    return bspline.evaluate(solution.lattice, t)


def fits(image, mask, settings, weights=None, **options):
    """The same fit on the device and on the CPU."""
    first = (options.pop("control_points", 4),) * image.ndim
    controls = level_controls(first, len(settings.iterations), image.shape, **options)
    on_device = gpu.fit(gpu.pack(image, mask, weights, 1), controls, settings)
    return on_device, cpu.fit(pack(image, mask, weights, 1), controls, settings), controls


def assert_equal_fits(got, expected, shape, mask, tolerance=1e-5, rel=3e-3):
    """As many iterations, and log fields within `tolerance` in the mean, five times that anywhere."""
    assert [level.iterations for level in got.levels] == [level.iterations for level in expected.levels]
    assert [level.converged for level in got.levels] == [level.converged for level in expected.levels]
    for a, b in zip(got.levels, expected.levels, strict=True):
        assert a.control_points == b.control_points
        assert a.measures == pytest.approx(b.measures, rel=rel, abs=1e-9)
    difference = (log_field(got, shape) - log_field(expected, shape))[mask]
    assert np.abs(difference).mean() < tolerance
    assert np.abs(difference).max() < 5 * tolerance


# ------------------------------------------------------------------------------------------------------------ packing


@pytest.mark.parametrize("shape", [(5, 21, 45), (40, 70)])
@pytest.mark.parametrize("weighted", [False, True])
def test_packs_what_the_cpu_packs(device, shape, weighted):
    image, mask = phantom(shape)
    image.reshape(-1)[::97], image.reshape(-1)[5::101], image.reshape(-1)[7::89] = np.nan, -1, np.inf
    mask[1] = False
    weights = RNG.uniform(-0.1, 1, shape).astype(np.float32) if weighted else None
    if weights is not None:
        weights.reshape(-1)[::31] = np.inf
    got, expected = gpu.pack(image, mask, weights, 1), pack(image, mask, weights, 1)
    rows = got.rows.get()
    assert np.array_equal(rows[:, 0], expected.rows.start[:-1].astype(int))
    assert np.array_equal(rows[:, 2], np.diff(expected.rows.start.astype(int)))
    assert np.array_equal(rows[rows[:, 2] > 0, 1], expected.rows.first[rows[:, 2] > 0].astype(int))
    assert np.allclose(got.log_image.get(), expected.rows.log_image, rtol=3e-7)  # two logarithms
    if weights is not None:
        inside = np.isfinite(expected.rows.log_image)
        assert np.array_equal(got.weights.get()[inside], expected.rows.weights[inside])
    assert got.survey.voxels == expected.survey.voxels
    assert got.survey.at_high == expected.survey.at_high
    assert [got.survey.low, got.survey.high] == pytest.approx([expected.survey.low, expected.survey.high], rel=1e-6)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda image, mask: mask.fill(False), "empty mask"),
        (lambda image, mask: image.fill(-3), "no positive finite voxel"),
        (lambda image, mask: image.fill(7), "no spread"),
    ],
)
def test_what_cannot_be_fitted_is_seen(device, spoil, sentence):
    image, mask = phantom((4, 9, 10))
    spoil(image, mask)
    assert degenerate(gpu.pack(image, mask, None, 1).survey, image.shape).startswith(sentence)


@pytest.mark.parametrize("value", [-3e38, -1.0, -1e-40, 0.0, 1e-30, 5.25, 3e38])
def test_numbers_keep_their_order_as_bits(value):
    bits = np.float32(value).view(np.uint32)
    ordered = ~bits if bits & np.uint32(0x80000000) else bits | np.uint32(0x80000000)
    assert sharpen.from_ordered(ordered) == float(np.float32(value))


# ---------------------------------------------------------------------------------------------------- the whole fit


CASES = {
    "volume": ((11, 38, 45), {}),
    "plane": ((60, 71), {}),
    "singleton axis": ((1, 40, 51), {}),
    "two planes, few spans": ((2, 40, 51), {"thin": True}),
    "many control points": ((7, 30, 37), {"control_points": 7}),
    "rows longer than a block": ((2, 12, 300), {"thin": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_cpu_and_the_plain_statement(device, case):
    shape, options = CASES[case]
    image, mask = phantom(shape)
    settings = FitSettings(iterations=(8, 5, 3))
    got, expected, controls = fits(image, mask, settings, **options)
    # sums in another order move the lattice by some 1e-7; measures of a few thousand voxels by 1e-4 of themselves
    assert_equal_fits(got, expected, shape, mask, 1e-5)
    plainly = plain.fit(make_problem(image, mask), controls, settings)
    difference = (log_field(got, shape) - log_field(plainly, shape))[mask]
    # fine bins cost some 1e-6 of the corrected image
    assert np.abs(difference - difference.mean()).mean() < 5e-6


@pytest.mark.parametrize(
    "options",
    [
        {"convergence": "cv"},
        {"over_relax": 1.8},
        {"bins": 64, "fwhm": 0.3, "wiener": 0.1},
        {"bins": 1100},  # transforms of 4096: they lie in global memory
        {"threshold": 0.0, "iterations": (2, 0, 3)},
        {"threshold": 0.1},
        {"iterations": (0, 3)},
    ],
)
def test_settings_mean_what_they_mean_on_the_cpu(device, options):
    image, mask = phantom((7, 30, 37))
    settings = FitSettings(**({"iterations": (6, 4)} | options))
    got, expected, _controls = fits(image, mask, settings)
    assert_equal_fits(got, expected, image.shape, mask)


def test_weights_enter_the_fit_only(device):
    image, mask = phantom((7, 30, 37))
    weights = RNG.uniform(0, 1, image.shape).astype(np.float32)
    weights[weights < 0.2] = 0
    got, expected, _controls = fits(image, mask, FitSettings(iterations=(5, 3)), weights)
    assert_equal_fits(got, expected, image.shape, mask & (weights > 0))


def test_a_rising_start_that_itk_misses(device):
    image, mask = phantom((7, 30, 37))
    lowest = image[mask].min()
    z, y, x = np.argwhere(mask)[0]
    image[z, y, x : x + 3], mask[z, y, x : x + 3] = lowest * np.array([0.7, 0.8, 0.9]), True
    got, expected, _controls = fits(image, mask, FitSettings(iterations=(4, 3), threshold=0))
    assert_equal_fits(got, expected, image.shape, mask)
    seen, _same, _controls = fits(image[::-1].copy(), mask[::-1].copy(), FitSettings(iterations=(4, 3), threshold=0))
    assert np.abs(seen.lattice[::-1] - got.lattice).max() > 1e-5  # it makes a difference


def test_a_long_rising_start(device):
    """More voxels than are noted, in a row longer than a warp, with some between that do not rise."""
    image, mask = phantom((3, 20, 117))
    mask[:] = True
    image[0, 0] = image.min() * np.linspace(0.2, 0.9, 117)
    image[0, 0, [0, 40, 41, 100]] = image.min() * np.array([0.5, 3, 0.9, 4])
    got, expected, _controls = fits(image, mask, FitSettings(iterations=(4, 3), threshold=0))
    assert_equal_fits(got, expected, image.shape, mask)


def test_a_field_that_explains_everything_ends_the_fit(device):
    ramp = np.exp(0.3 * np.linspace(-1, 1, 20))
    image = (100 * ramp[:, None, None] * ramp[None, :, None] * np.ones(12)).astype(np.float32)
    got, expected, _controls = fits(image, np.ones(image.shape, bool), FitSettings(iterations=(20, 10)))
    assert_equal_fits(got, expected, image.shape, np.ones(image.shape, bool), 1e-4, rel=2e-2)


def test_large_steps_count_more_fine_bins_than_shared_memory_holds(device, monkeypatch):
    image, mask = phantom((7, 30, 37))
    settings = FitSettings(iterations=(4, 3))
    some, _cpu, _controls = fits(image, mask, settings)
    monkeypatch.setattr(gpu, "SHARED_FINE", 64)
    none, _cpu, _controls = fits(image, mask, settings)
    assert np.array_equal(some.lattice, none.lattice)  # whole numbers, wherever they are counted


@pytest.mark.parametrize("multiprocessors", [1, 50])
def test_bits_do_not_depend_on_the_order_of_threads_or_the_size_of_the_device(device, multiprocessors, monkeypatch):
    image, mask = phantom((11, 38, 45))
    settings = FitSettings(iterations=(5, 4))
    controls = level_controls((4, 4, 4), 2, image.shape)

    def run():
        return gpu.fit(gpu.pack(image, mask, None, 1), controls, settings)

    first = run()
    device.device.reversed = 1  # last block first, last thread first: a missing barrier would show
    monkeypatch.setitem(device.cuda.Device.attributes, "MultiProcessorCount", multiprocessors)
    second = run()
    assert np.array_equal(first.lattice, second.lattice)
    assert first.levels == second.levels


def test_what_memory_held_before_does_not_show(device):
    image, mask = phantom((7, 30, 37))
    mask[:] = True  # rows are filled up beyond the image
    settings = FitSettings(iterations=(4, 3), threshold=0)
    lattices = []
    for byte in (0xFF, 0x00, 0x3F):  # NaN and the highest numbers, 0, about 0.7 and many
        device.device.poison = byte
        got, expected, _controls = fits(image, mask, settings)
        lattices.append(got.lattice)
    assert_equal_fits(got, expected, image.shape, mask)
    assert np.array_equal(lattices[0], lattices[1])
    assert np.array_equal(lattices[0], lattices[2])


def test_more_voxels_than_a_device_can_count(device, monkeypatch):
    image, mask = phantom((4, 9, 10))
    monkeypatch.setattr(gpu, "MOST_VOXELS", image.size)
    assert gpu.pack(image, mask, None, 1).survey.usable < image.size
    mask[:] = True  # rows of 10 are kept as 16
    for most in (image.size, image.size - 1):
        monkeypatch.setattr(gpu, "MOST_VOXELS", most)
        with pytest.raises(InputError, match=f"a GPU takes {most} at most; shrink more"):
            gpu.pack(image, mask, None, 1)


def test_what_fails_while_a_graph_is_captured_is_told(device, monkeypatch):
    image, mask = phantom((4, 9, 10))
    controls, settings = level_controls((4, 4, 4), 1, image.shape), FitSettings(iterations=(3,))
    sharpen = gpu._Fit._sharpen

    def short(fit):
        if Stream.capturing is not None:
            raise device.cuda.memory.OutOfMemoryError(0, 0)
        sharpen(fit)

    with monkeypatch.context() as broken, pytest.raises(device.cuda.memory.OutOfMemoryError):
        broken.setattr(gpu._Fit, "_sharpen", short)
        gpu.fit(gpu.pack(image, mask, None, 1), controls, settings)
    assert len(gpu.fit(gpu.pack(image, mask, None, 1), controls, settings).levels) == 1  # nothing is captured any more


def test_the_host_only_looks_on(device):
    image, mask = phantom((7, 30, 37))
    controls = level_controls((4, 4, 4), 2, image.shape)
    solution = gpu.fit(gpu.pack(image, mask, None, 1), controls, FitSettings(iterations=(9, 2), threshold=1e-9))
    assert [level.iterations for level in solution.levels] == [9, 2]
    launches = device.device.launches
    # each iteration once; each level's weights once, and the measure before the first, when it does nothing
    assert launches["combine"] - 2 == launches["decide"] - 1
    assert launches["walk_chunks"] == gpu.PASSES * launches["decide"]


# -------------------------------------------------------------------------------------------- the convergence measure


def device_measure(kept, rest, stop):
    """What `decide` makes of kept changes and of sums over the rest (count, total, squares): measure, verdict."""
    import cupy

    n = kept.size
    cuts = gpu.chunk_cuts(n)
    words, chunks = np.zeros(11, np.uint32), cuts.size - 1
    words[gpu.ACTIVE] = 1
    words = cupy.asarray(words)
    there = int((kept < 1e8).sum())
    values, bounds = cupy.asarray(kept), cupy.asarray(cuts)
    totals = cupy.empty(gpu.TOTALS_BYTES * chunks, cupy.uint8)
    walks = cupy.empty(gpu.PASSES * chunks * gpu.WALK_BYTES, cupy.uint8)
    changes = cupy.asarray(np.array([rest[1:]], f8))
    measures, state = cupy.zeros(1, cupy.float64), cupy.zeros(9, cupy.float64)
    cuda_source.launch("total_changes", chunks, 256, values, bounds, totals, words)
    for k in range(gpu.PASSES):
        cuda_source.launch("walk_chunks", chunks, 32, values, bounds, i4(chunks), totals, walks, i4(k), words)
    cuda_source.launch(
        "decide", 1, 256, totals, walks, i4(chunks), i4(gpu.PASSES), changes, i4(1), f8(there + rest[0]), f8(stop),
        measures, state, words,
    )  # fmt: skip
    return float(measures.get()[0]), int(words.get()[gpu.STOP]), state.get()


SHAPES = {
    "noise": lambda x, noise: noise,
    "ramp": lambda x, noise: x + 0.3 * noise,
    "falling ramp": lambda x, noise: -x,
    "step": lambda x, noise: np.where(x > -0.7, 1, -1) + 0.1 * noise,
    "wave": lambda x, noise: np.sin(9 * x) + 0.05 * noise,
    "offset": lambda x, noise: 5 + x + 0.3 * noise,
}

# hardly any noise: the voxels of a block round alike, and the walks do not come together; the host decides
DOUBTFUL = {("falling ramp", 1e-2), ("wave", 1e-3)}


@pytest.mark.parametrize("scale", [0.1, 1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("shape", SHAPES)
def test_itks_measure_side_by_side(device, shape, scale):
    n = 1 << 16
    rng = np.random.default_rng(3)
    kept = (scale * SHAPES[shape](np.linspace(-1, 1, n), rng.standard_normal(n))).astype(np.float32)
    kept[rng.random(n) < 0.1] = gpu.ABSENT
    rest = (5000.0, 5000 * 0.4 * scale, 5000 * 0.5 * scale**2)
    expected = itk_measure(kept, np.uintp(n), *rest, 0.0)
    measure, verdict, state = device_measure(kept, rest, 0.9 * expected)
    if (shape, scale) in DOUBTFUL:
        assert verdict == gpu.ASK
    else:
        # both take blocks of voxels at a time, which costs either up to 0.3 % of ITK's recurrence
        assert measure == pytest.approx(expected, rel=3e-3)
        assert verdict == gpu.GO_ON
        assert device_measure(kept, rest, 1.1 * expected)[1] == gpu.END
        # a close call is left to the host, with what it needs
        assert device_measure(kept, rest, expected)[1] == gpu.ASK
    assert state[[gpu.REST_COUNT, gpu.REST_TOTAL, gpu.REST_SQUARES]] == pytest.approx(rest)


@pytest.mark.parametrize("n", [40, 512, 513, 700, 4096, 5000, 9000])
def test_the_measure_of_few_voxels(device, n):
    kept = (1e-3 * RNG.standard_normal(n)).astype(np.float32)
    kept[3::11] = gpu.ABSENT
    padded = np.full(-(-n // LANES) * LANES, gpu.ABSENT, np.float32)
    padded[:n] = kept
    expected = itk_measure(padded, np.uintp(padded.size), 0.0, 0.0, 0.0, 0.0)
    assert device_measure(padded, (0, 0, 0), 0.0)[0] == pytest.approx(expected, rel=1e-4)


def test_a_close_call_is_decided_by_the_cpus_measure(device):
    image, mask = phantom((7, 30, 37))
    free = FitSettings(iterations=(8,), threshold=0)
    _gpu, reference, controls = fits(image, mask, free)
    third = reference.levels[0].measures[2]
    for threshold, iterations in ((third * 1.0005, 3), (third * 0.9995, 4)):
        settings = FitSettings(iterations=(8,), threshold=threshold)
        got = gpu.fit(gpu.pack(image, mask, None, 1), controls, settings)
        expected = cpu.fit(pack(image, mask, None, 1), controls, settings)
        assert expected.levels[0].iterations == iterations  # the threshold lies between the two
        assert got.levels[0].iterations == iterations


# --------------------------------------------------------------------------------------------------------- the engine


def test_the_engine_fits_by_the_gpu(device, caplog):
    image, mask = phantom((7, 30, 37))
    options = {
        "controls": level_controls((4, 4, 4), 2, image.shape),
        "settings": FitSettings(iterations=(4, 3)),
    }
    small = FitInput(image, mask, None, image.shape, (1, 1, 1))
    with caplog.at_level("INFO", "n4flow"):
        field = engine.fit(small, backend="auto", **options)
        engine.fit(small, backend="auto", **options)
    assert field.backend == "gpu"
    assert [r.message for r in caplog.records if "auto" in r.message] == ["backend auto takes the gpu: emulated"]
    expected = engine.fit(small, backend="cpu", **options)
    assert np.abs(field.lattice - expected.lattice).max() < 1e-5


@pytest.mark.parametrize(("driver", "installed"), [(False, True), (True, True), (True, False)])
def test_auto_says_why_it_takes_no_gpu_only_where_somebody_prepared_for_one(
    monkeypatch, caplog, tmp_path, driver, installed
):
    def broken():
        raise GpuError(fault)

    fault = "no working GPU: the driver is too old"
    monkeypatch.setattr(engine, "probe_gpu", broken)
    monkeypatch.setattr(engine, "DRIVER", tmp_path if driver else tmp_path / "none")
    monkeypatch.setattr(engine, "find_spec", lambda name: name if installed else None)
    with caplog.at_level("DEBUG", "n4flow"):
        engine._automatic.cache_clear()
        chosen = engine.choose_backend("auto")
        engine._automatic.cache_clear()
    assert chosen == "cpu"
    said = [f"backend auto takes the cpu ({fault})"] if driver and installed else []
    assert [record.message for record in caplog.records] == said


# -------------------------------------------------------------------------------------------------- the real compiler


@pytest.mark.parametrize("architecture", ["sm_70", "sm_80", "sm_90", "sm_100"])
def test_nvrtc_compiles_the_kernels(architecture):
    pytest.importorskip("cupy", reason="CuPy and its CUDA wheels are not installed")
    from cupy.cuda import nvrtc

    if int(architecture[3:]) not in nvrtc.getSupportedArchs():
        pytest.skip(f"this NVRTC does not know {architecture}")
    code = cuda_source.compile_for(architecture)
    for name in ("find_rows", "fill_rows", "fit_sweep", "combine", "field_sweep", "sharpen", "walk_chunks", "decide"):
        assert name.encode() in code


def test_importing_the_engine_imports_no_cupy():
    code = "import sys, n4flow.n4_bias.engine; assert 'cupy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# --------------------------------------------------------------------------------------------------- a real device


@pytest.mark.gpu
@pytest.mark.parametrize("convergence", ["itk", "cv"])
def test_a_device_agrees_with_the_cpu(gpu_device, convergence):
    image, mask = phantom((90, 120, 130))
    settings = FitSettings(iterations=(20, 10, 10, 5), convergence=convergence)
    got, expected, controls = fits(image, mask, settings)
    assert_equal_fits(got, expected, image.shape, mask)
    again = gpu.fit(gpu.pack(image, mask, None, 1), controls, settings)
    assert np.array_equal(got.lattice, again.lattice)
    assert got.levels == again.levels
