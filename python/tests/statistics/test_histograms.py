"""Estimates from the files of slabs: those of histograms in memory, in the memory of one slab."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from n4flow.corrections.base import Correction
from n4flow.corrections.histogram_matching import estimate_lookup
from n4flow.corrections.plane_gain import estimate_plane_gain
from n4flow.corrections.plane_range import estimate_plane_range
from n4flow.corrections.recipe import Recipe
from n4flow.sections import Section, SectionTable
from n4flow.statistics.histograms import Distributions, HistogramFiles, PlaneHistograms
from n4flow.statistics.measure import plane_histograms

SLABS = 24


def slab(z_start: int, planes: int = 5) -> PlaneHistograms:
    """Histograms of planes of two tissue classes in agarose, of a gain that changes from plane to plane."""
    rng = np.random.default_rng(z_start)
    clean = np.full((planes, 60, 70), 100.0)
    clean[:, 10:50, 10:60], clean[:, 20:40, 20:50] = 300, 500
    gain = 1 + 0.3 * np.sin(np.arange(z_start, z_start + planes))
    volume = clean * gain[:, None, None] * rng.gamma(30, 1 / 30, clean.shape)
    return plane_histograms(volume.astype(np.float32), clean > 200, clean < 200, z_start)


def estimates(histograms: Distributions, table: SectionTable) -> list[Correction]:
    """Return what the three stages estimate, one after the other."""
    found: list[Correction] = [estimate_plane_range(histograms, table)]
    found.append(estimate_lookup(histograms, Recipe(found), table, 64))
    return [*found, estimate_plane_gain(histograms, Recipe(found), table, 2.0)]


def test_estimates_from_files_are_those_from_memory(tmp_path) -> None:
    slabs = [slab(5 * i) for i in range(SLABS)]
    whole = PlaneHistograms.concatenate(slabs)
    for part in slabs:
        part.save(tmp_path / f"histograms_{part.z_start:06d}.npz")
    n = 5 * SLABS
    table = SectionTable(
        [Section("a", 0, 4), Section("b", 4, 9, "damaged"), Section("c", 9, 70), Section("d", 70, n)], n
    )
    files = HistogramFiles(list(tmp_path.iterdir()))
    for found, expected in zip(estimates(files, table), estimates(whole, table), strict=True):
        assert found.summary() == expected.summary()
        for name, values in expected.to_arrays()[1].items():
            np.testing.assert_array_equal(found.to_arrays()[1][name], values)


def test_the_highest_voxel_is_bounded_by_the_end_of_its_bin() -> None:
    volume = np.random.default_rng(1).gamma(3, 30, (5, 40, 50)).astype(np.float32)
    volume[1] = np.minimum(volume[1], 64)  # saturated, at the edge of a bin
    volume[2] = -volume[2]
    volume[3] = 0
    volume[4, 0] = np.nan
    histograms = plane_histograms(volume, volume > 50)
    found = np.array([histograms.highest(z) for z in range(5)])
    expected = np.array([np.nanmax(plane[plane != 0], initial=-np.inf) for plane in volume])
    assert (found >= expected).all()
    np.testing.assert_allclose(found, expected, rtol=2.0**-10)
    assert found[1] == 64
    assert found[3] == -np.inf


@pytest.mark.parametrize("deep", [True, False])
def test_estimates_hold_one_slab_at_a_time(tmp_path, deep: bool) -> None:
    peaks = []
    for count in (SLABS // 4, SLABS):
        folder = tmp_path / str(count)
        folder.mkdir()
        nbytes = 0
        for i in range(count):
            part = slab(5 * i)
            part.save(folder / f"histograms_{part.z_start:06d}.npz")
            nbytes += sum(a.nbytes for a in (*part.values, *part.counts))
        table = SectionTable.equal(5 * count, 1 if deep else 5 * count)
        estimates(HistogramFiles(sorted(folder.iterdir())), table)  # what is imported and kept once
        tracemalloc.start()
        estimates(HistogramFiles(sorted(folder.iterdir())), table)
        peaks.append((tracemalloc.get_traced_memory()[1], nbytes))
        tracemalloc.stop()
    (few, little), (many, much) = peaks
    # what grows is the maps themselves, a twentieth of the histograms or so; holding those would be all of it
    assert many - few < 0.25 * (much - little)


def test_the_highest_of_a_plane_is_its_brightest_voxel_or_within_a_bin_above_it() -> None:
    once, twice = np.full((1, 4, 4), 100.1, np.float32), np.full((1, 4, 4), 100.1, np.float32)
    once[0, 1, 2], twice[0, 1, 2:] = 300.7, (300.7, 300.71)
    assert plane_histograms(once).highest(0) == np.float32(300.7)  # alone in its bin, so known
    assert np.float32(300.71) <= plane_histograms(twice).highest(0) < 300.71 * (1 + 2**-4)
    assert plane_histograms(np.zeros((1, 4, 4), np.float32)).highest(0) == -np.inf
