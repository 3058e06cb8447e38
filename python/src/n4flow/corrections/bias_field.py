"""The bias field as a step of the recipe: one field for the volume, or one for each section."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np

from n4flow.compute.arrays import array_module
from n4flow.compute.jit import thread_count
from n4flow.corrections.base import Correction, Where, in_frame
from n4flow.io.frame import Frame
from n4flow.n4_bias.evaluate import Evaluator
from n4flow.n4_bias.field import BiasField

MOST_EVALUATORS = 128  # kept at a time: more than the sections of a block of planes


@dataclass(frozen=True)
class BiasCorrection(Correction):
    """Divides each run of planes by its bias field; planes of no field stay what they are.

    Parameters
    ----------
    fields : tuple of (int, int, BiasField)
        z_start, z_stop and the field of those planes, whose shape is (z_stop - z_start, Y, X).
    frame : Frame, optional
        What the fields cover of the planes, (Y, X) being its shape; all of them without it. What lies around it stays.
    """

    kind: ClassVar[str] = "bias_field"

    fields: tuple[tuple[int, int, BiasField], ...] = ()
    frame: Frame | None = None

    def apply(self, block: Any, where: Where) -> Any:
        """Return block / exp(log field); see `Correction.apply`. A CuPy block is corrected on its device."""
        return in_frame(self.frame, block, where, self._apply)

    def small_log_field(self, number: int, planes: slice, shape: tuple[int, int]) -> np.ndarray:
        """Return a field on the shrunken grid that it was fitted on, without the margin around it.

        Parameters
        ----------
        number : int
            Of the field.
        planes : slice
            Of those that it covers.
        shape : tuple of int
            (y, x) of the shrunken grid.
        """
        z_start, z_stop, field = self.fields[number]
        margin = [(wide - n) // 2 if self.frame else 0 for wide, n in zip(field.grid_shape[1:], shape, strict=True)]
        grid = z_stop - z_start, *(n + 2 * m for n, m in zip(shape, margin, strict=True))
        inner = (slice(m, m + n) for n, m in zip(shape, margin, strict=True))
        return np.asarray(field.log_field(grid, (planes, *inner)))

    def joined(self, other: Self) -> Self:
        """Return one correction of the fields of two, which cover different planes."""
        return replace(self, fields=self.fields + other.fields)

    def _apply(self, block: Any, where: Where) -> Any:
        n_z, n_y, n_x = block.shape
        place = slice(where.y, where.y + n_y), slice(where.x, where.x + n_x)
        for number in range(bisect_right(self._stops, where.z), len(self.fields)):
            z_start, z_stop, field = self.fields[self._order[number]]
            start, stop = max(z_start, where.z), min(z_stop, where.z + n_z)
            if start >= stop:
                break
            if field.reason is None:
                part = block[start - where.z : stop - where.z]
                inside = slice(start - z_start, stop - z_start), *place
                if array_module(part) is np:
                    self._evaluator(number).part(*inside).correct(part, part, thread_count(None))
                else:
                    field.apply(part, part, where=inside)
        return block

    def run(
        self, start: int, stop: int, where: Where, extent: tuple[int, ...]
    ) -> tuple[int, tuple[np.ndarray, ...] | None]:
        """Return where the first run of planes of one field, or of none, between two planes ends, and the field.

        The field is given as `Evaluator.tables` on the rows and columns of a block at `where`, of such an extent, that
        lies in the frame; `where` is counted from the frame's corner.
        """
        number = bisect_right(self._stops, start)
        if number == len(self.fields):
            return stop, None
        z_start, z_stop, field = self.fields[self._order[number]]
        if start < z_start:
            return min(stop, z_start), None
        stop = min(stop, z_stop)
        if field.reason is not None:
            return stop, None
        (n_y, n_x), y, x = extent, where.y, where.x
        planes = slice(start - z_start, stop - z_start)
        return stop, self._evaluator(number).tables(planes, slice(y, y + n_y), slice(x, x + n_x))

    @cached_property
    def _order(self) -> list[int]:
        return sorted(range(len(self.fields)), key=lambda number: self.fields[number][0])

    @cached_property
    def _stops(self) -> list[int]:
        return [self.fields[number][1] for number in self._order]

    @cached_property
    def _evaluators(self) -> dict[int, Evaluator]:
        return {}

    def _evaluator(self, number: int) -> Evaluator:
        """Return the evaluator of a field, kept for the next part: parts come in the order of their planes."""
        held = self._evaluators
        if number not in held:
            if len(held) >= MOST_EVALUATORS:
                held.pop(min(list(held), default=number), None)
            held[number] = self.fields[self._order[number]][2].evaluator()
        return held.get(number) or self.fields[self._order[number]][2].evaluator()

    def __getstate__(self) -> dict[str, Any]:
        return {"fields": self.fields, "frame": self.frame}

    def summary(self) -> dict[str, Any]:
        """Return for each run of planes the range of its field, iterations, knots, or why nothing was fitted."""
        return {"fields": [_facts(*part) for part in self.fields]}

    def to_arrays(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Return the settings of every field and its lattice."""
        settings: list[dict[str, Any]] = []
        lattices = {}
        for number, (z_start, z_stop, field) in enumerate(self.fields):
            facts, lattices[f"lattice_{number:05d}"] = field.to_settings()
            settings.append({"z_start": z_start, "z_stop": z_stop, **facts})
        return {"fields": settings, "frame": self.frame and list(self.frame)}, lattices

    @classmethod
    def from_arrays(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> Self:
        """Rebuild the correction from what `to_arrays` returned."""
        fields = []
        for number, stored in enumerate(settings["fields"]):
            facts = dict(stored)
            z_start, z_stop = facts.pop("z_start"), facts.pop("z_stop")
            fields.append((z_start, z_stop, BiasField.from_settings(facts, arrays[f"lattice_{number:05d}"])))
        return cls(tuple(fields), Frame(*settings["frame"]) if settings.get("frame") else None)


def _facts(z_start: int, z_stop: int, field: BiasField) -> dict[str, Any]:
    # the field is smooth: its percentiles do not need every sample of the fitted grid
    shape = [max(1, min(n, 64)) for n in field.grid_shape]
    p1, p50, p99 = np.percentile(field.field(shape, threads=1), [1, 50, 99])
    return {
        "z_start": z_start,
        "z_stop": z_stop,
        "reason": field.reason,
        "p1": float(p1),
        "p50": float(p50),
        "p99": float(p99),
        "iterations": [level.iterations for level in field.levels],
        "converged": [level.converged for level in field.levels],
        "measures": [level.measures[-1] if level.measures else None for level in field.levels],
        "control_points": list(field.lattice.shape),
        "knot_um": None if field.knot_um is None else list(field.knot_um),
        "voxels": field.voxels.masked,
        "voxels_nonfinite": field.voxels.nonfinite,
        "voxels_nonpositive": field.voxels.nonpositive,
        "backend": field.backend,
        "seconds": field.seconds,
    }
