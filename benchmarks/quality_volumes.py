"""Volumes with known truth for `quality.py`: anatomies, and the distortions of a serial-section microscope."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import ndimage

import n4flow
from n4flow.phantom.options import PhantomOptions
from n4flow.phantom.store import Phantom
from n4flow.sections import Section, SectionTable

Anatomy = tuple[np.ndarray, np.ndarray]  # truth, tissue


# ----------------------------------------------------------------------------------------------------------- anatomies


def phantom(seed: int, oblique: float = 0) -> Anatomy:
    """Return the truth of n4flow's phantom, 192 planes of 200 x 250 voxels."""
    options = PhantomOptions(
        sections=24,
        planes=8,
        size=(200, 250),
        voxel_um=(50, 40, 40),
        seed=seed,
        oblique=oblique,
        speckle=0,
        padding=False,
    )
    block = Phantom(options).planes(0, 192)
    return block.truth.copy(), block.tissue.copy()


def template(kind: str, axis: int) -> Anatomy:
    """Return the MNI152 template cut across an axis: 'head', 'brain' alone, or brain 'inverted'."""
    import nibabel
    import nilearn

    folder = Path(nilearn.__file__).parent / "datasets" / "data"

    def stored(name: str) -> np.ndarray:
        image = nibabel.load(folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz")
        return np.asarray(image.dataobj, np.float32)

    truth = stored("t1")
    if kind == "head":
        tissue = ndimage.binary_opening(truth > 50)
    else:
        grey, white = stored("gm"), stored("wm")
        tissue = ndimage.binary_opening(grey / grey.max() + white / white.max() > 0.5)
    if kind == "inverted":
        truth = 260 - truth
    truth = np.where(tissue, np.maximum(truth, 20), 8).astype(np.float32)
    return tuple(np.ascontiguousarray(np.moveaxis(array, axis, 0)) for array in (truth, tissue))


def mouse(path: Path, axis: int) -> Anatomy:
    """Return a real brain, smoothed by 1.5 voxels to remove its own stripes; its largest object is tissue."""
    from skimage.filters import threshold_otsu

    volume = n4flow.open_volume(path, require_voxel_um=False)
    raw = volume.read(slice(0, volume.shape[0])).astype(np.float32)
    truth, smooth = ndimage.gaussian_filter(raw, 1.5), ndimage.gaussian_filter(raw, 2)
    tissue = ndimage.binary_opening(smooth > np.exp(threshold_otsu(np.log(np.maximum(smooth, 1)))), iterations=2)
    labels, _count = ndimage.label(tissue)
    tissue = ndimage.binary_fill_holes(labels == np.bincount(labels.ravel())[1:].argmax() + 1)
    tissue &= (truth > 30) & (truth < 600)
    ends = slice(15, raw.shape[0] - 15)
    truth = np.clip(truth, 1, 600)[ends]
    return tuple(np.ascontiguousarray(np.moveaxis(array, axis, 0)) for array in (truth, tissue[ends]))


TUNED = {
    "head": lambda _mouse: template("head", 1),
    "brain": lambda _mouse: template("brain", 1),
    "inverted": lambda _mouse: template("inverted", 1),
    "phantom 1": lambda _mouse: phantom(1),
    "mouse": lambda path: mouse(path, 0),
}
KEPT = {
    "brain, axial": lambda _mouse: template("brain", 2),
    "head, sagittal": lambda _mouse: template("head", 0),
    "inverted, axial": lambda _mouse: template("inverted", 2),
    "phantom 7": lambda _mouse: phantom(7),
    "phantom 3, tilted": lambda _mouse: phantom(3, 12),
    "mouse, horizontal": lambda path: mouse(path, 1),
}


# ---------------------------------------------------------------------------------------------------------- distortions


@dataclass(frozen=True)
class Distortion:
    """Sizes of distortions: standard deviations of the log.

    For attenuation it is the change of the log from end to end of a section, for speckle the standard deviation of
    the intensity.
    """

    shared: float = 0.2
    section: float = 0.08
    attenuation: float = 0.5
    gain: float = 0.12
    slow: float = 0.08
    jitter: float = 0.03
    speckle: float = 0.04
    planes: int = 8
    oblique: float = 0


PLAIN = Distortion()
CASES = {
    "plain": PLAIN,
    "strong": Distortion(shared=0.3, section=0.13, attenuation=0.7, gain=0.2, slow=0.13, jitter=0.05),
    "mild": Distortion(shared=0.06, section=0.03, attenuation=0.15, gain=0.04, slow=0.02, jitter=0.01),
    "oblique cuts": replace(PLAIN, oblique=12),
    "long sections": replace(PLAIN, planes=40),
    "noisy": replace(PLAIN, speckle=0.15),
    "shared shading alone": Distortion(section=0, attenuation=0, gain=0, slow=0, jitter=0),
    "nothing wrong": Distortion(shared=0, section=0, attenuation=0, gain=0, slow=0, jitter=0),
}
EVERYWHERE = ("plain", "nothing wrong")
HARDER = ("plain", "strong", "noisy", "nothing wrong")
MORE = {"head": tuple(CASES), "brain, axial": HARDER, "phantom 7": HARDER}


@dataclass(frozen=True)
class Distorted:
    """A volume with truth: `observed` = `truth` exp(`log_field`) speckle, 0 in padding; `log_field` has `shared`."""

    truth: np.ndarray
    tissue: np.ndarray
    observed: np.ndarray
    log_field: np.ndarray
    shared: np.ndarray
    sections: SectionTable


def smooth_fields(rng: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    """Return (count, Y, X) products of cosines of order 0 to 2, of mean 0 and standard deviation 1."""
    orders = np.arange(3)
    rows = np.cos(np.pi * orders[:, None] * (np.arange(height) + 0.5) / height)
    columns = np.cos(np.pi * orders[:, None] * (np.arange(width) + 0.5) / width)
    order = np.add.outer(orders, orders)
    weights = np.where((order > 0) & (order <= 3), 1 / np.maximum(order, 1), 0)
    fields = np.einsum("nab,ay,bx->nyx", rng.standard_normal((count, 3, 3)) * weights, rows, columns)
    return (fields / fields.std(axis=(1, 2), keepdims=True)).astype(np.float32)


def distort(anatomy: Anatomy, how: Distortion, seed: int) -> Distorted:
    """Cut an anatomy into sections and distort it."""
    rng = np.random.default_rng(seed)
    truth, tissue = anatomy
    if how.oblique:
        outside = float(truth[~tissue].min())
        turn = {"angle": how.oblique, "axes": (0, 2), "reshape": False, "order": 1}
        truth = ndimage.rotate(truth, cval=outside, **turn)
        tissue = ndimage.rotate(tissue.astype(np.float32), **turn) > 0.5
    n_z, n_y, n_x = truth.shape
    n_s = max(1, round(n_z / how.planes))
    edges = np.round(np.linspace(0, n_z, n_s + 1)).astype(int)
    cuts = itertools.pairwise(int(edge) for edge in edges)
    sections = SectionTable([Section(f"s{i:03d}", a, b) for i, (a, b) in enumerate(cuts)], n_z)
    owner = sections.section_of_plane
    depth = (np.arange(n_z) - edges[owner]) / max(np.diff(edges).max() - 1, 1) - 0.5

    def standard(values: np.ndarray) -> np.ndarray:
        return (values - values.mean()) / max(values.std(), 1e-9)

    shared, tilt = smooth_fields(rng, 2, n_y, n_x)
    own = how.section * smooth_fields(rng, n_s, n_y, n_x)
    gain = how.gain * standard(rng.standard_normal(n_s))
    place = (np.arange(n_z) + 0.5) / n_z
    waves = (rng.standard_normal() / k * np.cos(np.pi * k * place + rng.uniform(0, 6)) for k in range(1, 5))
    plane = gain[owner] + how.slow * standard(sum(waves)) + how.jitter * rng.standard_normal(n_z)
    log_field = own[owner]
    log_field += how.shared * shared + plane.astype(np.float32)[:, None, None]
    log_field -= (how.attenuation * depth).astype(np.float32)[:, None, None] * (1 + 0.2 * tilt)
    observed = truth * np.exp(log_field)
    shape = 1 / how.speckle**2
    observed *= rng.standard_gamma(shape, observed.shape, np.float32) / np.float32(shape)
    outside = np.zeros(truth.shape, bool)
    for section in sections:  # the border of the mosaic differs from section to section
        top, bottom, left, right = rng.integers(0, max(2, int(0.05 * n_y)), 4)
        part = outside[section.planes]
        part[:, :top], part[:, n_y - bottom :], part[:, :, :left], part[:, :, n_x - right :] = True, True, True, True
    observed[outside] = 0
    return Distorted(truth, tissue & ~outside, observed, log_field, how.shared * shared, sections)
