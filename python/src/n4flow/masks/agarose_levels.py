"""The agarose level of each plane: its own where it has enough agarose, else one borrowed from other planes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from n4flow.errors import N4flowWarning
from n4flow.sections import SectionTable

# The median of a plane counts from this many agarose voxels on, or from this share of what planes usually have.
ENOUGH_VOXELS = 100
USUAL_SHARE = 0.25
# Where tissue lies under the agarose mask, a plane is bright there and flat: it exceeds both factors.
LEVEL_FACTOR = 2.0
FLATNESS_FACTOR = 2.0

OWN, BORROWED, UNKNOWN = 0, 1, 2
SOURCES = ("own", "borrowed", "unknown")


@dataclass(frozen=True)
class Levels:
    """The agarose level of every plane.

    Parameters
    ----------
    values : (Z,) float32 array
        Level in the intensity unit of the volume; 0 where nothing is known.
    source : (Z,) uint8 array
        OWN: the plane's own agarose. BORROWED: from planes of neighbouring sections. UNKNOWN: no plane shows agarose.
    confidence : (Z,) float32 array
        1 for a plane with plenty of agarose of its own; 0.5 / (1 + distance in sections) for a borrowed level; 0 for
        none.
    """

    values: np.ndarray
    source: np.ndarray
    confidence: np.ndarray


def has_evidence(levels: np.ndarray, counts: np.ndarray, tops: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """Return which planes' own agarose medians can be believed.

    A median needs voxels: `ENOUGH_VOXELS`, or `USUAL_SHARE` of the median count of the planes that have any (so that
    small volumes count too). And it must be agarose: where tissue fills the field, the voxels under a projected
    agarose mask are tissue. Such a plane is brighter there than `LEVEL_FACTOR` times the usual level, and its level is
    `FLATNESS_FACTOR` times nearer to the plane's bright end than usual; a plane that is only brighter as a whole is
    not flat.

    Parameters
    ----------
    levels, counts, tops : (Z,) arrays
        Median of the agarose voxels, how many they are, and a high percentile of all voxels of the plane.
    usable : (Z,) bool array
        Planes of unflagged sections.
    """
    some = usable & (counts > 0) & np.isfinite(levels)
    if not some.any():
        return some
    enough = some & (counts >= min(ENOUGH_VOXELS, max(1.0, USUAL_SHARE * float(np.median(counts[some])))))
    usual = float(np.median(levels[enough]))
    positive = enough & (levels > 0) & (tops > 0)
    if usual <= 0 or not positive.any():
        return enough
    flatness = np.divide(levels, tops, out=np.zeros(len(levels)), where=positive)
    usual_flatness = float(np.median(flatness[positive]))
    return enough & ~((levels > LEVEL_FACTOR * usual) & (flatness > FLATNESS_FACTOR * usual_flatness))


def fill_levels(levels: np.ndarray, evidence: np.ndarray, sections: SectionTable, filled: slice) -> Levels:
    """Give every plane a level: its own, or one borrowed from planes with evidence, never NaN.

    Within a section that has some evidence, levels are interpolated along Z. A section with none takes those of the
    nearest sections with evidence on both sides, each at the same relative depth (agarose darkens with depth within a
    section), weighted by distance; at the ends of the stack there is only one. Depth and distance are counted in the
    planes that are `filled`. Without any evidence the level is 0, with a warning.
    """
    n_planes = len(levels)
    if not evidence.any():
        msg = "no plane shows agarose: the background level is taken as 0; give an agarose mask if there is some"
        warnings.warn(msg, N4flowWarning, stacklevel=3)
        return Levels(
            np.zeros(n_planes, np.float32), np.full(n_planes, UNKNOWN, np.uint8), np.zeros(n_planes, np.float32)
        )
    values = np.where(evidence, levels, 0.0).astype(np.float64)
    confidence = evidence.astype(np.float32)
    edges = sections.edges(filled)
    sizes, centre = np.maximum(np.diff(edges), 1), (edges[:-1] + edges[1:]) / 2
    depth = [
        (np.arange(s.z_start, s.z_stop) - edge + 0.5) / size
        for s, edge, size in zip(sections, edges[:-1], sizes, strict=True)
    ]
    known = [i for i, s in enumerate(sections) if evidence[s.planes].any()]

    def profile(i: int, at: np.ndarray) -> np.ndarray:
        inside = evidence[sections[i].planes]
        return np.interp(at, depth[i][inside], levels[sections[i].planes][inside])

    for i, section in enumerate(sections):
        gaps = np.arange(section.z_start, section.z_stop)[~evidence[section.planes]]
        at = depth[i][gaps - section.z_start]
        if i in known:
            values[gaps], confidence[gaps] = profile(i, at), 0.5
            continue
        before, after = [j for j in known if j < i][-1:], [j for j in known if j > i][:1]
        near = before + after
        weights = np.array([1 / abs(centre[j] - centre[i]) for j in near])
        values[gaps] = np.average([profile(j, at) for j in near], axis=0, weights=weights)
        confidence[gaps] = 0.5 / (1 + min(abs(j - i) for j in near))
    return Levels(values.astype(np.float32), np.where(evidence, OWN, BORROWED).astype(np.uint8), confidence)


def least_voxels(counts: np.ndarray) -> float:
    """Return the fewest voxels with which a section is measured: 500, or 1 % of the largest section if that is less."""
    return min(500.0, max(1.0, 0.01 * float(np.max(counts, initial=0))))
