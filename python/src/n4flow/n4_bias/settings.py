"""The settings of an N4 fit, and what it reports of each level."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from n4flow.compute.threads import thread_count
from n4flow.errors import InputError

DEFAULT_ITERATIONS = (50, 50, 50, 50)
CONVERGENCE_MEASURES = ("itk", "cv")
MOST_BINS = 2048  # bins of the histogram, at most


@dataclass(frozen=True)
class FitSettings:
    """Settings of one fit; `fit_bias` describes them."""

    iterations: tuple[int, ...] = DEFAULT_ITERATIONS
    threshold: float = 1e-3
    over_relax: float = 1.0
    bins: int = 200
    fwhm: float = 0.15
    wiener: float = 0.01
    convergence: str = "itk"  # or 'cv'; see `convergence`
    threads: int = 1

    def __post_init__(self) -> None:
        _require(
            len(self.iterations) > 0 and min(self.iterations) >= 0,
            f"iterations must be one whole number of at least 0 for each level, got {list(self.iterations)}",
        )
        _require(self.threshold >= 0, f"the convergence threshold must be at least 0, got {self.threshold}")
        _require(self.over_relax > 0, f"over_relax must be above 0 (1 is plain N4), got {self.over_relax}")
        _require(4 <= self.bins <= MOST_BINS, f"histogram bins must be 4 to {MOST_BINS}, got {self.bins}")
        _require(self.fwhm > 0, f"fwhm must be above 0 (log intensity), got {self.fwhm}")
        _require(self.wiener > 0, f"the Wiener noise must be above 0, got {self.wiener}")
        known = " or ".join(map(repr, CONVERGENCE_MEASURES))
        _require(self.convergence in CONVERGENCE_MEASURES, f"convergence must be {known}, got {self.convergence!r}")
        _require(self.threads >= 1, f"threads must be at least 1, got {self.threads}")

    @property
    def stop(self) -> float:
        """The convergence measure at or below which a level ends.

        N4 has no fixed point: with the same threshold, larger steps would end farther along the path of the iteration,
        at another field.
        """
        return self.threshold * self.over_relax


@dataclass(frozen=True)
class Level:
    """What one level of a fit did."""

    control_points: tuple[int, ...]  # along each axis
    measures: tuple[float, ...]  # the convergence measure after each iteration
    converged: bool  # whether the level ended by its measure rather than by its maximum number of iterations

    @property
    def iterations(self) -> int:
        """Number of iterations."""
        return len(self.measures)

    @classmethod
    def ended(cls, control_points: Sequence[int], measures: Iterable[float], settings: FitSettings) -> Self:
        """Return a level from the measures after its iterations."""
        values = tuple(map(float, measures))
        return cls(tuple(control_points), values, bool(values) and values[-1] <= settings.stop)


def fit_settings(iterations: Sequence[int] | int | None, threads: int | None = None, **options: Any) -> FitSettings:
    """Return settings for the iterations of several levels, of one (a number), or by default of four levels of 50.

    The default of `threads` is every available one.
    """
    if iterations is None:
        iterations = DEFAULT_ITERATIONS
    counts = (iterations,) if isinstance(iterations, int) else tuple(map(int, iterations))
    return FitSettings(counts, threads=thread_count(threads), **options)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)
