"""What deserves a look, in words: sentences on metrics beyond their limits, and the headline of the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from typing import TYPE_CHECKING, Any, Literal

from n4flow.report.text import signed_change

if TYPE_CHECKING:
    from n4flow.corrections.base import Correction

STEP_GROWTH = 0.02  # The log ratio by which a section's step may grow.
WORST_CONTRAST = 0.12  # How far from 1 the share of contrast that is left may be in a single section.
LEAST_UNPROVEN = 0.02  # Change without proof (rms log) that counts where next to nothing was needed.
WORST_UNPROVEN = 2  # How many times as large it may be in a single section.
CHANGED = 0.005  # Change of tissue (rms log) below which it counts as unchanged.

# Such a function takes a metric's value, its limit and all numbers of the section or volume. It returns a sentence, or
# "" if the value is within its limit. An unknown number is NaN, and comparisons with it are false: no sentence either.
Words = Callable[[Any, float, Mapping[str, Any]], str]


@dataclass(frozen=True)
class Limit:
    """When a metric deserves a look.

    Parameters
    ----------
    value : float
    words : function
        The sentence, see `Words`; `above` and `moved` make simple ones.
    of : str
        For which sections the limit holds: `all`; `usable`, those that are not flagged; or `cut`, those of which the
        section above is usable, too, for a number of the cut between the two.
    urgency : int
        Sentences of higher urgency come first; those of equal urgency are in the order of the metrics.
    judges : bool
        Whether the verdict on the volume rests on it.
    """

    value: float
    words: Words
    of: Literal["all", "usable", "cut"] = "usable"
    urgency: int = 0
    judges: bool = False


def reasons(limits: Mapping[str, Limit], numbers: Mapping[str, Any]) -> list[str]:
    """Return in words what a reader should look at.

    Parameters
    ----------
    limits : mapping
        The limits by the names of their metrics.
    numbers : mapping
        All numbers of a section or of the volume.
    """
    ordered = sorted(limits.items(), key=lambda item: -item[1].urgency)
    said = [limit.words(reduce(getitem, name.split("."), numbers), limit.value, numbers) for name, limit in ordered]
    return [sentence for sentence in said if sentence]


def section_reasons(limits: Mapping[str, Limit], row: Mapping[str, Any], above_flagged: bool) -> list[str]:
    """Return in words what a reader should look at in a section, whose neighbour above may be flagged."""
    if row["flag"] != "ok":
        first, of = [f"flagged {row['flag']}, so it entered no estimate"], {"all"}
    else:
        first, of = [], {"all", "usable"} if above_flagged else {"all", "usable", "cut"}
    return first + reasons({name: limit for name, limit in limits.items() if limit.of in of}, row)


def above(text: str) -> Words:
    """Return words for a value above its limit; `text` is formatted with the value."""
    return lambda value, limit, _numbers: text.format(value) if value > limit else ""


def moved(text: str) -> Words:
    """Return words for a ratio further from 1 than its limit; `text` is formatted with the ratio."""
    return lambda value, limit, _numbers: text.format(value) if abs(value - 1) > limit else ""


def many_voxels(text: str) -> Words:
    """Return words for a count of voxels whose share is above its limit; `text` is formatted with count and share."""

    def words(count: int, limit: float, numbers: Mapping[str, Any]) -> str:
        total = max(1, sum(numbers["voxels"][name] for name in ("valid", "zero", "nonfinite")))
        return text.format(count, count / total) if count > limit * total else ""

    return words


def little_tissue(share: float, limit: float, _row: Mapping[str, Any]) -> str:
    """Return words on a section's share of tissue."""
    return "no tissue" if share == 0 else f"little tissue ({share:.2%})" if share < limit else ""


def step_left(after: float, limit: float, row: Mapping[str, Any]) -> str:
    """Return words on the step from the section above: that it grew, or that it is still large."""
    before = row["step_before"]
    if abs(after) - abs(before) > STEP_GROWTH:
        return f"the step from the section above grew from {signed_change(before)} to {signed_change(after)}"
    return f"a step of {signed_change(after)} from the section above is left" if abs(after) > limit else ""


def wide_field(p99: float, limit: float, row: Mapping[str, Any]) -> str:
    """Return words on the span of a section's bias field, from its first to its 99th percentile."""
    return f"the bias field spans a factor of {p99 / row['bias_p1']:.1f}" if p99 > limit * row["bias_p1"] else ""


def no_tissue(pixels: int, limit: float, _numbers: Mapping[str, Any]) -> str:
    """Return words on the number of tissue pixels."""
    return "no tissue was found, so nothing could be measured" if pixels < limit else ""


def no_agarose(planes: int, limit: float, numbers: Mapping[str, Any]) -> str:
    """Return words on the number of planes with agarose."""
    found = planes >= limit or numbers["tissue"]["pixels"] == 0
    return "" if found else "no agarose was found, so the background level rests on no measurement"


def steps_grew(after: float, limit: float, numbers: Mapping[str, Any]) -> str:
    """Return words on the median step after the correction."""
    before = numbers["steps"]["median_before"]
    words = f"steps between sections grew: their median size was {signed_change(before)} and is {signed_change(after)}"
    return words if after > before + limit else ""


def contrast_moved(kept: float, limit: float, numbers: Mapping[str, Any]) -> str:
    """Return words on contrast between neighbouring pixels, of the median section and of the worst."""
    worst, where = numbers["contrast"]["local_worst"], numbers["contrast"]["local_worst_in"]
    if abs(worst - 1) > WORST_CONTRAST:
        return f"contrast between neighbouring tissue is {worst:.0%} of what it was in section {where}"
    return f"contrast between neighbouring tissue is {kept:.0%} of what it was" if abs(kept - 1) > limit else ""


def facing_differ(after: float, limit: float, numbers: Mapping[str, Any]) -> str:
    """Return words on facing pixels that differ more at cuts than they did, and not so inside sections."""
    found = numbers["facing"]
    before, inside = found["at_cuts_before"], found["inside_after"] - found["inside_before"]
    words = f"facing pixels differ by {signed_change(after)} at cuts, {signed_change(before)} before"
    return words if after - before - max(0.0, inside) > limit else ""


def changed_unproven(found: Mapping[str, float] | None, limit: float, numbers: Mapping[str, Any]) -> str:
    """Return words on what was changed without proof, over the volume and in the worst section."""
    if found is None:
        return ""
    change, most = numbers["change"], min(limit, LEAST_UNPROVEN + 0.1 * found["needed"])
    if found["all"] > most:
        where, size = "", found["all"]
    elif change["unproven_worst"] > WORST_UNPROVEN * most:
        where, size = f" of section {change['unproven_worst_in']}", change["unproven_worst"]
    else:
        return ""
    return f"tissue{where} was changed by {size:.1%} (rms) that neighbouring planes do not prove"


def verdict(limits: Mapping[str, Limit], numbers: Mapping[str, Any], recipe: Sequence[Correction]) -> dict[str, Any]:
    """Return whether tissue is as it should be: `status` pass or look, `reasons`, `changed`, and all of it in words.

    It rests on the metrics whose limit judges. A reason names the stage that is likely to have done it, and the setting
    that avoids it.
    """
    size, found, shares = numbers["change"]["rms"], numbers["change"]["unproven"], numbers["applied"]
    said = ["no usable section has tissue, so nothing could be judged"] if math.isnan(size) else []
    if numbers["change"]["reason"]:
        what = "did nothing" if max(shares.values(), default=0.0) == 0 else "rest on no proof where they did something"
        said.append(
            f"nothing could be proven, as {numbers['change']['reason']}: bias, match and smooth_z {what}; "
            "give --sections, or look at --trust full"
        )
    for name, limit in limits.items():
        for sentence in reasons({name: limit} if limit.judges else {}, numbers):
            bent = [step for step in recipe if step.bends and name.startswith("contrast")]
            smooth = [step for step in recipe if not (step.zeroes_agarose or step.zeroes_outside)]
            by_size = sorted(smooth, key=lambda step: (found or {}).get(step.kind, 0.0))
            guilty = (bent or by_size)[-1:]
            said.append("; ".join([sentence, *(f"{step.title}: try {step.avoided_by}" for step in guilty)]))
    changed = size > CHANGED
    if said:
        words = ". ".join([said[0], *(sentence[0].upper() + sentence[1:] for sentence in said[1:])])
    elif not changed:
        words = "nothing needed correcting, and tissue was not changed"
    else:
        known = not math.isnan(numbers["contrast"]["local_median"])
        words = f"contrast between neighbouring tissue {'is kept' if known else 'could not be measured'}"
        words += "" if found is None else ", and next to nothing was changed that neighbouring planes do not prove"
    return {"status": "look" if said else "pass", "reasons": said, "changed": changed, "sentence": f"{words}."}


def headline(recipe: Sequence[Correction], numbers: Mapping[str, Any]) -> tuple[str, str]:
    """Return what was done, in a sentence, and which sections deserve a look."""
    shares = numbers["applied"]
    done = [
        step.title + (f" ({shares[step.kind]:.0%} of it)" if shares.get(step.kind, 1) < 1 else "")
        for step in recipe
        if not step.idle
    ]
    reason = "nothing could be estimated" if recipe else "the recipe is empty"
    first = "; ".join(done) + "." if done else f"nothing was changed: {reason}."
    rows = numbers["sections"]
    look = [row["id"] for row in rows if row["status"] == "warn"]
    sections = f"{len(rows)} section{'s' if len(rows) != 1 else ''}"
    if not look:
        second = f"All {sections} pass." if len(rows) > 1 else "The section passes."
    else:
        named = ", ".join(look[:5]) + (f" and {len(look) - 5} more" if len(look) > 5 else "")
        second = f"{len(rows) - len(look)} of {sections} pass; look at {named}."
    return first[0].upper() + first[1:], second
