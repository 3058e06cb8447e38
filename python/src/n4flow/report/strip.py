"""The sections of a volume at a glance: those that most deserve a look first, with pictures of their middle planes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from n4flow.report.overview import MOST_PICTURES, Overview
from n4flow.report.pair import TIMES


def worst_first(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return at most `MOST_PICTURES` rows of sections, each with its `number`, worst first.

    Sections with a warning come before those without, flagged ones last among them, as their flag is known; within
    each, those of which contrast, steps or change without proof moved most.
    """
    numbered = [{**row, "number": number} for number, row in enumerate(rows)]
    return sorted(numbered, key=_rank)[:MOST_PICTURES]


def _rank(row: Mapping[str, Any]) -> tuple[bool, bool, float]:
    kept = row["local_contrast_kept"]
    moved = abs(math.log(max(kept, 1e-3))) if kept is not None else 0.0
    return row["status"] == "pass", row["flag"] != "ok", -max(moved, abs(row["step_after"] or 0), row["unproven"] or 0)


def middle(row: Mapping[str, Any]) -> int:
    """Return the plane of a section that is pictured."""
    return int(row["z_start"] + row["z_stop"]) // 2


def pictured(
    rows: Sequence[Mapping[str, Any]], overview: Overview, windows: Mapping[str, tuple[float, float]]
) -> list[dict[str, Any]]:
    """Return of each section what the template shows."""
    return [
        {
            "number": row["number"],
            "id": row["id"],
            "status": row["status"],
            "plane": middle(row),
            "kept": row["contrast_kept"],
            "reason": row["reasons"][0] if row["reasons"] else "",
            **{time: overview.picture(middle(row), time, windows[time]) for time in TIMES},
        }
        for row in rows
    ]
