"""Names, numbers and nested values as a reader of the report wants to see them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Names on the page of numbers whose own names say too little; see `label` for all others.
LABELS = {
    "n_valid": "voxels valid",
    "n_zero": "voxels exactly zero",
    "n_nonfinite": "voxels not finite",
    "n_negative": "voxels negative",
    "n_saturated": "voxels saturated",
    "spline_um": "knot spacing (µm)",
    "knot_um": "final knot spacing (µm)",
    "z_start": "first plane",
    "z_stop": "end plane",
}
LONGEST_LIST = 8  # A longer list of numbers is summarised.
LONGEST_TABLE = 12  # Of a longer table only the range of each column is shown.


def label(key: str) -> str:
    """Return the name of a number in words.

    >>> label("agarose_level_min"), label("spline_um"), label("n_zero")
    ('agarose level min', 'knot spacing (µm)', 'voxels exactly zero')
    """
    return LABELS.get(key, key.replace("_um", " (µm)").replace("_", " "))


def number(value: Any, digits: int = 4) -> str:
    """Return a number with few digits, an en dash for one that is not known."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) or 1e4 <= abs(value) < 1e9:
        return f"{value:,.0f}".replace(",", "\u202f") if abs(value) >= 1e4 else str(value)
    return f"{value:.{digits if abs(value) >= 1e-3 else min(digits, 3)}g}"


def percent(value: float | None, digits: int = 1) -> str:
    """Return a share as percent, an en dash for None."""
    return "–" if value is None else f"{value:.{digits}%}"


def whole_percent(value: float | None) -> str:
    """Return a share as percent without decimals."""
    return percent(value, 0)


def change(log_ratio: float | None, sign: bool = False) -> str:
    """Return a log ratio as a change in percent, an en dash for None."""
    return "–" if log_ratio is None else f"{math.expm1(log_ratio):{'+' if sign else ''}.1%}"


def signed_change(log_ratio: float | None) -> str:
    """Return a log ratio as a change in percent with its sign."""
    return change(log_ratio, sign=True)


def duration(seconds: float | None) -> str:
    """Return a time in words.

    >>> duration(0.04), duration(12.3), duration(200), duration(7300)
    ('0.04 s', '12 s', '3 min 20 s', '2 h 1 min')
    """
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(nbytes: float) -> str:
    """Return bytes in words.

    >>> size(999), size(4_600_000), size(12e9)
    ('999 B', '4.6 MB', '12 GB')
    """
    unit = 0
    while nbytes >= 999.5 and unit < 4:
        nbytes, unit = nbytes / 1000, unit + 1
    return f"{nbytes:.{1 if unit and nbytes < 9.95 else 0}f} {('B', 'kB', 'MB', 'GB', 'TB')[unit]}"


def shown(value: Any) -> dict[str, Any]:
    """Return how the template shows a value: as `text`, as a table of `columns`, or as named `items`."""
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, Mapping) for item in value):
        return _table(value)
    if isinstance(value, Mapping):
        return {"items": list(value.items())}
    if isinstance(value, (list, tuple)):
        return {"text": _summary(value) if len(value) > LONGEST_LIST else _cell(value)}
    return {"text": number(value)}


def _table(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return columns and rows of text, and apart from these what all rows share; many rows become one of ranges."""
    if len(rows) == 1:
        return {"items": [(key, value) for key, value in rows[0].items() if value is not None]}
    columns = {key: [row.get(key) for row in rows] for row in rows for key in row}
    known = {key: values for key, values in columns.items() if any(value is not None for value in values)}
    common = {key: _cell(values[0]) for key, values in known.items() if values.count(values[0]) == len(values)}
    varying = {key: values for key, values in known.items() if key not in common}
    if len(rows) > LONGEST_TABLE:
        cells = [[_summary(values) for values in varying.values()]]
    else:
        cells = [[_cell(value) for value in line] for line in zip(*varying.values(), strict=True)]
    return {"columns": list(varying), "rows": cells, "common": common, "of": len(rows)}


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_cell(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_cell(item) for item in value) or "none"
    return number(value)


def _summary(values: Sequence[Any]) -> str:
    """Return many values in a few words: minimum, median and maximum of numbers, or how often each text occurs."""
    if all(isinstance(value, (list, tuple)) for value in values) and len({len(value) for value in values}) == 1:
        return ", ".join(_summary(column) for column in zip(*values, strict=True))
    known = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    if known and len(known) + sum(value is None for value in values) == len(values):
        import numpy as np

        low, middle, high = (number(float(q)) for q in np.percentile(known, [0, 50, 100]))
        return low if low == high else f"{low} to {high} (median {middle})"
    texts = [_cell(value) for value in values]
    counts = {text: texts.count(text) for text in dict.fromkeys(texts)}
    if len(counts) > LONGEST_LIST:
        return f"{len(values)} values"
    return "; ".join(f"{text} ({count}×)" for text, count in counts.items()) if len(counts) > 1 else texts[0]


def plain(value: Any, digits: int = 6) -> Any:
    """Return JSON types: numbers of so many significant digits, None for what is not finite, and paths as text."""
    if isinstance(value, dict):
        return {str(key): plain(item, digits) for key, item in value.items()}
    if hasattr(value, "tolist"):  # an array or scalar of NumPy's, which is not imported for that
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [plain(item, digits) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value
