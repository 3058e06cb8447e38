"""What the numbers mean in words: the limits from which a section or a volume deserves a look, and why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from n4flow.corrections.base import Correction

STEP_LIMIT = 0.05  # log ratio: a step at a cut that the eye sees
STEP_GROWTH = 0.02  # log ratio by which a step may grow
CONTRAST_LIMIT = 0.10  # share by which contrast between classes may move in a section
VOLUME_CONTRAST_LIMIT = 0.05  # and in the whole volume
WIDE_CONTRAST_LIMIT = 0.15  # and when classes are compared over whole sections, which removed shading moves as well
INVALID_LIMIT = 0.01  # share of non-finite or saturated voxels
NEGATIVE_LIMIT = 0.05  # share of negative voxels
FIELD_SPAN_LIMIT = 4.0  # p99 / p1 of a bias field
NOTHING_WRONG = 0.02  # log ratio: median step at cuts of a volume whose sections needed nothing
CHANGE_LIMIT = 0.02  # spread (log) of what matching and smoothing may do to such a volume
LITTLE_TISSUE = 0.005  # share of a section's pixels below which it counts as almost empty


def section_reasons(row: dict[str, Any], above_flagged: bool) -> list[str]:
    """Return what a reader should look at in a section, in words.

    A comparison with NaN is false, so what is not known is not said. A step from a flagged section is not this one's.
    """
    reasons = []
    if row["flag"] != "ok":
        reasons.append(f"flagged {row['flag']}, so it entered no estimate")
    if row["tissue_share"] == 0:
        reasons.append("no tissue")
    elif row["tissue_share"] < LITTLE_TISSUE:
        reasons.append(f"little tissue ({row['tissue_share']:.2%})")
    if row["nonfinite_share"] > INVALID_LIMIT:
        reasons.append(f"{row['nonfinite_share']:.1%} of the voxels are not finite")
    if row["saturated_share"] > INVALID_LIMIT:
        reasons.append(f"{row['saturated_share']:.1%} of the input's voxels are saturated")
    if row["negative_share"] > NEGATIVE_LIMIT:
        reasons.append(f"{row['negative_share']:.1%} of the input's voxels are negative")
    if row["flag"] != "ok":
        return reasons
    step, growth = abs(row["step_after"]), abs(row["step_after"]) - abs(row["step_before"])
    if growth > STEP_GROWTH and not above_flagged:
        before, after = _percent(row["step_before"]), _percent(row["step_after"])
        reasons.append(f"the step from the section above grew from {before} to {after}")
    elif step > STEP_LIMIT and not above_flagged:
        reasons.append(f"a step of {_percent(row['step_after'])} from the section above is left")
    if abs(row["contrast_kept"] - 1) > CONTRAST_LIMIT:
        reasons.append(f"contrast between neighbouring tissue is {row['contrast_kept']:.0%} of what it was")
    if row["bias_p99"] > FIELD_SPAN_LIMIT * row["bias_p1"]:
        reasons.append(f"the bias field spans a factor of {row['bias_p99'] / row['bias_p1']:.1f}")
    return reasons


def _percent(log_ratio: float) -> str:
    return f"{math.expm1(log_ratio):+.1%}"


def volume_reasons(summary: dict[str, Any]) -> list[str]:
    """Return what a reader should look at in the whole volume, in words."""
    reasons = []
    steps, contrast, voxels = summary["steps"], summary["contrast"], summary["voxels"]
    if summary["tissue"]["pixels"] == 0:
        reasons.append("no tissue was found, so nothing could be measured")
    elif summary["agarose"]["planes"] == 0:
        reasons.append("no agarose was found, so the background level rests on no measurement")
    if abs(contrast["kept"] - 1) > VOLUME_CONTRAST_LIMIT:
        reasons.append(f"contrast between neighbouring tissue is {contrast['kept']:.1%} of what it was")
    if abs(contrast["wide_kept"] - 1) > WIDE_CONTRAST_LIMIT:
        kept = f"{contrast['wide_kept']:.0%}"
        reasons.append(
            f"contrast over whole sections is {kept} of what it was: strong shading was removed, or anatomy flattened"
        )
    if steps["median_after"] > steps["median_before"] + STEP_GROWTH / 2:
        before, after = _percent(steps["median_before"]), _percent(steps["median_after"])
        reasons.append(f"steps between sections grew: their median size was {before} and is {after}")
    change = summary["change"]
    if steps["median_before"] < NOTHING_WRONG and change["sections_alike"] and change["spread"] > CHANGE_LIMIT:
        small = _percent(steps["median_before"])
        reasons.append(
            f"steps between sections were {small} and needed nothing, yet matching or smoothing and what came before "
            f"changed tissue by {change['spread']:.1%}"
        )
    total = max(1, voxels["valid"] + voxels["zero"] + voxels["nonfinite"])
    if voxels["nonfinite"] > 0:
        share = voxels["nonfinite"] / total
        reasons.append(
            f"{voxels['nonfinite']} voxels of the input are not finite ({share:.2%}); they are kept as they are"
        )
    if voxels["negative"] > NEGATIVE_LIMIT * total:
        reasons.append(f"{voxels['negative'] / total:.1%} of the input's voxels are negative")
    if voxels["saturated"] > INVALID_LIMIT * total:
        reasons.append(f"{voxels['saturated'] / total:.1%} of the input's voxels are saturated")
    return reasons


def headline(recipe: Sequence[Correction], numbers: Mapping[str, Any]) -> tuple[str, str]:
    """Return two sentences: what was done, and whether anything deserves a look."""
    done = [step.title for step in recipe]
    first = "; ".join(done) + "." if done else "nothing was changed: the recipe is empty."
    rows = numbers["sections"]
    look = [row["id"] for row in rows if row["status"] == "warn"]
    sections = f"{len(rows)} section{'s' if len(rows) != 1 else ''}"
    if not look:
        second = f"All {sections} pass." if len(rows) > 1 else "The section passes."
    else:
        named = ", ".join(look[:5]) + (f" and {len(look) - 5} more" if len(look) > 5 else "")
        second = f"{len(rows) - len(look)} of {sections} pass; look at {named}."
    if numbers["reasons"]:
        second += " The volume as a whole deserves a look, too." if look else " The volume as a whole deserves a look."
    return first[0].upper() + first[1:], second
