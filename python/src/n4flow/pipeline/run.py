"""The whole chain on one machine: the workflow's stages in order, with the workflow's parameters and results."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numba

from n4flow.corrections.background import SpatialMeanBackground
from n4flow.corrections.base import Correction
from n4flow.corrections.plane_range import estimate_plane_range
from n4flow.corrections.recipe import Recipe
from n4flow.io.disk_space import check_space
from n4flow.io.omezarr.checksums import Checksums
from n4flow.io.publishing import published, reclaim
from n4flow.io.volume import Volume
from n4flow.masks.packed_mask import PackedMask
from n4flow.masks.tissue_source import TissueSource
from n4flow.n4_bias.engine import choose_backend
from n4flow.pipeline.estimate import (
    BiasSettings,
    find_masks,
    fit_sections,
    fit_volume,
    harmonization,
    lookup,
    plane_gain,
)
from n4flow.pipeline.executors import Here, workplace
from n4flow.pipeline.finish import CHECKSUMS_NAME, create_stores, finish
from n4flow.pipeline.parameters import iteration_list, resolve
from n4flow.pipeline.passes import shrink_pass, statistics_pass
from n4flow.pipeline.plan import Plan, background_radius, make_plan
from n4flow.pipeline.provenance import Run, tool_versions, write_provenance
from n4flow.pipeline.render import render_slab
from n4flow.pipeline.samples import check_apart, read_samples
from n4flow.pipeline.timing import stage
from n4flow.statistics.histograms import HistogramFiles
from n4flow.statistics.shrunken import ShrunkenFiles

log = logging.getLogger("n4flow")


@dataclass(frozen=True)
class SampleResult:
    """Where one sample's results lie."""

    sample: str
    folder: Path
    numbers: dict[str, Any]  # what metrics.json holds

    @property
    def store(self) -> Path:
        """The corrected volume."""
        return self.folder / f"{self.sample}.ome.zarr"

    @property
    def report(self) -> Path:
        """The QC report."""
        return self.folder / "report.html"


@dataclass(frozen=True)
class Result:
    """Where the results of a run lie."""

    outdir: Path
    samples: tuple[SampleResult, ...]


def run(
    input: str | Path,
    outdir: str | Path,
    *,
    threads: int | None = None,
    dask_scheduler: str | None = None,
    **parameters: Any,
) -> Result:
    """Run the whole chain on this machine; voxels equal those of the workflow.

    Parameters
    ----------
    input : path
        A volume, or a CSV with columns sample, image and, optionally, mask, flat_field, sections, voxel_um.
    outdir : path
        One folder for each sample appears here, complete or not at all.
    threads : int, optional
        Threads of the bias field's fit; the compiled passes follow numba's setting.
    dask_scheduler : str, optional
        Address of a dask.distributed scheduler, on whose workers the passes over full resolution run, slab by slab;
        they must see input and `outdir` under the same paths.
    **parameters
        The workflow's parameters (`nextflow_schema.json`).

    Returns
    -------
    Result

    Raises
    ------
    InputError
        Unknown parameter, value out of range, or input that cannot be processed; before anything is computed.
    GpuError
        Backend `gpu` was asked for and no GPU works.
    """
    if dask_scheduler is not None:  # workers have working folders of their own
        input, outdir = Path(input).absolute(), Path(outdir).absolute()  # a link's own name is that of the sample
        parameters = {
            n: str(Path(v).absolute()) if n in ("mask", "flat_field") and v else v for n, v in parameters.items()
        }
    resolved = resolve({**parameters, "input": str(input), "outdir": str(outdir)})
    backend = choose_backend(resolved["backend"]) if resolved["bias"] != "off" else resolved["backend"]
    asked = []
    for sample, image, own in read_samples(Path(input)):
        plan = make_plan(image, resolved | own, sample)
        files = [(resolved | own)[name] for name in ("mask", "flat_field", "sections")]
        check_apart(Path(outdir) / plan.sample, [image, *files])
        reclaim(Path(outdir) / plan.sample)  # before there is asked for room
        asked.append((plan, resolved | own))
    results = []
    for number, (plan, settled) in enumerate(asked):
        _check_room(Path(outdir), [plan for plan, _settled in asked[number:]])  # now, not after hours of estimating
        for warning in plan.warnings:
            log.warning("warning: sample %s: %s", plan.sample, warning)
        with workplace(dask_scheduler) as place, published(Path(outdir) / plan.sample) as folder:
            numbers = _run_sample(plan, folder, settled, backend, threads, place)
        results.append(SampleResult(plan.sample, Path(outdir) / plan.sample, numbers))
    versions = "".join(f"n4flow run\t-\t{tool}\t{version}\n" for tool, version in tool_versions().items())
    settings = " ".join(f"{name}={value!r}" for name, value in sorted(parameters.items()))
    command = f"n4flow.run {input} {outdir} {settings}".strip()
    done = Run(command, resolved, [str(plan.volume.source) for plan, _settled in asked], versions)
    write_provenance(Path(outdir), done, [result.folder / CHECKSUMS_NAME for result in results])
    return Result(Path(outdir), tuple(results))


def _check_room(outdir: Path, plans: Sequence[Plan]) -> None:
    """Refuse to begin where the results of all samples that are left, and the files of one at a time, do not fit."""
    needs = [plan.needs() for plan in plans]
    nbytes, files = (
        sum(need[name] for need in needs) + max(need[f"work_{name}"] for need in needs) for name in ("bytes", "files")
    )
    check_space(outdir, nbytes, files)


def _run_sample(
    plan: Plan, folder: Path, parameters: Mapping[str, Any], backend: str, threads: int | None, place: Here
) -> dict[str, Any]:
    from n4flow import __version__

    volume, voxel_um, n_planes = plan.volume, plan.volume.voxel_um or {}, plan.volume.shape[0]
    clock = partial(stage, threads=numba.get_num_threads())
    stages: list[dict[str, Any]] = []
    corrections: list[Correction] = []
    if parameters["background_radius_um"] > 0:
        corrections.append(SpatialMeanBackground(background_radius(parameters["background_radius_um"], voxel_um)))

    log.info("%s: %s planes of %s x %s voxels", plan.sample, *volume.shape)
    work = folder.with_name("work")  # in the folder that is removed at the end, as the workflow's work directory
    work.mkdir(parents=True)
    with clock("SHRINK", shrink=plan.shrink, planes=[0, n_planes]) as numbers:
        files = [work / f"shrunken_{start:06d}.npz" for start, _stop in plan.slabs]
        shrink = partial(_shrink, plan, Recipe(corrections))
        found = place.results([partial(shrink, *task) for task in zip(plan.slabs, files, strict=True)])
        shrunken = ShrunkenFiles(files)
        given = PackedMask.concatenate(found) if plan.mask is not None else None
        counts = ("n_zero", "n_nonfinite", "n_negative", "n_saturated")
        numbers.update({name: int(shrunken.planes[name].sum()) for name in counts})
    stages.append(numbers)

    with clock("TISSUE_MASK") as numbers:
        tissue, said = find_masks(shrunken, plan.sections, given)
        tissue = replace(tissue, given=plan.mask)
        numbers.update(said)
    stages.append(numbers)

    settings = BiasSettings(
        parameters["spline_um"], iteration_list(parameters["iterations"]), parameters["tolerance"], backend, threads
    )
    if parameters["bias"] in ("sections", "two_pass"):
        with clock("N4_SECTIONS") as numbers:
            everything = (0, len(plan.sections))
            corrections.append(fit_sections(shrunken, tissue, plan.sections, everything, voxel_um, settings))
            numbers.update(corrections[-1].summary())
        stages.append(numbers)
    if parameters["bias"] in ("volume", "two_pass"):
        with clock("N4_VOLUME") as numbers:
            corrections.append(fit_volume(shrunken, tissue, plan.sections, voxel_um, settings, Recipe(corrections)))
            numbers.update(corrections[-1].summary())
        stages.append(numbers)

    if parameters["harmonize"] != "off":
        with clock("HARMONIZE") as numbers:
            asked = (parameters["harmonize"], Recipe(corrections), plan.flat_field)
            fields = harmonization(shrunken, tissue, plan.sections, *asked)
            corrections.append(fields)
            numbers.update(fields.summary())
        stages.append(numbers)

    corrections += _intensity(plan, tissue, Recipe(corrections), parameters, stages, place, work)
    recipe = Recipe(corrections)

    folder.mkdir(parents=True, exist_ok=True)
    image_out, mask_out = create_stores(folder, plan)
    files = [work / f"after_{start:06d}.npz" for start, _stop in plan.slabs]
    render = partial(_render, plan, recipe, image_out, mask_out, threads)
    tasks = [partial(render, tissue.part(*slab), slab, file) for slab, file in zip(plan.slabs, files, strict=True)]
    checksums, clocked = zip(*place.results(tasks), strict=True)
    stages += clocked
    return finish(
        folder,
        plan,
        before=shrunken,
        after=ShrunkenFiles(files),
        tissue=tissue,
        recipe=recipe,
        checksums=checksums,
        stages=stages,
        parameters=parameters,
        version=__version__,
    )


def _shrink(plan: Plan, recipe: Recipe, slab: tuple[int, int], out: Path) -> PackedMask | None:
    """Shrink a slab into a file; return the user's mask on the shrunken grid, if there is one."""
    shrunken, given = shrink_pass(plan.volume, *slab, plan.shrink, recipe=recipe, mask=plan.mask, frame=plan.frame)
    shrunken.save(out)
    return None if given is None else PackedMask.of(given)


def _render(
    plan: Plan,
    recipe: Recipe,
    image_out: Path,
    mask_out: Path,
    threads: int | None,
    tissue: TissueSource,
    slab: tuple[int, int],
    after: Path,
) -> tuple[dict[str, Checksums], dict[str, Any]]:
    """Render a slab, and its shrunken copy into a file; return the checksums of its chunks and the stage's numbers."""
    with stage("RENDER", threads=numba.get_num_threads(), planes=list(slab)) as numbers:
        rendered = render_slab(
            plan.volume,
            recipe,
            *slab,
            image_out=image_out,
            layout=plan.layout,
            shrink=plan.shrink,
            tissue=tissue.unpacked(),
            mask_out=mask_out,
            mask_layout=plan.mask_layout,
            threads=threads,
        )
        rendered.after.save(after)
        numbers.update(rendered.numbers())
    return rendered.checksums, numbers


def _count(volume: Volume, recipe: Recipe, tissue: TissueSource, slab: tuple[int, int], out: Path) -> None:
    """Count the intensities of a slab into a file."""
    statistics_pass(volume, *slab, recipe=recipe, tissue=tissue.unpacked()).save(out)


def _intensity(
    plan: Plan,
    tissue: TissueSource,
    recipe: Recipe,
    parameters: Mapping[str, Any],
    stages: list[dict[str, Any]],
    place: Here,
    work: Path,
) -> list[Correction]:
    """Estimate the pointwise corrections from histograms, one after the other."""
    found: list[Correction] = []
    clock = partial(stage, threads=numba.get_num_threads())
    if not parameters["normalize"] and parameters["match"] == "off" and parameters["smooth_z"] == 0:
        return found
    with clock("PLANE_STATISTICS", planes=[0, plan.volume.shape[0]]) as numbers:
        files = [work / f"histograms_{start:06d}.npz" for start, _stop in plan.slabs]
        count = partial(_count, plan.volume, recipe)
        tasks = [partial(count, tissue.part(*slab), slab, file) for slab, file in zip(plan.slabs, files, strict=True)]
        place.results(tasks)
        histograms = HistogramFiles(files)
    stages.append(numbers)
    if parameters["normalize"]:
        with clock("NORMALIZE") as numbers:
            found.append(estimate_plane_range(histograms, plan.sections, parameters["percentile_max"]))
            numbers.update(found[-1].summary())
        stages.append(numbers)
    if parameters["match"] != "off":
        with clock("MATCH_HISTOGRAMS") as numbers:
            found.append(lookup(histograms, Recipe(found), plan.sections, parameters["match"], parameters["n_bins"]))
            numbers.update(found[-1].summary())
        stages.append(numbers)
    if parameters["smooth_z"] > 0:
        with clock("SMOOTH_Z") as numbers:
            found.append(plane_gain(histograms, Recipe(found), plan.sections, parameters["smooth_z"]))
            numbers.update(found[-1].summary())
        stages.append(numbers)
    return found
