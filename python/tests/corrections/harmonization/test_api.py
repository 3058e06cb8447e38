"""Harmonisation: repairs what is known to be wrong, and does next to nothing where nothing is."""

from __future__ import annotations

import numpy as np
import pytest
from harmonize_examples import MIDLINES, PLANES, SHAPE, agreement, anatomy, contrast, cut, imaged, quiet, steps

import n4flow
from n4flow.corrections.base import Where
from n4flow.corrections.harmonization import stages
from n4flow.errors import InputError, N4flowWarning
from n4flow.sections import Section, SectionTable

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
    ones = np.ones((PLANES, *SHAPE[1:]), np.float32)
    found = np.array([-np.log(fields.apply(ones.copy(), Where(z, 0, 0, SHAPE))).mean() for z in range(0, 48, PLANES)])
    error = (found - found.mean()) - (gains - gains.mean())
    assert np.abs(error).max() < 0.05
    assert (np.abs(error) < 4 * fields.gain_sd + 0.01).all()


def test_auto_takes_off_shading_that_all_planes_share() -> None:
    truth, tissue = anatomy()
    sections = cut(48)
    y, x = np.linspace(-1, 1, SHAPE[1])[:, None], np.linspace(-1, 1, SHAPE[2])
    observed = imaged(truth, sections) * np.exp(0.15 * (y + 0.5 * x * y)).astype(np.float32)
    safe, auto = (
        agreement(truth, tissue, quiet(observed, tissue, sections, mode=mode)[0]) for mode in ("safe", "auto")
    )
    assert auto > max(safe, 0.99)


def test_shared_shading_ends_where_plain_steps_creep_to(monkeypatch) -> None:
    truth, tissue = anatomy()
    sections = cut(48)
    y, x = np.linspace(-1, 1, SHAPE[1])[:, None], np.linspace(-1, 1, SHAPE[2])
    observed = imaged(truth, sections) * np.exp(0.15 * (y + 0.5 * x * y)).astype(np.float32)
    monkeypatch.setattr(stages, "ROUNDS", 1)
    found = quiet(observed, tissue, sections, mode="full")[1].shared
    for name, value in (("MOMENTUM", 0.0), ("SHARED_PASSES", 150), ("SETTLED_SHARED", 0.0)):
        monkeypatch.setattr(stages, name, value)
    end = quiet(observed, tissue, sections, mode="full")[1].shared
    assert end.std() > 0.05
    assert (found - end).std() < 0.05 * end.std()


# --------------------------------------------------------------------------------------------------------- does no harm


@pytest.mark.parametrize("mode", ["safe", "auto", "full"])
def test_tissue_of_one_value_is_left_alone(mode: str) -> None:
    volume = np.full((12, 40, 48), 170, np.float32)
    volume[:, :6] = 0
    corrected, _fields = quiet(volume, volume > 0, cut(12), mode=mode)
    np.testing.assert_allclose(corrected, volume, rtol=1e-6)


def test_an_organ_brighter_in_its_middle_is_no_shading() -> None:
    """Classes get sharper without it, as they do without shading; but sections have nothing like it of their own."""
    truth, tissue = anatomy()
    sections = cut(48)
    y, x = np.linspace(-1, 1, SHAPE[1])[:, None], np.linspace(-1, 1, SHAPE[2])
    truth = truth * np.exp(0.5 * (1 - x**2 - y**2)).astype(np.float32)
    observed = imaged(truth, sections)
    safe, auto = (
        agreement(truth, tissue, quiet(observed, tissue, sections, mode=mode)[0]) for mode in ("safe", "auto")
    )
    assert auto > safe - 0.005


@pytest.mark.parametrize("mode", ["safe", "auto"])
@pytest.mark.parametrize("kind", ["brain", "inverted", *MIDLINES, "sideways"])
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
    "cuts one plane too early": (cut(48, shift=-1), 0.003, 0.0),
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
        observed = imaged(truth, cut(48) if name.startswith("cuts") else sections, strength)
        corrected, _fields = quiet(observed, tissue, sections)
        gained = agreement(truth, tissue, corrected) - agreement(truth, tissue, observed)
        assert gained >= bound, (name, strength)
        if not strength:
            kept = contrast(truth, tissue, corrected) / contrast(truth, tissue, observed)
            assert kept == pytest.approx(1, abs=0.01), name
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
