"""Evaluation at full resolution: against the plain statement, and the same bits however it is cut."""

import itertools

import numpy as np
import pytest

from n4flow.compute import threads as compiled
from n4flow.errors import InputError
from n4flow.n4_bias import bspline
from n4flow.n4_bias.evaluate import Evaluator
from n4flow.n4_bias.field import BiasField
from n4flow.n4_bias.settings import Level

RNG = np.random.default_rng(4)
LATTICE = (0.4 * RNG.standard_normal((5, 7, 4))).astype(np.float32)


def field(shape=(33, 67, 101), shrink=(1, 4, 4), lattice=LATTICE) -> BiasField:
    grid = tuple(-(-n // k) for n, k in zip(shape, shrink, strict=True))
    levels = (Level((4, 4, 4), (0.1, 0.001), True),)
    return BiasField(lattice, grid, shape, shrink, levels, backend="cpu", seconds=0.5, voxel_um=(50.0, 10.0, 10.0))


def plainly(bias: BiasField) -> np.ndarray:
    """The log field at full size in float64, from the coordinates that the docstrings state."""
    t = [
        np.clip(((np.arange(n) + 0.5) / k - 0.5) * max(c - 3, 0) / max(m - 1, 1), -0.5, max(c - 3, 0) + 0.5)
        for n, k, m, c in zip(bias.shape, bias.shrink, bias.grid_shape, bias.lattice.shape, strict=True)
    ]
    return bspline.evaluate(bias.lattice, t)


@pytest.mark.parametrize("shape", [(33, 67, 101), (9, 64, 96), (4, 5, 6)])
@pytest.mark.parametrize("shrink", [(1, 4, 4), (3, 2, 5)])
def test_log_field_is_the_spline_everywhere(shape, shrink):
    bias = field(shape, shrink)
    # float32 rounding of a sum of a few numbers below 1: no rim, whatever the size
    assert np.abs(bias.log_field() - plainly(bias)).max() < 5e-7


def test_field_and_correction():
    bias = field()
    expected = plainly(bias)
    assert np.allclose(bias.field(), np.exp(expected), rtol=8e-7)
    image = RNG.uniform(1, 1000, bias.shape).astype(np.float32)
    assert np.allclose(bias.apply(image), image / np.exp(expected), rtol=8e-7)


def test_exponential_keeps_its_precision_for_large_fields():
    row = np.linspace(-80, 80, 4001)
    lattice = np.zeros((1, 1, 4), np.float32)
    lattice[0, 0] = [-240, -80, 80, 240]  # a straight line over one span
    got = Evaluator(lattice, [np.zeros(1), np.zeros(1), np.linspace(0, 1, 4001)]).field(
        np.empty((1, 1, 4001), np.float32)
    )
    assert np.allclose(got[0, 0], np.exp(row), rtol=3e-5)  # 80 in float32 is known to 4e-6


def test_any_cut_gives_the_same_bits():
    bias = field()
    whole, values = bias.log_field(threads=3), bias.field(threads=1)
    image = RNG.uniform(1, 1000, bias.shape).astype(np.float32)
    corrected = bias.apply(image, threads=2)
    cuts = [[0, 1, 7, 33], [0, 13, 14, 67], [0, 2, 33, 96, 101]]
    for place in itertools.product(*([slice(a, b) for a, b in itertools.pairwise(c)] for c in cuts)):
        assert np.array_equal(bias.log_field(where=place), whole[place])
        assert np.array_equal(bias.field(where=place), values[place])
        assert np.array_equal(bias.apply(image[place], where=place), corrected[place])


@pytest.mark.parametrize("dtype", ["uint8", "int16", ">u2", "float64"])
def test_images_of_any_type(dtype):
    bias = field()
    image = RNG.uniform(0, 200, bias.shape).astype(dtype)
    image.flags.writeable = False
    got = bias.apply(image)
    assert got.dtype == np.float32
    assert np.array_equal(got, bias.apply(image.astype(np.float32)))
    views = image[::-1].astype(np.float32)[::-1]  # not contiguous
    assert np.array_equal(got, bias.apply(views))


def test_zeros_and_what_is_not_finite_stay():
    bias = field()
    image = np.full(bias.shape, 3.0, np.float32)
    image[1, 2, 3:7] = [0, np.nan, np.inf, -4]
    got = bias.apply(image)
    assert got[1, 2, 3] == 0
    assert np.isnan(got[1, 2, 4])
    assert got[1, 2, 5] == np.inf
    assert got[1, 2, 6] == pytest.approx(-4 / np.exp(plainly(bias)[1, 2, 6]), rel=1e-6)


def test_out_may_be_the_image():
    bias = field()
    image = RNG.uniform(1, 1000, bias.shape).astype(np.float32)
    expected = bias.apply(image)
    assert bias.apply(image, image) is image
    assert np.array_equal(image, expected)
    wide = np.empty(bias.shape)
    bias.apply(expected, wide)
    assert np.allclose(wide, expected / np.exp(plainly(bias)), rtol=1e-6)
    with pytest.raises(InputError, match="float32 or float64, got int16"):
        bias.apply(image, np.empty(bias.shape, np.int16))
    with pytest.raises(InputError, match="must have the shape of the image"):
        bias.apply(image, np.empty((2, 3, 4), np.float32))
    with pytest.raises(InputError, match=r"for an image of shape \(33, 67, 101\), got \(33, 67\)"):
        bias.apply(image[..., 0])


@pytest.mark.parametrize("shape", [(5, 9, 96), (3, 8, 77), (2, 3, 31), (4, 5, 7), (1, 1, 16)])
@pytest.mark.parametrize("begins_at", range(0, 16, 5))
def test_rows_that_are_no_whole_vectors_are_the_same_anywhere_in_memory(shape, begins_at, monkeypatch):
    """Whole vectors and the few columns behind them; nothing before or behind the result is written to."""
    bias = field(shape, (1, 2, 2))
    image = RNG.uniform(1, 2, shape).astype(np.float32)
    expected = bias.apply(image, threads=1)
    monkeypatch.setattr(compiled, "THREAD_VOXELS", 1)
    for threads in (1, 3):
        room = np.full(image.size + 64, -1, np.float32)
        begin = (-room.ctypes.data // 4) % 16 + begins_at
        out = room[begin : begin + image.size].reshape(shape)
        bias.apply(image, out, threads=threads)
        assert np.array_equal(out, expected)
        assert (room[:begin] == -1).all()
        assert (room[begin + image.size :] == -1).all()


def test_two_dimensions():
    lattice = LATTICE[2]
    bias = BiasField(lattice, (17, 26), (67, 101), (4, 4))
    deep = BiasField(lattice[None], (1, 17, 26), (1, 67, 101), (1, 4, 4))
    assert np.array_equal(bias.log_field(), deep.log_field()[0])
    image = RNG.uniform(1, 9, bias.shape).astype(np.float32)
    assert np.array_equal(bias.apply(image), deep.apply(image[None])[0])


def test_a_plane_of_large_size_is_shared_by_threads():
    bias = BiasField(LATTICE[0], (250, 300), (1000, 1200), (4, 4))
    assert np.array_equal(bias.log_field(threads=1), bias.log_field(threads=4))


def test_other_grids():
    bias = field()
    samples = bias.log_field(bias.grid_shape)
    t = [np.linspace(0, c - 3, n) for n, c in zip(bias.grid_shape, bias.lattice.shape, strict=True)]
    assert np.abs(samples - bspline.evaluate(bias.lattice, t)).max() < 5e-7
    # blocks of 3 x 3 of a grid three times as fine have the voxel they are cut from at their centre
    finer = bias.log_field((33, 3 * 67, 3 * 101))[:, 1::3, 1::3]
    assert np.abs(finer - bias.log_field()).max() < 2e-6
    with pytest.raises(InputError, match="has 3 axes, shape has 2"):
        bias.log_field((3, 4))


def test_index_rule_pins_the_ends():
    bias = field()
    whole = bias.log_field(rule="index")
    samples = bias.log_field(bias.grid_shape)
    assert np.allclose(
        whole[:, [0, -1]][:, :, [0, -1]], samples[:, [0, -1]][:, :, [0, -1]], atol=1e-4
    )  # ITK's last sample
    assert np.abs(whole - bias.log_field()).max() > 0.01
    with pytest.raises(InputError, match="rule must be one of aligned, index"):
        bias.log_field(rule="nearest")


def test_dask_stays_lazy():
    da = pytest.importorskip("dask.array")
    bias = field()
    image = RNG.uniform(1, 1000, bias.shape).astype(np.float32)
    lazy = bias.apply(da.from_array(image, chunks=(10, 30, 101)))
    assert lazy.chunks[1] == (30, 30, 7)
    assert np.array_equal(lazy.compute(), bias.apply(image))


def test_saved_and_loaded(tmp_path):
    bias = field()
    bias.save(tmp_path / "bias.npz")
    loaded = BiasField.load(tmp_path / "bias.npz")
    assert np.array_equal(loaded.lattice, bias.lattice)
    assert loaded.to_settings()[0] == bias.to_settings()[0]
    assert np.array_equal(loaded.log_field(), bias.log_field())
    (tmp_path / "other.npz").write_bytes(b"nothing")
    with pytest.raises(InputError, match="is not a bias field"):
        BiasField.load(tmp_path / "other.npz")
    with pytest.raises(InputError, match="is not a bias field"):
        BiasField.load(tmp_path / "missing.npz")


def test_centred():
    bias = field()
    mask = RNG.random(bias.grid_shape) < 0.3
    centred = bias.centred(mask)
    assert abs(centred.log_field(bias.grid_shape)[mask].mean()) < 1e-6
    shift = bias.log_field() - centred.log_field()
    assert np.ptp(shift) < 1e-6


def test_knot_distance():
    # Y: 16 steps of 40 micrometres between samples, 4 spans
    assert field().knot_um == pytest.approx((32 * 50 / 2, 16 * 40 / 4, 25 * 40))


def test_unfitted_changes_nothing():
    bias = BiasField(np.zeros((4, 4, 4), np.float32), (3, 4, 5), (3, 8, 9), (1, 2, 2), reason="empty mask")
    image = RNG.uniform(1, 9, (3, 8, 9)).astype(np.float32)
    assert np.array_equal(bias.apply(image), image)
    assert (bias.field() == 1).all()
    assert bias.centred(np.ones((3, 4, 5), bool)) is bias
