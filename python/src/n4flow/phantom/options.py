"""What a phantom is made of: its size, its instrument, and what goes wrong."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from n4flow.errors import InputError

# Labels of the class map. 0 lies outside the mosaic, where the observed volume is exactly zero.
CLASSES = {"padding": 0, "agarose": 1, "ventricle": 2, "grey": 3, "white": 4, "nucleus": 5}
# What can go wrong with a section: its flag in the section table, and what is seen.
FAULTS = {
    "empty": ("missing", "is all zero"),
    "damaged": ("damaged", "lost a part, with agarose in its place"),
    "saturated": ("damaged", "is eight times too bright"),
}
DTYPES = ("uint8", "uint16", "float32")


def _option(default: Any, text: str, **facts: Any) -> Any:
    """Return a field of `PhantomOptions`, declared once for the class, its checks and `n4flow phantom`.

    `text` says what the option means. Facts: `low` and `high`, the range, and `rule`, how a message states it;
    `metavar` on the command line; `switch`: the command line can only switch it off; `scaled`: the command's
    `--strength` multiplies it; `hidden`: the command line has no such option.
    """
    return field(default=default, metadata={"help": text, **facts})


def _strength(default: float, text: str, **facts: Any) -> Any:
    """Return a field that holds the strength of a distortion, 0 or more."""
    return _option(default, text, switch=True, scaled=True, low=0, rule="0 (off) or more", **facts)


@dataclass(frozen=True)
class PhantomOptions:
    """What the phantom is made of.

    Strengths of distortions are standard deviations of the log intensity; 0 switches a distortion off.
    """

    sections: int = _option(5, "Number of sections.", low=1)
    planes: int | tuple[int, ...] = _option(8, "Planes of every section; in Python also of each one.", low=1)
    size: tuple[int, int] = _option((160, 200), "Voxels of a plane along Y and X.", metavar="Y X")
    voxel_um: tuple[float, float, float] = _option(
        (50.0, 25.0, 25.0), "Voxel size along Z, Y and X in micrometres.", metavar="Z Y X"
    )
    seed: int = _option(0, "Another seed is another brain and another instrument.", low=0, rule="0 or more")
    oblique: float = _option(
        0.0,
        "Tilt of the planes against the brain's axis, in degrees about Y: the outline of the tissue then moves along X "
        "from plane to plane.",
        low=-60, high=60, rule="within -60 to 60 degrees", metavar="A",
    )  # fmt: skip
    dtype: str = _option(
        "uint16",
        "Type of the observed volume: uint16, uint8 or float32. Integers are rounded and saturated, and at least 1 "
        "inside the mosaic.",
    )
    shading: float = _strength(0.20, "Lateral shading shared by all sections.")
    section_shading: float = _strength(0.08, "Lateral shading of each section.")
    attenuation: float = _strength(
        0.5,
        "Attenuation with depth in the section: log of the ratio between its first and last plane in the middle of the "
        "field, varying by a fifth across the field.",
    )
    gain: float = _strength(0.12, "Brightness of each section; on the command line with its drift.")
    drift: float = _strength(0.05, "Brightness of the sections that varies slowly along the stack.", hidden=True)
    jitter: float = _strength(0.02, "Brightness of each plane relative to its section.")
    speckle: float = _option(
        0.15,
        "Standard deviation of the multiplicative, gamma-distributed speckle of mean 1.",
        switch=True, low=0, high=1, rule="within 0 (off) and 1 (fully developed)",
    )  # fmt: skip
    texture: float = _option(
        1.0,
        "Factor on the texture inside the tissue classes and the agarose; 0 makes them flat.",
        switch=True, low=0, high=1.5, rule="within 0 (off) and 1.5",
    )  # fmt: skip
    padding: float = _option(
        0.06,
        "Exact zeros around the mosaic: up to this share of the field at each border, different in each section.",
        switch=True, low=0, high=0.2, rule="within 0 (off) and 0.2 of the field",
    )  # fmt: skip
    dark: float = _option(
        0.0, "Additive level of the instrument, in intensity units.", hidden=True, low=0, rule="0 (off) or more"
    )
    white: float | None = _option(None, "Mean intensity of white matter; 14000, or 55 for uint8.", hidden=True)
    faults: tuple[tuple[int, str], ...] = _option(
        (),
        "Section index and what is wrong with it: "
        + ", ".join(f"'{name}' ({seen})" for name, (_flag, seen) in FAULTS.items())
        + ".",
        hidden=True,
    )
    flag_faults: bool = _option(True, "Flag faulty sections in the section table.")

    def __post_init__(self) -> None:
        counts = self.plane_counts
        self._require(len(counts) == self.sections >= 1, "planes must be one number, or one per section", counts)
        self._require(min(counts, default=1) >= 1, "a section must have at least one plane", counts)
        self._require(len(self.size) == 2 and min(self.size) >= 16, "size must be two numbers (Y X) from 16", self.size)
        voxel_ok = len(self.voxel_um) == 3 and all(0 < v < np.inf for v in self.voxel_um)
        self._require(voxel_ok, "voxel_um must be three lengths (Z Y X) above 0 micrometres", self.voxel_um)
        self._require(self.dtype in DTYPES, f"dtype must be one of {', '.join(DTYPES)}", self.dtype)
        for option in fields(self):
            if "rule" in option.metadata:
                value, high = getattr(self, option.name), option.metadata.get("high", np.finfo(float).max)
                within = option.metadata["low"] <= value <= high
                self._require(within, f"{option.name} must be {option.metadata['rule']}", value)
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


PhantomOptions.__doc__ = f"{PhantomOptions.__doc__}\n    Parameters\n    ----------\n" + "\n".join(
    f"    {option.name} : {option.type}, default {option.default!r}\n        {option.metadata['help']}"
    for option in fields(PhantomOptions)
)
