"""Convert lengths that files state to micrometres."""

from __future__ import annotations

# Names of OME-NGFF (UDUNITS-2) and OME-XML, and the short forms that ImageJ and others write.
MICROMETRES = {
    "angstrom": 1e-4,
    "Å": 1e-4,  # letter
    "\N{ANGSTROM SIGN}": 1e-4,
    "picometer": 1e-6,
    "pm": 1e-6,
    "nanometer": 1e-3,
    "nanometre": 1e-3,
    "nm": 1e-3,
    "micrometer": 1.0,
    "micrometre": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    "um": 1.0,
    "µm": 1.0,  # micro sign
    "μm": 1.0,  # Greek mu
    "\\u00b5m": 1.0,  # as ImageJ escapes it
    "millimeter": 1e3,
    "millimetre": 1e3,
    "mm": 1e3,
    "centimeter": 1e4,
    "centimetre": 1e4,
    "cm": 1e4,
    "meter": 1e6,
    "metre": 1e6,
    "m": 1e6,
    "inch": 25400.0,
    "in": 25400.0,
    "foot": 304800.0,
    "ft": 304800.0,
}


def micrometres_per(unit: object) -> float | None:
    """Return the micrometres in a unit of length, or None if it is not a known one.

    >>> micrometres_per("millimeter"), micrometres_per("pixel"), micrometres_per(None)
    (1000.0, None, None)
    """
    if not isinstance(unit, str):
        return None
    name = unit.strip()
    # Only the prefix distinguishes a megametre from a millimetre, so short forms keep their case.
    return MICROMETRES.get(name if len(name) <= 2 else name.lower())


def to_micrometres(value: float, unit_um: float) -> float:
    """Return `value` units in micrometres, free of the rounding that a conversion adds.

    The same spacing given in micrometres and in millimetres so becomes the same number.

    >>> to_micrometres(0.0041, 1e3), 0.0041 * 1e3
    (4.1, 4.1000000000000005)
    """
    return float(f"{value * unit_um:.12g}")
