"""Small volumes with known truth for the tests of harmonisation, and what is measured on them."""

from __future__ import annotations

import itertools
import warnings
from functools import cache

import numpy as np
from scipy import ndimage

import n4flow
from n4flow.corrections.harmonization.fields import Harmonization
from n4flow.errors import N4flowWarning
from n4flow.phantom.options import PhantomOptions
from n4flow.phantom.store import Phantom
from n4flow.sections import Section, SectionTable

SHAPE = (48, 84, 96)
PLANES = 6
MIDLINES = {  # first plane and how much darker it and the next ones are (log); sections begin at planes 18 and 24
    "midline": (20, (0.1, 0.25, 0.1)),
    "midline that ends at a cut": (22, (0.25, 0.25)),
    "midline across a cut": (23, (0.1, 0.25, 0.25, 0.1)),
}


@cache
def anatomy(kind: str = "brain") -> tuple[np.ndarray, np.ndarray]:
    """Return (truth, tissue): a folded brain, inverted, with one of `MIDLINES`, or cut along another axis."""
    options = PhantomOptions(
        sections=8, planes=6, size=SHAPE[1:], voxel_um=(120, 90, 90), seed=5, speckle=0, padding=False
    )
    block = Phantom(options).planes(0, SHAPE[0])
    truth, tissue = block.truth, ndimage.binary_opening(block.tissue)
    if kind == "inverted":
        truth = np.where(tissue, 22000 - truth, truth)
    if kind in MIDLINES:  # planes where everything is darker, unevenly
        first, depths = MIDLINES[kind]
        pattern = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=SHAPE[1:]), 3)
        truth = truth.copy()
        for z, depth in enumerate(depths, first):
            truth[z] *= np.exp(-depth * (1 + 0.5 * pattern / pattern.std()))
    if kind == "sideways":
        truth, tissue = (np.ascontiguousarray(np.moveaxis(array, 2, 0)) for array in (truth, tissue))
    return truth.astype(np.float32), tissue


def imaged(truth: np.ndarray, sections: SectionTable, strength: float = 1.0, seed: int = 0) -> np.ndarray:
    """Return the volume as an instrument sees it: attenuation, gain and shading of sections, jitter, 3 % speckle."""
    rng = np.random.default_rng(seed)
    n_z, n_y, n_x = truth.shape
    owner, starts = sections.section_of_plane, np.array([s.z_start for s in sections])
    depth = (np.arange(n_z) - starts[owner]) / PLANES
    y, x = np.linspace(-1, 1, n_y)[:, None], np.linspace(-1, 1, n_x)
    log_field = (rng.normal(0, 0.15, len(sections))[owner] + rng.normal(0, 0.03, n_z) - 0.4 * depth)[:, None, None]
    slopes = rng.normal(0, 0.08, (2, len(sections), 1, 1))
    log_field = log_field + slopes[0][owner] * y + slopes[1][owner] * x * y
    return (truth * np.exp(strength * log_field) * rng.normal(1, 0.03, truth.shape)).astype(np.float32)


def cut(n_planes: int, planes: int = PLANES, flagged: tuple[int, ...] = (), shift: int = 0) -> SectionTable:
    """Return sections of equal depth; with `shift`, every cut lies so many planes later."""
    edges = [0, *(z + shift for z in range(planes, n_planes, planes)), n_planes]
    flags = ["damaged" if i in flagged else "ok" for i in range(len(edges))]
    return SectionTable(
        [Section(f"s{i}", a, b, flags[i]) for i, (a, b) in enumerate(itertools.pairwise(edges))], n_planes
    )


def agreement(truth: np.ndarray, tissue: np.ndarray, volume: np.ndarray) -> float:
    return float(np.corrcoef(truth[tissue], volume[tissue])[0, 1])


def contrast(truth: np.ndarray, tissue: np.ndarray, volume: np.ndarray) -> float:
    """Log ratio of the means of the two halves of tissue, those darker and brighter than the middle in truth."""
    bright = truth > np.exp(np.log([np.percentile(truth[tissue], q) for q in (10, 90)]).mean())
    return float(np.log(volume[tissue & bright].mean() / volume[tissue & ~bright].mean()))


def steps(truth: np.ndarray, tissue: np.ndarray, volume: np.ndarray, sections: SectionTable) -> float:
    """Mean size of the change of log(volume / truth) at cuts."""
    found = []
    for section in sections[1:]:
        z = section.z_start
        both = tissue[z] & tissue[z - 1]
        ratio = [np.log(volume[i][both] / truth[i][both]) for i in (z - 1, z)]
        found.append(abs(np.median(ratio[1] - ratio[0])))
    return float(np.mean(found))


def quiet(*arguments: object, **options: object) -> tuple[np.ndarray, Harmonization]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", N4flowWarning)
        return n4flow.harmonize(*arguments, **options)
