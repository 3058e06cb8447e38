"""What the report's viewer is given: volumes in 8 bits, NiiVue's code, and how pixels relate to the volume."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from n4flow.io.frame import Frame
from n4flow.report.overview import BUNDLE, Overview, bundle, packed
from n4flow.report.pair import TIMES
from n4flow.report.pictures import FIELD_COLOURS, LEVELS, Views

Window = tuple[float, float]


def viewer(
    overview: Overview, views: Views, windows: Mapping[str, Window], limit: float | None, volume: Mapping[str, Any]
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Return facts as JSON types, and id and content of each block of data on the page.

    Parameters
    ----------
    overview : Overview
    views : Views
    windows : mapping
        Grey windows, see `pictures.windows`.
    limit : float or None
        End of the field's colour scale; None without a field.
    volume : mapping
        Facts about the input.
    """
    shrink = overview.shrink * views.pair.shrink
    ranges = {time: _range(windows, time) for time in TIMES}
    size = volume.get("voxel_um") or {"z": 1.0, "y": 1.0, "x": 1.0}
    frame = Frame.read(volume["frame"], volume["shape"]) if volume.get("frame") else None
    lengths = np.array(
        [size["z"] * overview.planes.step * views.z_stretch, size["y"] * shrink, size["x"] * shrink], float
    )
    facts = {
        "shape": list(overview.shape),
        "spacing": [float(length) for length in lengths / lengths.max()],
        "planes": [overview.planes.start, overview.planes.step],
        "voxels": {"origin": [0, 0] if frame is None else [frame.y_start, frame.x_start], "size": shrink},
        "range": {time: list(found) for time, found in ranges.items()},
        "windows": {
            name: [_level(value, ranges["after"]) for value in windows[key]]
            for name, key in (("tissue", "after"), ("background", "background"))
            if key in windows
        },
        "limit": limit,
        "colours": [list(bytes.fromhex(colour)) for colour in FIELD_COLOURS.split()],
        "centre": [_place(place, number, overview) for number, place in enumerate(views.centre)],
    }
    volumes = {time: overview.grey(time, ranges[time]) for time in TIMES} | {"masks": overview.labels}
    if limit is not None:
        volumes["field"] = overview.coloured(limit)
    return facts, [("niivue", bundle()), *((f"volume-{name}", packed(values)) for name, values in volumes.items())]


def licences() -> str:
    """Return the licences of what the viewer's code holds, which goes with every copy of it."""
    return (BUNDLE / "LICENSES.txt").read_text(encoding="utf-8")


def _range(windows: Mapping[str, Window], time: str) -> Window:
    """Return the intensities of the grey levels: the window of tissue, widened by that of the background."""
    (low, high), background = windows[time], windows.get("background")
    return (low, high) if background is None else (min(low, background[0]), max(high, background[1]))


def _level(value: float, ends: Window) -> int:
    return round(1 + (LEVELS - 1) * (value - ends[0]) / (ends[1] - ends[0]))


def _place(place: int, axis: int, overview: Overview) -> int:
    """Return where a plane, row or column of the pair lies on the grid."""
    found = (place - overview.planes.start) / overview.planes.step if axis == 0 else place // overview.shrink
    return int(np.clip(round(found), 0, overview.shape[axis] - 1))
