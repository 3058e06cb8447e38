"""The end of a sample: its store put together, checked, described and vouched for."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from n4flow import __version__
from n4flow.compute.threads import reuse_threads
from n4flow.corrections.proof import Evidence
from n4flow.corrections.recipe import Recipe
from n4flow.errors import InputError
from n4flow.io.frame import Frame
from n4flow.io.omezarr.checksums import Checksums, add_checksums, describe
from n4flow.io.omezarr.layout import StoreLayout
from n4flow.io.omezarr.store import (
    Shown,
    create_store,
    kept_metadata,
    named,
    validate_store,
    voxel_files,
    write_omero,
)
from n4flow.io.publishing import CHECKSUMS_NAME, MASK_NAME
from n4flow.masks.tissue_source import TissueSource
from n4flow.pipeline.plan import Plan
from n4flow.pipeline.render import display_window, extent, output_scale
from n4flow.pipeline.stages import STAGES
from n4flow.pipeline.timing import dumps
from n4flow.report.html import write_report
from n4flow.report.metrics import pair_metrics, sections_table
from n4flow.report.pair import Pair
from n4flow.report.summary import SUMMARY_NAME
from n4flow.statistics.shrunken import Shrunken

METADATA = ("zarr.json", ".zarray", ".zattrs", ".zgroup")  # what every slab's store has alike


def create_stores(folder: Path, plan: Plan) -> list[tuple[Path, StoreLayout]]:
    """Make the empty stores of the result and of its mask in `folder`; return path and layout of each."""
    folder.mkdir(parents=True, exist_ok=True)
    stores = list(zip((folder / f"{plan.sample}.ome.zarr", folder / MASK_NAME), plan.stores, strict=False))
    for store, layout in stores:
        create_store(store, layout, kept_metadata(plan.volume) if layout is plan.layout else None)
    return stores


def link_files(piece: Path, whole: Path, without: Collection[str] = METADATA) -> None:
    """Bring the files of a part into a whole: by hard links, by copies where the disk is another one.

    Parameters
    ----------
    piece, whole : path
        A rendered slab and the store, by default.
    without : collection of str
        Names of files that are left out.

    Raises
    ------
    InputError
        Two parts hold the same file, so slabs were not cut at shards.
    """
    for source in sorted(piece.rglob("*")):
        target = whole / source.relative_to(piece)
        if source.name in without or source.is_dir():
            continue
        if target.exists():
            msg = f"two slabs wrote {target.relative_to(whole)} of {whole.name}; slabs must be whole shards"
            raise InputError(msg)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
                raise
            shutil.copyfile(source, target)


@reuse_threads()
def finish(
    folder: Path,
    plan: Plan,
    *,
    before: Shrunken,
    after: Shrunken,
    tissue: TissueSource,
    recipe: Recipe,
    evidence: Evidence | None = None,
    checksums: Sequence[Mapping[str, Checksums]],
    stages: Sequence[Mapping[str, Any]],
    parameters: Mapping[str, Any],
    command: str = "",
) -> dict[str, Any]:
    """Complete a sample's results around its rendered stores: display window, validation, recipe, tables, report.

    Parameters
    ----------
    folder : path
        Holds `SAMPLE.ome.zarr` and `mask.ome.zarr` with every shard in place.
    plan : Plan
    before, after : ShrunkenVolume or ShrunkenFiles
        The input and the result on one shrunken grid.
    tissue : TissueSource
    recipe : Recipe
    evidence : Evidence, optional
        What is proven about the input.
    checksums : sequence of mapping
        Of each rendered slab: the name of a store -> the checksums of the chunks that were written.
    stages : sequence of mapping
        The numbers of every step.
    parameters : mapping
        Resolved parameters.
    command : str, optional
        The command that does the run again.

    Returns
    -------
    dict
        What `metrics.json` holds.
    """
    store, scale = folder / f"{plan.sample}.ome.zarr", output_scale(recipe, plan.layout.dtype)
    low, high = extent(after, padded=plan.frame != Frame.whole(plan.volume.shape))
    window = display_window(after, tissue.small, scale)
    label, colour = named(plan.volume, plan.layout.channel, plan.layout.channels, plan.sample)
    write_omero(store, plan.sample, [Shown(label, window, (low * scale, high * scale), colour)])
    validate_store(store, plan.layout.channel if plan.layout.channels else None)
    stated = {"n4flow": __version__, "sample": plan.sample, "shape": list(plan.volume.shape)}
    if plan.mask_layout in plan.stores:
        validate_store(folder / MASK_NAME)
    if plan.one_mask:
        stated["mask"] = f"../{MASK_NAME}"
    recipe.save(folder / "recipe.json", **stated)
    pair = Pair(plan.sections, before, after, tissue.small, tissue.agarose_small, recipe, evidence)
    metrics = pair_metrics(pair)
    numbers: dict[str, Any] = {
        "sample": plan.sample,
        "n4flow": __version__,
        "verdict": metrics.pop("verdict"),
        "plan": plan.summary(),
        "metrics": metrics,
        "stages": stages,
        "parameters": parameters,
    }
    (folder / "sections.tsv").write_text(sections_table(numbers["metrics"]), encoding="utf-8")
    estimates = {stage.name: stage.estimates for stage in STAGES if stage.estimates}
    summary = write_report(
        folder / "report.html", numbers, pair, estimates, command=command, megabytes=parameters["report_mb"]
    )
    (folder / SUMMARY_NAME).write_text(dumps(summary) + "\n", encoding="utf-8")
    (folder / "metrics.json").write_text(dumps(numbers) + "\n", encoding="utf-8")
    stores = {}
    for name, layout in zip((store.name, MASK_NAME), plan.stores, strict=False):
        found: Checksums = {}
        for slab in checksums:
            add_checksums(found, slab[name])
        stores[name] = describe(layout, found)
    write_checksums(folder, plan.sample, stores)
    return numbers


def write_checksums(folder: Path, sample: str, stores: Mapping[str, Any]) -> None:
    """Write the checksums of every chunk, as its writer saw it, and of every other file of a sample's results."""
    chunks = {folder / name / key for name in stores for key in voxel_files(folder / name)}
    others = sorted(path for path in folder.rglob("*") if path.is_file() and path not in chunks)
    files = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in others}
    content = {"sample": sample, "n4flow": __version__, "stores": stores, "files": files}
    (folder / CHECKSUMS_NAME).write_text(dumps(content) + "\n", encoding="utf-8")
