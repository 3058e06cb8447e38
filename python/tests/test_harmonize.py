"""Harmonisation: repairs what is known to be wrong, and does next to nothing where nothing is."""

from __future__ import annotations

import itertools
import warnings
from functools import cache
from typing import Any

import dask.array as da
import numpy as np
import pytest
from scipy import ndimage

import n4flow
from n4flow.correction import Correction, Where
from n4flow.errors import InputError, N4flowWarning
from n4flow.harmonization.fields import Harmonization
from n4flow.phantom import Phantom
from n4flow.phantom_options import PhantomOptions
from n4flow.planes import limit_threads
from n4flow.qc import metrics
from n4flow.recipe import load_correction, save_correction
from n4flow.section_lookup import SectionLookup
from n4flow.sections import Section, SectionTable
from n4flow.statistics import shrink_planes
from n4flow.volume import write_volume

SHAPE = (48, 84, 96)
PLANES = 6


@cache
def anatomy(kind: str = "brain") -> tuple[np.ndarray, np.ndarray]:
    """Return (truth, tissue): a folded brain, the same inverted, with a midline, or cut along another axis."""
    options = PhantomOptions(
        sections=8, planes=6, size=SHAPE[1:], voxel_um=(120, 90, 90), seed=5, speckle=0, padding=False
    )
    block = Phantom(options).planes(0, SHAPE[0])
    truth, tissue = block.truth, ndimage.binary_opening(block.tissue)
    if kind == "inverted":
        truth = np.where(tissue, 22000 - truth, truth)
    if kind == "midline":  # three planes where everything is darker, unevenly
        pattern = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=SHAPE[1:]), 3)
        depth = np.array([0.1, 0.25, 0.1])[:, None, None] * (1 + 0.5 * pattern / pattern.std())
        truth = truth.copy()
        truth[20:23] *= np.exp(-depth)
    if kind == "sideways":
        truth, tissue = (np.ascontiguousarray(np.moveaxis(array, 2, 0)) for array in (truth, tissue))
    return truth.astype(np.float32), tissue


def imaged(truth: np.ndarray, sections: SectionTable, strength: float = 1.0, seed: int = 0) -> np.ndarray:
    """Return the volume as an instrument sees it: attenuation, gain and shading of sections, jitter, 3 % speckle."""
    rng = np.random.default_rng(seed)
    n_z, n_y, n_x = truth.shape
    owner, starts = sections.section_of_plane, np.array([s.z_start for s in sections])
    depth = (np.arange(n_z) - starts[owner]) / PLANES
    y, x = np.linspace(-1, 1, n_y)[:, None], np.linspace(-1, 1, n_x)
    log_field = (rng.normal(0, 0.15, len(sections))[owner] + rng.normal(0, 0.03, n_z) - 0.4 * depth)[:, None, None]
    slopes = rng.normal(0, 0.08, (2, len(sections), 1, 1))
    log_field = log_field + slopes[0][owner] * y + slopes[1][owner] * x * y
    return (truth * np.exp(strength * log_field) * rng.normal(1, 0.03, truth.shape)).astype(np.float32)


def cut(n_planes: int, planes: int = PLANES, flagged: tuple[int, ...] = (), shift: int = 0) -> SectionTable:
    """Return sections of equal depth; with `shift`, every cut lies so many planes later."""
    edges = [0, *(z + shift for z in range(planes, n_planes, planes)), n_planes]
    flags = ["damaged" if i in flagged else "ok" for i in range(len(edges))]
    return SectionTable(
        [Section(f"s{i}", a, b, flags[i]) for i, (a, b) in enumerate(itertools.pairwise(edges))], n_planes
    )


def agreement(truth: np.ndarray, tissue: np.ndarray, volume: np.ndarray) -> float:
    return float(np.corrcoef(truth[tissue], volume[tissue])[0, 1])


def contrast(truth: np.ndarray, tissue: np.ndarray, volume: np.ndarray) -> float:
    """Log ratio of the means of the two halves of tissue, those darker and brighter than the middle in truth."""
    bright = truth > np.exp(np.log([np.percentile(truth[tissue], q) for q in (10, 90)]).mean())
    return float(np.log(volume[tissue & bright].mean() / volume[tissue & ~bright].mean()))


def steps(truth: np.ndarray, tissue: np.ndarray, volume: np.ndarray, sections: SectionTable) -> float:
    """Mean size of the change of log(volume / truth) at cuts."""
    found = []
    for section in sections[1:]:
        z = section.z_start
        both = tissue[z] & tissue[z - 1]
        ratio = [np.log(volume[i][both] / truth[i][both]) for i in (z - 1, z)]
        found.append(abs(np.median(ratio[1] - ratio[0])))
    return float(np.mean(found))


def quiet(*arguments: object, **options: object) -> tuple[np.ndarray, Harmonization]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", N4flowWarning)
        return n4flow.harmonize(*arguments, **options)


# ------------------------------------------------------------------------------------------------------------- repairs


def test_sections_are_made_even() -> None:
    truth, tissue = anatomy()
    sections = cut(len(truth))
    observed = imaged(truth, sections)
    corrected, fields = n4flow.harmonize(observed, tissue, sections)
    before, after = (agreement(truth, tissue, volume) for volume in (observed, corrected))
    assert before < 0.9  # there was something to do
    assert after > 0.97  # 3 % speckle alone leaves 0.99
    assert steps(truth, tissue, observed, sections) > 0.3
    assert steps(truth, tissue, corrected, sections) < 0.01
    assert contrast(truth, tissue, corrected) == pytest.approx(contrast(truth, tissue, truth), rel=0.05)
    numbers = fields.summary()
    assert 0.05 < numbers["sd_gain"] < 0.3  # the gains' own sd is 0.15
    assert numbers["rms_adjacent"] > 0.1
    assert np.log(corrected[tissue]).mean() == pytest.approx(np.log(observed[tissue]).mean(), abs=0.01)


def test_gains_are_found_within_their_uncertainty() -> None:
    truth, tissue = anatomy()
    sections = cut(len(truth))
    even = imaged(truth, sections, 0.0)
    gains = np.random.default_rng(3).normal(0, 0.15, len(sections))
    observed = even * np.exp(gains)[sections.section_of_plane, None, None].astype(np.float32)
    _corrected, fields = n4flow.harmonize(observed, tissue, sections)
    found = np.array(
        [fields.log_field(Where(z, 0, 0, SHAPE), (PLANES, *SHAPE[1:])).mean() for z in range(0, 48, PLANES)]
    )
    error = (found - found.mean()) - (gains - gains.mean())
    assert np.abs(error).max() < 0.05
    assert (np.abs(error) < 4 * fields.gain_sd + 0.01).all()


# --------------------------------------------------------------------------------------------------------- does no harm


@pytest.mark.parametrize("mode", ["safe", "auto"])
@pytest.mark.parametrize("kind", ["brain", "inverted", "midline", "sideways"])
def test_what_needs_nothing_is_left_alone(kind: str, mode: str) -> None:
    truth, tissue = anatomy(kind)
    sections = cut(len(truth))
    observed = imaged(truth, sections, 0.0)
    corrected, _fields = quiet(observed, tissue, sections, mode=mode)
    assert agreement(truth, tissue, corrected) > agreement(truth, tissue, observed) - 0.003
    assert contrast(truth, tissue, corrected) == pytest.approx(contrast(truth, tissue, observed), rel=0.01)
    change = np.log(corrected[tissue] / observed[tissue])
    assert change.std() < 0.02


def sparse(tissue: np.ndarray) -> np.ndarray:
    """Leave a spot of tissue in two sections, and none in a third."""
    spot = np.zeros(tissue.shape, bool)
    spot[:, 38:50, 30:42] = True
    less = tissue.copy()
    less[6:18] &= spot[6:18]
    less[18:24] = False
    return less


def moved(volume: np.ndarray, sections: SectionTable, most: int) -> np.ndarray:
    """Shift every section in plane by up to `most` voxels."""
    rng = np.random.default_rng(7)
    shifts = rng.integers(-most, most + 1, (len(sections), 2))
    planes = [np.roll(plane, shifts[s], (0, 1)) for plane, s in zip(volume, sections.section_of_plane, strict=True)]
    return np.stack(planes)


HARM = {  # sections, what is lost at most in r where nothing is wrong, what is gained at least where something is
    "one section": (cut(48, 48), 0.003, 0.0),
    "two sections": (cut(48, 24), 0.003, 0.0),
    "sections of one plane": (cut(48, 1), 0.003, 0.05),
    "sections of one plane and of many": (
        SectionTable([Section("a", 0, 1), Section("b", 1, 30), Section("c", 30, 48)], 48),
        0.003,
        0.0,
    ),
    "little tissue": (cut(48), 0.003, 0.05),
    "moved by a voxel": (cut(48), 0.003, 0.05),
    "moved by three voxels": (cut(48), 0.005, 0.05),
    "cuts one plane too late": (cut(48, shift=1), 0.003, 0.0),
}


@pytest.mark.parametrize("name", list(HARM))
def test_hard_cases_are_not_harmed(name: str) -> None:
    sections, most_lost, least_gained = HARM[name]
    truth, tissue = anatomy()
    if name == "little tissue":
        tissue = sparse(tissue)
    if name.startswith("moved"):
        most = 3 if "three" in name else 1
        truth, tissue = moved(truth, sections, most), moved(tissue, sections, most)
    for strength, bound in ((0.0, -most_lost), (1.0, least_gained)):
        observed = imaged(truth, cut(48) if "late" in name else sections, strength)
        corrected, _fields = quiet(observed, tissue, sections)
        gained = agreement(truth, tissue, corrected) - agreement(truth, tissue, observed)
        assert gained >= bound, (name, strength)
        assert np.isfinite(corrected).all()


def test_a_wrong_section_table_is_called_out() -> None:
    truth, tissue = anatomy()
    observed = imaged(truth, cut(48))
    with pytest.warns(N4flowWarning, match="brightness steps lie one plane before the cuts of the section table"):
        n4flow.harmonize(observed, tissue, cut(48, shift=1))


@pytest.mark.parametrize(
    ("sections", "mask", "reason"),
    [
        (cut(48, flagged=tuple(range(8))), "tissue", "every section is flagged or excluded"),
        (cut(48), "nothing", "no plane has 10 samples of tissue"),
        (cut(48), "one plane", "only one plane has tissue"),
    ],
)
def test_where_nothing_can_be_compared_the_volume_stays(sections: SectionTable, mask: str, reason: str) -> None:
    truth, tissue = anatomy()
    given = np.zeros_like(tissue) if mask != "tissue" else tissue
    if mask == "one plane":
        given[20] = tissue[20]
    observed = imaged(truth, cut(48))
    with pytest.warns(N4flowWarning, match=f"harmonize leaves the volume as it is: {reason}"):
        corrected, fields = n4flow.harmonize(observed, given, sections)
    np.testing.assert_array_equal(corrected, observed)
    assert fields.summary()["reason"].startswith(reason)


def test_a_flagged_section_teaches_nothing_and_lies_between_its_neighbours() -> None:
    truth, tissue = anatomy()
    observed = imaged(truth, cut(48))
    flagged = cut(48, flagged=(3,))
    damaged = observed.copy()
    damaged[18:24] *= np.linspace(1, 9, SHAPE[2], dtype=np.float32)
    a, b = (quiet(volume, tissue, flagged)[1] for volume in (observed, damaged))
    np.testing.assert_array_equal(a.lattices, b.lattices)
    np.testing.assert_allclose(a.section[3], (a.section[2] + a.section[4]) / 2, atol=1e-12)
    assert np.isnan(a.gain[3])
    excluded = quiet(damaged, tissue, cut(48), exclude=["s3"])[1]
    np.testing.assert_array_equal(excluded.lattices, a.lattices)
    others = np.ones(48, bool)
    others[18:24] = False
    corrected = a.apply(observed.copy(), Where(0, 0, 0, SHAPE))
    assert agreement(truth[others], tissue[others], corrected[others]) > 0.95


def test_a_flat_field_is_believed() -> None:
    truth, tissue = anatomy()
    sections = cut(48)
    flat = np.exp(0.5 * np.linspace(-1, 1, SHAPE[2]) * np.ones((SHAPE[1], 1)))
    even, _fields = quiet(imaged(truth, sections), tissue, sections)
    shaded = imaged(truth, sections) * flat.astype(np.float32)
    corrected, fields = quiet(shaded, tissue, sections, flat_field=3 * flat)
    np.testing.assert_allclose(corrected[tissue], even[tissue], rtol=2e-3)
    assert fields.flat is not None
    with pytest.raises(InputError, match=r"the flat field must have the shape of a plane, \(84, 96\)"):
        n4flow.harmonize(shaded, tissue, sections, flat_field=flat[1:])
    with pytest.raises(InputError, match="positive and finite"):
        n4flow.harmonize(shaded, tissue, sections, flat_field=flat - 1)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"mode": "bold"}, "mode must be safe, auto or full, got 'bold'"),
        ({"exclude": ["s9"]}, r"exclude must name sections of the table \(s0 to s7\) or count them, got 's9'"),
    ],
)
def test_mistakes_have_their_sentence(options: dict[str, object], sentence: str) -> None:
    truth, tissue = anatomy()
    with pytest.raises(InputError, match=sentence):
        n4flow.harmonize(truth, tissue, cut(48), **options)


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
    return metrics(sections=cut(48), tissue=tissue, agarose=None, recipe=recipe, **volumes)


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
    matched = n4flow.apply_histogram_matching(observed, None, 256, mask=tissue)  # plane by plane
    lookup = SectionLookup.__new__(SectionLookup)  # only its kind is read
    sentence = "needed nothing, yet matching or smoothing"
    assert any(sentence in reason for reason in measured(observed, matched, [lookup])["reasons"])
    even, fields = quiet(observed, tissue, cut(48))
    assert not any(sentence in reason for reason in measured(observed, even, [fields])["reasons"])
