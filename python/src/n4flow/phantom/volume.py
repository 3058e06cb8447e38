"""A synthetic serial-section volume whose true intensities and distortions are known.

A folded brain in agarose (`anatomy`) is cut into sections and imaged with the distortions of a real instrument:

    observed = dark + truth * bias * section_gain * plane_jitter * speckle

`bias` is smooth: shading shared by all sections, shading of each section, and attenuation with depth in the
section. Every factor can be switched off. Each plane can be computed alone, so a volume of any size is written block by
block, and a voxel depends neither on the block size, nor on the thread count, nor on which planes are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from n4flow.compute.threads import available_threads, scratch
from n4flow.display import Shown, lengths, sizes
from n4flow.errors import InputError
from n4flow.phantom.options import CLASSES, FAULTS, PhantomOptions
from n4flow.sections import Section, SectionTable

SATURATED_GAIN = 8.0  # factor on the brightness of a section with the fault 'saturated'
_LATTICE = 384  # The anatomy is computed at most at this many samples along the longer side of a plane.
_REACH = 0.80  # The brain's width and height take at most this share of the field of view.
_COVER = 0.86  # A stack that is longer than the brain spans this share of the brain's length.

# Each distortion draws from a random stream of its own, so that changing one leaves the others as they are.
_ANATOMY, _SHARED, _SECTION, _DEPTH, _GAIN, _DRIFT, _JITTER, _MOSAIC, _SPECKLE = range(9)


@dataclass(frozen=True)
class PhantomBlock:
    """Consecutive planes with their truth; arrays are (Z, Y, X)."""

    z_start: int
    observed: np.ndarray  # of the dtype in the options
    truth: np.ndarray  # float32, intensity units: tissue and agarose without distortions, also under the padding
    bias: np.ndarray  # float32: shared shading x section shading x attenuation, without gain and jitter
    labels: np.ndarray  # uint8, with the values of CLASSES

    @property
    def tissue(self) -> np.ndarray:
        """Bool mask of grey matter, white matter and nuclei inside the mosaic; ventricles are not tissue."""
        return self.labels >= CLASSES["grey"]

    @property
    def agarose(self) -> np.ndarray:
        """Bool mask of the agarose around the brain and in open sulci, inside the mosaic."""
        return self.labels == CLASSES["agarose"]


class PhantomVolume(Shown):
    """A phantom whose planes are computed on demand.

    Parameters
    ----------
    options : PhantomOptions, optional
        Default: 5 sections of 8 planes of 160 x 200 voxels.

    Attributes
    ----------
    shape : (int, int, int)
        (Z, Y, X).
    sections : SectionTable
        With a flag on each section that has a fault.
    section_gain : (sections,) float64 array
        Brightness of each section: exp(gain a + drift b), a and b of mean 0 and standard deviation 1 over the stack.
    plane_jitter : (Z,) float64 array
        Brightness of each plane: its log has mean 0 in every section and, over the stack, the standard deviation
        `options.jitter`. With one plane a section it is 1, since it could not be told from the section's gain.
    """

    def __init__(self, options: PhantomOptions | None = None) -> None:
        self.options = options = options or PhantomOptions()
        counts = options.plane_counts
        self.shape = (sum(counts), *options.size)
        digits, stops = max(3, len(str(options.sections - 1))), np.cumsum(counts).tolist()
        faults = dict(options.faults)
        flags = [FAULTS[faults[i]][0] if i in faults and options.flag_faults else "ok" for i in range(options.sections)]
        rows = enumerate(zip(counts, stops, flags, strict=True))
        sections = [Section(f"s{i:0{digits}d}", stop - n, stop, flag) for i, (n, stop, flag) in rows]
        self.sections = SectionTable(sections, self.shape[0])
        self._section_of_plane = self.sections.section_of_plane
        self.section_gain = self._section_gain()
        self.plane_jitter = self._plane_jitter()

    def facts(self) -> Mapping[str, str]:
        """Return shape (z y x), type, voxel size, sections and seed."""
        return {
            "shape": sizes(self.shape),
            "dtype": self.options.dtype,
            "voxel": lengths(dict(zip("zyx", self.options.voxel_um, strict=True))),
            "sections": str(len(self.sections)),
            "seed": str(self.options.seed),
        }

    # Random numbers: each stream and index has its own counter-based generator and can be drawn alone.

    def _random(self, stream: int, index: int = 0) -> np.random.Generator:
        key = np.array([self.options.seed, (stream << 32) + index], np.uint64)
        return np.random.Generator(np.random.Philox(key=key))

    def _section_gain(self) -> np.ndarray:
        options, n = self.options, self.options.sections
        own = _standardised(self._random(_GAIN).standard_normal(n))
        # The drift of the instrument over the stack is two slow cosines with random weights.
        weights = self._random(_DRIFT).standard_normal(2)
        place = (np.arange(n) + 0.5) / n
        slow = _standardised(weights[0] * np.cos(np.pi * place) + 0.7 * weights[1] * np.cos(2 * np.pi * place))
        gain = np.exp(options.gain * own + options.drift * slow)
        for index, fault in options.faults:
            gain[index] *= SATURATED_GAIN if fault == "saturated" else 1.0
        return gain

    def _plane_jitter(self) -> np.ndarray:
        log = self._random(_JITTER).standard_normal(self.shape[0])
        for section in self.sections:
            log[section.planes] -= log[section.planes].mean()
        return np.exp(self.options.jitter * _standardised(log))

    # Geometry.

    @cached_property
    def _unit_um(self) -> float:
        """Half the brain's width in micrometres, such that the brain fits into the field at the given tilt."""
        from n4flow.phantom.anatomy import HEIGHT, LENGTH

        angle = np.deg2rad(self.options.oblique)
        half_width = np.hypot(np.cos(angle), LENGTH * np.sin(angle))
        _z, y, x = (n * v / 2 for n, v in zip(self.shape, self.options.voxel_um, strict=True))
        return float(_REACH * min(x / half_width, y / HEIGHT))

    @property
    def voxel_um(self) -> dict[str, float]:
        """Voxel size in micrometres by axis name."""
        return dict(zip("zyx", map(float, self.options.voxel_um), strict=True))

    @property
    def _step(self) -> int:
        """Voxels between two samples of the anatomy; 1 for planes of up to 384 voxels."""
        return -(-max(self.options.size) // _LATTICE)

    def _pose(self, z: int) -> tuple[float, ...]:
        """Return w0, w_x, v0, v_y, u0 and u_x of a plane: where `anatomy_plane` evaluates the anatomy."""
        from n4flow.phantom.anatomy import LENGTH

        voxel_z, voxel_y, voxel_x = (v / self._unit_um for v in self.options.voxel_um)
        angle = np.deg2rad(self.options.oblique)
        cos, sin = float(np.cos(angle)), float(np.sin(angle))
        n_z, n_y, n_x = self.shape
        # The brain keeps its proportions, unless the stack is longer than the brain: then it is stretched along Z.
        room = _COVER * float(np.hypot(LENGTH * cos, sin))
        half = n_z * voxel_z / 2
        stretch = min(1.0, room / half)
        # A short stack lies off the middle, so that outline and class proportions change along Z.
        middle = 0.6 * (room - half * stretch)
        along = middle + (z - (n_z - 1) / 2) * voxel_z * stretch
        across = -(n_x - 1) / 2 * voxel_x
        down = -(n_y - 1) / 2 * voxel_y
        k = self._step
        w0, u0 = along * cos - across * sin, along * sin + across * cos
        return w0, -voxel_x * sin * k, down, voxel_y * k, u0, voxel_x * cos * k

    @cached_property
    def _permutation(self) -> np.ndarray:
        return np.tile(self._random(_ANATOMY).permutation(256), 2).astype(np.int64)

    # Bias field.

    @cached_property
    def _cosines(self) -> tuple[np.ndarray, np.ndarray]:
        """Cosines of order 0 to 2 along Y and X on the lattice of the anatomy, each with a mean square of 1."""
        axes = []
        for n in self.options.size:
            place = (np.arange((n - 1) // self._step + 2) * self._step + 0.5) / n
            orders = np.arange(3)
            axes.append(np.where(orders, np.sqrt(2.0), 1.0) * np.cos(np.pi * place[:, None] * orders))
        return axes[0], axes[1]

    def _shading(self, stream: int, index: int = 0) -> np.ndarray:
        """Return a random smooth log field on the lattice, with mean 0 and standard deviation 1 over the plane."""
        weights = self._random(stream, index).standard_normal((3, 3)) / np.array([[1, 1, 2], [1, 2, 4], [2, 4, 8]])
        weights[0, 0] = 0
        weights /= np.sqrt((weights**2).sum())
        along_y, along_x = self._cosines
        return along_y @ weights @ along_x.T

    @cached_property
    def _fixed_shading(self) -> tuple[np.ndarray, np.ndarray]:
        return self.options.shading * self._shading(_SHARED), 1 + 0.2 * self._shading(_DEPTH)

    def _bias(self, section: int, z: int) -> np.ndarray:
        """Return the bias field of one plane on the lattice."""
        options, planes = self.options, self.sections[section]
        shared, variation = self._fixed_shading
        n = planes.z_stop - planes.z_start
        depth = (z - planes.z_start) / (n - 1) - 0.5 if n > 1 else 0.0
        own = options.section_shading * self._shading(_SECTION, section)
        return np.exp(shared + own - options.attenuation * depth * variation).astype(np.float32)

    # Mosaic.

    def footprint(self, section: int) -> np.ndarray:
        """Return the mosaic of a section: (Y, 2) int array, first and stop column of every row; equal if it is empty.

        The mosaic has four rows of tiles, each with its own offset along X.
        """
        height, width = self.options.size
        rows = np.zeros((height, 2), np.int64)
        rows[:, 1] = width
        if self.options.padding == 0:
            return rows
        draw = self._random(_MOSAIC, section)
        top, bottom = (int(draw.uniform(0.25, 1) * self.options.padding * height) for _ in range(2))
        left, right = (draw.uniform(0.25, 1, 4) * self.options.padding * width for _ in range(2))
        tile = np.minimum((np.arange(height) - top) * 4 // max(height - top - bottom, 1), 3).clip(0)
        rows[:, 0], rows[:, 1] = left.astype(int)[tile], width - right.astype(int)[tile]
        rows[:top], rows[height - bottom :] = 0, 0
        return rows

    # Planes.

    @cached_property
    def _speckle_table(self) -> np.ndarray:
        """Quantiles of the gamma distribution of mean 1; a single 1 if speckle is off."""
        if self.options.speckle == 0:
            return np.ones(1, np.float32)
        from scipy.special import gammaincinv

        looks = 1 / self.options.speckle**2
        table = gammaincinv(looks, (np.arange(1 << 14) + 0.5) / (1 << 14)) / looks
        return (1 + (table - table.mean()) * (self.options.speckle / table.std())).astype(np.float32)

    def planes(self, z_start: int, z_stop: int, threads: int | None = None) -> PhantomBlock:
        """Return planes `z_start` to `z_stop` with their truth.

        Raises
        ------
        InputError
            The planes are not a range inside the volume.
        """
        shape = self._checked(z_start, z_stop)
        observed, labels = np.empty(shape, self.options.dtype), np.empty(shape, np.uint8)
        truth, bias = np.empty(shape, np.float32), np.empty(shape, np.float32)
        self._each(z_start, z_stop, threads, lambda i: (observed[i], truth[i], bias[i], labels[i]))
        return PhantomBlock(z_start, observed, truth, bias, labels)

    def observed(self, z_start: int, z_stop: int, threads: int | None = None) -> np.ndarray:
        """Return the observed planes `z_start` to `z_stop`, in the dtype of the options."""
        shape = self._checked(z_start, z_stop)
        observed = np.empty(shape, self.options.dtype)
        unused = {"truth": np.float32, "bias": np.float32, "labels": np.uint8}

        def arrays(i: int) -> tuple[np.ndarray, ...]:
            return observed[i], *(scratch(name, shape[1:], dtype) for name, dtype in unused.items())

        self._each(z_start, z_stop, threads, arrays)
        return observed

    def _checked(self, z_start: int, z_stop: int) -> tuple[int, int, int]:
        if not 0 <= z_start < z_stop <= self.shape[0]:
            msg = f"planes must be a range within 0 to {self.shape[0]}, got {z_start} to {z_stop}"
            raise InputError(msg)
        return (z_stop - z_start, *self.options.size)

    def _each(self, z_start: int, z_stop: int, threads: int | None, arrays: Callable[[int], tuple[Any, ...]]) -> None:
        """Compute each plane into the arrays that `arrays` returns for its index in the block."""
        # Cached properties that all planes use are computed here, before the threads need them.
        shared = self._permutation, self._speckle_table, self._fixed_shading, self._unit_um
        del shared
        with ThreadPoolExecutor(threads or available_threads()) as pool:
            list(pool.map(lambda z: self._make(z, *arrays(z - z_start)), range(z_start, z_stop)))

    def _make(self, z: int, observed: np.ndarray, truth: np.ndarray, bias: np.ndarray, labels: np.ndarray) -> None:
        from n4flow.phantom.anatomy import FIELDS, anatomy_plane, image_plane

        options, index = self.options, int(self._section_of_plane[z])
        fault = dict(options.faults).get(index, "")
        _w0, _w_x, _v0, v_y, _u0, _u_x = pose = self._pose(z)
        lattice = self._bias(index, z)
        fields = np.empty((len(FIELDS), *lattice.shape), np.float32)
        anatomy_plane(self._permutation, *pose, float(options.texture), fields)
        integer = np.dtype(options.dtype).kind == "u"
        high = float(np.iinfo(options.dtype).max) if integer else np.inf
        factor = np.float32(self.section_gain[index] * self.plane_jitter[z])
        # Classes blend over one voxel, but over no less than the lattice of a large plane resolves.
        edge = max(v_y / self._step, 0.010)
        key = self._random(_SPECKLE, z).integers(0, 1 << 63, dtype=np.uint64)
        white, dark = np.float32(options.white_level), np.float32(options.dark)
        image_plane(
            fields, lattice, self._step, edge, self.footprint(index), white, factor, dark, self._speckle_table, key,
            fault == "damaged", integer, high, observed, truth, bias, labels,
        )  # fmt: skip
        if fault == "empty":
            observed[...] = 0
            labels[...] = CLASSES["padding"]


def _standardised(values: np.ndarray) -> np.ndarray:
    """Return `values` scaled to mean 0 and standard deviation 1; zeros if they do not vary."""
    centred = values - values.mean()
    spread = centred.std()
    return centred / spread if spread > 1e-12 else np.zeros_like(centred)
