"""The pictures of a report: three planes through the tissue, as small images with outlines, cuts and a scale bar.

A picture is a `Panel`, which the template draws as inline SVG: the pixels are one PNG or JPEG, everything else is lines
and text, so that it stays sharp in print and follows the page's colours.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from n4flow.report.pair import Pair, log_bias_fields

PAGE_WIDTH = 1080  # The three planes share this width, in px.
MOST_PIXELS = 640  # A plane with more pixels along a side is averaged down.
LEVELS = 255  # Grey levels of a pixel; 0 also stands for one without a valid value.
SMALL_SIDE = 280  # Longest side in pixels of the pair at the top of the page.
SMALL = 40_000  # A picture of at most this many pixels is stored without loss, if it is not one of many.
FLATTEST, TALLEST = 0.3, 1.6  # Z keeps its true scale if height over width lies between the two.
# ColorBrewer's PuOr from its end: it diverges around 1 and is safe for colour-blind readers.
FIELD_COLOURS = "2d004b 542788 8073ac b2abd2 d8daeb f7f7f7 fee0b6 fdb863 e08214 b35806 7f3b08"
PLANES = ("xy", "xz", "yz")
OUTLINES = {"tissue": "tissue", "agarose": "agarose", "edge": "tissue"}  # CSS class of a line -> the mask it surrounds
IMAGES = ("before", "after", "valid", "tissue", "agarose", "field")


@dataclass(frozen=True)
class Panel:
    """One picture: what the template needs to draw it, in px of the drawing."""

    name: str
    title: str
    width: float
    height: float
    uri: str
    invalid: str = ""  # SVG path around pixels without a valid value
    outlines: dict[str, str] = field(default_factory=dict)  # SVG paths by class: a key of OUTLINES
    cuts: tuple[float, ...] = ()  # heights of the cuts between sections
    flagged: tuple[tuple[float, float], ...] = ()  # top and height of flagged sections
    marks: tuple[tuple[float, float], ...] = ()  # (across, down) of the other two planes; NaN for none
    bar: tuple[float, str] | None = None  # length in px and label of the scale bar


class Taker(Protocol):
    """What `Views` hands the planes on to."""

    def take(self, z: int, images: Mapping[str, np.ndarray]) -> None:
        """Take a plane: all of `IMAGES` but the field by name, each (y, x)."""

    def take_field(self, start: int, field: np.ndarray) -> None:
        """Take planes (z, y, x) of the log bias field from plane `start` on."""


class Views:
    """Three planes through the tissue of a volume, before and after.

    Parameters
    ----------
    pair : Pair
    voxel_um : mapping or None
        Voxel size of the full-resolution volume in micrometres by axis name; cubes of 1 without it.
    taker : Taker, optional
        Takes what it needs in the same pass over the planes.

    Attributes
    ----------
    z_stretch : float
        Factor by which Z is drawn longer than it is, 1 for true proportions.
    stacked : bool
        Whether xz and yz are flat enough to stand above each other beside xy.
    """

    def __init__(self, pair: Pair, voxel_um: Mapping[str, float] | None, taker: Taker | None = None) -> None:
        self.pair, self._taker = pair, taker
        self.known_size = voxel_um is not None
        size = dict(voxel_um) if voxel_um is not None else {"z": 1.0, "y": 1.0, "x": 1.0}
        depth, height, width = pair.shape
        extent = {"z": depth * size["z"], "y": height * size["y"] * pair.shrink, "x": width * size["x"] * pair.shrink}
        across = max(extent["x"], extent["y"])
        wanted = min(max(extent["z"], FLATTEST * across), TALLEST * across)
        self.z_stretch = float(f"{wanted / extent['z']:.2g}") if wanted != extent["z"] else 1.0
        extent["z"] *= self.z_stretch
        self.stacked = depth > 1 and 2 * extent["z"] <= 1.2 * extent["y"]
        widths = extent["x"] + across if self.stacked else 2 * extent["x"] + extent["y"]
        self.px_per_um = PAGE_WIDTH / (widths if depth > 1 else max(2 * extent["x"], extent["y"]))
        self.px = {axis: length * self.px_per_um for axis, length in extent.items()}
        self.centre = _centre(pair)
        self.images = self._gather()
        self._outlines: dict[tuple[str, str], str] = {}

    @property
    def planes(self) -> tuple[str, ...]:
        """The planes that can be drawn: a volume of a single plane has only xy."""
        return PLANES if self.pair.shape[0] > 1 else PLANES[:1]

    def _gather(self) -> dict[str, dict[str, np.ndarray]]:
        """Return the (down, across) pixels by plane and image; `field` is the bias field, 1 where there is none."""
        pair, (z, y, x) = self.pair, self.centre

        def lines(index: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
            full = {image: getattr(pair, image)(index) for image in IMAGES[:-1]}
            if self._taker is not None:
                self._taker.take(index, full)
            return {
                image: (pixels[y].copy(), pixels[:, x].copy()) for image, pixels in full.items()
            }  # A view would keep the plane.

        rows = pair.over(lines)
        images = {
            plane: {image: np.array([row[image][number] for row in rows]) for image in IMAGES[:-1]}
            for number, plane in enumerate(("xz", "yz"))
        }
        images["xy"] = {image: np.array(getattr(pair, image)(z)) for image in IMAGES[:-1]}
        for plane in PLANES:
            images[plane]["field"] = np.ones(images[plane]["before"].shape, np.float32)
        for start, field_run in log_bias_fields(pair.recipe, pair.shape):
            stop = start + len(field_run)
            if self._taker is not None:
                self._taker.take_field(start, field_run)
            images["xz"]["field"][start:stop] = np.exp(field_run[:, y])
            images["yz"]["field"][start:stop] = np.exp(field_run[:, :, x])
            if start <= z < stop:
                images["xy"]["field"] = np.exp(field_run[z - start])
        return images

    def grey(self, image: str, window: tuple[float, float], outlined: Iterable[str] = ()) -> list[Panel]:
        """Return the three planes of `before` or `after` in a grey window, with outlines of `tissue` or `agarose`."""
        low, high = window
        panels = []
        for plane in self.planes:
            scaled = (self.images[plane][image] - low) / (high - low)
            pixels = (255 * np.clip(np.nan_to_num(scaled), 0, 1)).round().astype(np.uint8)
            panels.append(self._panel(plane, pixels, tuple(outlined), image))
        return panels

    def coloured_field(self, limit: float) -> list[Panel]:
        """Return the three planes of the bias field, coloured from 1 / limit to limit on a log scale."""
        panels = []
        for plane in self.planes:
            scaled = np.log(self.images[plane]["field"]) / (2 * math.log(limit)) + 0.5
            panels.append(self._panel(plane, field_colours(np.clip(scaled, 0, 1)), ("edge",), "bias field"))
        return panels

    def small(self, image: str, window: tuple[float, float]) -> str:
        """Return plane xy of `before` or `after` in a grey window, at most `SMALL_SIDE` pixels wide and high."""
        found, side = self.images["xy"], -(-max(self.pair.shape[1:]) // SMALL_SIDE)
        return data_uri(grey(block_means(found[image], found["valid"], side), window), lossless=0)

    def _panel(self, plane: str, pixels: np.ndarray, outlined: Sequence[str], what: str) -> Panel:
        across, down = plane[0], plane[1]
        width, height = self.px[across], self.px[down]
        place = {"xy": ("z", 0), "xz": ("y", 1), "yz": ("x", 2)}[plane]
        scale_x, scale_y = width / pixels.shape[1], height / pixels.shape[0]
        position = dict(zip("zyx", self.centre, strict=True))
        sections, bar = self.pair.sections if down == "z" else (), None
        if plane == "xy" and self.known_size:
            length = nice_length(0.3 * width / self.px_per_um)
            bar = length * self.px_per_um, f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
        return Panel(
            name=plane,
            title=f"{what}, {plane} at {place[0]} = {self.centre[place[1]]}",
            width=width,
            height=height,
            uri=data_uri(pixels),
            invalid=self._outline(plane, "invalid", scale_x, scale_y),
            outlines={name: self._outline(plane, OUTLINES[name], scale_x, scale_y) for name in outlined},
            cuts=tuple(section.z_start * scale_y for section in sections[1:]),
            flagged=tuple(
                (section.z_start * scale_y, (section.z_stop - section.z_start) * scale_y)
                for section in sections
                if not section.usable
            ),
            marks=((position[across] + 0.5) * scale_x, (position[down] + 0.5) * scale_y),
            bar=bar,
        )

    def _outline(self, plane: str, name: str, scale_x: float, scale_y: float) -> str:
        """Return the border of a mask, or of the pixels that are not valid; each is computed once."""
        if (plane, name) not in self._outlines:
            mask = ~self.images[plane]["valid"] if name == "invalid" else self.images[plane][name]
            self._outlines[plane, name] = outline(mask, scale_x, scale_y)
        return self._outlines[plane, name]


def _centre(pair: Pair) -> tuple[int, int, int]:
    """Return (z, y, x) of the planes with most tissue near its centre of mass, the volume's middle without tissue."""
    usable = pair.sections.usable_planes
    z, y, x = (_busiest(count) for count in (pair.planes["tissue_pixels"] * usable, *pair.tissue_sums))
    return z, y, x


def _busiest(count: np.ndarray) -> int:
    """Return the index of the largest count within a tenth of the length around the centre of mass, or the nearest."""
    present = np.flatnonzero(count)
    if not present.size:
        return len(count) // 2
    away = np.abs(present - np.average(present, weights=count[present]))
    near = present[away <= max(len(count) / 10, away.min())]
    return int(near[np.argmax(count[near])])


def nice_length(length: float) -> float:
    """Return the largest of 1, 2, 5 times a power of ten that is not above `length`.

    >>> nice_length(730), nice_length(0.4)
    (500.0, 0.2)
    """
    power = 10.0 ** math.floor(math.log10(length))
    return float(f"{max(factor for factor in (1, 2, 5) if factor * power <= length * (1 + 1e-9)) * power:.1g}")


def field_colours(values: np.ndarray) -> np.ndarray:
    """Return uint8 (..., 3) colours of values from 0 to 1, between which those of `FIELD_COLOURS` are interpolated."""
    table = np.array([list(bytes.fromhex(colour)) for colour in FIELD_COLOURS.split()], float)
    places = np.linspace(0, 1, len(table))
    channels = [np.interp(np.nan_to_num(values, nan=0.5), places, channel) for channel in table.T]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def data_uri(pixels: np.ndarray, lossless: int = SMALL) -> str:
    """Return (y, x) or (y, x, 3) uint8 pixels as a data URI: up to so many as PNG, more as JPEG."""
    from PIL import Image

    image = Image.fromarray(pixels)
    factors = [math.ceil(size / MOST_PIXELS) for size in image.size]
    if max(factors) > 1:
        image = image.reduce((factors[0], factors[1]))
    stream = io.BytesIO()
    kind = "png" if image.width * image.height <= lossless else "jpeg"
    image.save(stream, kind, **({"optimize": True} if kind == "png" else {"quality": 88}))
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"


def outline(mask: np.ndarray, scale_x: float, scale_y: float) -> str:
    """Return the border of a (y, x) mask as an SVG path; pixel i covers i to i + 1 times the scale."""
    if not mask.any():
        return ""
    from skimage.measure import find_contours

    parts = []
    for contour in find_contours(np.pad(mask, 1).astype(np.float32), 0.5):
        # Points on a line are left out, and the last one, which only closes the path.
        step = np.diff(contour, axis=0)
        turns = step[:, 0] * np.roll(step[:, 1], 1) != step[:, 1] * np.roll(step[:, 0], 1)
        corners = contour[:-1][turns] - 0.5
        points = " ".join(f"{x * scale_x:.1f},{y * scale_y:.1f}" for y, x in corners)
        parts.append(f"M{points}Z")
    return "".join(parts)


def block_means(plane: np.ndarray, valid: np.ndarray, side: int) -> np.ndarray:
    """Return the mean over the valid pixels of each whole block of a (y, x) plane, NaN where there is none."""
    values = np.where(valid, plane, np.float32(0))
    counts: Any = valid
    if side > 1:
        values, counts = _block_sums(values, side), _block_sums(valid.astype(np.float32), side)
    return np.divide(values, counts, out=np.full(values.shape, np.nan, np.float32), where=np.asarray(counts) > 0)


def _block_sums(plane: np.ndarray, side: int) -> np.ndarray:
    rows, columns = (max(1, size // side) for size in plane.shape)
    cut = plane[: rows * side, : columns * side]
    along = np.add.reduce([cut[i::side] for i in range(min(side, len(cut)))])
    return np.asarray(np.add.reduce([along[:, i::side] for i in range(min(side, cut.shape[1]))]))


def grey(values: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """Return values as uint8 grey levels: 1 to 255 between the ends of the window, 0 for what is not finite."""
    low, high = window
    scaled = np.clip((values - np.float32(low)) * np.float32((LEVELS - 1) / (high - low)), 0, LEVELS - 1) + 1
    return np.nan_to_num(scaled, nan=0).round().astype(np.uint8)


def field_limit(numbers: Mapping[str, float | None]) -> float:
    """Return the end of the field's colour scale, which goes from 1 / limit to limit and contains p1 and p99.

    It is 1.05 at least.
    """
    spread = [abs(math.log(value)) for value in (numbers["p1"], numbers["p99"]) if value]
    return float(f"{math.exp(max([math.log(1.05), *spread])):.3g}")


def windows(pair: Pair, views: Views) -> dict[str, tuple[float, float]]:
    """Return the grey window of `before` and of `after`, which is the same in common units, and of `background`."""
    result = {}
    _planes, before, after = pair.sample()
    level, top = pair.units.level_after, 0.0
    if before.size:
        top = max(float(np.percentile(before, 98)), float(np.percentile(after, 99.5)))
    if top > 0:
        low = min(0.0, float(np.percentile(after, 0.5)))
        result["before"] = result["after"] = (level + low, level + top)
    else:
        for image in ("before", "after"):
            shown = np.concatenate([views.images[p][image][views.images[p]["valid"]] for p in views.planes])
            low, high = (float(q) for q in np.percentile(shown, [0.5, 99.5])) if shown.size else (0.0, 1.0)
            result[image] = (low, high if high > low else low + 1)
    background = _background(pair, views)
    if background is not None:
        (middle, spread), extent = background, result["after"][1] - result["after"][0]
        reach = min(max(4 * spread, 0.05 * extent), 0.3 * extent)
        result["background"] = (middle - reach, middle + reach)
    return result


def _background(pair: Pair, views: Views) -> tuple[float, float] | None:
    """Return level and noise of the background in the result's units: of agarose, or else of what is not tissue."""
    images = [views.images[plane] for plane in views.planes]
    chosen = [image["agarose"] if pair.units.from_agarose else image["valid"] & ~image["tissue"] for image in images]
    before, after = (
        np.concatenate([image[time][pixels] for image, pixels in zip(images, chosen, strict=True)])
        for time in ("before", "after")
    )
    if not pair.units.common or not before.size:
        return None
    spread = 1.4826 * float(np.median(np.abs(before - np.median(before))))
    return (pair.units.level_after if pair.units.from_agarose else float(np.median(after))), spread
