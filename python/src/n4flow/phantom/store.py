"""Write a phantom to disk: the volume block by block, its section table, and the truth beside it."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from n4flow.compute.progress import Listener, Progress, advance, counted
from n4flow.errors import InputError
from n4flow.io.formats import WRITTEN, ZARR, suffix_of, written_as
from n4flow.io.publishing import published
from n4flow.phantom.options import CLASSES
from n4flow.phantom.volume import PhantomBlock, PhantomVolume

MODEL = "observed = dark + truth * bias * section_gain * plane_jitter * speckle"
_RUN_VOXELS = 1 << 24  # voxels of the planes that are computed and written together, at most

# Stores of the truth: name, dtype, kind of pyramid, and the part of a block that is written to it.
TRUTH: tuple[tuple[str, str, str, Callable[[PhantomBlock], np.ndarray]], ...] = (
    ("truth", "float32", "image", lambda block: block.truth),
    ("bias", "float32", "image", lambda block: block.bias),
    ("tissue", "uint8", "labels", lambda block: block.tissue.view(np.uint8)),
    ("agarose", "uint8", "labels", lambda block: block.agarose.view(np.uint8)),
    ("labels", "uint8", "labels", lambda block: block.labels),
)


class Phantom(PhantomVolume):
    """A phantom that can be written to disk."""

    def write(
        self,
        path: str | Path,
        truth: str | Path | None = None,
        *,
        threads: int | None = None,
        ome_zarr_version: str = "0.5",
        progress: Listener | None = None,
    ) -> dict[str, Any]:
        """Write the volume, its section table beside it and, if `truth` is given, its true intensities and distortions.

        Memory does not grow with Z for OME-Zarr; volumes of other formats are written whole.

        Parameters
        ----------
        path : path
            `NAME.ome.zarr`, or any other suffix that `write_volume` knows. The section table is `NAME.sections.tsv`.
        truth : path, optional
            A folder for truth.ome.zarr, bias.ome.zarr (float32), tissue.ome.zarr, agarose.ome.zarr, labels.ome.zarr
            (uint8), sections.tsv, section_gain.tsv, plane_jitter.tsv and phantom.json.
        threads : int, optional
            By default all cores; the result does not depend on it.
        ome_zarr_version : {'0.5', '0.4'}
        progress : callable, optional
            Called with a `Progress`, in planes, after each run of planes.

        Returns
        -------
        dict
            Paths of the files, shape, number of voxels, seconds.

        Raises
        ------
        InputError
            `path` exists, `truth` is not an empty folder, or the suffix is unknown.
        """
        path, truth = Path(path), None if truth is None else Path(truth)
        suffix = suffix_of(path, (s for s in WRITTEN if len(s) < len(path.name)))
        if not suffix:
            known = ", ".join(WRITTEN)
            msg = f"phantom: expected a name that ends in one of {known}, got {path.name!r}; give NAME.ome.zarr"
            raise InputError(msg)
        table = path.with_name(path.name[: -len(suffix)] + ".sections.tsv")
        for there in (path, table):
            if there.exists():
                msg = f"phantom: {there} exists already; remove it or choose another name"
                raise InputError(msg)
        if truth is not None and truth.exists() and (not truth.is_dir() or any(truth.iterdir())):
            msg = (
                f"phantom: the truth needs a folder that is new or empty, got {truth}; remove it or choose another name"
            )
            raise InputError(msg)
        started = time.perf_counter()
        is_zarr = written_as(path) is ZARR
        if not is_zarr:
            from n4flow.io.writers import write_volume

            write_volume(path, self.observed(0, self.shape[0], threads), voxel_um=self.voxel_um)
        with counted(Progress("PHANTOM", self.shape[0], "planes"), progress):
            _write_stores(self, path if is_zarr else None, truth, threads, ome_zarr_version)
        self.sections.write(table)
        if truth is not None:
            _write_tables(self, truth)
        seconds = time.perf_counter() - started
        voxels = int(np.prod(self.shape))
        return {
            "store": str(path),
            "sections": str(table),
            "truth": str(truth) if truth is not None else None,
            "shape": list(self.shape),
            "dtype": self.options.dtype,
            "voxel_um": self.voxel_um,
            "voxels": voxels,
            "seconds": round(seconds, 3),
            "voxels_per_second": round(voxels / seconds),
        }


def _write_stores(
    phantom: PhantomVolume,
    path: Path | None,
    truth: Path | None,
    threads: int | None,
    version: str,
) -> None:
    """Compute the planes once, a run of them at a time, and write them to every store.

    A run is a power of two of planes, so that runs fill the chunks of a store evenly.
    """
    from n4flow.io.omezarr.planning import plan_layout
    from n4flow.io.omezarr.slab_writer import SlabWriter
    from n4flow.io.omezarr.store import Shown, create_store, write_omero

    options, depth = phantom.options, phantom.shape[0]
    wanted: list[tuple[Path, str, str, Callable[[PhantomBlock], np.ndarray]]] = []
    if path is not None:
        wanted.append((path, options.dtype, "image", lambda block: block.observed))
    if truth is not None:
        truth.mkdir(parents=True, exist_ok=True)
        wanted += [(truth / f"{name}.ome.zarr", dtype, kind, part) for name, dtype, kind, part in TRUTH]
    if not wanted:
        return
    most = max(1, min(32, _RUN_VOXELS // (phantom.shape[1] * phantom.shape[2])))
    step = 1 << (most.bit_length() - 1)
    with ExitStack() as stores:
        partial = [stores.enter_context(published(store)) for store, *_rest in wanted]
        writers = []
        for place, (store, dtype, kind, _part) in zip(partial, wanted, strict=True):
            layout = plan_layout(phantom.shape, dtype, phantom.voxel_um, version=version, kind=kind)
            create_store(place, layout)
            if kind == "image":
                high = 1.0 if store.name.startswith("bias") else options.white_level
                name = store.name.partition(".")[0]
                write_omero(place, name, [Shown(name, (0.0, 1.5 * high), (0.0, 4.0 * high))])
            writers.append(SlabWriter(place, layout, 0, depth, threads=threads))
        for start in range(0, depth, step):
            stop = min(start + step, depth)
            if truth is None:
                writers[0].write(phantom.observed(start, stop, threads), start)
            else:
                block = phantom.planes(start, stop, threads)
                for writer, (_store, _dtype, _kind, part) in zip(writers, wanted, strict=True):
                    writer.write(part(block), start)
            advance(stop - start)
        for writer in writers:
            writer.close()


def _write_tables(phantom: PhantomVolume, truth: Path) -> None:
    """Write the part of the truth that is no volume: sections, gains, jitter and every option."""
    from n4flow.phantom.anatomy import LEVELS

    phantom.sections.write(truth / "sections.tsv")
    gains = zip(phantom.sections, phantom.section_gain, strict=True)
    _write_tsv(
        truth / "section_gain.tsv",
        ("id", "z_start", "z_stop", "gain"),
        [(s.id, s.z_start, s.z_stop, f"{gain:.9g}") for s, gain in gains],
    )
    names = [phantom.sections[int(i)].id for i in phantom.sections.section_of_plane]
    _write_tsv(
        truth / "plane_jitter.tsv",
        ("z", "section", "jitter"),
        [(z, name, f"{jitter:.9g}") for z, (name, jitter) in enumerate(zip(names, phantom.plane_jitter, strict=True))],
    )
    options = phantom.options
    described = {
        "model": MODEL,
        "shape": phantom.shape,
        "axes": "ZYX",
        "options": dataclasses.asdict(options),
        "labels": CLASSES,
        "class_intensity": {name: round(level * options.white_level, 6) for name, level in LEVELS.items()},
        "faults": [{"section": phantom.sections[i].id, "fault": fault} for i, fault in options.faults],
    }
    (truth / "phantom.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def _write_tsv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in (header, *rows)), encoding="utf-8")
