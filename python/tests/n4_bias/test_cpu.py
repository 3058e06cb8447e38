"""The fast engine: its parts against plain sums, the whole against the plain statement, one result for all threads."""

import threading
import time

import numpy as np
import pytest
from n4_examples import phantom

from n4flow.compute.simd import LANES
from n4flow.n4_bias import bspline
from n4flow.n4_bias import reference as plain
from n4flow.n4_bias.cpu import fit as cpu
from n4flow.n4_bias.cpu import level_kernels
from n4flow.n4_bias.cpu import thread_sync as sync
from n4flow.n4_bias.cpu.packing import pack
from n4flow.n4_bias.cpu.packing_kernels import OUTSIDE
from n4flow.n4_bias.cpu.sweep_kernels import ABSENT, SMALL_STEP
from n4flow.n4_bias.problem import degenerate, level_controls, make_problem
from n4flow.n4_bias.settings import FitSettings

RNG = np.random.default_rng(3)


def difference(a: np.ndarray, b: np.ndarray, image: np.ndarray, mask: np.ndarray) -> float:
    """Mean relative difference of the corrected image in the mask, global scale removed."""
    fields = [
        bspline.evaluate(x, [bspline.sample_coordinates(n, c) for n, c in zip(image.shape, x.shape, strict=True)])
        for x in (a, b)
    ]
    d = (fields[0] - fields[1])[mask]
    return float(np.abs(np.expm1(d - d.mean())).mean())


def run(image, mask, settings, weights=None, control_points=4, thin=False):
    controls = level_controls((control_points,) * image.ndim, len(settings.iterations), image.shape, thin=thin)
    return cpu.fit(pack(image, mask, weights, settings.threads), controls, settings), controls


# -------------------------------------------------------------------------------------------------------- packing


def test_rows_hold_what_lies_between_first_and_last_voxel():
    image = np.arange(1, 2 * 3 * 40 + 1, dtype=np.float32).reshape(2, 3, 40)
    mask = np.zeros(image.shape, bool)
    mask[0, 1, 5:9] = mask[1, 0, 3] = mask[1, 0, 30] = True
    image[0, 1, 5], image[0, 1, 7], image[1, 0, 20] = np.nan, -1, 0
    packed = pack(image, mask, None, 1)
    rows = packed.rows
    lengths = np.diff(rows.start.astype(int))
    assert lengths.tolist() == [0, LANES, 0, 2 * LANES, 0, 0]  # rows are filled up to whole vectors
    assert rows.first[[1, 3]].tolist() == [6, 3]  # the NaN at 5 begins no row
    first = rows.log_image[:LANES]
    assert first[[0, 2]] == pytest.approx(np.log(image[0, 1, [6, 8]]))
    assert (first[[1, *range(3, LANES)]] == OUTSIDE).all()
    second = rows.log_image[LANES:]
    assert (second != OUTSIDE).nonzero()[0].tolist() == [0, 27]
    assert packed.survey == make_problem(image, mask).survey.__class__(
        packed.survey.voxels, packed.survey.low, packed.survey.high, 1
    )
    assert (packed.survey.voxels.masked, packed.survey.voxels.nonfinite, packed.survey.voxels.nonpositive) == (6, 1, 1)
    assert packed.strip_voxels.tolist() == [2, 2]


@pytest.mark.parametrize("dtype", ["uint8", "int16", ">u2", "float64", "float32"])
@pytest.mark.parametrize("shape", [(9, 31, 45), (40, 70)])
def test_packing_surveys_what_the_plain_statement_does(dtype, shape):
    image, mask = phantom(shape)
    image = np.clip(image, 0, 250).astype(dtype)
    image.flags.writeable = False
    weights = RNG.uniform(-0.1, 1, shape).astype(np.float32)
    for given in (None, weights):
        packed, plainly = pack(image, mask, given, 2).survey, make_problem(image, mask, given).survey
        assert packed.voxels == plainly.voxels
        assert packed.low == pytest.approx(plainly.low, rel=1e-6)
        assert packed.high == pytest.approx(plainly.high, rel=1e-6)
        assert packed.at_high == plainly.at_high


def test_strips_follow_from_the_mask_alone():
    image, mask = phantom((6, 300, 400))
    mask[2] = False
    one, four = pack(image, mask, None, 1), pack(image, mask, None, 4)
    assert np.array_equal(one.rows.strips, four.rows.strips)
    begins, ends = one.rows.strips.astype(int).T
    assert np.array_equal(begins // 300, (ends - 1) // 300)
    assert set(begins // 300) == {0, 1, 3, 4, 5}
    start = one.rows.start.astype(int)
    sizes = start[ends] - start[begins]
    assert sizes.sum() == start[-1]
    assert sizes.max() < 1.5 * (1 << 14)  # large planes are cut, so that threads share a 2-D image too
    assert one.strip_voxels.sum() == mask.sum()


# ------------------------------------------------------------------------------------------------ one sweep at a time


def prepared(image, mask, controls, weights=None, step=0.01):
    """One thread's arrays, a lattice and a step on them, as a level begins."""
    packed = pack(image, mask, weights, 1)
    kernel_settings = cpu._kernel_settings(packed, FitSettings())
    tables = cpu._tables(packed.shape, packed.width, controls)
    work = cpu._work(packed, controls, 1, cpu._shared_arrays(packed, kernel_settings, 1))
    state = np.zeros(level_kernels.STATE)
    logs = np.log(image[mask])
    state[[level_kernels.LOW, level_kernels.FLOOR, level_kernels.HIGH]] = logs.min(), logs.min(), logs.max()
    rng = np.random.default_rng(5)
    lattice, phi = (scale * rng.uniform(-1, 1, controls) for scale in (0.05, step))
    lattice += phi
    state[[level_kernels.LOW, level_kernels.FLOOR]] -= 0.05
    state[level_kernels.HIGH] += 0.05
    level_kernels.lay_grid(state, np.abs(phi).max(), kernel_settings.bins, kernel_settings.per_bin)
    level_kernels.expand(0, 1, work, tables, lattice, phi)
    words = sync.new_sync(1)
    level_kernels.field_sweep(0, 1, words, packed.rows, np.uintp(image.shape[1]), work, tables, state)
    return packed, tables, work, state, kernel_settings, lattice, phi


@pytest.mark.parametrize("step", [0.01, 3 * SMALL_STEP])
def test_second_sweep(step):
    image, mask = phantom((7, 40, 53))
    controls = (4, 7, 5)
    packed, _tables, work, state, _settings, lattice, phi = prepared(image, mask, controls, step=step)
    t = [bspline.sample_coordinates(n, c) for n, c in zip(image.shape, controls, strict=True)]
    w = (np.log(image) - bspline.evaluate(lattice, t))[mask]
    inside = packed.rows.log_image != OUTSIDE
    fine = (w - state[level_kernels.ORIGIN]) / state[level_kernels.STEP]
    assert np.abs(work.fine_index[inside] + 0.5 - fine).max() < 0.5 + 0.02  # rounding of float32, in fine bins
    assert (work.fine_index[~inside] == state[level_kernels.FINE]).all()
    change = np.expm1(-bspline.evaluate(phi, t))[mask]
    assert np.abs(work.kept[inside] - change).max() < 3e-7
    assert (work.kept[~inside] == ABSENT).all()
    low, high = level_kernels.lowest_and_highest(work)
    assert low == pytest.approx(fine.min(), abs=0.02)
    assert high == pytest.approx(fine.max(), abs=0.02)
    stride = (int(state[level_kernels.FINE]) + 64) & ~15
    counts = work.counts[0, :stride]
    assert np.array_equal(counts, np.bincount(work.fine_index, minlength=stride))


@pytest.mark.parametrize("controls", [(4, 7, 5), (11, 4, 6)])
@pytest.mark.parametrize("weighted", [False, True])
def test_first_sweep(controls, weighted):
    image, mask = phantom((7, 40, 53))
    weights = RNG.uniform(0.1, 1, image.shape).astype(np.float32) if weighted else None
    packed, tables, work, state, _settings, _lattice, _phi = prepared(image, mask, controls, weights)
    confidence = np.where(mask, 1.0 if weights is None else weights, 0.0)
    table = RNG.standard_normal(work.table.size).astype(np.float32)
    table[int(state[level_kernels.FINE])] = 0
    n_y, words = np.uintp(image.shape[1]), sync.new_sync(1)
    out = np.zeros(controls)
    state[level_kernels.STOP] = 0
    work.ones[:] = 1
    work.ones[int(state[level_kernels.FINE])] = 0
    level_kernels.fit_sweep(
        0, 1, words, packed.rows, n_y, work, tables, tables.square_y, tables.square_x, work.ones, state
    )
    level_kernels.combine(packed.rows, n_y, tables.first_z, tables.square_z, work.partial, out)
    omega = bspline.fit_weights(confidence, controls)
    assert np.allclose(out, omega, rtol=2e-5, atol=1e-9)
    words[:] = 0
    level_kernels.fit_sweep(0, 1, words, packed.rows, n_y, work, tables, tables.share_y, tables.share_x, table, state)
    level_kernels.combine(packed.rows, n_y, tables.first_z, tables.share_z, work.partial, out)
    residual = np.zeros(image.shape)
    residual[mask] = table[work.fine_index[packed.rows.log_image != OUTSIDE]]
    expected = bspline.fit(residual * confidence, omega) * omega
    assert np.allclose(out, expected, rtol=1e-4, atol=2e-5 * np.abs(expected).max())


# ----------------------------------------------------------------------------------------------------------- the whole


CASES = {
    "volume": ((13, 40, 51), {}),
    "plane": ((60, 71), {}),
    "singleton axis": ((1, 40, 51), {}),
    "two planes": ((2, 40, 51), {}),
    "two planes, few spans": ((2, 40, 51), {"thin": True}),
    "many control points": ((13, 40, 51), {"control_points": 7}),
}


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_plain_statement(case):
    shape, options = CASES[case]
    image, mask = phantom(shape)
    settings = FitSettings(iterations=(12, 8, 6), threads=2)
    got, controls = run(image, mask, settings, **options)
    expected = plain.fit(make_problem(image, mask), controls, settings)
    assert [level.iterations for level in got.levels] == [level.iterations for level in expected.levels]
    # fine bins cost some 1e-6 of the corrected image
    assert difference(got.lattice, expected.lattice, image, mask) < 5e-6
    for a, b in zip(got.levels, expected.levels, strict=True):
        assert a.control_points == b.control_points
        assert a.measures == pytest.approx(b.measures, rel=5e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"convergence": "cv"},
        {"over_relax": 1.8},
        {"bins": 64, "fwhm": 0.3, "wiener": 0.1},
        {"threshold": 0.0, "iterations": (2, 0, 3)},
        {"threshold": 0.1},
    ],
)
def test_settings_mean_what_the_plain_statement_says(options):
    image, mask = phantom((11, 38, 45))
    settings = FitSettings(**({"iterations": (8, 6), "threads": 2} | options))
    got, controls = run(image, mask, settings)
    expected = plain.fit(make_problem(image, mask), controls, settings)
    assert [level.iterations for level in got.levels] == [level.iterations for level in expected.levels]
    assert [level.converged for level in got.levels] == [level.converged for level in expected.levels]
    assert difference(got.lattice, expected.lattice, image, mask) < 1e-5


def test_weights_enter_the_fit_only():
    image, mask = phantom((11, 38, 45))
    weights = RNG.uniform(0, 1, image.shape).astype(np.float32)
    weights[weights < 0.2] = 0
    settings = FitSettings(iterations=(8, 6), threads=2)
    got, controls = run(image, mask, settings, weights)
    expected = plain.fit(make_problem(image, mask, weights), controls, settings)
    assert difference(got.lattice, expected.lattice, image, mask & (weights > 0)) < 1e-5
    equal, _controls = run(image, mask, settings, np.full(image.shape, 0.25, np.float32))
    none, _controls = run(image, mask, settings)
    assert difference(equal.lattice, none.lattice, image, mask) < 1e-6  # a common factor cancels


def test_first_voxel_the_minimum():
    image, mask = phantom((11, 38, 45))
    first = tuple(np.argwhere(mask)[0])
    image[first] = 0.8 * image[mask].min()
    settings = FitSettings(iterations=(5, 5), threshold=0, threads=2)
    got, controls = run(image, mask, settings)
    expected = plain.fit(make_problem(image, mask), controls, settings)
    assert difference(got.lattice, expected.lattice, image, mask) < 1e-5
    moved, _controls = run(image[::-1].copy(), mask[::-1].copy(), settings)  # no longer the first: it is seen
    assert difference(moved.lattice[::-1], got.lattice, image, mask) > 1e-5


@pytest.mark.parametrize("convergence", ["itk", "cv"])
@pytest.mark.parametrize("shape", [(19, 60, 71), (250, 171)])
def test_any_number_of_threads_gives_the_same_bits(convergence, shape, monkeypatch):
    monkeypatch.setattr(cpu, "THREAD_VOXELS", 1)
    monkeypatch.setattr(cpu, "thread_limit", lambda: 4)  # also on fewer cores, where threads sleep while they wait
    image, mask = phantom(shape)
    results = []
    for threads in (1, 2, 3, 4):
        settings = FitSettings(iterations=(20, 10, 10), convergence=convergence, threads=threads)
        results.append(run(image, mask, settings)[0])
    for other in results[1:]:
        assert np.array_equal(results[0].lattice, other.lattice)
        assert results[0].levels == other.levels


def test_a_field_that_explains_everything_ends_the_fit():
    ramp = np.exp(0.3 * np.linspace(-1, 1, 30))
    image = (100 * ramp[:, None, None] * ramp[None, :, None] * np.ones(20)).astype(np.float32)
    got, _controls = run(image, np.ones(image.shape, bool), FitSettings(iterations=(60, 60, 60)))
    t = [bspline.sample_coordinates(n, c) for n, c in zip(image.shape, got.lattice.shape, strict=True)]
    corrected = image / np.exp(bspline.evaluate(got.lattice, t))
    assert corrected.std() / corrected.mean() < 0.02
    assert np.isfinite(got.lattice).all()


def test_three_fits_at_once(monkeypatch):
    monkeypatch.setattr(cpu, "THREAD_VOXELS", 1)
    image, mask = phantom((13, 40, 51))
    settings = FitSettings(iterations=(10, 10), threads=2)
    alone = run(image, mask, settings)[0]
    together: list[np.ndarray] = []

    def work() -> None:
        together.append(run(image, mask, settings)[0].lattice)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(together) == 3
    assert all(np.array_equal(lattice, alone.lattice) for lattice in together)


# ------------------------------------------------------------------------------------------------------------ threads


@pytest.mark.parametrize("strips", [1, 2, 7, 1000])
def test_threads_claim_their_own_strips_and_then_those_of_others(strips):
    words = sync.new_sync(3)

    def claim(thread: int) -> int:
        return int(sync.claim(words, sync.SECOND_SWEEP, thread, 3, strips))

    for _sweep in range(2):
        own = [claim(1) for _strip in range(strips * 2 // 3 - strips // 3)]
        assert own == list(range(strips // 3, strips * 2 // 3))
        rest = [strip for thread in (0, 2, 1) for strip in iter(lambda m=thread: claim(m), strips)]
        assert sorted(own + rest) == list(range(strips))
        sync.reset_claims(words, sync.SECOND_SWEEP, 3)


def test_threads_claim_every_strip_once_and_meet_at_the_barrier():
    words, seen = sync.new_sync(1), np.zeros(1000, np.int64)
    order: list[str] = []

    def work(thread: int, threads: int) -> None:
        while (strip := int(sync.claim(words, sync.FIRST_SWEEP, thread, threads, seen.size))) < seen.size:
            seen[strip] += 1
        order.append("claimed")
        assert sync.barrier(words, threads)
        order.append("met")

    sync.run_threads(work, words, 1)  # threads that wait in Python hold the GIL; one needs nobody
    assert (seen == 1).all()
    assert order == ["claimed", "met"]


def test_no_more_threads_than_cores_fit(monkeypatch):
    monkeypatch.setattr(cpu, "THREAD_VOXELS", 1)
    monkeypatch.setattr(cpu, "thread_limit", lambda: 2)
    started = []
    run_threads = sync.run_threads
    monkeypatch.setattr(sync, "run_threads", lambda work, words, n: (started.append(n), run_threads(work, words, n)))
    run(*phantom((13, 40, 51)), FitSettings(iterations=(2,), threads=16))
    assert started == [2]


def test_waiting_threads_sleep_and_are_woken_at_every_barrier():
    words, threads, rounds = sync.new_sync(8), 8, 50
    met = np.zeros((rounds, threads), bool)

    def work(thread: int, threads: int) -> None:
        for number in range(rounds):
            if thread == number % threads:
                time.sleep(0.002)  # long enough for the others to sleep
            met[number, thread] = True
            assert sync.barrier(words, threads)
            assert met[number].all()

    sync.run_threads(work, words, threads)
    assert met.all()
    assert words[sync.ASLEEP] == 0


def test_a_thread_that_fails_aborts_the_others():
    words = sync.new_sync(3)
    came_back = []

    def work(thread: int, threads: int) -> None:
        if thread == 0:
            time.sleep(0.05)  # the others sleep by then
            msg = "no memory"
            raise MemoryError(msg)
        came_back.append(bool(sync.barrier(words, threads)))

    with pytest.raises(MemoryError, match="no memory"):
        sync.run_threads(work, words, 3)
    assert came_back == [False, False]


# ---------------------------------------------------------------------------------------------------------- the guards


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda image, mask: mask.fill(False), "empty mask"),
        (lambda image, mask: image.fill(np.nan), "no positive finite voxel among"),
        (lambda image, mask: image.fill(-3), "no positive finite voxel among"),
        (lambda image, mask: mask[1:].fill(False), "too few voxels"),
        (lambda image, mask: image.fill(7), "no spread: every voxel is within 0.01 % of 7"),
        (lambda image, mask: np.minimum(image, np.quantile(image, 0.3), out=image), "saturated: "),
    ],
)
@pytest.mark.parametrize("prepare", [pack, make_problem])
def test_what_cannot_be_fitted_is_seen_before(change, sentence, prepare):
    image, mask = phantom((4, 9, 10))
    mask[0] = False
    mask[0, :5, :5] = True
    change(image, mask)
    assert degenerate(prepare(image, mask, None, 1).survey, image.shape).startswith(sentence)


def test_an_ordinary_image_can_be_fitted():
    image, mask = phantom((4, 20, 20))
    assert degenerate(pack(image, mask, None, 1).survey, image.shape) is None
