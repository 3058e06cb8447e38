"""The volume of the report's viewer: on which grid, with which means, and how large it gets."""

import base64
import gzip

import numpy as np
import pytest
from page_examples import made

from n4flow.report.overview import VOXEL_BYTES, Overview, grid, packed
from n4flow.report.pair import Pair
from n4flow.report.pictures import Views, block_means, grey
from n4flow.sections import SectionTable
from n4flow.statistics.measure import shrink_planes

CODE = 1.0564e6  # Bytes of the viewer's code on the page.


@pytest.mark.parametrize("shape", [(100, 200, 200), (7, 900, 500), (3000, 60, 80), (1, 40, 50), (5000, 3, 3)])
@pytest.mark.parametrize("spacing", [(50.0, 10.0), (10.0, 10.0), (3.0, 20.0)])
@pytest.mark.parametrize("most", [30_000, 10**6])
def test_the_grid_is_the_finest_that_fits_and_even_along_all_axes(shape, spacing, most):
    def voxels(step, shrink):
        return -(-shape[0] // step) * np.prod([max(1, n // shrink) for n in shape[1:]])

    step, shrink = grid(shape, spacing, most)
    assert voxels(step, shrink) <= most
    if shrink > 1:
        finer = max(1, round((shrink - 1) * spacing[1] / spacing[0]))
        assert voxels(min(finer, shape[0]), shrink - 1) > most
    # planes are as far apart as pixels, to half of one plane, or all are there
    assert step in (1, shape[0]) or abs(step * spacing[0] - shrink * spacing[1]) <= spacing[0] / 2


@pytest.mark.parametrize("side", [1, 2, 3, 7])
def test_means_are_over_the_valid_pixels_of_a_block(side):
    plane = np.random.default_rng(0).normal(5, 1, (20, 31)).astype(np.float32)
    valid = np.random.default_rng(1).random(plane.shape) < 0.6
    valid[:8, :8] = False
    found = block_means(plane, valid, side)
    assert found.shape == (20 // side, 31 // side)
    for y, x in np.ndindex(found.shape):
        block = slice(y * side, (y + 1) * side), slice(x * side, (x + 1) * side)
        inside = plane[block][valid[block]]
        wanted = inside.mean() if inside.size else np.nan
        assert found[y, x] == pytest.approx(wanted, rel=1e-5, nan_ok=True)


def test_a_block_larger_than_the_plane_is_the_plane():
    plane = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert block_means(plane, np.ones((3, 4), bool), 50) == pytest.approx(5.5)


def test_grey_levels_span_the_window_and_leave_zero_to_what_is_unknown():
    levels = grey(np.array([np.nan, -5, 10, 15, 20, 99], np.float32), (10.0, 20.0))
    assert levels.tolist() == [0, 1, 1, 128, 255, 255]
    assert levels.dtype == np.uint8


def test_what_is_packed_is_unpacked_by_gzip():
    values = np.random.default_rng(0).integers(0, 256, (3, 4, 5), np.uint8)
    assert gzip.decompress(base64.b64decode(packed(values))) == values.tobytes()


def long_stack(planes):
    rng = np.random.default_rng(0)
    before = rng.normal(100, 20, (planes, 64, 64)).astype(np.float32)
    tissue = np.zeros(before.shape, bool)
    tissue[:, 16:48, 16:48] = True
    before[tissue] += 200
    volumes = {"before": shrink_planes(before, 1), "after": shrink_planes(before / 2, 1)}
    return Pair(**volumes, tissue=tissue, agarose=~tissue[0], sections=SectionTable.equal(planes, planes // 4)), before


def test_planes_are_left_out_and_pixels_are_averaged():
    pair, before = long_stack(40)
    overview = Overview(pair, {"z": 1.0, "y": 1.0, "x": 1.0}, 1.1, [6])
    Views(pair, None, overview)
    assert (overview.planes, overview.shrink) == (range(0, 40, 3), 3)
    z = list(overview.planes).index(6)
    wanted = before[6, :63, :63].reshape(21, 3, 21, 3).mean(axis=(1, 3)) * pair.units.scale + pair.units.offset
    assert overview.images["before"][z] == pytest.approx(wanted, rel=1e-4)
    assert overview.labels[z, 10, 10] == 1
    assert overview.labels[z, 0, 0] == 2
    assert overview.picture(6, "after", (0.0, 200.0)).startswith("data:image/jpeg;base64,")


@pytest.mark.parametrize("megabytes", [1.5, 3])
def test_it_takes_no_more_of_the_page_than_it_may(megabytes):
    """Even of noise, which no compression makes smaller."""
    pair, _before = long_stack(400)
    overview = Overview(pair, {"z": 1.0, "y": 1.0, "x": 1.0}, megabytes)
    noise = np.random.default_rng(0).integers(0, 256, overview.shape, np.uint8)
    assert 2 * len(packed(noise)) + CODE <= megabytes * 1e6
    assert np.prod(overview.shape) * VOXEL_BYTES > 0.2 * (megabytes * 1e6 - CODE)  # and much of it


def test_there_is_none_without_room():
    pair = Pair(**made())
    assert not Overview(pair, None, 0).shown
    assert not Overview(pair, None, 1.0).shown  # the code alone takes more
