"""The base class of corrections: all that passes, estimates, the recipe and the report ask of one.

A new correction is a class in a module of its own, whose name joins the import that opens `recipe`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import numpy as np

from n4flow.compute.arrays import array_module
from n4flow.io.frame import Frame

KINDS: dict[str, type[Correction]] = {}  # every kind of correction whose module was imported


# Arguments of the compiled loops that take a voxel through several corrections, in the order in which they act:
# `kernels.correct_planes` on the host, `render_block` on a GPU.
FUSED = ("field", "limits", "lookup", "gain")

# Takes the first of some planes of a block and the one after the last. Returns where the first run of planes ends for
# which the arguments of a compiled loop are the same, and those arguments; None where the planes stay as they are.
ArgumentsOfRun = Callable[[int, int], tuple[int, Any]]


@dataclass(frozen=True)
class Where:
    """The place of a block in its volume.

    Parameters
    ----------
    z, y, x : int
        Index of the block's first voxel in the full-resolution volume.
    shape : tuple of int
        Shape (Z, Y, X) of that volume.
    tissue : (z, y, x) bool array, optional
        Tissue mask of the block; needed only by corrections that act on tissue alone.
    """

    z: int
    y: int
    x: int
    shape: tuple[int, int, int]
    tissue: Any = None


def in_frame(frame: Frame | None, block: Any, where: Where, work: Callable[[Any, Where], Any]) -> Any:
    """Return a block (z, y, x) whose part inside a frame, None for whole planes, went through `work`; the rest stays.

    `work` takes that part, which it may overwrite, and its place, counted from the frame's corner.
    """
    if frame is None:
        return work(block, where)
    found = frame.part(where.y, where.x, *block.shape[1:])
    if found is None:
        return block
    inner, (rows, columns) = (slice(None), *found[0]), found[1]
    tissue = None if where.tissue is None else where.tissue[inner]
    place = Where(where.z, rows.start, columns.start, (where.shape[0], *frame.shape), tissue)
    part = block[inner]
    if part.shape == block.shape:
        return work(block, place)
    xp = array_module(block)
    result = xp.asarray(block, xp.float32)
    result[inner] = work(xp.ascontiguousarray(part), place)
    return result


class Correction(ABC):
    """One step of a recipe.

    `apply` is a function of each voxel's value and place alone, so that the result does not depend on how
    the volume is cut into blocks. A correction that looks at neighbours in its plane says how far by
    `margin`; the block it gets is then larger by that much on each side, except at the volume's border.

    A subclass is a dataclass, sets `kind` and `title` and defines the abstract methods. Its fields are stored by their
    annotations: those of type `np.ndarray` as arrays, all others as JSON. All else describes what only some corrections
    are, and says by default that this one is not.

    Attributes
    ----------
    kind : str
        Its name in recipes and files.
    title : str
        What it does to a volume, as the report says it.
    margin : tuple of int
        Voxels (y, x) around a block that `apply` looks at.
    needs_tissue : bool
        Whether `apply` reads `where.tissue`.
    frame : Frame or None
        The part of the planes that it changes; None for all of them.
    fused : str or None
        Which argument of the compiled loops stands for it, one of `FUSED`; such a correction has `fused_arguments`.
    is_field : bool
        Whether it divides by a smooth field; such a correction has `shrunken_log_field`.
    is_map : bool
        Whether the result depends on a voxel's intensity, its plane and the tissue mask alone, so that histograms
        that were counted before can be pushed through `map`.
    zeroes_agarose : bool
        Whether the agarose is at 0 afterwards.
    zeroes_outside : bool
        Whether everything outside the tissue is at 0 afterwards, so that nothing of the agarose is left to measure.
    """

    kind: ClassVar[str]
    title: ClassVar[str]
    margin: tuple[int, int] = (0, 0)
    needs_tissue: ClassVar[bool] = False
    frame: Frame | None = None
    fused: ClassVar[str | None] = None
    is_field: ClassVar[bool] = False
    is_map: ClassVar[bool] = False
    zeroes_agarose: ClassVar[bool] = False
    zeroes_outside: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        KINDS[cls.kind] = cls

    @abstractmethod
    def apply(self, block: Any, where: Where) -> Any:
        """Return the corrected block.

        Parameters
        ----------
        block : (z, y, x) float32 array
            NumPy or CuPy. It may be overwritten and returned.
        where : Where
            The block's place.
        """

    @property
    def idle(self) -> bool:
        """Whether it leaves every voxel as it is, because nothing could be estimated."""
        return False

    @abstractmethod
    def summary(self) -> dict[str, Any]:
        """Return the numbers a reader wants to see: JSON types only, no large arrays."""

    def draw(self, place: Any) -> None:
        """Draw on axes of matplotlib what it holds; here, its numbers along Z or over sections."""
        for name, values in self.to_arrays()[1].items():
            if values.ndim == 1 and values.dtype.kind == "f" and values.size > 1:
                place.plot(values, ".-", label=name)
        if place.lines:
            place.legend()

    def to_arrays(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Return (settings of JSON types, named arrays); together they are the whole correction, a dataclass."""
        named: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        arrays = {field.name for field in fields(self) if "ndarray" in str(field.type)}  # type: ignore[arg-type]
        settings = {name: value for name, value in named.items() if name not in arrays}
        return settings, {name: value for name, value in named.items() if name in arrays and value is not None}

    @classmethod
    def from_arrays(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> Self:
        """Rebuild the correction from what `to_arrays` returned."""
        return cls(**settings, **arrays)

    def joined(self, other: Any) -> Self | None:
        """Return one correction for the planes of two, where a stage estimates them in batches; None elsewhere."""
        return None

    def fusible(self, start: int, stop: int) -> bool:
        """Return whether the compiled loop of the host can take this correction on planes from one to another."""
        return True

    def fused_arguments(self, block: Any, where: Where) -> ArgumentsOfRun:
        """Return the source of arguments with which a compiled loop applies this correction to a block.

        Arrays with an entry for each plane begin at the first plane of a run, and may go on beyond its end. On a GPU
        the field is a `DeviceEvaluator`, the other arguments are those of `render_block`.

        Parameters
        ----------
        block : (z, y, x) array
            NumPy or CuPy; only its shape and its device matter.
        where : Where
            The block's place, counted from the corner of `frame`.
        """
        raise NotImplementedError

    def shrunken_log_field(self, planes: slice, shape: tuple[int, int]) -> np.ndarray:
        """Return the log of the field that is divided by, for some planes on the shrunken grid.

        Parameters
        ----------
        planes : slice
            Of the volume, with whole bounds.
        shape : tuple of int
            (y, x) of the shrunken grid, which covers `frame` without the margin that a fit may have had around it.

        Returns
        -------
        (z, y, x) float32 array
            The caller may overwrite it.
        """
        raise NotImplementedError

    def map(self, values: np.ndarray, z: int) -> np.ndarray:
        """Return what the float32 `values` (n,) of tissue in plane `z` become; see `is_map`."""
        row = np.array(values, np.float32).reshape(1, 1, -1)
        mapped = self.apply(row, Where(z, 0, 0, (z + 1, 1, row.size), np.ones(row.shape, bool)))
        return np.asarray(mapped[0, 0])

    def faults(self, shape: tuple[int, int, int]) -> Iterator[str]:
        """Yield in words what in it cannot be, or does not fit a volume of `shape` (Z, Y, X).

        Compiled loops index by what a file holds: they get nothing that was not looked at.
        """
        yield from ()

    @property
    def bends(self) -> bool:
        """Whether it changes contrast between neighbouring voxels, as no smooth field and no gain does."""
        return False

    @property
    def avoided_by(self) -> str:
        """The setting that a reader tries where the correction did harm."""
        return "a run without it"

    @property
    def divisor(self) -> float:
        """The number by which the whole volume is divided; an integer result is multiplied by it."""
        return 1.0

    def not_estimated(self) -> list[tuple[int, int, str]]:
        """Return (z_start, z_stop, reason in words) of planes for which there was nothing to estimate from."""
        return []

    def covered(self, n_planes: int) -> slice:
        """Return the planes that it changes at most."""
        return slice(0, n_planes)

    def shares(self, n_planes: int) -> np.ndarray | None:
        """Return the (Z,) share of what the stage found for each plane that is applied, from 0 to 1; see `proof`.

        NaN in planes for which it found nothing; None for a correction that is always applied whole.
        """
        return None

    def plane_gains(self) -> np.ndarray | None:
        """Return the (Z,) factors of the planes for the report to draw; None without such."""
        return None

    def section_gains(self) -> dict[str, np.ndarray] | None:
        """Return `gain`, the (sections,) divisors, and `gain_sd` of their logs, for the report; None without such."""
        return None


def misfits(
    name: str, values: np.ndarray, shape: tuple[int, ...], low: float = -np.inf, high: float = np.inf
) -> Iterator[str]:
    """Yield in words that an array has another shape, or values that are NaN or outside `low` to `high`."""
    if np.shape(values) != shape:
        yield f"{name} has the shape {np.shape(values)}, expected {shape}"
    elif not ((values >= low) & (values <= high)).all():  # NaN is nowhere
        within = "numbers" if low == -np.inf and high == np.inf else f"numbers from {low:g} to {high:g}"
        yield f"{name} must hold {within}, and one of them is {values[~((values >= low) & (values <= high))][0]:g}"


def map_through(corrections: Sequence[Correction], values: np.ndarray, z: int) -> np.ndarray:
    """Return what intensities of tissue in plane `z` become, counted after all corrections that are no map."""
    for correction in corrections:
        if correction.is_map:
            values = correction.map(values, z)
    return values
