"""`n4flow normalize`: range of each plane, from histograms."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from n4flow.commands.step import JsonFile, Sections, Threads, parts, section_argument, step

HISTOGRAMS = "histograms_*.npz"  # how PLANE_STATISTICS names a slab
Histograms = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder with the plane histograms of every slab.")]
Out = Annotated[Path, typer.Option("--out", help="The correction (.npz).")]


def normalize(
    histograms: Histograms,
    sections: Sections,
    percentile_max: Annotated[float, typer.Option("--percentile-max", help="Percentile of a plane that is clipped.")],
    out: Out,
    threads: Threads = None,
    json_file: JsonFile = None,
) -> None:
    """Put agarose at 0 in every plane and divide the volume by its largest range."""
    from n4flow.distributions import HistogramFiles
    from n4flow.normalize import estimate_plane_range
    from n4flow.recipe import save_correction
    from n4flow.sections import SectionTable

    with step("NORMALIZE", threads, json_file) as numbers:
        counted = HistogramFiles(parts(histograms, HISTOGRAMS))
        table = SectionTable.coerce(section_argument(sections), counted.n_planes)
        correction = estimate_plane_range(counted, table, percentile_max)
        save_correction(correction, out)
        numbers.update(correction.summary())
