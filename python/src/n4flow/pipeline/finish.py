"""The end of a sample: its store put together, checked, described and vouched for."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from n4flow import __version__
from n4flow.compute.threads import reuse_threads
from n4flow.corrections.proof import Evidence
from n4flow.corrections.recipe import MASK_NAME, Recipe
from n4flow.errors import InputError
from n4flow.io.frame import Frame
from n4flow.io.omezarr.checksums import Checksums, add_checksums, describe
from n4flow.io.omezarr.layout import StoreLayout, expected_shards
from n4flow.io.omezarr.store import create_store, kept_metadata, validate_store, write_omero
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

CHECKSUMS_NAME = "checksums.json"  # of a slab, then of everything that is published of a sample
METADATA = ("zarr.json", ".zarray", ".zattrs", ".zgroup")  # what every slab's store has alike


def create_stores(folder: Path, plan: Plan) -> list[tuple[Path, StoreLayout]]:
    """Make the empty stores of the result and of its mask in `folder`; return path and layout of each."""
    folder.mkdir(parents=True, exist_ok=True)
    image, mask = folder / f"{plan.sample}.ome.zarr", folder / MASK_NAME
    create_store(image, plan.layout, kept_metadata(plan.volume))
    create_store(mask, plan.mask_layout)
    return [(image, plan.layout), (mask, plan.mask_layout)]


def link_shards(piece: Path, store: Path) -> None:
    """Bring the shards of a rendered slab into the whole store: by hard links, by copies where the disk is another one.

    Raises
    ------
    InputError
        Two slabs hold the same shard, so they were not cut at shards.
    """
    for source in sorted(piece.rglob("*")):
        target = store / source.relative_to(piece)
        if source.name in METADATA or source.is_dir():
            continue
        if target.exists():
            msg = f"two slabs wrote {target.relative_to(store)} of {store.name}; slabs must be whole shards"
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
    write_omero(store, display_window(after, tissue.small, scale), (low * scale, high * scale), plan.sample)
    validate_store(store)
    validate_store(folder / MASK_NAME)
    recipe.save(folder / "recipe.json", n4flow=__version__, sample=plan.sample, shape=list(plan.volume.shape))
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
    layouts = {store.name: plan.layout, MASK_NAME: plan.mask_layout}
    _write_checksums(folder, plan.sample, layouts, checksums)
    return numbers


def _write_checksums(
    folder: Path, sample: str, layouts: Mapping[str, StoreLayout], slabs: Sequence[Mapping[str, Checksums]]
) -> None:
    """Write the checksums of every chunk, as its writer saw it, and of every other file of a sample's results."""
    stores, chunks = {}, set()
    for name, layout in layouts.items():
        found: Checksums = {}
        for slab in slabs:
            add_checksums(found, slab[name])
        stores[name] = describe(layout, found)
        chunks |= {folder / name / key for key in expected_shards(layout, 0, layout.shape[0])}
    others = sorted(path for path in folder.rglob("*") if path.is_file() and path not in chunks)
    files = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in others}
    content = {"sample": sample, "n4flow": __version__, "stores": stores, "files": files}
    (folder / CHECKSUMS_NAME).write_text(dumps(content) + "\n", encoding="utf-8")
