"""The streaming passes over full resolution: read runs of planes, keep statistics or a shrunken copy."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from n4flow.correction import Where
from n4flow.mask import expand_mask
from n4flow.recipe import Recipe
from n4flow.statistics import PlaneHistograms, ShrunkenVolume, plane_histograms, shrink_planes
from n4flow.volume import Volume

BLOCK_VOXELS = 1 << 24  # 64 MB of float32: large enough for the codecs, small enough for a laptop
READ_BYTES = 1 << 29  # of the input's own type: what may be read at once to decode deep chunks only once


@dataclass(frozen=True)
class TissueSource:
    """The tissue mask at full resolution, block by block.

    Parameters
    ----------
    small : (Z, y, x) bool array
        Mask on the shrunken grid.
    agarose_small : (y, x) bool array
        Agarose mask on the shrunken grid.
    shrink : int
        In-plane block size.
    given : Volume, optional
        The user's mask, which is then used as it is.
    """

    small: np.ndarray
    agarose_small: np.ndarray
    shrink: int
    given: Volume | None = None

    def save(self, path: str | Path) -> None:
        """Write both masks as packed bits; the user's own mask stays where it is."""
        with Path(path).open("wb") as stream:
            np.savez_compressed(
                stream,
                allow_pickle=False,
                tissue=np.packbits(self.small),
                shape=np.array(self.small.shape),
                agarose=self.agarose_small,
                shrink=np.array(self.shrink),
            )

    @classmethod
    def load(cls, path: str | Path, given: Volume | None = None) -> TissueSource:
        """Read what `save` wrote; `given` is the user's mask, if there is one."""
        with np.load(path, allow_pickle=False) as stored:
            shape = tuple(int(n) for n in stored["shape"])
            small = np.unpackbits(stored["tissue"], count=int(np.prod(shape))).reshape(shape).astype(bool)
            return cls(small, stored["agarose"].astype(bool), int(stored["shrink"]), given)

    def block(self, z: slice, height: int, width: int) -> np.ndarray:
        """Return the (z, Y, X) bool mask of whole planes."""
        if self.given is not None:
            return self.given.read(z) > 0
        return expand_mask(self.small, self.shrink, z, slice(0, height), slice(0, width))

    def agarose(self, height: int, width: int) -> np.ndarray:
        """Return the (Y, X) bool agarose mask."""
        small = self.agarose_small[None]
        return expand_mask(small, self.shrink, slice(0, 1), slice(0, height), slice(0, width))[0]


def stream(volume: Volume, z_start: int, z_stop: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first plane, block) for runs of planes in order, reading one run ahead.

    A run that is read begins at a multiple of the store's depth of chunks, so that no chunk is decoded twice, unless
    planes are so large that a layer of chunks would not fit into `READ_BYTES`. What is yielded has about
    `BLOCK_VOXELS`.
    """
    plane = volume.shape[1] * volume.shape[2]
    block, depth = max(1, BLOCK_VOXELS // plane), volume.chunks[0]
    step = max(block, READ_BYTES // (plane * volume.dtype.itemsize)) if depth > block else block
    step = step // depth * depth or step
    cuts = [z_start, *range((z_start // step + 1) * step, z_stop, step), z_stop]
    runs = list(pairwise(cuts))
    with ThreadPoolExecutor(max_workers=1) as reader:
        ahead = reader.submit(volume.read, slice(*runs[0]))
        for number, (start, stop) in enumerate(runs):
            values = ahead.result()
            if number + 1 < len(runs):
                ahead = reader.submit(volume.read, slice(*runs[number + 1]))
            for z in range(start, stop, block):
                yield z, values[z - start : z - start + block]


def corrected(block: np.ndarray, recipe: Recipe, start: int, volume: Volume, tissue: np.ndarray | None) -> np.ndarray:
    """Return a block of whole planes as float32 with the recipe applied."""
    return recipe.apply_block(block.astype(np.float32), Where(start, 0, 0, volume.shape, tissue))


def shrink_pass(
    volume: Volume, z_start: int, z_stop: int, shrink: int, *, recipe: Recipe, mask: Volume | None = None
) -> tuple[ShrunkenVolume, np.ndarray | None]:
    """Shrink planes `z_start` to `z_stop` in plane.

    Parameters
    ----------
    volume : Volume
    z_start, z_stop : int
    shrink : int
        In-plane block size.
    recipe : Recipe
        What is applied before (a background); empty for none.
    mask : Volume, optional
        A user's tissue mask.

    Returns
    -------
    shrunken : ShrunkenVolume
    tissue : (z, y, x) bool array or None
        Blocks of which the mask covers at least half.
    """
    parts, shares = [], []
    for start, block in stream(volume, z_start, z_stop):
        values = corrected(block, recipe, start, volume, None) if recipe else block
        parts.append(shrink_planes(values, shrink))
        if mask is not None:
            given = mask.read(slice(start, start + len(block))) > 0
            shares.append(_share(given, shrink) >= 0.5)
    return ShrunkenVolume.concatenate(parts), np.concatenate(shares) if shares else None


def _share(given: np.ndarray, shrink: int) -> np.ndarray:
    """Return the share of true voxels in each in-plane block; blocks at the border may be smaller."""
    _planes, height, width = given.shape
    rows, columns = np.arange(0, height, shrink), np.arange(0, width, shrink)
    sums = np.add.reduceat(np.add.reduceat(given.astype(np.int32), rows, axis=1), columns, axis=2)
    sizes = np.minimum(shrink, height - rows)[:, None] * np.minimum(shrink, width - columns)[None]
    return sums / sizes[None]


def statistics_pass(
    volume: Volume, z_start: int, z_stop: int, *, recipe: Recipe, tissue: TissueSource
) -> PlaneHistograms:
    """Return the histograms of planes `z_start` to `z_stop` after `recipe`: tissue, agarose, all valid voxels."""
    _planes, height, width = volume.shape
    agarose = tissue.agarose(height, width)
    parts = []
    for start, block in stream(volume, z_start, z_stop):
        inside = tissue.block(slice(start, start + len(block)), height, width)
        parts.append(plane_histograms(corrected(block, recipe, start, volume, inside), inside, agarose, z_start=start))
    return PlaneHistograms.concatenate(parts)
