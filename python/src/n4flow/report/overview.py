"""The volume shrunken further, in 8 bits: what the viewer of the report shows, and small pictures of single planes."""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from n4flow.report.pair import TIMES, Pair
from n4flow.report.pictures import LEVELS, block_means, data_uri, grey

BUNDLE = Path(__file__).with_name("niivue")  # The viewer, and the licences of what is in it.
VOXEL_BYTES = 2.9  # of the page at most: before and after in base 64, where all is noise, and a little for the masks
MOST_PICTURES = 60  # Sections of which the page has pictures.
PICTURE = 96  # Longest side of these in pixels.
TISSUE, AGAROSE = 1, 2  # Labels of the masks.


class Overview:
    """A volume before and after, its bias field and its masks, on a grid that is coarse enough for a page.

    A pixel is the mean of a block in plane. Along Z, planes are left out and not averaged, so that steps between
    sections stay as sharp as they are.

    Parameters
    ----------
    pair : Pair
    voxel_um : mapping or None
        Voxel size of the full-resolution volume by axis name; cubes without it.
    megabytes : float
        What the viewer may take of the page, its code included. There is none where nothing is left for voxels.
    pictured : iterable of int
        Planes of which there are small pictures.

    Attributes
    ----------
    shape : tuple of int
        (planes, y, x).
    planes : range
        The planes of the volume that are shown.
    shrink : int
        Side of a block in pixels of the pair.
    """

    def __init__(
        self, pair: Pair, voxel_um: Mapping[str, float] | None, megabytes: float, pictured: Iterable[int] = ()
    ) -> None:
        size = voxel_um or {"z": 1.0, "y": 1.0, "x": 1.0}
        spacing = size["z"], math.sqrt(size["y"] * size["x"]) * pair.shrink
        voxels = int((megabytes * 1e6 - 4 / 3 * _bundle().stat().st_size) / VOXEL_BYTES)
        self.shown = voxels >= pair.shape[0]
        step, self.shrink = grid(pair.shape, spacing, voxels) if self.shown else (pair.shape[0], 1)
        self.planes = range((pair.shape[0] - 1) % step // 2, pair.shape[0], step) if self.shown else range(0)
        self.shape = (len(self.planes), *(max(1, size // self.shrink) for size in pair.shape[1:]))
        self.images = {time: np.zeros(self.shape, np.float32) for time in TIMES}
        self.field = np.zeros(self.shape, np.float32)  # its log
        self.labels = np.zeros(self.shape, np.uint8)
        self._place = {z: place for place, z in enumerate(self.planes)}
        self._pictured = frozenset(pictured)
        self._pictures: dict[int, dict[str, np.ndarray]] = {}

    def take(self, z: int, images: Mapping[str, np.ndarray]) -> None:
        """Take a plane: `before`, `after`, `valid`, `tissue` and `agarose` of the pair, each (y, x)."""
        valid = images["valid"]
        if (place := self._place.get(z)) is not None:
            for time in TIMES:
                self.images[time][place] = block_means(images[time], valid, self.shrink)
            for label, mask in ((AGAROSE, images["agarose"]), (TISSUE, images["tissue"])):
                self.labels[place][self._middles(mask)] = label
        if z in self._pictured:
            side = math.ceil(max(valid.shape) / PICTURE)
            self._pictures[z] = {time: block_means(images[time], valid, side) for time in TIMES}

    def take_field(self, start: int, field: np.ndarray) -> None:
        """Take planes (z, y, x) of the log bias field from plane `start` on."""
        for z, plane in enumerate(field, start):
            if (place := self._place.get(z)) is not None:
                self.field[place] = self._middles(plane)

    def _middles(self, plane: np.ndarray) -> np.ndarray:
        """Return the pixel in the middle of each block."""
        first = self.shrink // 2 if min(plane.shape) > self.shrink // 2 else 0
        return plane[first :: self.shrink, first :: self.shrink][: self.shape[1], : self.shape[2]]

    def grey(self, time: str, window: tuple[float, float]) -> np.ndarray:
        """Return the volume as uint8: 1 at the lower end of the window, 255 at the upper, 0 without a valid value."""
        return grey(self.images[time], window)

    def picture(self, z: int, time: str, window: tuple[float, float]) -> str:
        """Return the small picture of a plane as a data URI."""
        return data_uri(grey(self._pictures[z][time], window), lossless=0)

    def coloured(self, limit: float) -> np.ndarray:
        """Return the bias field as uint8: 1 and 255 are 1 / limit and limit, in log steps."""
        scaled = np.clip(self.field / (2 * math.log(limit)) + 0.5, 0, 1)
        return np.asarray((1 + (LEVELS - 1) * scaled).round(), np.uint8)


def grid(shape: tuple[int, ...], spacing: tuple[float, float], most: int) -> tuple[int, int]:
    """Return which planes, one in how many, and which blocks in plane leave at most so many voxels.

    `spacing` is that of planes and of pixels; the grid that is left is as even along all axes as it can be.

    >>> grid((100, 200, 200), (50.0, 10.0), 10**6)  # pixels of 20 micrometres, every plane
    (1, 2)
    >>> grid((3000, 200, 200), (10.0, 10.0), 10**6)
    (5, 5)
    """
    for shrink in range(1, max(shape) + 1):
        step = min(max(1, round(shrink * spacing[1] / spacing[0])), shape[0])
        if math.ceil(shape[0] / step) * math.prod(max(1, size // shrink) for size in shape[1:]) <= most:
            return step, shrink
    return shape[0], max(shape)


def packed(values: np.ndarray) -> str:
    """Return bytes as the page carries them: compressed by gzip, in base 64."""
    # Most of it is noise, which a better compression does not make smaller.
    compressor = zlib.compressobj(1, zlib.DEFLATED, 31)
    return base64.b64encode(compressor.compress(values.tobytes()) + compressor.flush()).decode("ascii")


def bundle() -> str:
    """Return the code of the viewer as the page carries it."""
    return base64.b64encode(_bundle().read_bytes()).decode("ascii")


def _bundle() -> Path:
    return BUNDLE / "niivue.umd.js.gz"
