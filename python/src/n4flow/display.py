"""How objects show themselves: a line, a small table in a notebook, and axes to draw on."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from n4flow.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Shown:
    """An object that shows itself by a few facts, in a line and in a notebook."""

    def facts(self) -> Mapping[str, str]:
        """Return what is shown, by name, the most telling first."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name} {fact}' for name, fact in self.facts().items())})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{escape(name)}</th><td>{escape(fact)}</td></tr>" for name, fact in self.facts().items()
        )
        return f"<table><caption>{escape(type(self).__name__)}</caption><tbody>{rows}</tbody></table>"


def sizes(shape: tuple[int, ...]) -> str:
    """Return a shape in words.

    >>> sizes((48, 200, 240))
    '48 x 200 x 240'
    """
    return " x ".join(map(str, shape))


def lengths(voxel_um: Mapping[str, float] | None) -> str:
    """Return a voxel size in words."""
    return "unknown" if voxel_um is None else " x ".join(f"{voxel_um[axis]:g}" for axis in "zyx") + " um"


def axes(columns: int, rows: int = 1) -> NDArray[np.object_]:
    """Return axes of a new figure of matplotlib, an array of so many rows and columns.

    Raises
    ------
    InputError
        matplotlib is not installed.
    """
    try:
        from matplotlib import pyplot as plt
    except ImportError as error:
        msg = "plot needs matplotlib, which is not installed; install n4flow[plot]"
        raise InputError(msg) from error
    return plt.subplots(rows, columns, figsize=(4 * columns, 3.4 * rows), squeeze=False, layout="constrained")[1]


def picture(place: Any, plane: Any, title: str, *, aspect: float | str = 1.0, cmap: str = "gray") -> None:
    """Draw a plane on axes, from its 0.5th to its 99.5th percentile, with a scale beside it."""
    import numpy as np

    shown = np.asarray(plane, np.float32)
    finite = shown[np.isfinite(shown)]
    low, high = np.percentile(finite, [0.5, 99.5]) if finite.size else (0.0, 1.0)
    drawn = place.imshow(shown, cmap=cmap, vmin=low, vmax=high, aspect=aspect, interpolation="nearest")
    place.set(title=title, xticks=[], yticks=[])
    place.figure.colorbar(drawn, ax=place, shrink=0.8)
