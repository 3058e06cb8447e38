"""A paragraph for the methods section of a paper, with the works to cite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from n4flow import __version__
from n4flow.report.text import change, number, percent, whole_percent

if TYPE_CHECKING:
    from n4flow.corrections.base import Correction

# CITATIONS.md has the same works, and a test compares.
WORKS = {
    "n4flow": f"n4flow authors. n4flow: even intensity in serial-section volumes. Version {__version__}, 2026.",
    "n4": "Tustison NJ, Avants BB, Cook PA, Zheng Y, Egan A, Yushkevich PA, Gee JC. N4ITK: improved N3 bias "
    "correction. IEEE Transactions on Medical Imaging 29(6):1310–1320, 2010. doi:10.1109/TMI.2010.2046908",
    "ome-zarr": "Moore J, et al. OME-Zarr: a cloud-optimized bioimaging file format with international community "
    "support. Histochemistry and Cell Biology 160:223–251, 2023. doi:10.1007/s00418-023-02209-1",
}


def methods(numbers: Mapping[str, Any], recipe: Sequence[Correction]) -> tuple[str, list[str]]:
    """Return what was done and what came of it in whole sentences, with numbers in brackets for works, and these works.

    Parameters
    ----------
    numbers : mapping
        What `metrics.json` holds.
    recipe : sequence of Correction
        What was applied.
    """
    cited: list[str] = []

    def cite(name: str) -> str:
        cited.extend([name] if name not in cited else [])
        return f"[{cited.index(name) + 1}]"

    metrics, settings = numbers["metrics"], numbers["parameters"]
    done = [step for step in recipe if not step.idle]
    said = [f"Intensities were evened out with n4flow {__version__} {cite('n4flow')}, {_volume(numbers)}."]
    for step in done:
        words = WORDS.get(step.kind, lambda _settings, title=step.title: f"{title[0].upper()}{title[1:]}")(settings)
        share = metrics["applied"].get(step.kind)
        if share is not None and share < 1:
            proven = ", as much as neighbouring planes prove" if settings.get("trust") == "proven" else ""
            words += f"; {whole_percent(share)} of it was applied on average{proven}"
        said.append(words.replace("N4", f"N4 {cite('n4')}", 1) + ".")
    if not done:
        said.append("Nothing was changed.")
    version = f" {settings['ome_zarr_version']}" if settings.get("ome_zarr_version") else ""
    said += [_outcome(metrics), f"The result was stored as OME-Zarr{version} {cite('ome-zarr')}."]
    return " ".join(sentence for sentence in said if sentence), [WORKS[name] for name in cited]


def _volume(numbers: Mapping[str, Any]) -> str:
    plan, sections = numbers["plan"], numbers["metrics"]["sections"]
    found = "a volume" if not plan.get("shape") else "a volume of " + " × ".join(map(str, plan["shape"])) + " voxels"
    if plan.get("voxel_um"):
        found += " of " + " × ".join(f"{plan['voxel_um'][axis]:g}" for axis in "zyx") + " µm (Z, Y, X)"
    return found + f" in {len(sections)} sections" * (len(sections) > 1)


def _bias(settings: Mapping[str, Any]) -> str:
    of = {
        "sections": "of each section",
        "volume": "of the whole volume",
        "two_pass": "of each section, and then of the whole volume,",
    }.get(str(settings.get("bias")), "")
    knots = [
        f"{number(float(settings[name]))} µm{where}"
        for name, where in (("spline_um", ""), ("spline_section_um", " in sections"), ("spline_volume_um", " overall"))
        if settings.get(name)
    ]
    words = f"A bias field {of} was estimated with N4 in tissue and divided out"
    return words + (f" (B-spline knots every {', '.join(knots)})" if knots else "")


def _range(settings: Mapping[str, Any]) -> str:
    top = f" (percentile {settings['percentile_max']:g})" if settings.get("percentile_max") else ""
    return f"In each plane the level of agarose was put at zero, and the volume was divided by its largest range{top}"


def _match(settings: Mapping[str, Any]) -> str:
    unit = "plane" if settings.get("match") == "plane" else "section"
    return f"The tissue of each {unit} was matched to the histogram of tissue of the whole volume"


def _smooth(settings: Mapping[str, Any]) -> str:
    sigma = f" (Gaussian, sigma {settings['smooth_z']:g} planes)" if settings.get("smooth_z") else ""
    return f"Brightness of tissue was smoothed along Z by a gain of each plane{sigma}"


WORDS = {
    "bias_field": _bias,
    "plane_range": _range,
    "section_lookup": _match,
    "plane_gain": _smooth,
    "harmonization": lambda _settings: (
        "Gains and smooth shading of all sections were estimated together from pairs of neighbouring planes, "
        "by which anatomy is left alone, and divided out"
    ),
}


def _outcome(metrics: Mapping[str, Any]) -> str:
    contrast, steps, found = metrics["contrast"], metrics["steps"], []
    if contrast["local_median"] is not None:
        found.append(
            f"{percent(contrast['local_median'])} of the contrast between neighbouring pixels was kept in the median "
            f"section, {percent(contrast['local_worst'])} in the one that moved most"
        )
    if steps["median_before"] is not None and steps["median_after"] is not None:
        found.append(
            f"the median step of brightness between sections was {change(steps['median_before'])} before and "
            f"{change(steps['median_after'])} after"
        )
    return "In tissue, " + "; ".join(found) + "." if found else ""
