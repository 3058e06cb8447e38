"""The options of ANTs' N4BiasFieldCorrection, as `n4flow n4` reads them: brackets, lists with x, and ANTs' defaults."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any, NamedTuple, TypeVar

from n4flow.errors import InputError

Number = TypeVar("Number", int, float)

# What ANTs' options are here. The page of documentation holds the same rows.
TABLE = (
    (
        "-d 2, -d 3",
        "checked against the image; 4 is refused, see --fit-channel",
    ),
    ("-i IMAGE", "INPUT; options that are not given then have ANTs' defaults"),
    ("-o OUT, -o [OUT,BIAS]", "OUTPUT, --bias"),
    ("-x MASK", "--mask, any value but 0; with -i, voxels outside keep their value, and without -x all are fitted"),
    ("-w WEIGHTS", "--weights"),
    ("-s N", "--shrink; with -i, 4, and one voxel of each block is fitted, as in ANTs, rather than its mean"),
    ("-c [50x50x50x50,0]", "--iterations and --tolerance; with -i, as on the left"),
    (
        "-b [MM,3]",
        "--spline-um, but in mm, and with ANTs' padding: knots are MM apart; all levels double; splines are cubic",
    ),
    ("-b [1x1x1,3]", "--control-points, as spans along X, Y, Z: 3 fewer; with -i, as on the left"),
    ("-t [0.15,0.01,200]", "width at half maximum, Wiener noise and bins of the histogram"),
    ("-r 0, -r 1", "1 maps the mask to the range it had; with -i, 1 where there is a mask"),
    ("-v 0, -v 1", "1 prints the convergence of each iteration"),
)
MOST_ITERATIONS = 999_999  # As of the parameter iterations.
BRACKETED = ("-o", "--output", "-c", "--convergence", "-b", "--bspline-fitting", "-t", "--histogram-sharpening")
SWITCHES = ("-r", "--rescale-intensities", "-v", "--verbose")
TRUTH = {"0": False, "false": False, "1": True, "true": True}


class Mesh(NamedTuple):
    """What -b says: the distance of knots in millimetres, or the spans along each axis, x first."""

    spline_mm: float | None
    spans: tuple[int, ...] | None


def normalized(arguments: Sequence[str]) -> list[str]:
    """Return arguments as the parser takes them: one text for brackets, one option for each file, 1 for a lone switch.

    >>> normalized(["-c", "[50x50,", "0.0]", "-v", "--apply-to", "a.nii", "b.nii", "-r", "0"])
    ['-c', '[50x50,0.0]', '-v', '1', '--apply-to', 'a.nii', '--apply-to', 'b.nii', '-r', '0']
    """
    left, done = list(arguments), []
    while left:
        argument = left.pop(0)
        if argument == "--apply-to":
            files = list(takewhile(lambda text: not text.startswith("-"), left))
            del left[: len(files)]
            done += [part for file in files for part in (argument, file)] or [argument]
            continue
        done.append(argument)
        if argument in SWITCHES and (not left or left[0].lower() not in TRUTH):
            done.append("1")
        elif argument in BRACKETED and left and left[0].lstrip().startswith("["):
            value = left.pop(0)
            while not value.rstrip().endswith("]") and left and not left[0].startswith("-"):
                value += left.pop(0)
            done.append(value)
    return done


def _parts(text: str, option: str, most: int, expected: str) -> list[str]:
    """Return what is between commas, within brackets or without."""
    inner = text.strip()
    opened, closed = inner.startswith("["), inner.endswith("]")
    found = [part.strip() for part in (inner[1:-1] if opened and closed else inner).split(",")]
    if opened != closed or not 1 <= len(found) <= most or not all(found):
        raise _fault(text, option, expected)
    return found


def _numbers(text: str, kind: Callable[[str], Number], option: str, expected: str, given: str) -> tuple[Number, ...]:
    """Return the numbers of a list with x between them."""
    try:
        return tuple(kind(part) for part in text.lower().split("x"))
    except ValueError:
        raise _fault(given, option, expected) from None


def _fault(given: object, option: str, expected: str) -> InputError:
    return InputError(f"{option} must be {expected}, got {str(given)!r}")


def output_files(text: str) -> tuple[str, str | None]:
    """Read -o: the corrected image, and the bias field where there is one.

    >>> output_files("[out.nii, bias.nii]"), output_files("out,1.nii")
    (('out.nii', 'bias.nii'), ('out,1.nii', None))
    """
    if not text.strip().startswith("["):
        return text, None
    found = _parts(text, "-o", 2, "OUT or [OUT,BIAS]")
    return found[0], found[1] if len(found) == 2 else None


def convergence(text: str) -> tuple[tuple[int, ...], float]:
    """Read -c: the most iterations of each level, and the threshold.

    >>> convergence("[50x40, 1e-4]"), convergence("[20]")
    (((50, 40), 0.0001), ((20,), 0.0))
    """
    expected = "[ITERATIONS x ITERATIONS ..., THRESHOLD], as in [50x50x50x50,0.0]"
    counts, *threshold = _parts(text, "-c", 2, expected)
    iterations = _numbers(counts, int, "-c", expected, text)
    if not all(1 <= count <= MOST_ITERATIONS for count in iterations):
        raise _fault(text, "-c", f"{expected} with whole numbers from 1 to {MOST_ITERATIONS}")
    return iterations, _numbers(threshold[0], float, "-c", expected, text)[0] if threshold else 0.0


def mesh(text: str) -> Mesh:
    """Read -b: a distance in millimetres or the number of spans, and the order of the spline.

    >>> mesh("[200]"), mesh("[1x2x3,3]")
    (Mesh(spline_mm=200.0, spans=None), Mesh(spline_mm=None, spans=(1, 2, 3)))
    """
    expected = "[MILLIMETRES] or spans along each axis, as in [200] or [1x1x1,3]"
    first, *order = _parts(text, "-b", 2, expected)
    if order and order[0] != "3":
        msg = f"-b asks for splines of order {order[0]}, and n4flow has cubic ones alone; give order 3, or leave it out"
        raise InputError(msg)
    if "x" not in first.lower():
        return Mesh(_numbers(first, float, "-b", expected, text)[0], None)
    spans = _numbers(first, int, "-b", expected, text)
    if min(spans) < 1:
        raise _fault(text, "-b", expected + " with at least one span")
    return Mesh(None, spans)


def control_points(spans: Sequence[int], dimensions: int) -> tuple[int, ...]:
    """Return the control points along (z, y, x) for spans along x, y and, in three dimensions, z."""
    if len(spans) != dimensions:
        given = "x".join(map(str, spans))
        msg = f"-b must have a number of spans for each of the {dimensions} axes of the image, got {given}"
        raise InputError(msg)
    return tuple(count + 3 for count in (*(1,) * (3 - dimensions), *reversed(spans)))


def sharpening(text: str) -> tuple[float, float, int]:
    """Read -t: the width at half maximum, the Wiener noise, and the number of bins.

    >>> sharpening("[0.2]"), sharpening("[0.15, 0.05, 100]")
    ((0.2, 0.01, 200), (0.15, 0.05, 100))
    """
    expected = "[WIDTH,NOISE,BINS], as in [0.15,0.01,200]"
    found = _parts(text, "-t", 3, expected)
    fwhm, wiener, bins = [*found, *("0.15", "0.01", "200")[len(found) :]]
    real = _numbers(f"{fwhm}x{wiener}", float, "-t", expected, text)
    return real[0], real[1], _numbers(bins, int, "-t", expected, text)[0]


def switch(text: str, option: str) -> bool:
    """Read 0 or 1."""
    if text.lower() not in TRUTH:
        raise _fault(text, option, "0 or 1")
    return TRUTH[text.lower()]


def check_dimensions(asked: int, shape: Sequence[int], source: Any) -> None:
    """Refuse -d of an image that has other dimensions.

    Raises
    ------
    InputError
        Also for 4: one field that varies along a fourth axis is not fitted.
    """
    if asked == 4:
        msg = (
            "-d 4 fits a field along a fourth axis, which n4flow does not; give --fit-channel mean for one field of all"
        )
        raise InputError(msg)
    found = dimensions(shape)
    if asked != found:
        msg = f"-d must be {found} for {source}, whose shape (z, y, x) is {tuple(shape)}, got {asked}"
        raise InputError(msg)


def dimensions(shape: Sequence[int]) -> int:
    """Return 2 for a volume of one plane, 3 for others."""
    return 2 if shape[0] == 1 else 3
