"""The spatial mean background against a plain sum over voxels, at borders, beside padding, and cut into tiles."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import erf

from n4flow.compute import threads
from n4flow.compute.arrays import probe_gpu
from n4flow.corrections.background import SpatialMeanBackground, bkgd_spatial_mean, gaussian_kernel, local_mean
from n4flow.corrections.base import Where
from n4flow.errors import GpuError, InputError


def image(shape: tuple[int, ...] = (3, 31, 37), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).gamma(3, 30, shape).astype(np.float32)


def plain_mean(plane: np.ndarray, weight: np.ndarray, sigmas: tuple[float, float]) -> np.ndarray:
    """The definition, voxel by voxel, where nothing beyond the border counts."""
    kernels = [gaussian_kernel(sigma) for sigma in sigmas]
    reach = [len(kernel) // 2 for kernel in kernels]
    result = np.zeros(plane.shape)
    for y, x in np.ndindex(plane.shape):
        rows = np.arange(max(0, y - reach[0]), min(plane.shape[0], y + reach[0] + 1))
        columns = np.arange(max(0, x - reach[1]), min(plane.shape[1], x + reach[1] + 1))
        kernel = kernels[0][rows - y + reach[0]][:, None] * kernels[1][columns - x + reach[1]][None]
        kernel = kernel * weight[np.ix_(rows, columns)]
        result[y, x] = (kernel * plane[np.ix_(rows, columns)]).sum() / kernel.sum() if kernel.sum() else 0
    return result


def continued_mean(plane: np.ndarray, weight: np.ndarray, sigmas: tuple[float, float]) -> np.ndarray:
    """The definition for a plane that goes on beyond its border."""
    margin = [len(gaussian_kernel(sigma)) // 2 for sigma in sigmas]
    wide = [np.pad(array, [(n, n) for n in margin], mode="edge") for array in (plane, weight)]
    found = plain_mean(*wide, sigmas)
    return found[margin[0] : margin[0] + plane.shape[0], margin[1] : margin[1] + plane.shape[1]]


@pytest.mark.parametrize("sigma", [0.3, 1.0, 3.5, 12.0])
def test_the_kernel_is_a_gaussian_integrated_over_voxels(sigma: float) -> None:
    kernel = gaussian_kernel(sigma)
    offset = np.arange(len(kernel)) - len(kernel) // 2
    density = (erf((offset + 0.5) / sigma / np.sqrt(2)) - erf((offset - 0.5) / sigma / np.sqrt(2))) / 2
    np.testing.assert_allclose(kernel, density / density.sum(), rtol=1e-9)
    assert abs(offset).max() <= 2.576 * sigma < abs(offset).max() + 1
    assert kernel.sum() == pytest.approx(1)


@pytest.mark.parametrize("zeros_count", [False, True])
def test_it_is_the_mean_of_what_counts(zeros_count: bool) -> None:
    plane = image()[0]
    plane[:9, :12] = 0
    plane[20, 20:23] = np.nan, np.inf, -np.inf
    weight = np.isfinite(plane) & (zeros_count | (plane != 0))
    mean = continued_mean if zeros_count else plain_mean
    expected = mean(np.where(weight, plane, 0).astype(np.float64), weight, (1.5, 2.5))
    np.testing.assert_allclose(local_mean(plane, (1.5, 2.5), zeros_count), expected, rtol=1e-6)


def test_the_correction_subtracts_it_and_leaves_padding() -> None:
    block = image()
    block[:, :9, :12] = 0
    block[1, 20, 20] = np.nan
    corrected = SpatialMeanBackground((5.0, 8.0)).apply(block.copy(), Where(0, 0, 0, block.shape))
    invalid = ~np.isfinite(block) | (block == 0)
    np.testing.assert_array_equal(corrected[invalid], block[invalid])
    for z in range(3):
        expected = block[z] - plain_mean(np.where(invalid[z], 0, block[z]).astype(np.float64), ~invalid[z], (2.5, 4.0))
        np.testing.assert_allclose(corrected[z][~invalid[z]], expected[~invalid[z]], atol=1e-4)  # float32 of about 100


def test_tiles_with_their_margin_are_the_whole_to_the_bit() -> None:
    block = image((2, 70, 90))
    block[:, 30:50, 20:47] = 0
    correction = SpatialMeanBackground((7.0, 4.0))
    whole = correction.apply(block.copy(), Where(0, 0, 0, block.shape))
    margin_y, margin_x = correction.margin
    for y, x, height, width in [(0, 0, 33, 41), (33, 41, 37, 49), (20, 0, 9, 90), (69, 89, 1, 1)]:
        top, left = max(0, y - margin_y), max(0, x - margin_x)
        tile = block[:, top : y + height + margin_y, left : x + width + margin_x].copy()
        inner = correction.apply(tile, Where(0, top, left, block.shape))[:, y - top :, x - left :][:, :height, :width]
        np.testing.assert_array_equal(inner, whole[:, y : y + height, x : x + width])


def test_padding_changes_no_voxel() -> None:
    block = image()
    correction = SpatialMeanBackground.from_arrays(*SpatialMeanBackground((6, 6)).to_arrays())
    expected = correction.apply(block.copy(), Where(0, 0, 0, block.shape))
    padded = np.pad(block, ((0, 0), (11, 4), (20, 1)))
    found = correction.apply(padded, Where(0, 0, 0, padded.shape))
    np.testing.assert_array_equal(found[:, 11:-4, 20:-1], expected)
    assert np.count_nonzero(found) == np.count_nonzero(expected)
    assert correction.summary()["sigma_voxels"] == [3.0, 3.0]


@pytest.mark.parametrize("radii", [7.0, (4.0, 9.0), [(4.0, 9.0), (3.0, 3.0), (12.0, 2.0)]])
def test_backgrounds_of_channels(radii) -> None:
    channels = [image(seed=i) for i in range(3)]
    channels[0][0, :6] = 0  # dark pixels of a camera, not padding
    before = [channel.copy() for channel in channels]
    backgrounds, corrections, info = bkgd_spatial_mean(channels, radii)
    pairs = [(radii, radii)] * 3 if isinstance(radii, float) else [radii] * 3 if isinstance(radii, tuple) else radii
    assert info["channels_mean_radii_pix"] == pairs
    assert info["spatial_mean_sigmas"] == [(y / 2, x / 2) for y, x in pairs]
    for i, (y, x) in enumerate(pairs):
        np.testing.assert_array_equal(channels[i], before[i])
        for plane, background in zip(channels[i], backgrounds[i], strict=True):
            expected = continued_mean(plane.astype(np.float64), np.ones(plane.shape), (y / 2, x / 2))
            np.testing.assert_allclose(background, expected, rtol=1e-5)
        factor = 1.0
        for name, radius in (("spatial_mean_kernels_y", y), ("spatial_mean_kernels_x", x)):
            kernel = -gaussian_kernel(radius / 2)
            kernel[len(kernel) // 2] += 1
            np.testing.assert_allclose(info[name][i], kernel, rtol=1e-6)
            factor *= np.sqrt((kernel**2).sum())
        assert corrections[i] == pytest.approx(factor, rel=1e-6)


def test_the_noise_factor_is_the_one_of_white_noise_on_each_axis() -> None:
    noise = np.random.default_rng(1).normal(1000, 1, (1, 1, 200_000))
    backgrounds, corrections, _info = bkgd_spatial_mean([noise], (1e-3, 6.0), noise_corrections=[2.0])
    kernel_y = 1 - gaussian_kernel(5e-4)  # one voxel: nothing remains of it along Y
    assert corrections[0] == pytest.approx(2 * np.sqrt((kernel_y**2).sum()) * np.std(noise - backgrounds[0]), abs=1e-6)
    _backgrounds, corrections, _info = bkgd_spatial_mean([noise], (6.0, 6.0), noise_corrections=[2.0])
    along = np.std(noise - bkgd_spatial_mean([noise], (1e-3, 6.0))[0][0])
    assert corrections[0] == pytest.approx(2 * along**2, rel=0.01)  # the deviation of 200000 samples


def test_buffers_are_written_and_cut() -> None:
    channels = [image(), image(seed=1)]
    buffers = [np.full((5, 31, 37), -1, np.float32) for _ in channels]
    given = [np.float32(2), np.float32(3)]
    backgrounds, corrections, info = bkgd_spatial_mean(channels, (5.0, 7.0), buffers, given, parallel=True)
    assert info["channels_mean_radii_pix"] == [(5.0, 7.0)] * 2  # two numbers are a pair for all
    for background, buffer, expected in zip(
        backgrounds, buffers, bkgd_spatial_mean(channels, (5.0, 7.0))[0], strict=True
    ):
        assert np.shares_memory(background, buffer)
        np.testing.assert_array_equal(background, expected)
        assert (buffer[3:] == -1).all()
    assert given == [2, 3]
    assert corrections[1] != 3


def test_parallel_works_on_two_planes_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "thread_limit", lambda: 2)
    together = threading.Barrier(2)

    class Waiting(np.ndarray):
        def __getitem__(self, z: int) -> np.ndarray:
            together.wait(timeout=20)  # for another thread that reads a plane
            return self.view(np.ndarray)[z]

    stack = image((4, 31, 37))
    found = bkgd_spatial_mean([stack.view(Waiting)], parallel=True)[0][0]
    np.testing.assert_array_equal(found, bkgd_spatial_mean([stack])[0][0])


def test_a_slope_is_followed_up_to_the_border() -> None:
    """As arrlp 0.1.27, whose border the issue measured: 1.37 of a ramp of 1 where a truncated mean is 2.45 off."""
    ramp = np.broadcast_to(np.arange(60.0), (1, 50, 60))
    background = bkgd_spatial_mean([ramp], 7.0)[0][0][0]
    kernel = gaussian_kernel(3.5)
    away = np.clip(np.arange(len(kernel)) - len(kernel) // 2, 0, None) @ kernel  # half of it is beyond the border
    assert background[:, 0] == pytest.approx(away, rel=1e-6)
    assert background[:, -1] == pytest.approx(59 - away, rel=1e-6)
    np.testing.assert_allclose(background[:, 9:-9], ramp[0, :, 9:-9], rtol=1e-6)


def test_a_config_gives_what_is_left_out() -> None:
    config = SimpleNamespace(channels_mean_radii_pix=(3.0, 5.0), noise_corrections=[2.0], parallel=True, pixel=7)
    expected = bkgd_spatial_mean([image()], (3.0, 5.0), noise_corrections=[2.0])
    found = bkgd_spatial_mean([image()], config=config)
    np.testing.assert_array_equal(found[0][0], expected[0][0])
    assert found[1] == expected[1]
    assert bkgd_spatial_mean([image()], 4.0, config=config)[2]["channels_mean_radii_pix"] == [(4.0, 4.0)]
    assert bkgd_spatial_mean([image()], config=SimpleNamespace())[2]["channels_mean_radii_pix"] == [(7.0, 7.0)]


def test_another_length_is_a_value_error() -> None:
    channels = [image()] * 4
    with pytest.raises(ValueError, match="a number, a .* pair or 4 entries, got 3"):
        bkgd_spatial_mean(channels, (1.0, 2.0, 3.0))
    with pytest.raises(ValueError, match="noise_corrections must have one entry for each of 4 channels, got 1"):
        bkgd_spatial_mean(channels, noise_corrections=[1.0])
    with pytest.raises(ValueError, match="bkgds must have one entry"):
        bkgd_spatial_mean(channels, bkgds=[image()])
    with pytest.raises(InputError, match=r"must hold its channel \(3, 31, 37\), got \(2, 31, 37\)"):
        bkgd_spatial_mean([image()], bkgds=[image()[:2]])
    with pytest.raises(InputError, match=r"a \(planes, Y, X\) stack, got shape \(31, 37\)"):
        bkgd_spatial_mean([image()[0]])
    with pytest.raises(InputError, match="radius of a background must be above 0"):
        SpatialMeanBackground((0.0, 3.0))


def test_the_gpu_asked_for_is_the_gpu_used() -> None:
    try:
        probe_gpu()
    except GpuError:
        with pytest.raises(GpuError, match="no working GPU"):
            bkgd_spatial_mean([image()], cuda=True)
    else:
        np.testing.assert_allclose(
            bkgd_spatial_mean([image()], cuda=True)[0][0], bkgd_spatial_mean([image()])[0][0], rtol=1e-6
        )
