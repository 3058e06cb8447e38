"""The plan of one sample: everything that follows from its files and parameters, and from where there is padding."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from warnings import catch_warnings, filterwarnings

import numpy as np

from n4flow.corrections.background import SpatialMeanBackground
from n4flow.corrections.harmonization.flat import read_flat
from n4flow.corrections.outside import Outside
from n4flow.corrections.recipe import Recipe
from n4flow.errors import InputError, N4flowWarning
from n4flow.io.address import Address
from n4flow.io.disk_space import store_needs
from n4flow.io.doubts import doubts, rounding
from n4flow.io.formats import name_without_suffix
from n4flow.io.frame import Frame, find_frame
from n4flow.io.omezarr.chunk_grid import listed
from n4flow.io.omezarr.layout import AXES, StoreLayout
from n4flow.io.omezarr.planning import plan_layout
from n4flow.io.open import EACH, MEAN, open_volume
from n4flow.io.volume import Volume
from n4flow.masks.tissue_source import open_mask
from n4flow.n4_bias.bspline import spans
from n4flow.n4_bias.problem import MOST_SPANS, first_controls, level_controls, wide_spline
from n4flow.pipeline.blocks import Blocks
from n4flow.pipeline.parameters import defaults, iteration_list, opening, sample_sheet, spline_distance
from n4flow.pipeline.resources import pass_bytes, shrunken_bytes, work_needs
from n4flow.pipeline.stages import STAGES
from n4flow.sections import Section, SectionTable
from n4flow.statistics.measure import choose_shrink
from n4flow.statistics.shrunken import runs

# Settings that do nothing where another has one of some values.
IDLE = {
    "bias_strength": ("bias", ("off",)),
    "spline_section_um": ("bias", ("off", "volume")),
    "spline_volume_um": ("bias", ("off", "sections")),
    "tissue_threshold": ("match", ("off",)),
}
BIAS_FIELDS = {"off": (), "sections": ("section",), "volume": ("volume",), "two_pass": ("section", "volume")}
BESIDE = 40_000_000, 27  # Bytes and files beside the stores: report, tables, recipe with corrections, provenance.


@dataclass(frozen=True)
class Plan:
    """What will be done with one sample.

    Attributes
    ----------
    sample : str
    volume : Volume
        The input.
    mask : Volume or None
        The user's tissue mask.
    sections : SectionTable
    shrink : int
        In-plane block size of the shrunken volume.
    layout, mask_layout : StoreLayout
        The stores that will be written.
    slabs : list of (int, int)
        Runs of planes, each the work of one task.
    batches : list of (int, int)
        Runs of sections, each the work of one task.
    warnings : list of str
        What the user should know before the run.
    margin : int
        Rows around a voxel that the recipe looks at.
    frame : Frame
        Rows and columns that hold valid voxels; what lies around is padding, and stays as it is.
    flat_field : (y, x) float32 array or None
        Measured shading that every plane has, in the frame.
    backend : str
        What fits bias fields.
    channel : int, str or None
        Of a sample of which all channels are processed, the one that this plan is for; `mean` is their mean, from which
        a bias field is estimated and nothing is written.
    fit_channel : int, str or None
        Then the channel whose bias fields and mask it gets, or `each` for its own.
    """

    sample: str
    volume: Volume
    mask: Volume | None
    sections: SectionTable
    shrink: int
    layout: StoreLayout
    mask_layout: StoreLayout
    slabs: list[tuple[int, int]]
    batches: list[tuple[int, int]]
    warnings: list[str]
    frame: Frame
    margin: int = 0
    flat_field: np.ndarray | None = None
    backend: str = "auto"
    channel: int | str | None = None
    fit_channel: int | str | None = None

    @property
    def label(self) -> str | None:
        """Name of the channel, where there are several."""
        if self.channel is None or self.channel == MEAN:
            return self.channel and "mean of all channels"
        labels = self.volume.metadata.get("channels") or ()
        return str(labels[int(self.channel)] if len(labels) == self.volume.reader.channels else self.channel)

    @property
    def title(self) -> str:
        """Name of the sample, and of the channel where there are several."""
        if self.channel is None or self.channel == MEAN:
            return self.sample + (f", {self.label}" if self.label else "")
        return f"{self.sample}, channel {self.label}"

    @property
    def stores(self) -> list[StoreLayout]:
        """The stores that are written: the result and its mask, which channels that have the same one write once."""
        return [self.layout, *([] if self.one_mask and self.channel != 0 else [self.mask_layout])]

    @property
    def one_mask(self) -> bool:
        """Whether this is one of several channels that have the same mask."""
        return self.channel is not None and (self.fit_channel != EACH or self.mask is not None)

    def summary(self) -> dict[str, Any]:
        """Return the plan as JSON types: what INSPECT hands to the workflow and prints for the user."""
        volume, memory, of_three = self.volume, self._memory(2), self._memory(3)
        return {
            "sample": self.sample,
            "channel": self.channel,
            "label": self.label,
            "source": self._source(),
            "shape": list(volume.shape),
            "frame": str(self.frame),
            "dtype": str(volume.dtype),
            "format": volume.metadata.get("format"),
            "voxel_um": volume.voxel_um,
            "origin_um": volume.origin_um,
            "mask": "given" if self.mask is not None else "estimated",
            "flat_field": "given" if self.flat_field is not None else "not given",
            "sections": len(self.sections),
            "flagged_sections": [section.id for section in self.sections if not section.usable],
            "shrink": self.shrink,
            "slab_planes": self.layout.slab_planes,
            "slabs": [list(slab) for slab in self.slabs],
            "read_amplification": round(self.read_amplification, 3),
            "batches": [list(batch) for batch in self.batches],
            "levels": [list(level.shape) for level in self.layout.levels],
            "output_dtype": self.layout.dtype,
            "output_gigabytes": round(math.prod(volume.shape) * np.dtype(self.layout.dtype).itemsize / 1e9, 3),
            "needs": self.needs(),
            "memory_bytes": memory,
            "memory_bytes_per_thread": {name: of_three[name] - size for name, size in memory.items()},
            "warnings": self.warnings,
        }

    def _source(self) -> str:
        """Return where the input lies: its address, or its whole path, behind the link that a task has of it."""
        source = self.volume.source
        return str(source if isinstance(source, Address) else source.resolve())

    @property
    def read_amplification(self) -> float:
        """Voxels that a pass decodes for each that it uses: 1 where no chunk lies in two slabs or two blocks."""
        return Blocks.of(self.volume, halo=self.margin).amplification(self.volume, self.slabs)

    def needs(self) -> dict[str, int]:
        """Return what the results take on a disk at most, and what the files between the stages take."""
        stores = self.stores if self.channel != MEAN else []
        nbytes, files = store_needs(stores, 0, self.volume.shape[0])
        nbytes, files = nbytes + BESIDE[0], files + BESIDE[1] + len(self.batches)  # each with a bias field
        work_bytes, work_files = work_needs(self._framed_shape, self.shrink, len(self.slabs))
        return {"bytes": nbytes, "files": files, "work_bytes": work_bytes, "work_files": work_files}

    def peak_memory(self, parameters: Mapping[str, Any]) -> int:
        """Return the peak memory of a run of all stages in one process of two threads, in bytes."""
        memory = self._memory(2)
        return max(memory.get(stage.process, 0) for stage in STAGES if stage.asked(parameters))

    @property
    def _framed_shape(self) -> tuple[int, int, int]:
        """(Z, Y, X) that the shrunken volume is made of."""
        return self.volume.shape[0], *self.frame.shape

    def _memory(self, threads: int) -> dict[str, int]:
        """Return the peak memory of a task of each process; each further thread adds the same."""
        layouts, flat = (self.layout, self.mask_layout), 0 if self.flat_field is None else self.flat_field.nbytes
        needs = pass_bytes(self.volume, *layouts, self.shrink, self.frame.shape, margin=self.margin, threads=threads)
        longest = max(section.z_stop - section.z_start for section in self.sections)
        others = shrunken_bytes(self._framed_shape, self.shrink, longest, self.backend)
        return {name: size + flat for name, size in needs.items()} | others


def completed(recipe: Recipe, parameters: Mapping[str, Any]) -> Recipe:
    """Return the recipe that is rendered: what was estimated and, last, what resolved parameters add to it."""
    return Recipe([*recipe, Outside()]) if parameters["outside"] == "zero" else recipe


def background(parameters: Mapping[str, Any], voxel_um: Mapping[str, float] | None) -> SpatialMeanBackground | None:
    """Return the background that resolved parameters ask for, a mean within a radius in micrometres."""
    radius_um = parameters["background_radius_um"]
    if radius_um <= 0 or not voxel_um:
        return None
    return SpatialMeanBackground((radius_um / voxel_um["y"], radius_um / voxel_um["x"]))


def output_dtype(dtype: str, volume_dtype: np.dtype) -> str:
    """Return the data type that is written for the parameter `dtype`."""
    if dtype != "input":
        return dtype
    return str(np.dtype(volume_dtype).newbyteorder("=")) if volume_dtype.kind in "iu" else "float32"


def make_plan(
    image: str | Path,
    parameters: Mapping[str, Any],
    sample: str | None = None,
    frame: Frame | None = None,
    planes: tuple[int, int] | None = None,
) -> Plan:
    """Open a sample's files and decide how it is processed.

    Parameters
    ----------
    image : path
    parameters : mapping
        Resolved parameters (`n4flow.pipeline.parameters.resolve`).
    sample : str, optional
        Name of the sample; the file's own without it.
    frame : Frame, optional
        What was found to hold valid voxels; it is looked for without it.
    planes : (int, int), optional
        What will be read of the sample, see `open_volume`; no frame is looked for then.

    Raises
    ------
    InputError
        Any fault of the input; the message begins with the sample's name.
    """
    sample = sample or name_without_suffix(image)
    check_name(sample)
    try:
        return _plan(Path(image), parameters, sample, frame, planes)
    except InputError as error:
        msg = f"sample {sample}: {error}"
        raise InputError(msg) from error


def check_state(plan: Plan, seen: str) -> None:
    """Refuse an input that is not as it was `seen` when the run began.

    Raises
    ------
    InputError
        What was estimated and what was corrected would be two volumes.
    """
    if plan.volume.reader.state() != seen:
        said = "was changed during the run, so there is no result; run again"
        msg = f"sample {plan.sample}: {plan.volume.source} {said}"
        raise InputError(msg)


def check_name(sample: str) -> None:
    """Refuse a sample name that cannot name a folder of results, or that a result has already.

    Raises
    ------
    InputError
        With the rule.
    """
    rule = sample_sheet()["properties"]["sample"]
    if not re.fullmatch(rule["pattern"], sample):
        msg = f"sample name {sample!r} must be {rule['expected']}; give another in a sample sheet"
        raise InputError(msg)


def _plan(
    image: Path,
    parameters: Mapping[str, Any],
    sample: str,
    frame: Frame | None,
    planes: tuple[int, int] | None,
) -> Plan:
    allow = {"allow_missing_chunks": parameters["allow_missing_chunks"], "planes": planes}
    with catch_warnings(record=True) as noticed:
        filterwarnings("always", category=N4flowWarning)
        volume = open_volume(image, **opening(parameters), planes=planes)
        given, label = parameters["mask"], parameters["mask_label"]
        mask = open_mask(given, volume, label=label, **allow) if given else None
    warnings = [str(warning.message) for warning in noticed if issubclass(warning.category, N4flowWarning)]
    if label is not None and mask is None:
        msg = f"mask_label {label} needs a mask; give it with mask"
        raise InputError(msg)
    sections = SectionTable.coerce(_sections(parameters, volume), volume.shape[0])
    for file in (volume, mask):
        warnings += doubts(file) if file is not None else []
    if lost := sections.within(volume.metadata.get("missing_planes", ())):
        sections = sections.flagged(lost, "damaged")
        warnings.append(f"no file is left of these sections, which are flagged: {listed([each.id for each in lost])}")
    if len(sections) == 1 and volume.shape[0] > 1:
        warnings.append("the whole stack is treated as one section; give sections where it was cut into several")
    if not any(section.usable for section in sections):
        warnings.append("every section is flagged, so nothing can be estimated and sections stay as they are")
    _check_combinations(parameters)
    frame = frame or (find_frame(volume) if planes is None else Frame.whole(volume.shape))
    flat_field = read_flat(parameters["flat_field"], frame, volume.shape) if parameters["flat_field"] else None
    shrink = parameters["shrink"] or choose_shrink((volume.shape[0], *frame.shape))
    if shrink > 1 and min(frame.shape) < 2 * shrink:
        msg = f"shrink {shrink} leaves fewer than 2 voxels of planes of {frame.shape} (Y, X); give a smaller one"
        raise InputError(msg)
    if (rounded := rounding(volume)) is not None:
        warnings.append(rounded)
    warnings += _idle(parameters)
    _check_spline(parameters, volume, frame)
    warnings += _wide_spline(parameters, volume, frame, sections)
    before = background(parameters, volume.voxel_um)
    geometry = {"voxel_um": volume.voxel_um, "origin_um": volume.origin_um, "slab_planes": parameters["slab_planes"]}
    layout = plan_layout(
        volume.shape,
        output_dtype(parameters["dtype"], volume.dtype),
        version=parameters["ome_zarr_version"],
        read_planes=volume.chunks[0],
        **geometry,
    )
    channel, fitted = None, parameters["fit_channel"]  # with which it is one of all channels
    if fitted is not None:
        channel = parameters["channel"]
        layout = replace(layout, channels=volume.reader.channels, channel=0 if channel == MEAN else channel)
    geometry["slab_planes"] = layout.slab_planes
    mask_layout = plan_layout(volume.shape, "uint8", version=parameters["ome_zarr_version"], kind="labels", **geometry)
    return Plan(
        sample=sample,
        volume=volume,
        mask=mask,
        sections=sections,
        shrink=shrink,
        layout=layout,
        mask_layout=mask_layout,
        slabs=list(runs(0, volume.shape[0], layout.slab_planes)),
        batches=list(runs(0, len(sections), parameters["sections_per_task"])),
        warnings=warnings,
        frame=frame,
        margin=before.margin[0] if before is not None else 0,
        flat_field=flat_field,
        backend=parameters["backend"],
        channel=channel,
        fit_channel=fitted,
    )


def _sections(parameters: Mapping[str, Any], volume: Volume) -> Any:
    """Return the sections that were asked for, or else those that the folders of a volume's planes are."""
    if parameters["sections"] == defaults()["sections"] and "sections" in volume.metadata:
        return [Section(*named) for named in volume.metadata["sections"]]
    return parameters["sections"]


def _check_combinations(parameters: Mapping[str, Any]) -> None:
    """Refuse a GPU that nothing would use, and a flat field that nothing would divide by, or N4 would fit first."""
    if parameters["backend"] == "gpu" and parameters["bias"] == "sections":
        msg = (
            "parameter backend gpu is for the field of the whole volume, and bias is sections, which are fitted on "
            "CPUs; give bias volume or two_pass, or backend cpu"
        )
        raise InputError(msg)
    for name, works, remedy in (
        ("harmonize", ("safe", "auto", "full"), "harmonize divides by it; give harmonize safe, auto or full"),
        ("bias", ("off", None), "N4 would fit the same shading before; give bias off"),
    ):
        if parameters["flat_field"] and parameters[name] not in works:
            msg = f"flat_field cannot be used with {name} {parameters[name]}: {remedy}, or leave flat_field out"
            raise InputError(msg)


def _idle(parameters: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each setting that was given and does nothing."""
    given = [name for name in parameters if parameters[name] != defaults().get(name)]
    sentences = []
    for name in given:
        other, values = IDLE.get(name, ("bias", ()))
        if parameters[other] in values:
            sentences.append(f"{name} {parameters[name]:g} does nothing with {other} {parameters[other]}")
    masked = [name for name in ("mask_smoothing_um", "mask_closing_um") if name in given and parameters["mask"]]
    return sentences + [f"{name} {parameters[name]:g} does nothing with a mask that is given" for name in masked]


def _wide_spline(parameters: Mapping[str, Any], volume: Volume, frame: Frame, sections: SectionTable) -> list[str]:
    """Return a sentence for each distance of control points that is larger than what its field covers."""
    voxel_um = volume.voxel_um or {}
    longest = max(section.z_stop - section.z_start for section in sections)
    said = []
    for kind in BIAS_FIELDS[parameters["bias"]]:
        name, distance = spline_distance(parameters, kind)
        planes = longest if kind == "section" else volume.shape[0]
        extents = [n * voxel_um.get(axis, 0.0) for n, axis in zip((planes, *frame.shape), AXES, strict=True)]
        if distance and voxel_um and (wide := wide_spline(distance, extents, f"the {kind}")):
            said.append(f"{name}: {wide}")
    return said


def _check_spline(parameters: Mapping[str, Any], volume: Volume, frame: Frame) -> None:
    """Refuse knots that would end finer than the voxels."""
    voxel_um, levels = volume.voxel_um, len(iteration_list(parameters["iterations"]))
    if voxel_um is None or max(frame.shape) == 1:
        return
    extent, samples = min((n * voxel_um[axis], n) for n, axis in zip(frame.shape, "yx", strict=True) if n > 1)
    finest = 2 * max(voxel_um["y"], voxel_um["x"])
    for kind in BIAS_FIELDS[parameters["bias"]]:
        name, distance = spline_distance(parameters, kind)
        first, most = first_controls([extent], distance, [1]), MOST_SPANS if distance else None
        (controls,) = level_controls(first, levels, [samples], thin=True, most=most)[-1]
        last = extent / spans(controls)
        if last < finest:
            asked = f"{name} {distance:g}" if distance else f"one span of {extent:g} micrometres"
            if frame != Frame.whole(volume.shape):
                asked += f" (valid voxels lie in rows and columns {frame} alone)"
            fewest = max(1, int(extent / finest))
            fewer = spans(first[0]) <= fewest
            remedy = "give fewer levels" if fewer else f"give at least {extent / (fewest + 3):.4g}"
            msg = (
                f"{asked} with {levels} levels ends at knots {last:g} micrometres apart, finer than two "
                f"voxels ({finest:g}); {remedy}"
            )
            raise InputError(msg)
