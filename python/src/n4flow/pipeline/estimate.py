"""What every stage estimates, from small objects: for the step commands, which read files, and for `n4flow.run`.

The function of a stage has its name in lower case, and takes `Inputs` and resolved parameters.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from n4flow.compute.threads import available_threads, reuse_threads
from n4flow.corrections.base import Correction
from n4flow.corrections.bias_field import BiasCorrection
from n4flow.corrections.harmonization import Harmonization
from n4flow.corrections.histogram_matching import estimate_lookup
from n4flow.corrections.plane_gain import PlaneGain, TissueMeans
from n4flow.corrections.plane_range import PlaneRange, estimate_plane_range
from n4flow.corrections.proof import Evidence, proven_bias, proven_lookup, proven_plane_gain
from n4flow.corrections.recipe import Recipe
from n4flow.corrections.section_lookup import SectionLookup
from n4flow.errors import InputError, N4flowWarning
from n4flow.io.frame import Frame, field_margin
from n4flow.masks.agarose import agarose_levels, get_agarose_mask
from n4flow.masks.packed_mask import PackedMask
from n4flow.masks.tissue import tissue_mask_with_levels
from n4flow.masks.tissue_source import TissueSource
from n4flow.n4_bias.field import BiasField
from n4flow.n4_bias.inputs import FitInput
from n4flow.n4_bias.settings import fit_settings
from n4flow.n4_bias.shrink import shrink_masked, shrunken_shape
from n4flow.pipeline.parameters import iteration_list, spline_distance
from n4flow.pipeline.stages import Stage
from n4flow.sections import Section, SectionTable, filled_planes
from n4flow.statistics.accumulate import PLANE_COUNTS
from n4flow.statistics.measure import choose_fit_step
from n4flow.statistics.shrunken import Shrunken, ShrunkenFiles, runs

if TYPE_CHECKING:
    from n4flow.corrections.harmonization.prepare import Samples

TISSUE_SHARES = (0.01, 0.9)  # Of a volume without its padding: less than tissue usually has, and more.
LEAST_VALID = 0.5  # A shrunken voxel enters the fit of a bias field where at least this share of its voxels is valid.


@dataclass(frozen=True)
class Inputs:
    """What of a sample a stage estimates from; what a stage does not read may be left out.

    Parameters
    ----------
    sections : SectionTable
    shrunken : ShrunkenVolume or ShrunkenFiles
    tissue : TissueSource
        At least of the planes that are worked on.
    histograms : Distributions
        Of each plane, after the fields of the recipe.
    recipe : Recipe
        The corrections so far.
    voxel_um : mapping
        Micrometres by axis name.
    flat_field : (y, x) float32 array
        Measured shading that every plane has, in the frame.
    evidence : Evidence
        About the input: how much of what a stage does is proven.
    batch : (int, int)
        Sections to work on, by their place in the table; all without it.
    threads : int
    """

    sections: SectionTable
    shrunken: Any = None
    tissue: Any = None
    histograms: Any = None
    recipe: Recipe = field(default_factory=Recipe)
    voxel_um: Mapping[str, float] = field(default_factory=dict)
    flat_field: np.ndarray | None = None
    evidence: Evidence | None = None
    batch: tuple[int, int] | None = None
    threads: int | None = None


def estimate(stage: Stage, inputs: Inputs, parameters: Mapping[str, Any]) -> Correction:
    """Return the correction that a stage estimates."""
    found: Correction = globals()[stage.name.lower()](inputs, parameters)
    return found


def n4_sections(inputs: Inputs, parameters: Mapping[str, Any]) -> BiasCorrection:
    """Fit a bias field to each usable section of a batch; a flagged section keeps its intensities.

    Sections are many and small: they are fitted on CPUs, in parallel, also where the volume is fitted on a GPU.
    """
    settings = {**parameters, "backend": "itk" if parameters["backend"] == "itk" else "cpu"}
    chosen = [section for section in inputs.sections[slice(*(inputs.batch or (None,)))] if section.usable]
    planes = {f"section {section.id}": section.planes for section in chosen}
    return _bias_correction(inputs, settings, spline_distance(parameters, "section")[1], planes)


def n4_volume(inputs: Inputs, parameters: Mapping[str, Any]) -> BiasCorrection:
    """Fit one bias field to the whole volume, after those of the recipe; flagged sections are left out."""
    planes = {"the whole volume": slice(0, inputs.shrunken.shape[0])}
    return _bias_correction(inputs, parameters, spline_distance(parameters, "volume")[1], planes)


def harmonize(inputs: Inputs, parameters: Mapping[str, Any]) -> Harmonization:
    """Estimate all sections together, after the bias fields of the recipe; see `estimate_harmonization`."""
    from n4flow.corrections.harmonization.prepare import harmonization_of

    samples = _samples(inputs, inputs.recipe, inputs.flat_field)
    options: dict[str, Any] = {"mode": parameters["harmonize"], "flat": inputs.flat_field}
    found = harmonization_of(samples, inputs.sections, shrink=inputs.shrunken.shrink, **options)
    return replace(found, frame=inputs.tissue.frame)


def prove(inputs: Inputs, parameters: Mapping[str, Any]) -> tuple[Evidence, list[Correction], dict[str, Any]]:
    """Find what voxels above each other in neighbouring planes prove.

    Returns
    -------
    evidence : Evidence
    recipe : list of Correction
        The corrections so far, with as much of bias fields as is proven; all of them with `trust` = 'full', where the
        evidence is for the verdict alone. Of either, `bias_strength`.
    numbers : dict
        What the evidence rests on.
    """
    from n4flow.corrections.harmonization.prepare import harmonization_of

    samples = _samples(inputs, Recipe())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", N4flowWarning)  # they speak of a stage that the user did not ask for
        found = harmonization_of(samples, inputs.sections, shrink=inputs.shrunken.shrink, mode="auto")
    evidence = Evidence.of(samples, inputs.sections.section_of_plane, found)
    trusted = parameters["trust"] == "full"
    if evidence.reason is not None and not trusted:
        msg = f"nothing can be proven: {evidence.reason}; give the sections, or look at trust full"
        warnings.warn(msg, N4flowWarning, stacklevel=2)
    kept, strength = (
        list(inputs.recipe) if trusted else proven_bias(inputs.recipe, evidence),
        parameters["bias_strength"],
    )
    if strength < 1:
        kept = [each.weakened(strength) if isinstance(each, BiasCorrection) else each for each in kept]
    return evidence, kept, found.summary()


def normalize(inputs: Inputs, parameters: Mapping[str, Any]) -> PlaneRange:
    """Estimate the range of each plane from its background to a percentile."""
    return estimate_plane_range(inputs.histograms, inputs.sections, parameters["percentile_max"])


def match_histograms(inputs: Inputs, parameters: Mapping[str, Any]) -> SectionLookup:
    """Match the tissue of each section (or plane, with `match` = 'plane') to the pooled distribution."""
    table = inputs.sections if parameters["match"] == "section" else by_plane(inputs.sections)
    evidence = _evidence(inputs, parameters)
    found = estimate_lookup(
        inputs.histograms, inputs.recipe, table, parameters["n_bins"], parameters["tissue_threshold"]
    )
    return found if evidence is None else proven_lookup(found, evidence)


def smooth_z(inputs: Inputs, parameters: Mapping[str, Any]) -> PlaneGain:
    """Smooth the tissue profile along Z."""
    evidence, sigma = _evidence(inputs, parameters), parameters["smooth_z"]
    means = TissueMeans.of(inputs.histograms, inputs.recipe, inputs.sections)
    return means.smoothed(sigma) if evidence is None else proven_plane_gain(means, sigma, evidence)


def voxel_counts(planes: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Return how many voxels of shrunken planes are zero, not finite, negative and saturated."""
    return {name: int(planes[name].sum()) for name in PLANE_COUNTS if name != "n_valid"}


@reuse_threads()
def find_masks(
    shrunken: Shrunken,
    sections: SectionTable,
    given: PackedMask | None = None,
    *,
    parameters: Mapping[str, Any],
    voxel_um: Mapping[str, float],
) -> tuple[TissueSource, dict[str, Any]]:
    """Return tissue and agarose masks on the shrunken grid, and their numbers.

    Parameters
    ----------
    shrunken : ShrunkenVolume or ShrunkenFiles
    sections : SectionTable
    given : (Z, y, x) PackedMask, optional
        The user's mask on the shrunken grid, in place of the estimated one.
    parameters : mapping
        Resolved; those of the estimated mask are lengths in the planes.
    voxel_um : mapping
        Micrometres by axis name, at full size.
    """
    numbers: dict[str, Any] = {"mask": "given" if given is not None else "estimated"}
    if given is None:
        step_um = shrunken.shrink * (voxel_um["y"] + voxel_um["x"]) / 2
        lengths = {name: parameters[f"mask_{name}_um"] for name in ("smoothing", "closing")}
        voxels = {name: um / step_um for name, um in lengths.items() if um is not None}
        options: dict[str, Any] = {}
        if "smoothing" in voxels:
            options["smoothing_sigma"] = voxels["smoothing"]
        if "closing" in voxels:
            options["closing_radius"] = round(voxels["closing"])
        estimated = tissue_mask_with_levels(shrunken, sections, **options)
        tissue = estimated.mask
        numbers.update(
            thresholds=list(estimated.thresholds),
            threshold_origins=list(estimated.origins),
            volume_threshold=estimated.volume_threshold,
            threshold_scale=estimated.scale,
        )
    elif given.any():
        tissue = given
    else:
        msg = "the given mask is empty: no voxel is above 0; give a mask that covers the tissue"
        raise InputError(msg)
    agarose, threshold = get_agarose_mask(shrunken)
    filled = filled_planes(shrunken.planes["n_valid"])
    numbers["tissue_share"] = tissue.mean() * len(tissue) / (filled.stop - filled.start)
    if given is None and not TISSUE_SHARES[0] <= numbers["tissue_share"] <= TISSUE_SHARES[1]:
        said = f"the estimated tissue mask is {numbers['tissue_share']:.2%} of the volume, seldom what tissue is"
        warnings.warn(f"{said}; look at mask.ome.zarr, or give a mask", N4flowWarning, 2)
    numbers["agarose_share"] = float(agarose.mean())
    numbers["agarose_threshold"] = float(threshold)
    numbers["agarose_levels"] = agarose_levels(shrunken, agarose, sections, tissue)
    return TissueSource(tissue, agarose, shrunken.shrink, frame=shrunken.frame), numbers


def _evidence(inputs: Inputs, parameters: Mapping[str, Any]) -> Evidence | None:
    """Return the evidence about what a stage is given, None where the whole stage is trusted."""
    if parameters["trust"] == "full":
        return None
    if inputs.evidence is None:
        msg = "trust proven needs the evidence that PROVE wrote; give it by --evidence, or trust full"
        raise InputError(msg)
    return inputs.evidence.after(inputs.recipe)


def _samples(inputs: Inputs, previous: Recipe, flat: np.ndarray | None = None) -> Samples:
    """Return samples of the shrunken volume, divided by fields that were estimated before, a few planes at a time."""
    from n4flow.corrections.harmonization.prepare import Samples

    shrunken, tissue = inputs.shrunken, inputs.tissue

    def parts() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for start, stop in runs(0, shrunken.shape[0]):
            part = shrunken.part(start, stop)
            mean = part.mean if isinstance(shrunken, ShrunkenFiles) else part.mean.copy()
            _divide_by_fields(mean, previous, start)
            yield mean, part.valid, tissue.small_planes(start, stop)

    return Samples.of(parts(), inputs.sections.usable_planes, shrink=shrunken.shrink, flat=flat)


def _divide_by_fields(mean: np.ndarray, previous: Recipe, z_start: int = 0) -> None:
    """Divide planes of a shrunken volume, from `z_start` on, by the fields that were estimated before."""
    for correction in previous:
        if correction.is_field:
            for start, stop in runs(z_start, z_start + len(mean)):
                field = correction.shrunken_log_field(slice(start, stop), (mean.shape[1], mean.shape[2]))
                mean[start - z_start : stop - z_start] /= np.exp(field)


def _with_margin(shape: tuple[int, ...], dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return zeros for fitted planes (z, y, x) and the margin of a bias field around them, and a view of the planes."""
    rows, columns = field_margin(shape)
    whole = np.zeros((shape[0], shape[1] + 2 * rows, shape[2] + 2 * columns), dtype)
    return whole, whole[:, rows : rows + shape[1], columns : columns + shape[2]]


def _bias_correction(
    inputs: Inputs, parameters: Mapping[str, Any], spline_um: float | None, chosen: Mapping[str, slice]
) -> BiasCorrection:
    """Fit a bias field to each run of planes, by its name in warnings, on the grid that its knots need."""
    shrunken = inputs.shrunken
    sample_um = shrunken.shrink * max(inputs.voxel_um[axis] for axis in "yx")
    step = choose_fit_step(shrunken.shape, None if spline_um is None else spline_um / sample_um)
    settings = {**parameters, "spline_um": spline_um}
    fields = tuple(_fit(inputs, settings, planes, name, step) for name, planes in chosen.items())
    frame, k = shrunken.frame or Frame.whole(shrunken.full_shape), step * shrunken.shrink
    samples = shrunken_shape(shrunken.shape[1:], (step, step))
    height, width = (n * k for n in samples)
    blocks = Frame(frame.y_start, frame.y_start + height, frame.x_start, frame.x_start + width)
    return BiasCorrection(fields, blocks.widened(*(n * k for n in field_margin(samples))), step)


def _fit(
    inputs: Inputs, parameters: Mapping[str, Any], planes: slice, name: str, step: int
) -> tuple[int, int, BiasField]:
    """Fit a bias field to planes, as far as they have valid voxels; return the first, the end and the field."""
    from n4flow.n4_bias.api import fit_spaced

    shrunken, k = inputs.shrunken, step * inputs.shrunken.shrink
    some = filled_planes(shrunken.planes["n_valid"][planes])
    first, last = planes.start + some.start, planes.start + some.stop
    shape = shrunken_shape((last - first, *shrunken.shape[1:]), (1, step, step))
    (whole, mean), (fitted, inside) = (_with_margin(shape, dtype) for dtype in (np.float32, bool))
    for start, stop in runs(first, last):
        part, here = shrunken.part(start, stop), slice(start - first, stop - first)
        usable = inputs.tissue.small_planes(start, stop) & (part.valid >= LEAST_VALID)
        usable &= inputs.sections.usable_planes[start:stop, None, None]
        values = part.mean if isinstance(shrunken, ShrunkenFiles) else part.mean.copy()
        _divide_by_fields(values, inputs.recipe, start)
        if step > 1:
            values, usable, _weights = shrink_masked(values, usable, None, (1, step, step), available_threads())
        mean[here], inside[here] = values, usable
    field = fit_spaced(
        FitInput(whole, fitted, None, (len(whole), *(n * k for n in whole.shape[1:])), (1, k, k)),
        voxel_um=tuple(inputs.voxel_um[axis] for axis in "zyx"),
        spline_um=parameters["spline_um"],
        settings=fit_settings(
            iteration_list(parameters["iterations"]), inputs.threads, threshold=parameters["tolerance"]
        ),
        backend=parameters["backend"],
        name=name,
    )
    return first, last, field


def by_plane(sections: SectionTable) -> SectionTable:
    """Return a table in which every plane is a section with its section's flag."""
    planes = [Section(f"{s.id}:{z}", z, z + 1, s.flag) for s in sections for z in range(s.z_start, s.z_stop)]
    return SectionTable(planes, sections.n_planes)
