"""The phantom: what it says is true of it is true of it, however it is cut into blocks."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import pytest
from scipy import stats

from n4flow.errors import InputError
from n4flow.phantom.anatomy import LEVELS
from n4flow.phantom.options import CLASSES, PhantomOptions
from n4flow.phantom.store import Phantom
from n4flow.phantom.volume import PhantomBlock

SMALL = PhantomOptions(sections=3, planes=6, size=(96, 120), voxel_um=(80.0, 40.0, 40.0), seed=3)
OFF = {
    "shading": 0.0, "section_shading": 0.0, "attenuation": 0.0, "gain": 0.0, "drift": 0.0, "jitter": 0.0,
    "speckle": 0.0, "padding": 0.0,
}  # fmt: skip


@cache
def made(**changes: object) -> tuple[Phantom, PhantomBlock]:
    """Return a small phantom and all its planes."""
    phantom = Phantom(dataclasses.replace(SMALL, **changes))  # type: ignore[arg-type]
    return phantom, phantom.planes(0, phantom.shape[0])


def factor(phantom: Phantom) -> np.ndarray:
    """Return section gain x plane jitter as (Z, 1, 1)."""
    return (phantom.section_gain[phantom.sections.section_of_plane] * phantom.plane_jitter)[:, None, None]


# Truth


def test_observed_is_the_product_of_what_is_known():
    phantom, block = made(speckle=0.0, dtype="float32", dark=250.0)
    inside = block.labels > 0
    expected = 250.0 + block.truth * block.bias * factor(phantom)
    # Four roundings of float32.
    np.testing.assert_allclose(block.observed[inside], expected[inside], rtol=1e-6)
    assert not block.observed[~inside].any()


def test_integers_are_rounded_and_never_zero_inside_the_mosaic():
    phantom, block = made(speckle=0.0)
    inside = block.labels > 0
    expected = block.truth * block.bias * factor(phantom)
    assert block.observed.dtype == np.uint16
    np.testing.assert_allclose(block.observed[inside], expected[inside], atol=0.51)  # half a unit, and float32
    _phantom, dim = made(speckle=0.0, white=2.0)  # agarose at 0.16, which would round to 0
    np.testing.assert_array_equal(dim.observed == 0, dim.labels == 0)


def test_every_distortion_off_leaves_the_truth():
    _phantom, block = made(dtype="float32", **OFF)
    np.testing.assert_array_equal(block.observed, block.truth)
    np.testing.assert_array_equal(block.bias, 1)
    assert (block.labels > 0).all()


@pytest.mark.parametrize("name", [name for name in OFF if name != "padding"])
def test_one_distortion_off_leaves_the_others_as_they_were(name: str):
    phantom, block = made(**{name: 0.0})
    whole_phantom, whole = made()
    np.testing.assert_array_equal(block.truth, whole.truth)
    np.testing.assert_array_equal(block.labels, whole.labels)
    smooth = name in ("shading", "section_shading", "attenuation")
    assert np.array_equal(block.bias, whole.bias) != smooth
    assert np.array_equal(phantom.section_gain, whole_phantom.section_gain) == (name not in ("gain", "drift"))
    assert np.array_equal(phantom.plane_jitter, whole_phantom.plane_jitter) == (name != "jitter")
    assert not np.array_equal(block.observed, whole.observed)


def test_gain_and_jitter_have_the_sizes_asked_for():
    phantom = Phantom(PhantomOptions(sections=24, planes=10, gain=0.15, drift=0.0, jitter=0.03, faults=()))
    gain, jitter = np.log(phantom.section_gain), np.log(phantom.plane_jitter)
    # Standardised, hence exact also for few sections.
    np.testing.assert_allclose([gain.mean(), gain.std()], [0, 0.15], atol=1e-12)
    np.testing.assert_allclose(jitter.reshape(24, 10).mean(axis=1), 0, atol=1e-12)
    assert jitter.std() == pytest.approx(0.03, rel=1e-9)
    drift = np.log(Phantom(PhantomOptions(sections=24, gain=0.0, drift=0.1)).section_gain)
    assert drift.std() == pytest.approx(0.1, rel=1e-9)
    # Two cosines of at most one period over 24 sections: a step is far below the spread of independent gains, sqrt(2).
    assert np.abs(np.diff(drift)).max() < 0.5 * drift.std()


def test_one_plane_a_section_has_no_jitter():
    phantom = Phantom(dataclasses.replace(SMALL, sections=6, planes=1))
    np.testing.assert_array_equal(phantom.plane_jitter, 1)
    assert np.isfinite(phantom.planes(0, 6).bias).all()


def test_shared_shading_has_the_size_asked_for_and_is_the_same_everywhere():
    _phantom, block = made(section_shading=0.0, attenuation=0.0)
    log = np.log(block.bias)
    np.testing.assert_array_equal(block.bias, np.broadcast_to(block.bias[:1], block.bias.shape))
    # Cosines are orthogonal on the voxel grid; what is left is float32.
    assert log[0].mean() == pytest.approx(0, abs=1e-6)
    assert log[0].std() == pytest.approx(SMALL.shading, rel=1e-5)


def test_section_shading_differs_between_sections_and_not_within():
    _phantom, block = made(shading=0.0, attenuation=0.0)
    log = np.log(block.bias).reshape(3, 6, -1)
    assert np.ptp(log, axis=1).max() == 0
    np.testing.assert_allclose(log[:, 0].std(axis=1), SMALL.section_shading, rtol=1e-5)
    assert np.abs(np.corrcoef(log[:, 0]) - np.eye(3)).max() < 0.99


def test_attenuation_is_a_sawtooth_of_the_size_asked_for():
    _phantom, block = made(shading=0.0, section_shading=0.0, attenuation=0.7)
    log = np.log(block.bias)
    np.testing.assert_array_equal(log[:6], log[6:12])
    drop = log[0] - log[5]
    # Its variation over the field has mean 0 and standard deviation 0.2.
    assert drop.mean() == pytest.approx(0.7, rel=1e-5)
    assert drop.std() == pytest.approx(0.2 * 0.7, rel=1e-4)
    assert (np.diff(log[:6].mean(axis=(1, 2))) < 0).all()


def test_speckle_is_gamma_distributed_and_white():
    phantom, block = made(dtype="float32", padding=0.0, speckle=0.25)
    ratio = block.observed / (block.truth * block.bias * factor(phantom))
    assert ratio.mean() == pytest.approx(1, abs=4 * 0.25 / np.sqrt(ratio.size))  # four standard errors
    assert ratio.std() == pytest.approx(0.25, rel=0.01)
    levels = np.array([0.001, 0.05, 0.5, 0.95, 0.999])
    np.testing.assert_allclose(np.quantile(ratio, levels), stats.gamma.ppf(levels, 16, scale=1 / 16), rtol=0.02)
    noise = ratio - 1
    for axis in range(3):
        ahead, behind = np.delete(noise, 0, axis), np.delete(noise, -1, axis)
        # Five standard errors of a correlation of independent voxels.
        assert abs(np.corrcoef(ahead.ravel(), behind.ravel())[0, 1]) < 5 / np.sqrt(ahead.size)


# Anatomy


def test_classes_have_the_contrast_they_are_said_to_have():
    _phantom, block = made()
    for name in ("agarose", "ventricle", "grey", "white", "nucleus"):
        values = block.truth[block.labels == CLASSES[name]]
        assert values.size > 200, name
        # Texture and partial volume at edges move a mean; medians are within a tenth.
        assert np.median(values) == pytest.approx(LEVELS[name] * 14000, rel=0.10), name
    _phantom, flat = made(texture=0.0)
    for name in ("agarose", "grey", "white", "nucleus"):
        values = flat.truth[flat.labels == CLASSES[name]]
        assert np.mean(np.isclose(values, LEVELS[name] * 14000, rtol=1e-5)) > 0.5, name


def test_proportions_of_classes_change_along_z():
    _phantom, block = made(planes=10, voxel_um=(120.0, 40.0, 40.0))  # nearly the length of the brain
    counts = np.stack([(block.labels == CLASSES[name]).sum(axis=(1, 2)) for name in ("grey", "white")])
    share = counts[1] / counts.sum(axis=0)
    tissue = block.tissue.mean(axis=(1, 2))
    assert np.ptp(share) > 0.1
    assert tissue.max() / tissue.min() > 1.3
    assert 0.1 < tissue.min() < tissue.max() < 0.6


def test_tissue_is_continuous_across_planes_and_cuts():
    _phantom, block = made()
    step = np.array(
        [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(block.truth, block.truth[1:], strict=False)]
    )
    assert step.min() > 0.85  # planes lie 80 um apart, cortex is about 170 um thick
    cuts = np.array([5, 11])
    assert step[cuts].mean() > np.delete(step, cuts).mean() - 0.02


def test_a_finer_voxel_shows_the_same_brain():
    # Voxel 5 i + 2 of the fine plane has the centre of voxel i. The fine one is interpolated from every third voxel.
    coarse = Phantom(dataclasses.replace(SMALL, size=(160, 200), voxel_um=(80.0, 20.0, 20.0))).planes(4, 5)
    fine_phantom = Phantom(dataclasses.replace(SMALL, size=(800, 1000), voxel_um=(80.0, 4.0, 4.0)))
    assert fine_phantom._step == 3
    fine = fine_phantom.planes(4, 5)
    truth, bias = fine.truth[:, 2::5, 2::5], fine.bias[:, 2::5, 2::5]
    np.testing.assert_allclose(bias, coarse.bias, rtol=0.01)  # cosines sampled at other places
    flat = fine.labels[:, 2::5, 2::5] == coarse.labels
    assert flat[coarse.labels > 0].mean() > 0.97
    assert np.corrcoef(truth.ravel(), coarse.truth.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_each_voxel_size_belongs_to_its_axis(axis: int):
    _phantom, coarse = made(padding=0.0)
    voxel, size = list(SMALL.voxel_um), list(SMALL.size)
    voxel[axis] /= 2
    if axis:
        size[axis - 1] *= 2
    changes = {"planes": 6 if axis else 12, "size": tuple(size), "voxel_um": tuple(voxel)}
    _phantom, fine = made(padding=0.0, oblique=0.0, **changes)
    pairs = np.moveaxis(fine.truth, axis, 0)
    mean = np.moveaxis((pairs[::2] + pairs[1::2]) / 2, 0, axis)
    # The mean over half voxels is a little smoother than the sample in the middle.
    assert np.corrcoef(mean.ravel(), coarse.truth.ravel())[0, 1] > 0.98


def test_another_seed_is_another_brain_and_instrument():
    phantom, block = made()
    other_phantom, other = made(seed=4)
    both = block.tissue & other.tissue
    assert np.corrcoef(block.truth[both], other.truth[both])[0, 1] < 0.6
    assert np.abs(np.log(phantom.section_gain / other_phantom.section_gain)).max() > 0.02
    assert np.abs(np.log(block.bias / other.bias)).max() > 0.1


@pytest.mark.parametrize("angle", [45.0, -45.0, 20.0])
def test_oblique_planes_move_the_footprint_along_x(angle: float):
    planes = {"planes": 8, "voxel_um": (40.0, 40.0, 40.0), "padding": 0.0}
    columns = np.arange(SMALL.size[1])

    def centre(block: PhantomBlock) -> np.ndarray:
        # The hull and not the area, so that ventricles and sulci do not count.
        hull = [np.flatnonzero(plane.any(axis=0)) for plane in block.tissue]
        return np.array([(inside[0] + inside[-1]) / 2 for inside in hull]) - columns.mean()

    straight = centre(made(**planes)[1])
    tilted = centre(made(oblique=angle, **planes)[1])
    assert np.ptp(straight) < 6
    # The middle of an ellipsoid of length L and width 1 moves by (L^2 - 1) sin cos / (L^2 cos^2 + sin^2) per unit of Z.
    sin, cos, length = np.sin(np.deg2rad(angle)), np.cos(np.deg2rad(angle)), 1.35
    expected = -(length**2 - 1) * sin * cos / (length**2 * cos**2 + sin**2)
    slope = np.polyfit(np.arange(len(tilted)), tilted, 1)[0]
    assert slope * np.sign(expected) > 0.4 * abs(expected)
    within = [np.polyfit(np.arange(8), tilted[s : s + 8], 1)[0] for s in (0, 8, 16)]
    assert np.median(within) * np.sign(expected) > 0


def test_a_long_stack_is_all_brain():
    phantom = Phantom(dataclasses.replace(SMALL, sections=10, planes=50, size=(32, 40)))
    for z in (0, 250, 499):
        assert phantom.planes(z, z + 1).tissue.mean() > 0.05


# Mosaic and faults


def test_padding_is_exactly_zero_and_differs_between_sections():
    phantom, block = made()
    np.testing.assert_array_equal(block.observed == 0, block.labels == 0)
    assert not (block.tissue | block.agarose)[block.labels == 0].any()
    footprints = [block.labels[section.z_start] > 0 for section in phantom.sections]
    for section, footprint in zip(phantom.sections, footprints, strict=True):
        np.testing.assert_array_equal(
            block.labels[section.planes] > 0, np.broadcast_to(footprint, block.labels[section.planes].shape)
        )
        assert 0.7 < footprint.mean() < 0.97
    assert not np.array_equal(footprints[0], footprints[1])
    rows = [np.flatnonzero(row)[[0, -1]] for row in footprints[0] if row.any()]
    assert len({tuple(ends) for ends in rows}) == 4  # four rows of tiles, each with an offset of its own
    assert block.tissue[:, [0, -1]].sum() + block.tissue[:, :, [0, -1]].sum() == 0


def test_faults_are_what_they_say_and_are_flagged():
    faults = ((0, "empty"), (1, "damaged"), (2, "saturated"))
    phantom, block = made(faults=faults)
    sound_phantom, sound = made()
    assert [section.flag for section in phantom.sections] == ["missing", "damaged", "damaged"]
    assert not block.observed[:6].any()
    assert not block.labels[:6].any()
    torn = (block.labels[6:12] == CLASSES["agarose"]) & sound.tissue[6:12]
    assert 0.05 < torn.sum() / sound.tissue[6:12].sum() < 0.5
    np.testing.assert_array_equal(
        block.observed[6:12][~torn & sound.tissue[6:12]], sound.observed[6:12][~torn & sound.tissue[6:12]]
    )
    assert np.mean(block.observed[12:][sound.tissue[12:]] == 65535) > 0.2
    assert phantom.section_gain[2] == pytest.approx(8 * sound_phantom.section_gain[2])
    np.testing.assert_array_equal(block.truth, sound.truth)
    unflagged = Phantom(dataclasses.replace(SMALL, faults=faults, flag_faults=False))
    assert all(section.usable for section in unflagged.sections)


# Blocks


def test_voxels_depend_neither_on_block_nor_on_threads():
    phantom, whole = made()
    for start, stop, threads in ((0, 1, 1), (4, 9, 3), (17, 18, 2)):
        part = Phantom(phantom.options).planes(start, stop, threads=threads)
        for name in ("observed", "truth", "bias", "labels", "tissue", "agarose"):
            np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[start:stop])
        np.testing.assert_array_equal(phantom.observed(start, stop, threads), whole.observed[start:stop])


def test_sections_may_differ_in_thickness():
    phantom = Phantom(dataclasses.replace(SMALL, planes=(2, 7, 4)))
    assert [(s.id, s.z_start, s.z_stop) for s in phantom.sections] == [("s000", 0, 2), ("s001", 2, 9), ("s002", 9, 13)]
    assert phantom.planes(8, 10).observed.shape == (2, 96, 120)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sections": 0}, "planes must be one number, or one per section"),
        ({"planes": (3, 4)}, "planes must be one number, or one per section"),
        ({"planes": (3, 0, 4)}, "a section must have at least one plane"),
        ({"size": (8, 100)}, r"size must be two numbers \(Y X\) from 16"),
        ({"voxel_um": (1.0, 0.0, 1.0)}, "voxel_um must be three lengths"),
        ({"oblique": 70.0}, "oblique must be within -60 to 60 degrees, got 70"),
        ({"dtype": "int64"}, "dtype must be one of uint8, uint16, float32, got int64"),
        ({"gain": -0.1}, r"gain must be 0 \(off\) or more"),
        ({"speckle": 2.0}, "speckle must be within 0"),
        ({"padding": 0.5}, "padding must be within 0"),
        ({"faults": ((3, "empty"),)}, "a fault is a section index below 3"),
        ({"faults": ((0, "lost"),)}, "one of empty, damaged, saturated"),
    ],
)
def test_options_that_cannot_be(changes: dict[str, object], sentence: str):
    with pytest.raises(InputError, match=sentence):
        dataclasses.replace(SMALL, **changes)  # type: ignore[arg-type]


def test_planes_outside_the_volume():
    with pytest.raises(InputError, match="planes must be a range within 0 to 18, got 17 to 19"):
        made()[0].planes(17, 19)
