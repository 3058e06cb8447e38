"""The bias field as a step of the recipe: one field for the volume, or one for each section."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, ClassVar, Self

import numpy as np

from n4flow.compute.arrays import array_module
from n4flow.compute.threads import thread_count
from n4flow.corrections.base import ArgumentsOfRun, Correction, Where, in_frame
from n4flow.display import picture
from n4flow.io.frame import Frame
from n4flow.n4_bias.evaluate import Evaluator
from n4flow.n4_bias.field import BiasField

MOST_EVALUATORS = 128  # that are cached: more than a block of planes has sections


@dataclass(frozen=True)
class BiasCorrection(Correction):
    """Divides each run of planes by its bias field; planes of no field stay what they are.

    Parameters
    ----------
    fields : tuple of (int, int, BiasField)
        z_start, z_stop and the field of those planes, whose shape is (z_stop - z_start, Y, X).
    frame : Frame, optional
        The part of the planes that the fields cover, which is their (Y, X); whole planes without it. Voxels around it
        stay what they are.
    step : int
        Voxels of the shrunken volume to a sample of the fitted grid, along Y and X.
    """

    kind: ClassVar[str] = "bias_field"
    title: ClassVar[str] = "bias field divided out"
    fused: ClassVar[str] = "field"
    is_field: ClassVar[bool] = True

    fields: tuple[tuple[int, int, BiasField], ...] = ()
    frame: Frame | None = None
    step: int = 1

    def apply(self, block: Any, where: Where) -> Any:
        """Return block / exp(log field); see `Correction.apply`. A CuPy block is corrected on its device."""
        return in_frame(self.frame, block, where, self._apply)

    def shrunken_log_field(self, planes: slice, shape: tuple[int, int]) -> np.ndarray:
        """See `Correction.shrunken_log_field`; 0 in planes of no field."""
        found = np.zeros((planes.stop - planes.start, *shape), np.float32)
        for start, stop, number in self._runs(planes.start, planes.stop):
            z_start, z_stop, field = self._ordered[number]
            samples, k = field.grid_shape[1:], self.step if self.frame else 1
            margin = [(wide - -(-n // k)) // 2 * k if self.frame else 0 for wide, n in zip(samples, shape, strict=True)]
            grid = z_stop - z_start, *(wide * k if self.frame else n for wide, n in zip(samples, shape, strict=True))
            inner = (slice(m, m + n) for n, m in zip(shape, margin, strict=True))
            inside = (slice(start - z_start, stop - z_start), *inner)
            found[start - planes.start : stop - planes.start] = field.log_field(grid, inside)
        return found

    def joined(self, other: Self) -> Self:
        """Return one correction of the fields of two, which cover different planes."""
        return replace(self, fields=self.fields + other.fields)

    def faults(self, shape: tuple[int, int, int]) -> Iterator[str]:
        """See `Correction.faults`."""
        plane, end = self.frame.shape if self.frame else shape[1:], 0
        for number, (start, stop, field) in enumerate(self._ordered):
            name = f"the field of planes {start} to {stop - 1}"
            if not end <= start < stop <= shape[0]:
                yield f"{name} must lie within 0 to {shape[0] - 1}, beside the others"
            end = stop
            if field.shape != (stop - start, *plane):
                yield f"{name} has the shape {field.shape}, expected {(stop - start, *plane)}"
            for fault in field.faults():
                yield f"field {number}: {fault}"

    def weakened(self, strength: float) -> Self:
        """Return the correction with each field to the power of `strength`, from 0 (nothing) to 1."""
        return replace(
            self,
            fields=tuple(
                (
                    start,
                    stop,
                    replace(field, lattice=field.lattice * np.float32(strength), share=field.share * strength),
                )
                for start, stop, field in self.fields
            ),
        )

    def covered(self, n_planes: int) -> slice:
        """See `Correction.covered`."""
        starts, stops = zip(*(part[:2] for part in self.fields), strict=True) if self.fields else ((0,), (0,))
        return slice(min(starts), max(stops))

    @property
    def avoided_by(self) -> str:
        """See `Correction.avoided_by`."""
        whole = all(field.share == 1 for _start, _stop, field in self.fields)
        return "--trust proven, or --bias off" if whole else "--bias off"

    def shares(self, n_planes: int) -> np.ndarray:
        """See `Correction.shares`."""
        found = np.full(n_planes, np.nan)
        for start, stop, field in self.fields:
            if field.reason is None:
                found[start:stop] = field.share
        return found

    def not_estimated(self) -> list[tuple[int, int, str]]:
        """Return the planes whose field could not be fitted, and why."""
        return [(start, stop, f"no bias field: {field.reason}") for start, stop, field in self.fields if field.reason]

    def _apply(self, block: Any, where: Where) -> Any:
        n_z, n_y, n_x = block.shape
        place = slice(where.y, where.y + n_y), slice(where.x, where.x + n_x)
        for start, stop, number in self._runs(where.z, where.z + n_z):
            z_start, _z_stop, field = self._ordered[number]
            part = block[start - where.z : stop - where.z]
            inside = slice(start - z_start, stop - z_start), *place
            if array_module(part) is np:
                self._evaluator(number).part(*inside).correct(part, part, thread_count(None))
            else:
                field.apply(part, part, where=inside)
        return block

    def fused_arguments(self, block: Any, where: Where) -> ArgumentsOfRun:
        """See `Correction.fused_arguments`: `Evaluator.tables` of a field, or a `DeviceEvaluator` for a CuPy block."""
        (_n_z, n_y, n_x), z = block.shape, where.z
        place = slice(where.y, where.y + n_y), slice(where.x, where.x + n_x)
        on_host = array_module(block) is np

        def run(start: int, stop: int) -> tuple[int, Any]:
            end, number = self._run(z + start, z + stop)
            if number is None:
                return end - z, None
            z_start, _z_stop, field = self._ordered[number]
            inside = slice(z + start - z_start, end - z_start), *place
            return end - z, self._evaluator(number).tables(*inside) if on_host else field.on_gpu(inside)

        return run

    def _run(self, start: int, stop: int) -> tuple[int, int | None]:
        """Return where the first run of planes of one field, or of none, between two planes ends, and its number.

        Fields are numbered in the order of their planes. A field that was not fitted is none.
        """
        number = bisect_right(self._ordered, start, key=lambda field: field[1])
        if number == len(self.fields):
            return stop, None
        z_start, z_stop, field = self._ordered[number]
        if start < z_start:
            return min(stop, z_start), None
        return min(stop, z_stop), number if field.reason is None else None

    def _runs(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yield (first plane, the one after the last, number of the field) of every run that has a field."""
        while start < stop:
            end, number = self._run(start, stop)
            if number is not None:
                yield start, end, number
            start = end

    @cached_property
    def _ordered(self) -> list[tuple[int, int, BiasField]]:
        return sorted(self.fields, key=lambda field: field[0])

    @cached_property
    def _evaluator(self) -> Callable[[int], Evaluator]:
        """Returns the evaluator of a field, kept for the next part: parts come in the order of their planes."""
        ordered = self._ordered
        return lru_cache(MOST_EVALUATORS)(lambda number: ordered[number][2].evaluator())

    def __getstate__(self) -> dict[str, Any]:
        return {"fields": self.fields, "frame": self.frame, "step": self.step}

    @property
    def idle(self) -> bool:
        """See `Correction.idle`."""
        return not any(field.lattice.any() for _start, _stop, field in self.fields)

    def draw(self, place: Any) -> None:
        """Draw the middle plane of the field of the middle section, or of the volume."""
        if self.fields:
            _first, _stop, field = self.fields[len(self.fields) // 2]
            values = np.exp(field.log_field(field.grid_shape))
            picture(place, values if values.ndim == 2 else values[len(values) // 2], "", cmap="viridis")

    def summary(self) -> dict[str, Any]:
        """Return for each run of planes the range of its field, iterations, knots, or why nothing was fitted."""
        return {"fields": [_facts(*part) for part in self.fields]}

    def to_arrays(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Return the settings of every field and its lattice."""
        settings: list[dict[str, Any]] = []
        lattices = {}
        for number, (z_start, z_stop, field) in enumerate(self.fields):
            facts, lattices[f"lattice_{number:05d}"] = field.to_settings()
            del facts["seconds"]  # equal corrections are equal files
            settings.append({"z_start": z_start, "z_stop": z_stop, **facts})
        return {"fields": settings, "frame": self.frame and list(self.frame), "step": self.step}, lattices

    @classmethod
    def from_arrays(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> Self:
        """Rebuild the correction from what `to_arrays` returned."""
        fields = []
        for number, stored in enumerate(settings["fields"]):
            facts = dict(stored)
            z_start, z_stop = facts.pop("z_start"), facts.pop("z_stop")
            fields.append((z_start, z_stop, BiasField.from_settings(facts, arrays[f"lattice_{number:05d}"])))
        frame = Frame(*settings["frame"]) if settings.get("frame") else None
        return cls(tuple(fields), frame, settings.get("step", 1))


def _facts(z_start: int, z_stop: int, field: BiasField) -> dict[str, Any]:
    # the field is smooth: its percentiles do not need every sample of the fitted grid
    shape = [max(1, min(n, 64)) for n in field.grid_shape]
    p1, p50, p99 = np.percentile(field.field(shape, threads=1), [1, 50, 99])
    return {
        "z_start": z_start,
        "z_stop": z_stop,
        "reason": field.reason,
        "share": field.share,
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
    }
