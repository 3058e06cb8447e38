"""Convert lengths that files state to micrometres."""

from __future__ import annotations

# By size in micrometres: names of OME-NGFF (UDUNITS-2) and OME-XML, and the short forms that ImageJ and others write.
# The letter and the sign of the angstrom, and the micro sign and the Greek mu, only look alike; ImageJ escapes the mu.
NAMES = {
    1e-6: "picometer pm",
    1e-4: "angstrom Å \N{ANGSTROM SIGN}",
    1e-3: "nanometer nanometre nm",
    1.0: "micrometer micrometre micron microns um \N{MICRO SIGN}m \N{GREEK SMALL LETTER MU}m \\u00b5m",
    1e3: "millimeter millimetre mm",
    1e4: "centimeter centimetre cm",
    1e6: "meter metre m",
    25400.0: "inch in",
    304800.0: "foot ft",
}
MICROMETRES = {name: size for size, names in NAMES.items() for name in names.split()}


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
