"""All channels of a sample as one result: each goes through the chain by itself, and their parts are put together.

A channel is a unit of work with a plan, a recipe, metrics and a report of its own. What is shared is decided by
`fit_channel`: with `each` nothing but the section table; otherwise one channel, or the mean of all, leads: bias fields
and tissue mask are estimated from it, and the others take them over.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from n4flow import __version__
from n4flow.errors import InputError
from n4flow.io.frame import Frame
from n4flow.io.omezarr.checksums import describe_level
from n4flow.io.omezarr.chunk_grid import listed
from n4flow.io.omezarr.store import read_omero, validate_store, write_omero
from n4flow.io.open import EACH, MEAN, open_volume
from n4flow.io.publishing import CHECKSUMS_NAME, MASK_NAME
from n4flow.pipeline.finish import METADATA, link_files, write_checksums
from n4flow.pipeline.parameters import opening
from n4flow.pipeline.plan import Plan, make_plan
from n4flow.pipeline.timing import dumps
from n4flow.report.channels import write_overview
from n4flow.report.summary import SUMMARY_NAME, of_channels
from n4flow.sections import SectionTable

ALL = "all"


def make_plans(image: str | Path, parameters: Mapping[str, Any], sample: str | None = None) -> list[Plan]:
    """Return the plan of a sample; with `channel` = "all" that of each channel, and of their mean where it leads.

    Parameters
    ----------
    image, parameters, sample
        See `make_plan`.

    Raises
    ------
    InputError
        Any fault of the input; the message begins with the sample's name.
    """
    fitted = parameters["fit_channel"]
    if parameters["channel"] != ALL:
        plan = make_plan(image, {**parameters, "fit_channel": None}, sample)
        idle = [] if fitted is None else [f"fit_channel {fitted} does nothing without channel {ALL}"]
        return [replace(plan, warnings=[*plan.warnings, *idle])]
    first = open_volume(image, **opening({**parameters, "channel": 0}), require_voxel_um=False)
    count, labels = first.reader.channels, list(first.metadata.get("channels") or ())
    leader = EACH if fitted is None else _leader(fitted, count, labels)
    if count == 1:
        return [make_plan(image, {**parameters, "channel": None, "fit_channel": None}, sample)]

    def planned(channel: int | str, frame: Frame | None = None) -> Plan:
        return make_plan(image, {**parameters, "channel": channel, "fit_channel": leader}, sample, frame)

    plans = [planned(channel) for channel in (*range(count), *([MEAN] if leader == MEAN else []))]
    if leader != EACH and len({plan.frame for plan in plans}) > 1:  # One mask, on one grid.
        ends = zip(*(plan.frame for plan in plans), strict=True)
        frame = Frame(*(choose(end) for choose, end in zip((min, max, min, max), ends, strict=True)))
        plans = [planned(plan.channel, frame) for plan in plans if plan.channel is not None]
    rows = zip(*(plan.sections for plan in plans), strict=True)  # A section that one channel lacks is flagged in all.
    flagged = [next((section for section in row if not section.usable), row[0]) for row in rows]
    return [replace(plan, sections=SectionTable(flagged, first.shape[0])) for plan in plans]


def _leader(fitted: int | str, count: int, labels: Sequence[str]) -> int | str:
    """Return the channel that leads by its number, or `mean` or `each`."""
    if fitted in labels:
        return labels.index(str(fitted))
    if fitted in (EACH, MEAN) or (isinstance(fitted, int) and fitted < count):
        return fitted
    named = f", one of {listed(list(labels))}" if labels else ""
    msg = f"fit_channel must be each, mean, a number from 0 to {count - 1}{named}, got {fitted}"
    raise InputError(msg)


def in_order(plans: Sequence[Plan]) -> list[Plan]:
    """Return plans of channels with the one that leads, if one does, before those that take over from it."""
    return sorted(plans, key=lambda plan: plan.channel != plan.fit_channel)


def summary(plans: Sequence[Plan]) -> dict[str, Any]:
    """Return plans as JSON types: a sample's own, or with several channels what they have in common, and each."""
    found = [plan.summary() for plan in plans]
    if len(plans) == 1:
        return found[0]
    names = ("sample", "format", "dtype", "voxel_um", "sections", "flagged_sections", "slabs", "output_dtype")
    needs = [plan.needs() for plan in plans]
    return {
        **{name: found[0][name] for name in names},
        "shape": [plans[0].volume.reader.channels, *found[0]["shape"]],
        "fit_channel": plans[0].fit_channel,
        "output_gigabytes": round(sum(one["output_gigabytes"] for one in found if one["channel"] != MEAN), 3),
        "needs": {name: sum(need[name] for need in needs) for name in needs[0]},
        "warnings": list(dict.fromkeys(warning for one in found for warning in one.pop("warnings"))),
        "channels": found,
    }


def join(folder: Path, parts: Sequence[Path]) -> dict[str, Any]:
    """Put the finished results of all channels of a sample together.

    Parameters
    ----------
    folder : path
        Where the sample's results appear: one store of all channels, and the rest of each channel in `channel_N`.
    parts : sequence of path
        What `finish` made of each channel, in their order; files are linked, and stay there as well.

    Returns
    -------
    dict
        What `metrics.json` holds.
    """
    numbers = [json.loads((part / "metrics.json").read_text(encoding="utf-8")) for part in parts]
    stated = [json.loads((part / CHECKSUMS_NAME).read_text(encoding="utf-8"))["stores"] for part in parts]
    sample = numbers[0]["sample"]
    name, shape = f"{sample}.ome.zarr", [len(parts), *numbers[0]["plan"]["shape"]]
    for source in (path for path in parts[0].joinpath(name).rglob("*") if path.name in METADATA):
        target = folder / source.relative_to(parts[0])
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    write_omero(folder / name, sample, [read_omero(part / name)[0] for part in parts])
    stores = {
        name: {"levels": [_joined(levels) for levels in zip(*(one[name]["levels"] for one in stated), strict=True)]}
    }
    own = MASK_NAME in stated[1]
    for number, part in enumerate(parts):
        place = folder / f"channel_{number}"
        link_files(part / name, folder / name)
        for other in sorted(set(part.iterdir()) - {part / name, part / CHECKSUMS_NAME}):
            if other.name == MASK_NAME:
                mask = place / MASK_NAME if own else folder / MASK_NAME
                link_files(other, mask, ())
                stores[mask.relative_to(folder).as_posix()] = stated[number][MASK_NAME]
            elif other.is_dir():
                link_files(other, place / other.name, ())
            else:
                place.mkdir(exist_ok=True)
                shutil.copyfile(other, place / other.name)
    validate_store(folder / name)
    channels = [
        {"channel": number, "label": one["plan"]["label"], "folder": f"channel_{number}", "verdict": one["verdict"]}
        for number, one in enumerate(numbers)
    ]
    recipes = [f"{channel['folder']}/recipe.json" for channel in channels]
    recipe = {"n4flow": __version__, "sample": sample, "shape": shape, "channels": recipes}
    (folder / "recipe.json").write_text(dumps(recipe) + "\n", encoding="utf-8")
    found: dict[str, Any] = {
        "sample": sample,
        "n4flow": __version__,
        "verdict": worst(channels),
        "channels": channels,
        "parameters": {**numbers[0]["parameters"], "channel": ALL},
    }
    (folder / "metrics.json").write_text(dumps(found) + "\n", encoding="utf-8")
    write_overview(folder / "report.html", found)
    summaries = [json.loads((part / SUMMARY_NAME).read_text(encoding="utf-8")) for part in parts]
    combined = of_channels(sample, channels, summaries)
    (folder / SUMMARY_NAME).write_text(dumps(combined) + "\n", encoding="utf-8")
    write_checksums(folder, sample, stores)
    return found


def _joined(levels: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what is said of a level with the chunks of all channels, given what is said of each."""
    first, checksums = levels[0], [checksum for level in levels for checksum in level["checksums"]]
    return describe_level(
        first["path"], [len(levels), *first["shape"]], [1, *first["chunks"]], first["dtype"], checksums
    )


def worst(channels: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the verdict of a sample: that of its worst channel, with the reasons of all."""
    verdicts = [(channel["label"], channel["verdict"]) for channel in channels]
    look = [label for label, verdict in verdicts if verdict["status"] == "look"]
    passed = len(verdicts) - len(look)
    said = (
        f"{passed} of {len(verdicts)} channels pass; look at {listed(look)}" if look else f"all {passed} channels pass"
    )
    return {
        "status": "look" if look else "pass",
        "reasons": [f"channel {label}: {reason}" for label, verdict in verdicts for reason in verdict["reasons"]],
        "changed": any(verdict["changed"] for _label, verdict in verdicts),
        "sentence": f"{said}.",
    }
