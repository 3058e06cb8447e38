"""The numbers of the report against plain loops on volumes whose truth is known."""

import math
import tracemalloc

import numpy as np
import pytest
from report_examples import GAINS, LEVEL, SHAPE, case, field, measured

from n4flow.corrections.bias_field import BiasCorrection
from n4flow.masks.packed_mask import PackedMask
from n4flow.n4_bias.field import BiasField
from n4flow.report import pair
from n4flow.report.metrics import pair_metrics, plain, sections_table
from n4flow.report.pair import Pair
from n4flow.sections import Section, SectionTable
from n4flow.statistics.measure import shrink_planes
from n4flow.statistics.shrunken import ShrunkenFiles


def test_steps_between_sections_are_the_log_ratio_of_their_gains():
    numbers = measured(*case())
    steps = [row["step_before"] for row in numbers["sections"]]
    assert steps[0] is None
    assert steps[1:] == pytest.approx(np.diff(np.log(GAINS)), abs=1e-5)  # float32 intensities
    assert [row["step_after"] for row in numbers["sections"]][1:] == pytest.approx([0, 0], abs=1e-6)
    assert numbers["steps"]["largest_before"] == pytest.approx(math.log(1.3 / 0.8), abs=1e-5)
    assert numbers["steps"]["largest_at_before"] == "s2"
    assert (numbers["steps"]["cuts"], numbers["steps"]["measured"]) == (2, 2)


def test_a_step_is_measured_against_the_change_that_is_usual_inside_sections():
    before, after, *rest = case(gains=(1, 1, 1), trend=-0.05)
    numbers = measured(before, after, *rest)
    # signal falls by 5 % a plane and jumps back by 15 % at a cut, where a fall by 5 % would be usual
    assert [row["step_before"] for row in numbers["sections"]][1:] == pytest.approx([0.2, 0.2], abs=1e-5)
    assert numbers["steps"]["inside_sections_before"] == pytest.approx(0, abs=1e-5)


def test_steps_equal_a_plain_loop_on_noisy_planes():
    before, after, tissue, agarose, table = case()
    noise = np.random.default_rng(1).lognormal(0, 0.1, before.shape)
    before = np.where(tissue, LEVEL + (before - LEVEL) * noise, before)
    jitter = np.exp(np.random.default_rng(2).normal(0, 0.02, SHAPE[0]))
    before = np.where(tissue, LEVEL + (before - LEVEL) * jitter[:, None, None], before)
    changes, spreads = [], []
    for z in range(SHAPE[0] - 1):
        ratios = [
            math.log((before[z + 1, y, x] - LEVEL) / (before[z, y, x] - LEVEL))
            for y, x in zip(*np.nonzero(tissue[z]), strict=True)
        ]
        changes.append(np.median(ratios))
        spreads.append(np.median(np.abs(ratios - changes[-1])))
    numbers = measured(before, after, tissue, agarose, table)
    around_first_cut = [0, 1, 2, 4, 5, 6]
    expected = changes[3] - np.median([changes[z] for z in around_first_cut])
    assert numbers["sections"][1]["step_before"] == pytest.approx(expected, abs=1e-5)
    facing = [row["facing_before"] for row in numbers["sections"]]
    assert facing == [None, pytest.approx(spreads[3], abs=1e-5), pytest.approx(spreads[7], abs=1e-5)]


def test_variation_of_tissue_and_of_plane_means_equal_numpy_on_the_signal():
    before, after, tissue, agarose, table = case()
    numbers = measured(before, after, tissue, agarose, table)["tissue"]
    signal = (before - LEVEL)[tissue]
    assert numbers["cv_before"] == pytest.approx(signal.std() / signal.mean(), rel=1e-4)
    planes = np.array([(before[z] - LEVEL)[tissue[z]].mean() for z in range(SHAPE[0])])
    assert numbers["plane_mean_cv_before"] == pytest.approx(planes.std() / planes.mean(), rel=1e-4)
    assert numbers["plane_mean_cv_after"] == pytest.approx(0, abs=1e-6)
    assert numbers["share"] == pytest.approx(tissue.mean(), rel=1e-5)


def test_no_number_moves_with_scale_and_offset_of_the_input():
    before, after, *rest = case()
    one, other = measured(before, after, *rest), measured(7 * before + 2000, after, *rest)
    assert other["tissue"]["cv_before"] == pytest.approx(one["tissue"]["cv_before"], rel=1e-4)
    assert other["steps"]["median_before"] == pytest.approx(one["steps"]["median_before"], rel=1e-4)
    assert other["contrast"]["before"] == pytest.approx(one["contrast"]["before"], rel=1e-4)
    for name in ("tissue_before", "agarose_before"):  # shown in the result's units
        assert other["planes"][name] == pytest.approx(one["planes"][name], rel=1e-4)


def test_an_unchanged_volume_has_equal_numbers_before_and_after():
    before, _after, *rest = case()
    numbers = measured(before, before, *rest)
    for group in ("tissue", "agarose", "steps", "contrast"):
        for name, value in numbers[group].items():
            if name.endswith("before"):
                assert numbers[group][name.replace("before", "after")] == value, name
    assert numbers["contrast"]["kept"] == numbers["contrast"]["wide_kept"] == 1
    assert (numbers["units"]["scale"], numbers["units"]["offset"]) == (1, 0)


def test_contrast_kept_is_the_exponent_of_a_gamma_map():
    before, _after, tissue, agarose, table = case(gains=(1, 1, 1))
    # classes of one value each, so that the log of their means is exact
    signal = np.where(before > 700, 800.0, 400.0) * tissue
    after = 5 * signal**0.8
    numbers = measured(LEVEL + signal, LEVEL + after, tissue, agarose, table)
    assert numbers["contrast"]["before"] == pytest.approx(math.log(2), abs=1e-5)
    assert numbers["contrast"]["kept"] == pytest.approx(0.8, abs=1e-4)
    assert numbers["contrast"]["wide_kept"] == pytest.approx(0.8, abs=1e-4)
    assert numbers["contrast"]["bright_share"] == pytest.approx((signal == 800).sum() / tissue.sum(), abs=1e-6)
    assert all(row["contrast_kept"] == pytest.approx(0.8, abs=1e-4) for row in numbers["sections"])
    after[table[1].planes] = 5 * 400**-0.2 * signal[table[1].planes]  # as bright as its neighbours, contrast untouched
    one = measured(LEVEL + signal, LEVEL + after, tissue, agarose, table)
    assert one["contrast"]["least_kept"] == pytest.approx(0.8, abs=1e-4)
    assert one["contrast"]["most_kept"] == pytest.approx(1.0, abs=1e-4)
    assert (one["contrast"]["least_kept_in"], one["contrast"]["most_kept_in"]) == ("s0", "s1")
    assert "contrast between neighbouring tissue is 80.0% of what it was" in numbers["reasons"]
    assert numbers["sections"][0]["reasons"] == ["contrast between neighbouring tissue is 80% of what it was"]


def test_removed_shading_does_not_count_as_lost_contrast():
    before, after, tissue, agarose, table = case(gains=(1, 1, 1))
    shading = np.exp(0.4 * np.sin(np.linspace(0, np.pi, SHAPE[2])))  # a factor of 1.5 over the width
    shaded = np.where(tissue, LEVEL + (before - LEVEL) * shading, before)
    numbers = measured(shaded, after, tissue, agarose, table)
    # inside a tile of 16 pixels the shading still changes, by up to a fifth; the tiles' errors have both signs
    assert numbers["contrast"]["kept"] == pytest.approx(1, abs=0.03)
    assert numbers["tissue"]["cv_before"] > numbers["tissue"]["cv_after"]


def test_a_flagged_section_enters_no_number_of_the_volume():
    before, after, tissue, agarose, table = case(flags=("ok", "ok", "damaged"))
    numbers = measured(before, after, tissue, agarose, table)
    spoilt = before.copy()
    spoilt[table[2].planes] *= 3
    again = measured(spoilt, after, tissue, agarose, table)
    for group in ("agarose", "steps", "contrast", "units"):
        assert again[group] == numbers[group]
    assert again["tissue"] == numbers["tissue"]
    assert numbers["steps"]["measured"] == 1
    assert numbers["sections"][2]["status"] == "warn"
    assert numbers["sections"][2]["reasons"] == ["flagged damaged, so it entered no estimate"]
    assert numbers["sections"][1]["status"] == "pass"


def test_padding_changes_no_number():
    before, after, tissue, agarose, table = case()
    bare = measured(before, after, tissue, agarose, table)

    def pad(array, value=0):
        # whole tiles, so that the same pixels are neighbours
        return np.pad(array, [(0, 0)] * (array.ndim - 2) + [(16, 16), (32, 16)], constant_values=value)

    padded = measured(pad(before), pad(after), pad(tissue), pad(agarose, True), table)
    for group in ("agarose", "steps", "contrast", "units"):
        assert padded[group] == bare[group]
    assert padded["tissue"]["cv_before"] == bare["tissue"]["cv_before"]
    assert padded["voxels"]["valid"] == bare["voxels"]["valid"]


def test_bias_range_is_that_of_the_field_in_tissue():
    before, after, tissue, agarose, table = case()
    rng = np.random.default_rng(3)
    lattice = rng.normal(0, 0.2, (4, 5, 6)).astype(np.float32)
    fitted = BiasField(lattice, SHAPE, SHAPE, (1, 1, 1))
    numbers = measured(before, after, tissue, agarose, table, [BiasCorrection(((0, SHAPE[0], fitted),))])
    values = np.exp(fitted.log_field())
    for name, q in (("p1", 1), ("p50", 50), ("p99", 99)):
        assert numbers["bias_field"][name] == pytest.approx(np.percentile(values[tissue], q), rel=1e-4)
        part = values[table[1].planes][tissue[table[1].planes]]
        assert numbers["sections"][1][f"bias_{name}"] == pytest.approx(np.percentile(part, q), rel=1e-4)
    assert measured(before, after, tissue, agarose, table)["bias_field"] is None


def test_metrics_keep_little_of_a_plane(tmp_path, monkeypatch):
    """Twice the planes may take what their tissue is as bits, and numbers of each plane, but no plane of floats."""
    monkeypatch.setattr(pair, "MAX_SAMPLE", 10_000)
    peaks, shape = [], (128, 96, 128)
    values = np.random.default_rng(0).uniform(50, 100, shape).astype(np.float32)
    shrink_planes(values, 1).save(tmp_path / "part.npz")
    for parts in (1, 1, 2):  # the first compiles
        files = ShrunkenFiles([tmp_path / "part.npz"] * parts)
        depth = parts * len(values)
        everything = PackedMask.of(np.ones((depth, *shape[1:]), bool))
        fields = [(z, z + 64, field(0.1, (64, *shape[1:]))) for z in range(0, depth, 64)]
        recipe = [BiasCorrection(tuple(fields))]
        tracemalloc.start()
        pair_metrics(Pair(SectionTable.equal(depth, depth // 8), files, files, everything, None, recipe))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] - peaks[1] < len(values) * math.prod(shape[1:])  # a byte a pixel; of floats it were four


EDGE_CASES = ("no tissue", "no agarose", "one plane", "one section", "section of NaN", "all NaN", "all flagged", "dark")


def edge_case(name):
    """Return (before, after, tissue, agarose, table) of a volume that lacks something."""
    before, after, tissue, agarose, table = case()
    if name == "no tissue":
        tissue = np.zeros_like(tissue)
    elif name == "no agarose":
        agarose = None
    elif name == "one plane":
        before, after, tissue, table = before[:1], after[:1], tissue[:1], SectionTable.equal(1, 1)
    elif name == "one section":
        table = SectionTable.equal(SHAPE[0], 1)
    elif name == "section of NaN":
        before[4:8] = after[4:8] = np.nan
    elif name == "all NaN":
        before[:] = after[:] = np.nan
    elif name == "all flagged":
        table = SectionTable([Section(s.id, s.z_start, s.z_stop, "damaged") for s in table], SHAPE[0])
    elif name == "dark":  # tissue darker than agarose
        before = np.where(tissue, before / 20, 1000.0)
    return before, after, tissue, agarose, table


@pytest.mark.parametrize("name", EDGE_CASES)
def test_what_cannot_be_measured_is_none(name):
    numbers = measured(*edge_case(name))
    steps, contrast = numbers["steps"], numbers["contrast"]
    if name in ("no tissue", "all NaN", "all flagged"):
        assert numbers["tissue"]["cv_after"] is None
        assert contrast["kept"] is None
        assert steps["median_before"] is None
        assert not numbers["units"]["common"]
        assert numbers["verdict"]["reasons"] == ["no usable section has tissue, so nothing could be judged"]
        assert numbers["verdict"]["status"] == "look"
    if name in ("no tissue", "all NaN"):
        assert "no tissue was found, so nothing could be measured" in numbers["reasons"]
    if name == "no agarose":
        assert numbers["agarose"]["level_after"] is None
        assert numbers["units"]["level_before"] == 0
        assert "no agarose was found, so the background level rests on no measurement" in numbers["reasons"]
        assert steps["median_before"] > 0
    if name in ("one plane", "one section"):
        assert (steps["cuts"], steps["measured"]) == (0, 0)
        assert contrast["kept"] is not None
    if name == "section of NaN":
        row = numbers["sections"][1]
        assert row["mean_after"] is None
        assert row["reasons"] == ["no tissue", "100.0% of the voxels are not finite"]
        assert numbers["sections"][0]["status"] == "pass"
    if name == "dark":
        assert "tissue is not brighter than agarose" in numbers["units"]["rule"]
        assert numbers["tissue"]["cv_before"] > 0


def test_the_section_table_of_numbers_is_read_back_as_a_section_table(tmp_path):
    before, after, tissue, agarose, table = case(flags=("ok", "damaged", "ok"))
    path = tmp_path / "sections.tsv"
    path.write_text(sections_table(measured(before, after, tissue, agarose, table)))
    assert SectionTable.read(path, SHAPE[0]) == table
    header, first, second, *_rest = path.read_text().splitlines()
    row = dict(zip(header.split("\t"), second.split("\t"), strict=True))
    assert row["reasons"] == "flagged damaged, so it entered no estimate"
    assert dict(zip(header.split("\t"), first.split("\t"), strict=True))["step_before"] == ""


def test_plain_gives_json_types_of_six_digits():
    given = {"a": np.float32(1 / 3), "b": np.array([1, 2]), "c": (np.nan, np.inf), "d": np.bool_(True), "e": "x"}
    assert plain(given) == {"a": 0.333333, "b": [1, 2], "c": [None, None], "d": True, "e": "x"}
