"""The files of a shrunken volume: the same bits come back, from a plane or all."""

from __future__ import annotations

import numpy as np
import pytest

from n4flow.errors import InputError
from n4flow.statistics.measure import shrink_planes
from n4flow.statistics.shrunken import ShrunkenFiles, ShrunkenVolume


def same_bits(first: np.ndarray, second: np.ndarray) -> bool:
    return bool((first.view(np.int32) == second.view(np.int32)).all())


@pytest.mark.parametrize("k", [1, 3, 8])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "uint32", "float32", "float64"])
def test_what_is_saved_comes_back(tmp_path, dtype: str, k: int) -> None:
    rng = np.random.default_rng(k)
    kind = np.dtype(dtype)
    ends = np.iinfo(kind) if kind.kind in "ui" else None
    volume = (rng.integers(ends.min, ends.max, (5, 41, 50)) if ends else rng.normal(0, 1e3, (5, 41, 50))).astype(kind)
    volume[:, :9] = 0
    volume[1] = 0
    if ends is None:
        volume[2, 20:30, 5:9] = np.nan
        volume[3, 20:30, 5:9] = np.inf
        volume[4, 20:30, 5:9] = -0.0
    shrunken = shrink_planes(volume, k)
    shrunken.part(0, 2).save(tmp_path / "0.npz")
    shrunken.part(2, 5).save(tmp_path / "2.npz")
    files = ShrunkenFiles([tmp_path / "0.npz", tmp_path / "2.npz"])
    assert (files.shape, files.full_shape, files.shrink) == (shrunken.shape, volume.shape, k)
    for start, stop in ((0, 5), (1, 3), (4, 5), (2, 2)):
        part = files.part(start, stop)
        assert same_bits(part.mean, shrunken.mean[start:stop])
        assert same_bits(part.valid, shrunken.valid[start:stop])
        for name, values in shrunken.planes.items():
            assert np.array_equal(part.planes[name], values[start:stop])


def test_any_means_come_back(tmp_path) -> None:
    """Means that are no means of whole numbers, and large ones."""
    mean = np.array([[0.1, -0.0, np.nan, np.inf], [2.0**30, 2.0**30 - 64, -(2.0**29), 1.0], [3, 0, 1e-30, 7.5]])
    planes = {"n_valid": np.zeros(3, np.int64)}
    for shares in (1.0, 0.5, 0.0):
        valid = np.full((3, 1, 4), shares, np.float32)
        shrunken = ShrunkenVolume(mean.astype(np.float32)[:, None], valid, 2, (3, 2, 8), planes)
        shrunken.save(tmp_path / "slab.npz")
        assert same_bits(ShrunkenFiles([tmp_path / "slab.npz"]).part(0, 3).mean, shrunken.mean)


def test_rounded_means_are_smaller_and_off_by_half_a_bit_at_most(tmp_path) -> None:
    most = np.finfo(np.float32).max
    mean = np.random.default_rng(2).normal(0, 1e3, (2, 64, 64)).astype(np.float32)
    mean[0, 0, :4] = 0, most, -most, 0.5
    planes = {"n_valid": np.full(2, 4096)}
    shrunken = ShrunkenVolume(mean, np.ones_like(mean), 1, mean.shape, planes)
    sizes = []
    for bits in (None, 8):
        shrunken.save(tmp_path / "slab.npz", bits)
        sizes.append((tmp_path / "slab.npz").stat().st_size)
    found = ShrunkenFiles([tmp_path / "slab.npz"]).part(0, 2).mean
    np.testing.assert_allclose(found[0, 0, 1:3], [most, -most], rtol=0.05)  # and not infinite
    mean[0, 0, 1:3] = found[0, 0, 1:3]
    np.testing.assert_allclose(found, mean, rtol=2.0**-9)
    assert np.array_equal(found[0, 0, [0, 3]], [0, 0.5])
    assert len(np.unique(np.frexp(found[1])[0])) < 2 * 2**8 + 1  # mantissas of either sign
    assert sizes[1] < 0.7 * sizes[0]


@pytest.mark.parametrize("k", [3, 20, 300])
def test_any_shares_come_back(tmp_path, k: int) -> None:
    """Every share that a block can have comes back, also of the smaller blocks at the ends, and any other number."""
    side = 2 * k + k // 2
    rng = np.random.default_rng(k)
    volume = (rng.random((3, side, side)) < rng.random((3, side, side)) ** 2).astype(np.uint8)
    volume[0, :k, :k] = 1
    shrunken = shrink_planes(volume, k)
    shrunken.save(tmp_path / "slab.npz")
    assert same_bits(ShrunkenFiles([tmp_path / "slab.npz"]).part(0, 3).valid, shrunken.valid)
    assert len(np.unique(shrunken.valid)) > 5
    for odd in (np.float32(1.5), np.nextafter(np.float32(1), np.float32(0)), np.float32(np.nan), np.float32(-0.25)):
        shrunken.valid[1, 2, 2] = odd
        shrunken.save(tmp_path / "slab.npz")
        assert same_bits(ShrunkenFiles([tmp_path / "slab.npz"]).part(0, 3).valid, shrunken.valid)


def test_planes_without_a_lost_voxel_lie_beside_others(tmp_path) -> None:
    volume = np.random.default_rng(0).integers(1, 1 << 16, (3, 50, 61), dtype=np.uint16)
    shrink_planes(volume, 3).save(tmp_path / "whole.npz")
    volume[1, 4, 60] = 0  # in a smaller block at the end
    shrunken = shrink_planes(volume, 3)
    shrunken.save(tmp_path / "slab.npz")
    for z in range(3):
        part = ShrunkenFiles([tmp_path / "slab.npz"]).part(z, z + 1)
        assert same_bits(part.valid, shrunken.valid[z : z + 1])
        assert same_bits(part.mean, shrunken.mean[z : z + 1])
        assert (part.valid < 1).sum() == (z == 1)
    assert (tmp_path / "whole.npz").stat().st_size < (tmp_path / "slab.npz").stat().st_size


def test_slabs_of_two_volumes_are_refused(tmp_path) -> None:
    for name, k in (("0.npz", 2), ("1.npz", 3)):
        shrink_planes(np.ones((1, 12, 12), np.uint8), k).save(tmp_path / name)
    with pytest.raises(InputError, match="one shrink factor and plane size"):
        ShrunkenFiles([tmp_path / "0.npz", tmp_path / "1.npz"])
