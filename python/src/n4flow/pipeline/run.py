"""The whole chain on one machine: the workflow's stages in order, with the workflow's parameters and results."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from n4flow.compute import clock
from n4flow.compute.progress import Listener, Progress, counted, peak_memory
from n4flow.compute.threads import thread_limit
from n4flow.corrections.bias_field import BiasCorrection
from n4flow.corrections.recipe import Recipe
from n4flow.display import Shown, axes, picture
from n4flow.errors import InputError, reading
from n4flow.io.address import Address, located
from n4flow.io.disk_space import check_space
from n4flow.io.omezarr.checksums import Checksums
from n4flow.io.omezarr.layout import StoreLayout
from n4flow.io.open import MEAN, open_volume
from n4flow.io.publishing import CHECKSUMS_NAME, check_replaceable, locked, published, reclaim
from n4flow.io.volume import Volume
from n4flow.masks.packed_mask import PackedMask
from n4flow.masks.tissue_source import TissueSource
from n4flow.pipeline.channels import in_order, join, make_plans
from n4flow.pipeline.estimate import Inputs, estimate, find_masks, prove, voxel_counts
from n4flow.pipeline.executors import Executor, executor
from n4flow.pipeline.finish import create_stores, finish
from n4flow.pipeline.parameters import command_line, iteration_list, opening, resolve
from n4flow.pipeline.passes import shrink_pass, statistics_pass
from n4flow.pipeline.plan import Plan, background, check_state, completed
from n4flow.pipeline.provenance import INFO, Run, write_provenance
from n4flow.pipeline.render import render_slab
from n4flow.pipeline.samples import check_apart, check_channel, read_samples
from n4flow.pipeline.stages import STAGES, Stage
from n4flow.pipeline.timing import stage
from n4flow.pipeline.versions import tool_versions
from n4flow.report.summary import SUMMARY_NAME
from n4flow.report.text import duration, size
from n4flow.statistics.histograms import HistogramFiles
from n4flow.statistics.shrunken import ShrunkenFiles

log = logging.getLogger("n4flow")
MOST_PIXELS = 1024  # Of a side of a plane that is drawn.
METRICS_NAME = "metrics.json"


@dataclass(frozen=True, repr=False)
class SampleResult(Shown):
    """Where one sample's results lie, and what was said of them."""

    sample: str
    folder: Path
    numbers: dict[str, Any]  # what metrics.json holds

    def facts(self) -> Mapping[str, str]:
        """Return name, verdict and folder."""
        sentence = str(self.numbers["verdict"]["sentence"])
        return {"sample": self.sample, "status": self.status, "folder": str(self.folder), "verdict": sentence}

    def plot(self, z: int | None = None) -> NDArray[np.object_]:
        """Draw a plane before and after, each with its own scale.

        Parameters
        ----------
        z : int, optional
            The plane; the one in the middle without it.

        Returns
        -------
        array of matplotlib axes

        Raises
        ------
        InputError
            matplotlib is not installed, there is no such plane, or the input is not where it was.
        """
        after = open_volume(self.store)
        depth = after.shape[0]
        chosen = depth // 2 if z is None else z
        if not 0 <= chosen < depth:
            msg = f"z must be from 0 to {depth - 1}, the planes of {self.sample}, got {z}"
            raise InputError(msg)
        places = axes(2)
        for place, (name, volume) in zip(places[0], (("before", self.before()), ("after", after)), strict=True):
            plane = volume.read(slice(chosen, chosen + 1))[0]
            step = -(-max(plane.shape) // MOST_PIXELS)
            ratio = (after.voxel_um or {"y": 1, "x": 1})["y"] / (after.voxel_um or {"y": 1, "x": 1})["x"]
            picture(place, plane[::step, ::step], f"{self.sample}, plane {chosen} {name}", aspect=ratio)
        return places

    def before(self) -> Volume:
        """Open the input as the run did.

        Raises
        ------
        InputError
            It is not where it was.
        """
        source = self.numbers["plan"].get("source")
        if source is None:
            msg = f"{self.folder} does not say where the input lay, as results of an early version do not"
            raise InputError(msg)
        return open_volume(source, **opening(self.numbers["parameters"]))

    @property
    def status(self) -> str:
        """The verdict: `pass`, or `look` where somebody should."""
        return str(self.numbers["verdict"]["status"])

    @property
    def store(self) -> Path:
        """The corrected volume."""
        return self.folder / f"{self.sample}.ome.zarr"

    @property
    def metrics(self) -> dict[str, Any]:
        """The metrics of the report; of several channels, those of each by its label."""
        if "channels" not in self.numbers:
            return dict(self.numbers["metrics"])
        files = {one["label"]: self.folder / one["folder"] / "metrics.json" for one in self.numbers["channels"]}
        return {label: json.loads(file.read_bytes())["metrics"] for label, file in files.items()}

    @property
    def report(self) -> Path:
        """The QC report."""
        return self.folder / "report.html"


@dataclass(frozen=True, repr=False)
class Result(Shown):
    """Where the results of a run lie."""

    outdir: Path
    samples: tuple[SampleResult, ...]

    @property
    def status(self) -> str:
        """`look` where that is the verdict of a sample, else `pass`."""
        return "look" if any(sample.status == "look" for sample in self.samples) else "pass"

    @property
    def store(self) -> Path:
        """The corrected volume of the only sample."""
        return self._only().store

    @property
    def report(self) -> Path:
        """The report of the only sample."""
        return self._only().report

    def _only(self) -> SampleResult:
        if len(self.samples) != 1:
            msg = f"the run has {len(self.samples)} samples; take one of result.samples"
            raise InputError(msg)
        return self.samples[0]

    def facts(self) -> Mapping[str, str]:
        """Return the folder, and the verdict of each sample."""
        return {"outdir": str(self.outdir)} | {sample.sample: sample.status for sample in self.samples}

    def plot(self, z: int | None = None) -> NDArray[np.object_]:
        """Draw a plane of the only sample before and after; see `SampleResult.plot`."""
        return self._only().plot(z)

    @classmethod
    def load(cls, outdir: str | Path) -> Result:
        """Read the results of a run, of `n4flow run` or the workflow, from its folder or from that of one sample.

        Raises
        ------
        InputError
            There are none.
        """
        place = Path(outdir)
        alone = (place / METRICS_NAME).is_file()
        files = [place / METRICS_NAME] if alone else sorted(place.glob(f"*/{METRICS_NAME}"))
        if not files:
            msg = f"{place} holds no results of n4flow; give the outdir of a run, or the folder of one sample"
            raise InputError(msg)
        found = []
        for file in files:
            with reading(file, "the numbers of a sample that n4flow wrote", small=True):
                numbers = json.loads(file.read_text(encoding="utf-8"))
                found.append(SampleResult(numbers["sample"], file.parent, numbers))
        return cls(place.parent if alone else place, tuple(found))

    def table(self) -> str:
        """Return what a run ends with, as the workflow does: verdict, store, report and a sentence of each sample."""
        rows = [("sample", "verdict", "store", "report")]
        rows += [(each.sample, each.status, str(each.store), str(each.report)) for each in self.samples]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        lines += [f"{each.sample}: {each.numbers['verdict']['sentence']}" for each in self.samples]
        return "\n".join(lines)


def run(
    input: str | Path,
    outdir: str | Path,
    *,
    threads: int | None = None,
    dask_scheduler: str | None = None,
    progress: Listener | None = None,
    **parameters: Any,
) -> Result:
    """Run the whole chain on this machine; voxels equal those of the workflow.

    Parameters
    ----------
    input : path
        A volume, or a CSV with columns sample, image and, optionally, mask, flat_field, sections, voxel_um, channel.
    outdir : path
        One folder for each sample appears here, complete or not at all.
    threads : int, optional
        Threads of the bias field's fit; other stages take the cores that the process may use.
    dask_scheduler : str, optional
        Address of a dask.distributed scheduler, on whose workers the passes over full resolution run, slab by slab;
        they must see input and `outdir` under the same paths.
    progress : callable, optional
        Is called with a `Progress`, now and then, while a stage of a sample runs. What `n4flow run` says in a log, a
        line a stage, is logged by the logger `n4flow`.
    **parameters
        The workflow's parameters (`nextflow_schema.json`).

    Returns
    -------
    Result

    Raises
    ------
    InputError
        Unknown parameter, value out of range, input that cannot be processed, or another run works in `outdir`; before
        anything is computed.
    GpuError
        Backend `gpu` was asked for and no GPU works.
    """
    if dask_scheduler is not None:  # workers have working folders of their own
        input, outdir = _absolute(input), Path(outdir).absolute()  # a link's own name is that of the sample
        parameters = {n: str(_absolute(v)) if n in ("mask", "flat_field") and v else v for n, v in parameters.items()}
    resolved = resolve({**parameters, "input": str(input), "outdir": str(outdir)})
    backend = resolved["backend"]
    if resolved["bias"] in ("volume", "two_pass"):  # sections are fitted on CPUs
        from n4flow.n4_bias.engine import choose_backend

        backend = choose_backend(backend)
    asked = []
    for sample, image, own in read_samples(located(input)):
        plans = make_plans(image, resolved | own, sample)
        seen = [plan.volume.reader.state() for plan in plans]
        files = [(resolved | own)[name] for name in ("mask", "flat_field", "sections")]
        check_apart(Path(outdir) / plans[0].sample, [image, *files])
        check_replaceable(Path(outdir) / plans[0].sample)
        check_channel(Path(outdir) / plans[0].sample, (resolved | own)["channel"])
        asked.append((plans, resolved | own, seen))
    results, again = [], command_line(resolved)
    with locked(Path(outdir) / INFO):  # of all samples together, so no other run may work there
        reclaim(Path(outdir))  # before there is asked for room
        for number, (plans, settled, seen) in enumerate(asked):
            _check_room(Path(outdir), [plan for plans, *_ in asked[number:] for plan in plans])  # now, not after hours
            sample, shape = plans[0].sample, plans[0].volume.shape
            for warning in dict.fromkeys(warning for plan in plans for warning in plan.warnings):
                log.warning("warning: sample %s: %s", sample, warning)
            with executor(dask_scheduler) as slabs, published(Path(outdir) / sample) as folder:
                log.info("%s: %s planes of %s x %s voxels", sample, *shape)
                numbers = _channels(
                    plans,
                    folder,
                    settled,
                    backend=backend,
                    threads=threads,
                    executor=slabs,
                    again=again,
                    listener=progress,
                )
                for plan, state in zip(plans, seen, strict=True):
                    check_state(plan, state)
            results.append(SampleResult(sample, Path(outdir) / sample, numbers))
        versions = "".join(f"n4flow run\t-\t{tool}\t{version}\n" for tool, version in tool_versions().items())
        settings = " ".join(f"{name}={value!r}" for name, value in sorted(parameters.items()))
        command = f"n4flow.run {input} {outdir} {settings}".strip()
        done = Run(command, resolved, [str(plans[0].volume.source) for plans, *_ in asked], versions)
        stated = [result.folder / name for result in results for name in (CHECKSUMS_NAME, SUMMARY_NAME)]
        write_provenance(Path(outdir), done, stated)
    return Result(Path(outdir), tuple(results))


def _absolute(path: str | Path) -> Path:
    place = located(path)
    return place if isinstance(place, Address) else place.absolute()


def _check_room(outdir: Path, plans: Sequence[Plan]) -> None:
    """Refuse to begin where the results of all samples that are left, and the files of one at a time, do not fit."""
    needs = [plan.needs() for plan in plans]
    nbytes, files = (
        sum(need[name] for need in needs) + max(need[f"work_{name}"] for need in needs) for name in ("bytes", "files")
    )
    check_space(outdir, nbytes, files)


def _channels(
    plans: Sequence[Plan], folder: Path, parameters: Mapping[str, Any], listener: Listener | None, **options: Any
) -> dict[str, Any]:
    """Process the channels of a sample one after the other; return what `metrics.json` holds."""
    if len(plans) == 1:
        return _Sample(plans[0], folder, parameters, **options).go_through(listener)
    leader: _Sample | None = None
    for plan in in_order(plans):
        own = {**parameters, "channel": plan.channel, "fit_channel": plan.fit_channel}
        unit = _Sample(plan, folder.with_name(f"channel_{plan.channel}"), own, **options, leader=leader)
        unit.go_through(listener)
        shutil.rmtree(unit.work)
        if plan.channel == plan.fit_channel:
            leader = unit
    return join(folder, [folder.with_name(f"channel_{plan.channel}") for plan in plans if plan.channel != MEAN])


@dataclass
class _Sample:
    """One sample on its way through the stages; each stage is the method of its name, or estimates a correction.

    A `leader` is another channel of it whose masks and bias fields are taken over.
    """

    plan: Plan
    folder: Path
    parameters: Mapping[str, Any]
    backend: str  # the one that `auto` took
    threads: int | None
    executor: Executor
    again: str  # the command that does the run again
    leader: _Sample | None = None

    def __post_init__(self) -> None:
        self.stages: list[dict[str, Any]] = []  # the numbers of each, in order
        self.metrics: dict[str, Any] = {}
        # A work directory, in the folder that is removed at the end.
        self.work = self.folder.with_name(f"{self.folder.name}.work")
        self.work.mkdir(parents=True)
        plan, voxel_um = self.plan, self.plan.volume.voxel_um or {}
        first = background(self.parameters, voxel_um)
        recipe = Recipe([first] if first is not None else [])
        self.inputs = Inputs(
            plan.sections, recipe=recipe, voxel_um=voxel_um, flat_field=plan.flat_field, threads=self.threads
        )

    def go_through(self, listener: Listener | None) -> dict[str, Any]:
        """Run every stage that the parameters ask for, and say how it went; return what `metrics.json` holds."""
        asked = [each for each in STAGES if each.asked(self.parameters)]
        if self.plan.channel == MEAN:  # What others take over, and what that rests on.
            asked = [each for each in asked if each.led or each.name in ("SHRINK", "PROVE")]
        own = [each for each in asked if self.leader is None or not each.led]
        for each in asked:
            if self.leader is not None and each.led:
                self.inputs = replace(self.inputs, tissue=self.leader.inputs.tissue)
                self.stages += [numbers for numbers in self.leader.stages if numbers["stage"] == each.name]
                continue
            step = Progress(each.name, *self.extent(each), self.plan.title, own.index(each) + 1, len(own))
            started, compiled = clock.now(), clock.compiling()
            with counted(step, listener):
                getattr(self, each.name.lower(), partial(self.estimate, each))()
            log.info("%s", stage_line(step, clock.now() - started) + clock.said_of_compiling(compiled))
            if each.name == "PROVE" and self.leader is not None:  # It looks at the input alone.
                fields = [field for field in self.leader.inputs.recipe if isinstance(field, BiasCorrection)]
                self.inputs = replace(self.inputs, recipe=Recipe([*self.inputs.recipe, *fields]))
        return self.metrics

    def extent(self, each: Stage) -> tuple[int, str]:
        """Return how much a stage has to do, and in which unit."""
        if each.scattered == "slabs":
            volume = self.plan.volume
            plane = volume.shape[1:] if each.name == "RENDER" else self.plan.frame.shape
            return volume.shape[0] * math.prod(plane) * volume.dtype.itemsize, "bytes"
        if each.estimates == "bias_field":
            fields = sum(section.usable for section in self.plan.sections) if each.scattered == "sections" else 1
            return fields * sum(iteration_list(self.parameters["iterations"])), "iterations"
        return 0, ""

    @contextmanager
    def clocked(self, name: str, **numbers: Any) -> Iterator[dict[str, Any]]:
        """Time a stage and keep its numbers."""
        with stage(name, threads=thread_limit(), **numbers) as found:
            yield found
        self.stages.append(found)

    def files(self, name: str) -> list[Path]:
        """Return a file between stages for each slab."""
        return [self.work / f"{name}_{start:06d}.npz" for start, _stop in self.plan.slabs]

    def by_slab(self, work: Callable[..., Any], *parts: Sequence[Any]) -> list[Any]:
        """Return what a function makes of each slab, in order, where the parts of a pass run."""
        return self.executor([partial(work, *task) for task in zip(*parts, strict=True)])

    def estimate(self, each: Stage) -> None:
        """Estimate the correction of a stage and add it to the recipe."""
        with self.clocked(each.name) as numbers:
            found = estimate(each, self.inputs, {**self.parameters, "backend": self.backend})
            numbers.update(found.summary())
        self.inputs = replace(self.inputs, recipe=Recipe([*self.inputs.recipe, found]))

    def shrink(self) -> None:
        """Shrink the volume, and the user's mask where there is one."""
        plan, files = self.plan, self.files("shrunken")
        with self.clocked("SHRINK", shrink=plan.shrink, planes=[0, plan.volume.shape[0]]) as numbers:
            found = self.by_slab(partial(_shrink, plan, self.inputs.recipe), plan.slabs, files)
            self.inputs = replace(self.inputs, shrunken=ShrunkenFiles(files))
            self.given = PackedMask.concatenate(found) if plan.mask is not None else None
            numbers.update(voxel_counts(self.inputs.shrunken.planes))

    def tissue_mask(self) -> None:
        """Find tissue and agarose."""
        with self.clocked("TISSUE_MASK") as numbers:
            tissue, said = find_masks(
                self.inputs.shrunken,
                self.plan.sections,
                self.given,
                parameters=self.parameters,
                voxel_um=self.inputs.voxel_um,
            )
            self.inputs = replace(self.inputs, tissue=replace(tissue, given=self.plan.mask))
            numbers.update(said)

    def prove(self) -> None:
        """Find what is proven, and keep that much of the bias fields."""
        with self.clocked("PROVE") as numbers:
            evidence, recipe, found = prove(self.inputs, self.parameters)
            self.inputs = replace(self.inputs, evidence=evidence, recipe=Recipe(recipe))
            numbers.update(found)

    def plane_statistics(self) -> None:
        """Count the intensities of each plane."""
        plan, files = self.plan, self.files("histograms")
        with self.clocked("PLANE_STATISTICS", planes=[0, plan.volume.shape[0]]):
            self.by_slab(partial(_count, plan.volume, self.inputs.recipe), self.tissue_of_slabs(), plan.slabs, files)
            self.inputs = replace(self.inputs, histograms=HistogramFiles(files))

    def tissue_of_slabs(self) -> list[TissueSource]:
        """Return the masks of each slab."""
        return [self.inputs.tissue.part(*slab) for slab in self.plan.slabs]

    def render(self) -> None:
        """Render every slab into the stores."""
        self.inputs = replace(self.inputs, recipe=completed(self.inputs.recipe, self.parameters))
        render = partial(_render, self.plan, self.inputs.recipe, create_stores(self.folder, self.plan), self.threads)
        found = self.by_slab(render, self.tissue_of_slabs(), self.plan.slabs, self.files("after"))
        self.checksums = [checksums for checksums, _numbers in found]
        self.stages += [numbers for _checksums, numbers in found]

    def finish(self) -> None:
        """Complete and check the results."""
        self.metrics = finish(
            self.folder,
            self.plan,
            before=self.inputs.shrunken,
            after=ShrunkenFiles(self.files("after")),
            tissue=self.inputs.tissue,
            recipe=self.inputs.recipe,
            evidence=self.inputs.evidence,
            checksums=self.checksums,
            stages=self.stages,
            parameters=self.parameters,
            command=self.again,
        )


def stage_line(step: Progress, seconds: float) -> str:
    """Return what a log says of a stage that has ended."""
    said = [f"{step.sample} {step.number}/{step.of} {step.step}: {duration(seconds)}"]
    if step.unit == "bytes":
        said.append(f"{size(step.total)} at {size(step.total / max(seconds, 1e-9))}/s")
    return ", ".join([*said, f"peak memory {size(peak_memory())}"])


def _shrink(plan: Plan, recipe: Recipe, slab: tuple[int, int], out: Path) -> PackedMask | None:
    """Shrink a slab into a file; return the user's mask on the shrunken grid, if there is one."""
    shrunken, given = shrink_pass(plan.volume, *slab, plan.shrink, recipe=recipe, mask=plan.mask, frame=plan.frame)
    shrunken.save(out)
    return None if given is None else PackedMask.of(given)


def _render(
    plan: Plan,
    recipe: Recipe,
    stores: Sequence[tuple[Path, StoreLayout]],
    threads: int | None,
    tissue: TissueSource,
    slab: tuple[int, int],
    after: Path,
) -> tuple[dict[str, Checksums], dict[str, Any]]:
    """Render a slab, and its shrunken copy into a file; return the checksums of its chunks and the stage's numbers."""
    with stage("RENDER", threads=thread_limit(), planes=list(slab)) as numbers:
        rendered = render_slab(
            plan.volume,
            recipe,
            *slab,
            stores=stores,
            shrink=plan.shrink,
            tissue=tissue.unpacked(),
            threads=threads,
        )
        rendered.save_after(after)
        numbers.update(rendered.numbers())
    return rendered.checksums, numbers


def _count(volume: Volume, recipe: Recipe, tissue: TissueSource, slab: tuple[int, int], out: Path) -> None:
    """Count the intensities of a slab into a file."""
    statistics_pass(volume, *slab, recipe=recipe, tissue=tissue.unpacked()).save(out)
