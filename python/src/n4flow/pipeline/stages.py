"""The stages of the chain, in order: the one table of their names, what they estimate, and which settings they take.

`n4flow run`, the step commands, the report and the memory prediction read it, and a test holds modules/n4flow.nf to it.
Nothing large is imported here, since the command line reads the table before it knows which command is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from n4flow.pipeline.parameters import schema

Parameters = Mapping[str, Any]  # every parameter of the schema, resolved


@dataclass(frozen=True)
class Stage:
    """One stage of the chain, which a process of the workflow runs, alone or with those beside it.

    A stage that estimates a correction is the function of its name in lower case in `pipeline.estimate`.

    Parameters
    ----------
    name : str
        The process, and `stage` in the numbers that a task leaves.
    title : str
        What it does, in one sentence: the help of its command.
    reads : tuple of str
        What of a sample it needs: `volume`, `shrunken` (volume), `tissue` (masks), `histograms`, `recipe` (so far),
        `evidence` (of PROVE).
    asked : callable, optional
        Whether resolved parameters ask for it; every run has it without.
    estimates : str, optional
        The kind of the correction that it estimates.
    file : str, optional
        Name of that correction's file between processes, where the numbers in front keep the order.
    scattered : {'', 'slabs', 'sections'}
        What of a sample one task works on, where that is not all of it.
    process : str, optional
        The process that runs it, where one runs several.
    command : str, optional
        The step command of its process, where that is not its name.
    led : bool
        Whether channels take over what it makes of the channel that leads, where one does (`pipeline.channels`).
    """

    name: str
    title: str
    reads: tuple[str, ...] = ()
    asked: Callable[[Parameters], bool] = lambda _parameters: True
    estimates: str | None = None
    file: str | None = None
    scattered: str = ""
    process: str = ""
    command: str = ""
    led: bool = False

    def __post_init__(self) -> None:
        if not self.process:
            object.__setattr__(self, "process", self.name)
        if not self.command:
            object.__setattr__(self, "command", self.process.lower().replace("_", "-"))


def settings_of(process: str) -> tuple[str, ...]:
    """Return the names of the parameters whose rule in the schema lists a process."""
    return tuple(name for name, rule in schema().items() if process in rule.get("stages", ()))


def _counts(parameters: Parameters) -> bool:
    return any(stage.asked(parameters) for stage in STAGES if "histograms" in stage.reads)


STAGES = (
    Stage(
        "SHRINK",
        "Shrink a slab of planes in plane: masked block means and counts.",
        ("volume", "recipe"),
        scattered="slabs",
    ),
    Stage("TISSUE_MASK", "Find tissue, agarose and the background level of each section.", ("shrunken",), led=True),
    Stage(
        "N4_SECTIONS",
        "Fit a bias field to each section of a batch.",
        ("shrunken", "tissue"),
        lambda parameters: parameters["bias"] in ("sections", "two_pass"),
        "bias_field",
        "20_bias_sections",
        "sections",
        led=True,
    ),
    Stage(
        "N4_VOLUME",
        "Fit one bias field to the whole volume, after the sections' own where the recipe holds them.",
        ("shrunken", "tissue", "recipe"),
        lambda parameters: parameters["bias"] in ("volume", "two_pass"),
        "bias_field",
        "30_bias_volume",
        led=True,
    ),
    Stage(
        "PROVE",
        "Find what voxels above each other in neighbouring planes prove; keep that much of the bias fields.",
        ("shrunken", "tissue", "recipe"),
        lambda parameters: parameters["bias"] != "off" or parameters["match"] != "off" or parameters["smooth_z"] > 0,
    ),
    Stage(
        "HARMONIZE",
        "Even out all sections together: what neighbouring planes prove is taken off, anatomy stays.",
        ("shrunken", "tissue", "recipe"),
        lambda parameters: parameters["harmonize"] != "off",
        "harmonization",
        "35_harmonization",
    ),
    Stage(
        "PLANE_STATISTICS",
        "Count the intensities of each plane of a slab after the corrections so far.",
        ("volume", "tissue", "recipe"),
        _counts,
        scattered="slabs",
    ),
    Stage(
        "NORMALIZE",
        "Put agarose at 0 in every plane and divide the volume by its largest range.",
        ("histograms",),
        lambda parameters: parameters["normalize"],
        "plane_range",
        "40_plane_range",
        process="INTENSITY",
    ),
    Stage(
        "MATCH_HISTOGRAMS",
        "Match the tissue of each section, or plane, to the pooled distribution.",
        ("histograms", "recipe", "evidence"),
        lambda parameters: parameters["match"] != "off",
        "section_lookup",
        "50_section_lookup",
        process="INTENSITY",
    ),
    Stage(
        "SMOOTH_Z",
        "Smooth the tissue profile along Z by a gain of each plane.",
        ("histograms", "recipe", "evidence"),
        lambda parameters: parameters["smooth_z"] > 0,
        "plane_gain",
        "60_plane_gain",
        process="INTENSITY",
    ),
    Stage(
        "RENDER",
        "Render a slab of planes: its shards of every level, its mask, and a shrunken copy for the report.",
        ("volume", "tissue", "recipe"),
        scattered="slabs",
        command="render-slab",
    ),
    Stage(
        "FINISH",
        "Put the slabs together by hard links, complete and check the store, write recipe, tables and report.",
        ("volume", "shrunken", "tissue", "recipe", "evidence"),
    ),
)
