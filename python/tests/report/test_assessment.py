"""What deserves a look is named, and nothing else."""

import math

import numpy as np
import pytest
from report_examples import LEVEL, SHAPE, case, field, measured

from n4flow.corrections.bias_field import BiasCorrection
from n4flow.corrections.proof import Evidence
from n4flow.corrections.section_lookup import SectionLookup
from n4flow.n4_bias.field import BiasField
from n4flow.report.assessment import facing_differ, headline
from n4flow.report.metrics import pair_metrics
from n4flow.report.pair import Pair
from n4flow.sections import Section, SectionTable
from n4flow.statistics.measure import shrink_planes


def test_the_reason_of_a_field_that_was_not_fitted_is_said_at_its_section():
    before, after, tissue, agarose, table = case()
    lattice = np.zeros((4, 4, 4), np.float32)
    depth = SHAPE[0] // 3
    shape = (depth, *SHAPE[1:])
    unfitted = BiasField(lattice, shape, shape, (1, 1, 1), reason="the mask is empty")
    numbers = measured(before, after, tissue, agarose, table, [BiasCorrection(((depth, 2 * depth, unfitted),))])
    assert numbers["sections"][1]["reasons"] == ["no bias field: the mask is empty"]
    assert numbers["sections"][0]["reasons"] == []


def test_a_step_that_grew_is_named():
    _seen, truth, tissue, agarose, table = case()
    worse, *_rest = case(gains=(1, 1, 1.2))
    numbers = measured(truth, worse, tissue, agarose, table)
    assert numbers["sections"][2]["reasons"] == ["the step from the section above grew from +0.0% to +20.0%"]
    assert numbers["sections"][1]["status"] == "pass"
    left = measured(case(gains=(1, 1, 1.4))[0], worse, tissue, agarose, table)
    assert left["sections"][2]["reasons"] == ["a step of +20.0% from the section above is left"]


def test_a_step_from_a_flagged_section_is_not_the_next_one_s():
    worse, truth, tissue, agarose, table = case(gains=(1, 1.3, 1), flags=("ok", "missing", "ok"))
    numbers = measured(truth, worse, tissue, agarose, table)
    assert numbers["sections"][2]["step_after"] == pytest.approx(-math.log(1.3), abs=1e-5)
    assert numbers["sections"][2]["reasons"] == []


def test_invalid_voxels_are_counted_and_named():
    before, after, tissue, agarose, table = case()
    before[0, 0, :20] = np.nan
    before[5, :10] = -1
    numbers = measured(before, after, tissue, agarose, table)
    assert numbers["voxels"]["nonfinite"] == 20
    assert numbers["voxels"]["negative"] == 10 * SHAPE[2]
    assert any(reason.startswith("20 voxels of the input are not finite") for reason in numbers["reasons"])
    share = 10 * SHAPE[2] / (4 * SHAPE[1] * SHAPE[2])
    assert f"{share:.1%} of the input's voxels are negative" in numbers["sections"][1]["reasons"]


def test_saturated_voxels_are_named():
    before, after, tissue, agarose, table = case()
    before = before.astype(np.uint16)
    before[4:8][tissue[4:8]] = 65535
    volumes = [shrink_planes(before, 1), shrink_planes(after.astype(np.float32), 1)]
    numbers = pair_metrics(Pair(table, *volumes, tissue, agarose))
    share = tissue[4:8].mean()
    assert f"{share:.1%} of the input's voxels are saturated" in numbers["sections"][1]["reasons"]
    assert "saturated" in " ".join(numbers["reasons"])


def test_the_headline_says_what_was_done_and_what_to_look_at():
    before, after, tissue, agarose, table = case(flags=("ok", "ok", "damaged"))
    done, verdict = headline([], measured(before, after, tissue, agarose, table))
    assert done == "Nothing was changed: the recipe is empty."
    assert verdict == "2 of 3 sections pass; look at s2."
    table = SectionTable([Section(s.id, s.z_start, s.z_stop) for s in table], SHAPE[0])
    recipe = [BiasCorrection(((0, 12, field(0.1, SHAPE)),))]
    numbers = measured(before, after, tissue, agarose, table, recipe)
    assert headline(recipe, numbers) == ("Bias field divided out.", "All 3 sections pass.")
    idle = [BiasCorrection(((0, 12, field(0.0, SHAPE)),)), BiasCorrection()]
    assert headline(idle, numbers)[0] == "Nothing was changed: nothing could be estimated."


def test_the_verdict_names_what_did_harm_and_what_avoids_it():
    before, _after, tissue, agarose, table = case(gains=(1, 1, 1))
    untouched = measured(before, before.copy(), tissue, agarose, table, [BiasCorrection(((0, 12, field(0.0, SHAPE)),))])
    assert untouched["verdict"] == {
        "status": "pass",
        "reasons": [],
        "changed": False,
        "sentence": "nothing needed correcting, and tissue was not changed.",
    }
    bent = np.where(tissue, LEVEL + (before - LEVEL) ** 0.7 * 8, before)  # in every section
    maps = SectionLookup(
        0.0, np.zeros(12, int), np.zeros(12, int), np.array([0, 2]), np.array([0.0, 1]), np.array([0.0, 1])
    )
    verdict = measured(before, bent, tissue, agarose, table, [maps])["verdict"]
    assert verdict["status"] == "look"
    assert verdict["changed"]
    (reason,) = verdict["reasons"]
    assert reason.startswith(
        "contrast between neighbouring tissue is 70% of what it was in section s0; sections matched"
    )
    assert reason.endswith(": try --trust proven, or --match off")
    shaded = np.where(tissue, before * np.linspace(0.7, 1.4, SHAPE[2]), before)
    assert measured(before, shaded, tissue, 0 * agarose, table)["verdict"]["status"] == "pass"  # no contrast moved


def test_one_restored_section_is_a_change_and_missing_proof_is_said():
    before, *_rest = case(gains=(1, 1, 0.7))
    _seen, truth, tissue, agarose, table = case()
    assert measured(before, truth, tissue, agarose, table)["verdict"]["changed"]
    logs = np.zeros((12, 4, 4), np.float32)
    inside, section = np.ones(logs.shape, bool), np.repeat([0, 1, 2], 4)
    evidence = Evidence(logs, logs, inside, section, 10, SHAPE[1:], "one section alone has no cuts")
    volumes = [shrink_planes(truth.astype(np.float32), 1)] * 2
    verdict = pair_metrics(Pair(table, *volumes, tissue, agarose, [], evidence))["verdict"]
    assert verdict["status"] == "look"
    (reason,) = verdict["reasons"]
    assert reason.startswith(
        "nothing could be proven, as one section alone has no cuts: bias, match and smooth_z did no"
    )


def test_steps_at_cuts_of_thin_sections_are_compared_too():
    found = {"at_cuts_before": 0.0, "at_cuts_after": 0.5, "inside_before": math.nan, "inside_after": math.nan}
    assert "facing pixels differ" in facing_differ(0.5, 0.02, {"facing": found})


def test_facing_pixels_that_differ_more_at_cuts_are_named():
    before, _after, tissue, agarose, table = case(gains=(1, 1, 1))
    x = np.linspace(-1, 1, SHAPE[2])
    tilt = np.where(np.arange(12)[:, None, None] // 4 % 2, np.exp(0.2 * x), np.exp(-0.2 * x))
    correction = BiasCorrection(((0, 12, field(0.0, SHAPE)),))
    verdict = measured(before, LEVEL + (before - LEVEL) * tilt, tissue, agarose, table, [correction])["verdict"]
    assert verdict["status"] == "look"
    (reason,) = (said for said in verdict["reasons"] if said.startswith("facing pixels differ by +"))
    assert reason.endswith("at cuts, +0.0% before; bias field divided out: try --trust proven, or --bias off")
