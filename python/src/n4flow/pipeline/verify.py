"""Check results again: every voxel, every file, every statement of the provenance against the others."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from n4flow.compute.threads import available_threads
from n4flow.corrections.recipe import Recipe, recipes
from n4flow.errors import InputError, N4flowError, reason
from n4flow.io.omezarr.checksums import chunk_checksum, describe_level, grid
from n4flow.io.omezarr.store import validate_store, voxel_files
from n4flow.io.open import open_volume
from n4flow.io.publishing import CHECKSUMS_NAME
from n4flow.io.volume import Volume
from n4flow.pipeline.provenance import (
    CRATE_NAME,
    CRATE_SUM,
    ENGINE_INFO,
    INFO,
    WORKFLOW_INFO,
    WRITTEN_INFO,
    crate_sum,
    sample_digests,
)
from n4flow.report.summary import INDEX_NAME


@dataclass(frozen=True)
class Verified:
    """What was found to be as it was written."""

    samples: tuple[str, ...]
    files: int
    chunks: int


def verify(outdir: str | Path) -> Verified:
    """Check the results of a run again: `OUTDIR`, or the folder of one sample.

    Every file is compared with its SHA-256, every chunk of every pyramid level is decoded and compared with the
    checksum that its writer took, the stores' metadata is validated, recipes are loaded, and the RO-Crate must name
    the same digests. Nothing else may be there, no link and no empty folder either.

    Parameters
    ----------
    outdir : path

    Returns
    -------
    Verified

    Raises
    ------
    InputError
        There are no results.
    N4flowError
        The first difference: where it is, what was expected and what was found.
    """
    outdir = Path(outdir)
    whole_run = not (outdir / CHECKSUMS_NAME).is_file()
    marks = ("recipe.json", CHECKSUMS_NAME)
    folders = sorted({path.parent for mark in marks for path in outdir.glob(f"*/{mark}")}) if whole_run else [outdir]
    if not folders:
        msg = f"{outdir} holds no results of n4flow; give the outdir of a run, or the folder of one sample"
        raise InputError(msg)
    if whole_run:
        info = [f"{INFO}/{name}" for name in (*WRITTEN_INFO, *WORKFLOW_INFO, *ENGINE_INFO, CRATE_SUM)]
        _refuse_foreign(outdir, {CRATE_NAME, INDEX_NAME, *info}, [path.name for path in folders])
    counts = [_verify_sample(folder) for folder in folders]
    files, chunks = (sum(numbers) for numbers in zip(*counts, strict=True))
    if whole_run:
        files += _verify_crate(outdir)
    return Verified(tuple(folder.name for folder in folders), files, chunks)


def _verify_sample(folder: Path) -> tuple[int, int]:
    _check_kind(folder / CHECKSUMS_NAME)
    try:
        stated = json.loads((folder / CHECKSUMS_NAME).read_text(encoding="utf-8"))
        files, stores = dict(stated["files"]), dict(stated["stores"])
    except Exception as error:  # a boundary as `reading`, with the exit code of a difference
        msg = f"{folder / CHECKSUMS_NAME} cannot be read ({reason(error)}); publish the sample again"
        raise N4flowError(msg) from error
    for name, expected in files.items():
        _compare_file(folder / name, expected)
    voxels = {f"{name}/{key}" for name in stores for key in voxel_files(folder / name)}
    _refuse_foreign(folder, {CHECKSUMS_NAME, *files, *voxels})
    chunks = 0
    for name, store in stores.items():
        if (difference := first_difference(folder / name, store)) is not None:
            raise N4flowError(difference)
        validate_store(folder / name)
        chunks += sum(len(level["checksums"]) for level in store["levels"])
    for recipe in recipes(folder / "recipe.json"):
        Recipe.load(recipe)
    return len(files) + 1, chunks


def _refuse_foreign(folder: Path, known: Collection[str], apart: Collection[str] = ()) -> None:
    """Refuse what lies in a folder, at any depth, and is neither a known file nor a folder that leads to one.

    Folders `apart` may be there, and are not looked into.
    """
    above = {str(parent) for name in known for parent in PurePosixPath(name).parents}
    pending = [""]
    while pending:
        with os.scandir(folder / pending.pop()) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                path = Path(entry.path)
                name = path.relative_to(folder).as_posix()
                if entry.is_symlink() and name in (*known, *above, *apart):
                    msg = f"{path} is a link, and the run wrote none; publish the sample again"
                    raise N4flowError(msg)
                if entry.is_dir(follow_symlinks=False):
                    if name in above:
                        pending.append(name)
                    if name in above or name in apart:
                        continue
                elif entry.is_file(follow_symlinks=False) and name in known:
                    continue
                msg = f"{path} was not written by the run; remove it, unless a run is writing there"
                raise N4flowError(msg)


def first_difference(store: Path, stated: Mapping[str, Any]) -> str | None:
    """Compare the voxels of a store with what was stated when it was written.

    Parameters
    ----------
    store : path
    stated : mapping
        As `n4flow.io.omezarr.checksums.describe` returned it.

    Returns
    -------
    str or None
        Where the first difference is, in words; None where there is none.
    """
    for number, level in enumerate(stated["levels"]):
        where, chunks, checksums = f"{store}, level {level['path']}", level["chunks"], level["checksums"]
        if describe_level(level["path"], level["shape"], chunks, level["dtype"], checksums) != level:
            return f"{where}: its digest is not that of its checksums; {CHECKSUMS_NAME} was changed"
        channels = level["shape"][:-3]  # Their number, where the store has an axis of them.
        for channel in range(*channels or [1]):
            try:
                volume = open_volume(store, level=number, channel=channel, require_voxel_um=False)
            except InputError as error:
                return f"{where}: {error}"
            shape = [*([volume.reader.channels] if channels else []), *volume.shape]
            if shape != level["shape"] or volume.dtype.name != level["dtype"]:
                return f"{where} is {volume.dtype} {tuple(shape)}, {level['dtype']} {tuple(level['shape'])} was written"
            own = checksums[channel * len(checksums) // channels[0] :] if channels else checksums
            found = _checksums(volume, chunks[-3:])
            for index, expected, (box, checksum) in zip(grid(volume.shape, chunks[-3:]), own, found, strict=False):
                if checksum != expected:
                    ends = zip("zyx", (s.start for s in box), (s.stop - 1 for s in box), strict=True)
                    voxels = ", ".join(f"{axis} {a} to {b}" for axis, a, b in ends)
                    key = "/".join(map(str, [*([channel] if channels else []), *index]))
                    place = f"{where}, chunk {key} (voxels {voxels})"
                    return f"{place} has checksum {checksum}, {expected} was written; publish the sample again"
    return None


def _checksums(volume: Volume, chunks: Sequence[int]) -> Iterator[tuple[tuple[slice, ...], str]]:
    """Yield the box and the checksum of every chunk; several are read at once, few are held."""
    boxes = [
        tuple(slice(i * c, min((i + 1) * c, n)) for i, c, n in zip(index, chunks, volume.shape, strict=True))
        for index in grid(volume.shape, chunks)
    ]
    threads = available_threads()
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(boxes), 8 * threads):
            batch = boxes[start : start + 8 * threads]
            yield from zip(batch, pool.map(partial(_checksum, volume), batch), strict=True)


def _checksum(volume: Volume, box: tuple[slice, ...]) -> str:
    try:
        block = volume.read(*box)
    except InputError as error:
        return f"none ({error})"
    return f"{chunk_checksum(block, block.shape):08x}"


def _check_kind(path: Path) -> None:
    """Refuse a pipe, a socket or a device in the place of a file: it may be read for ever."""
    if path.exists() and not path.is_file():
        msg = f"{path} is no regular file; publish the sample again"
        raise N4flowError(msg)


def _compare_file(path: Path, expected: str) -> None:
    _check_kind(path)
    try:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        msg = f"{path} cannot be read ({error.strerror}); publish the sample again"
        raise N4flowError(msg) from error
    if found != expected:
        msg = f"{path} has SHA-256 {found}, {expected} was written; publish the sample again"
        raise N4flowError(msg)


def _verify_crate(outdir: Path) -> int:
    """Check that the RO-Crate can be read, that its files are as it says, and that the stores have its digests."""
    from rocrate.rocrate import ROCrate

    path, stated = outdir / CRATE_NAME, outdir / INFO / CRATE_SUM
    try:
        expected, found = stated.read_bytes(), crate_sum(outdir).encode()
        crate = ROCrate(outdir) if found == expected else None
    except Exception as error:
        msg = f"{path} is not an RO-Crate ({reason(error)}); run the workflow again with -resume"
        raise N4flowError(msg) from error
    if crate is None:
        msg = (
            f"{path} has SHA-256 {found[:64].decode()}, and {stated} says otherwise; one of them was changed: run again"
        )
        raise N4flowError(msg)
    files = [entity for entity in crate.get_entities() if entity.get("sha256")]
    for entity in files:
        _compare_file(outdir / entity.id, entity["sha256"])
    for store in (entity for entity in crate.get_entities() if entity.get("additionalType") == "OME-Zarr"):
        sample, _slash, name = store.id.rstrip("/").partition("/")
        digest = sample_digests(outdir / sample / CHECKSUMS_NAME).get(name)
        if store["identifier"] != digest:
            msg = f"{path} names digest {store['identifier']} for {store.id}, {CHECKSUMS_NAME} has {digest}; run again"
            raise N4flowError(msg)
    return len(files)
