"""Harmonisation is the same everywhere: arrays, dask, files, the chain; and the report says what it rests on."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import pytest
from harmonize_examples import SHAPE, anatomy, cut, imaged, quiet

import n4flow
from n4flow.compute.threads import limit_threads
from n4flow.corrections.base import Correction, Where
from n4flow.corrections.harmonization.prepare import Samples, harmonization_of
from n4flow.corrections.histogram_matching import estimate_lookup
from n4flow.corrections.proof import Evidence
from n4flow.corrections.recipe import load_correction, save_correction
from n4flow.errors import InputError
from n4flow.io.writers import write_volume
from n4flow.report.metrics import pair_metrics
from n4flow.report.pair import Pair
from n4flow.statistics.measure import plane_histograms, shrink_planes

# ---------------------------------------------------------------------------------------------- one result everywhere


def test_dask_blocks_threads_and_files_give_the_same_bits(tmp_path) -> None:
    truth, tissue = anatomy()
    sections = cut(48)
    observed = imaged(truth, sections).astype(np.uint16)
    corrected, fields = n4flow.harmonize(observed, tissue, sections)
    lazy, delayed = n4flow.harmonize(da.from_array(observed, chunks=(13, 50, 40)), tissue, sections)
    assert isinstance(lazy, da.Array)
    np.testing.assert_array_equal(lazy.compute(), corrected)
    np.testing.assert_array_equal(delayed.compute().lattices, fields.lattices)
    part = observed[20:31, 10:60, 33:].astype(np.float32)
    np.testing.assert_array_equal(fields.apply(part, Where(20, 10, 33, SHAPE)), corrected[20:31, 10:60, 33:])
    save_correction(fields, tmp_path / "fields.npz")
    assert (tmp_path / "fields.npz").stat().st_size < 60_000
    stored = load_correction(tmp_path / "fields.npz")
    np.testing.assert_array_equal(stored.apply(observed.astype(np.float32), Where(0, 0, 0, SHAPE)), corrected)
    assert stored.summary() == fields.summary()
    limit_threads(1)
    try:
        np.testing.assert_array_equal(n4flow.harmonize(observed, tissue, sections)[0], corrected)
    finally:
        limit_threads(1024)


def test_the_chain_gives_the_voxels_of_the_function(tmp_path) -> None:
    truth, tissue = anatomy()
    sections = cut(48, flagged=(2,))
    observed = imaged(truth, sections).astype(np.uint16)
    expected, _fields = quiet(observed, tissue, sections, mode="auto")
    for name, array in (("image", observed), ("mask", tissue.astype(np.uint8))):
        write_volume(tmp_path / f"{name}.ome.zarr", array, voxel_um=(20, 10, 10))
    sections.write(tmp_path / "sections.tsv")
    places = {"mask": tmp_path / "mask.ome.zarr", "sections": tmp_path / "sections.tsv"}
    result = n4flow.run(tmp_path / "image.ome.zarr", tmp_path / "out", harmonize="auto", normalize=False, **places)
    made = n4flow.open_volume(result.samples[0].store)
    np.testing.assert_array_equal(made.read(slice(None)), expected)
    again = n4flow.render(
        n4flow.open_volume(tmp_path / "image.ome.zarr"),
        n4flow.Recipe.load(result.samples[0].folder / "recipe.json"),
        tmp_path / "again.ome.zarr",
    )
    assert again["maximum"] == pytest.approx(float(expected.max()))
    assert n4flow.open_volume(tmp_path / "again.ome.zarr").digest() == made.digest()


def test_a_flat_field_file_is_divided_by_and_called_out_where_it_cannot_be(tmp_path) -> None:
    truth, tissue = anatomy()
    sections = cut(48)
    flat = np.exp(0.4 * np.linspace(-1, 1, SHAPE[1])[:, None] * np.ones(SHAPE[2])).astype(np.float32)
    observed = imaged(truth, sections) * flat
    expected, _fields = quiet(observed, tissue, sections, flat_field=flat)
    places = {"mask": tmp_path / "mask.ome.zarr", "sections": tmp_path / "sections.tsv"}
    write_volume(tmp_path / "image.ome.zarr", observed, voxel_um=(20, 10, 10))
    write_volume(places["mask"], tissue.astype(np.uint8), voxel_um=(20, 10, 10))
    sections.write(places["sections"])
    flats = {"flat": flat[None], "short": flat[None, 1:], "dark": flat[None] - flat.max(), "many": np.stack([flat] * 2)}
    for name, plane in flats.items():
        np.save(tmp_path / f"{name}.npy", plane)
    (tmp_path / "samples.csv").write_text("sample,image,flat_field\nimage,image.ome.zarr,flat.npy\n")
    settled = {"normalize": False, "harmonize": "safe", **places}
    result = n4flow.run(tmp_path / "samples.csv", tmp_path / "out", **settled).samples[0]
    np.testing.assert_array_equal(n4flow.open_volume(result.store).read(slice(None)), expected)
    assert result.numbers["plan"]["flat_field"] == "given"
    field = result.numbers["metrics"]["bias_field"]
    ratio = np.percentile(observed[tissue] / expected[tissue], [1, 50, 99])  # the flat field is part of what was done
    assert [field["p1"], field["p50"], field["p99"]] == pytest.approx(ratio, rel=0.01)
    wrong = {
        r"flat_field short.npy: the flat field must have the shape of a plane, \(84, 96\)": "short",
        "flat_field dark.npy: the flat field must be positive and finite everywhere": "dark",
        "flat_field many.npy has 2 planes; give one plane": "many",
    }
    for sentence, name in wrong.items():
        with pytest.raises(InputError, match=sentence):
            n4flow.run(tmp_path / "image.ome.zarr", tmp_path / "x", flat_field=tmp_path / f"{name}.npy", **settled)
    for other, sentence in (
        ({"harmonize": "off"}, "flat_field cannot be used with harmonize off: harmonize divides by it"),
        ({"bias": "volume"}, "flat_field cannot be used with bias volume: N4 would fit the same shading before"),
    ):
        with pytest.raises(InputError, match=sentence):
            n4flow.run(
                tmp_path / "image.ome.zarr", tmp_path / "x", flat_field=tmp_path / "flat.npy", **(settled | other)
            )


def test_zeros_and_what_is_not_finite_stay() -> None:
    truth, tissue = anatomy()
    observed = imaged(truth, cut(48))
    observed[5, 40, 50:52] = 0, np.nan
    corrected, _fields = n4flow.harmonize(observed, tissue, cut(48))
    assert corrected[5, 40, 50] == 0
    assert np.isnan(corrected[5, 40, 51])
    assert np.isfinite(corrected).sum() == corrected.size - 1


# ----------------------------------------------------------------------------------------------------------- the report


def measured(observed: np.ndarray, corrected: np.ndarray, recipe: list[Correction]) -> dict[str, Any]:
    _truth, tissue = anatomy()
    volumes = {"before": shrink_planes(observed, 1), "after": shrink_planes(corrected, 1)}
    samples = Samples.of([(observed, np.ones(SHAPE, np.float32), tissue)], np.ones(SHAPE[0], bool))
    proven = harmonization_of(samples, cut(48), mode="auto")
    evidence = Evidence.of(samples, cut(48).section_of_plane, proven)
    return pair_metrics(Pair(cut(48), tissue=tissue, agarose=None, recipe=recipe, evidence=evidence, **volumes))


def test_the_report_says_what_was_proven() -> None:
    truth, tissue = anatomy()
    observed = imaged(truth, cut(48))
    corrected, fields = quiet(observed, tissue, cut(48))
    numbers = measured(observed, corrected, [fields])
    evidence, ratio = numbers["harmonization"], observed[tissue] / corrected[tissue]
    assert evidence["rms_adjacent"] == pytest.approx(fields.numbers["rms_adjacent"], rel=1e-5)
    assert evidence["gain"] == pytest.approx(np.exp(fields.gain), rel=1e-5)
    assert len(evidence["gain_sd"]) == 8
    field = numbers["bias_field"]
    assert [field["p1"], field["p50"], field["p99"]] == pytest.approx(np.percentile(ratio, [1, 50, 99]), rel=0.01)
    assert numbers["steps"]["median_before"] > 0.2
    assert numbers["steps"]["median_after"] < 0.02


def test_matching_what_needed_nothing_is_called_out() -> None:
    truth, tissue = anatomy()
    observed = imaged(truth, cut(48), 0.0)
    lookup = estimate_lookup(plane_histograms(observed, tissue))  # plane by plane
    matched = lookup.apply(observed.astype(np.float32), Where(0, 0, 0, SHAPE))
    verdict = measured(observed, matched, [lookup])["verdict"]
    assert verdict["status"] == "look"
    assert verdict["reasons"][0].startswith("tissue was changed by 3.9% (rms) that neighbouring planes do not prove")
    assert "try --trust proven, or --match off" in verdict["reasons"][0]
    even, fields = quiet(observed, tissue, cut(48))
    assert measured(observed, even, [fields])["verdict"]["status"] == "pass"
