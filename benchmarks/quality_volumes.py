"""Volumes with known truth for `quality.py`: anatomies, and the distortions of a serial-section microscope."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.special import ndtri

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


def mouse(path: Path, axis: int, *, stripes: bool = False) -> Anatomy:
    """Return a real brain, its largest object as tissue.

    It is smoothed by 1.5 voxels to remove its own stripes, or by a median of 3 x 3 x 3, which keeps them.
    """
    from skimage.filters import threshold_otsu

    volume = n4flow.open_volume(path, require_voxel_um=False)
    raw = volume.read(slice(0, volume.shape[0])).astype(np.float32)
    truth = ndimage.median_filter(raw, 3) if stripes else ndimage.gaussian_filter(raw, 1.5)
    smooth = ndimage.gaussian_filter(raw, 2)
    tissue = ndimage.binary_opening(smooth > np.exp(threshold_otsu(np.log(np.maximum(smooth, 1)))), iterations=2)
    labels, _count = ndimage.label(tissue)
    tissue = ndimage.binary_fill_holes(labels == np.bincount(labels.ravel())[1:].argmax() + 1)
    tissue &= (truth > 30) & (truth < 600)
    ends = slice(15, raw.shape[0] - 15)
    truth = np.clip(truth, 1, 600)[ends]
    return tuple(np.ascontiguousarray(np.moveaxis(array, axis, 0)) for array in (truth, tissue[ends]))


def changing(kind: str, seed: int = 0) -> Anatomy:
    """Return two classes whose share of a section changes along Z: nothing is wrong, and nothing should be done.

    `core`: bright tissue begins at a plane, inside a section. `share`: the share of bright tissue goes from a tenth to
    seven tenths. `vessel`: a bright vessel ends at a plane.
    """
    n_z, height, width = 160, 128, 160
    rng = np.random.default_rng(seed)
    z, y, x = np.mgrid[-1 : 1 : n_z * 1j, -1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    wavy = 1 + 0.15 * np.sin(3 * np.arctan2(y, x) + 2 * z)
    radius = np.hypot(y, x) / wavy
    tissue = radius < 0.85 * np.sqrt(1 - 0.5 * z**2)
    texture = ndimage.gaussian_filter(rng.standard_normal(z.shape).astype(np.float32), 3)
    if kind == "core":
        bright = (radius < 0.55) & (z > 0.03)
    elif kind == "share":
        bright = texture / texture.std() < ndtri(0.4 + 0.3 * z)
    else:
        bright = (np.hypot(y - 0.1, x + 0.2 + 0.1 * z) < 0.2) & (z < -0.03)
    truth = np.where(bright, 160, 100) * (1 + 0.03 * texture / texture.std())
    return np.where(tissue, truth, 8).astype(np.float32), tissue


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
    "mouse, seeds": lambda path: mouse(path, 0),
    "mouse with stripes": lambda path: mouse(path, 0, stripes=True),
    "core that begins": lambda _mouse: changing("core"),
    "share that grows": lambda _mouse: changing("share"),
    "vessel that ends": lambda _mouse: changing("vessel"),
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
    cubic: bool = False  # shading is a cubic whose size is its largest absolute value


PLAIN = Distortion()
CASES = {
    "plain": PLAIN,
    "strong": Distortion(shared=0.3, section=0.13, attenuation=0.7, gain=0.2, slow=0.13, jitter=0.05),
    "mild": Distortion(shared=0.06, section=0.03, attenuation=0.15, gain=0.04, slow=0.02, jitter=0.01),
    "oblique cuts": replace(PLAIN, oblique=12),
    "long sections": replace(PLAIN, planes=40),
    "noisy": replace(PLAIN, speckle=0.15),
    "shared shading alone": Distortion(section=0, attenuation=0, gain=0, slow=0, jitter=0),
    "cubic shading": Distortion(
        0.35, 0.175, attenuation=0.45, gain=0.1, slow=0.15, jitter=0.02, speckle=0.12, cubic=True
    ),
    "nothing wrong": Distortion(shared=0, section=0, attenuation=0, gain=0, slow=0, jitter=0),
}
EVERYWHERE = ("plain", "nothing wrong")
HARDER = ("plain", "strong", "noisy", "nothing wrong")
MORE = {
    "head": tuple(case for case in CASES if case != "cubic shading"),
    "brain, axial": HARDER,
    "phantom 7": HARDER,
    "mouse, seeds": ("cubic shading",),
    "mouse with stripes": ("cubic shading",),
}
SEEDS = {"mouse, seeds": (11, 12, 13, 14, 15), "mouse with stripes": (11, 12)}


@dataclass(frozen=True, eq=False)
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


def cubic_fields(rng: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    """Return (count, Y, X) random cubics in plane without a constant, each with a largest absolute value of 1."""
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)
    terms = np.stack([y**i * x**j for i in range(4) for j in range(4 - i) if i + j])
    fields = np.tensordot(rng.standard_normal((count, len(terms))), terms, axes=1)
    return (fields / np.abs(fields).max(axis=(1, 2), keepdims=True)).astype(np.float32)


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

    fields = cubic_fields if how.cubic else smooth_fields
    shared, tilt = fields(rng, 2, n_y, n_x)
    own = how.section * fields(rng, n_s, n_y, n_x)
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
