"""`n4flow n4`: correct the bias field of one image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from n4flow.commands.options import as_step


def _n4(
    image: Annotated[Path, typer.Argument(metavar="INPUT", help="The image, in any format that n4flow reads.")],
    output: Annotated[Path, typer.Argument(help="The corrected image; its suffix says the format.")],
    settings: Mapping[str, Any],
    numbers: dict[str, Any],
    mask: Annotated[Path | None, typer.Option("--mask", help="Voxels to fit: not 0. Otsu's mask without it.")] = None,
    bias: Annotated[Path | None, typer.Option("--bias", help="Write the bias field: INPUT = OUTPUT x field.")] = None,
    shrink: Annotated[
        str, typer.Option("--shrink", metavar="N", help="Fit on means of N voxels along each axis, or Z,Y,X of them.")
    ] = "1",
    control_points: Annotated[
        str | None, typer.Option("--control-points", metavar="N", help="Of the first level, each axis or Z,Y,X; 4.")
    ] = None,
    threads: int | None = None,
) -> str:
    """Correct the bias field of one image with N4: any format to any format, voxel size and orientation kept."""
    from n4flow.n4_bias.files import correct_file
    from n4flow.pipeline.parameters import iteration_list, voxel_size

    facts = correct_file(
        image,
        output,
        mask=mask,
        bias=bias,
        iterations=iteration_list(settings["iterations"]),
        shrink=_counts(shrink, "shrink"),
        spline_um=settings["spline_um"],
        control_points=None if control_points is None else _counts(control_points, "control-points"),
        tolerance=settings["tolerance"],
        backend=settings["backend"],
        voxel_um=voxel_size(settings["voxel_um"]),
        channel=settings["channel"],
        threads=threads,
    )
    numbers.update(facts)
    made = ", ".join(str(count) for count in numbers["iterations"]) or numbers["reason"]
    return f"{output}: iterations {made}; fitted in {numbers['fit_seconds']:.3g} s by {numbers['backend']}"


def _counts(text: str, name: str) -> int | tuple[int, ...]:
    """Read one number, or one for each axis."""
    from n4flow.pipeline.parameters import numbers

    values = tuple(int(value) for value in numbers(text, name))
    return values[0] if len(values) == 1 else values


n4 = as_step("N4", _n4, ("iterations", "spline_um", "tolerance", "backend", "voxel_um", "channel"))
