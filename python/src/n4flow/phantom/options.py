"""What a phantom is made of: its size, its instrument, and what goes wrong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from n4flow.errors import InputError

# Labels of the class map; 0 lies outside the mosaic, where the observed volume is exactly zero.
CLASSES = {"padding": 0, "agarose": 1, "ventricle": 2, "grey": 3, "white": 4, "nucleus": 5}
FAULTS = {"empty": "missing", "damaged": "damaged", "saturated": "damaged"}  # what can go wrong, and its flag
DTYPES = ("uint8", "uint16", "float32")


@dataclass(frozen=True)
class PhantomOptions:
    """What the phantom is made of. Sizes of distortions are standard deviations of the log intensity; 0 is off.

    Parameters
    ----------
    sections : int
        Number of sections.
    planes : int or tuple of int
        Planes of every section, or of each one.
    size : (int, int)
        Voxels along Y and X.
    voxel_um : (float, float, float)
        Voxel size along Z, Y and X in micrometres.
    seed : int
        Another seed is another brain and another instrument.
    oblique : float
        Tilt of the planes against the brain's axis, in degrees about Y; the footprint of the tissue then moves along X
        from plane to plane.
    dtype : {'uint16', 'uint8', 'float32'}
        Type of the observed volume. Integers are rounded and saturated, and at least 1 inside the mosaic.
    shading : float
        Lateral shading shared by all sections.
    section_shading : float
        Lateral shading of each section.
    attenuation : float
        Log of the ratio between the first and the last plane of a section, in the middle of the field; it varies by a
        fifth across the field.
    gain, drift : float
        Brightness of each section: independent, and slowly varying along the stack.
    jitter : float
        Brightness of each plane about its section's.
    speckle : float
        Standard deviation of the multiplicative, gamma-distributed speckle of mean 1.
    texture : float
        Factor on the texture inside classes, of agarose too; 0 makes them flat.
    padding : float
        The mosaic leaves up to this share of the field at each border exactly zero, different in each section.
    dark : float
        Additive level of the instrument, in intensity units.
    white : float, optional
        Mean intensity of white matter; 14000, or 55 for uint8.
    faults : tuple of (int, str)
        Section index and what is wrong with it: 'empty' (all zero), 'damaged' (a part torn off, agarose in its place)
        or 'saturated' (eight times too bright).
    flag_faults : bool
        Whether the section table says so.
    """

    sections: int = 5
    planes: int | tuple[int, ...] = 8
    size: tuple[int, int] = (160, 200)
    voxel_um: tuple[float, float, float] = (50.0, 25.0, 25.0)
    seed: int = 0
    oblique: float = 0.0
    dtype: str = "uint16"
    shading: float = 0.20
    section_shading: float = 0.08
    attenuation: float = 0.5
    gain: float = 0.12
    drift: float = 0.05
    jitter: float = 0.02
    speckle: float = 0.15
    texture: float = 1.0
    padding: float = 0.06
    dark: float = 0.0
    white: float | None = None
    faults: tuple[tuple[int, str], ...] = ()
    flag_faults: bool = True

    def __post_init__(self) -> None:
        counts = self.plane_counts
        self._require(len(counts) == self.sections >= 1, "planes must be one number, or one per section", counts)
        self._require(min(counts, default=1) >= 1, "a section must have at least one plane", counts)
        self._require(len(self.size) == 2 and min(self.size) >= 16, "size must be two numbers (Y X) from 16", self.size)
        voxel_ok = len(self.voxel_um) == 3 and all(0 < v < np.inf for v in self.voxel_um)
        self._require(voxel_ok, "voxel_um must be three lengths (Z Y X) above 0 micrometres", self.voxel_um)
        self._require(self.seed >= 0, "seed must be 0 or more", self.seed)
        self._require(abs(self.oblique) <= 60, "oblique must be within -60 to 60 degrees", self.oblique)
        self._require(self.dtype in DTYPES, f"dtype must be one of {', '.join(DTYPES)}", self.dtype)
        for name in ("shading", "section_shading", "attenuation", "gain", "drift", "jitter", "dark"):
            value = getattr(self, name)
            self._require(0 <= value < np.inf, f"{name} must be 0 (off) or more", value)
        self._require(0 <= self.texture <= 1.5, "texture must be within 0 (off) and 1.5", self.texture)
        self._require(0 <= self.speckle <= 1, "speckle must be within 0 (off) and 1 (fully developed)", self.speckle)
        self._require(0 <= self.padding <= 0.2, "padding must be within 0 (off) and 0.2 of the field", self.padding)
        self._require(self.white is None or 0 < self.white < np.inf, "white must be above 0", self.white)
        for index, fault in self.faults:
            self._require(
                0 <= index < self.sections and fault in FAULTS,
                f"a fault is a section index below {self.sections} and one of {', '.join(FAULTS)}",
                (index, fault),
            )

    @staticmethod
    def _require(fulfilled: bool, sentence: str, value: object) -> None:
        if not fulfilled:
            msg = f"phantom: {sentence}, got {value}"
            raise InputError(msg)

    @property
    def plane_counts(self) -> tuple[int, ...]:
        """Planes of each section."""
        if isinstance(self.planes, int):
            return (self.planes,) * self.sections
        return tuple(self.planes)

    @property
    def white_level(self) -> float:
        """Mean intensity of white matter."""
        if self.white is not None:
            return self.white
        return 55.0 if self.dtype == "uint8" else 14000.0
