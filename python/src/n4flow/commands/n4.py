"""`n4flow n4`: correct the bias field of one image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from n4flow.commands.step import Channel, JsonFile, Threads, VoxelUm, step


def n4(
    image: Annotated[Path, typer.Argument(metavar="INPUT", help="The image, in any format that n4flow reads.")],
    output: Annotated[Path, typer.Argument(help="The corrected image; its suffix says the format.")],
    mask: Annotated[Path | None, typer.Option("--mask", help="Voxels to fit: not 0. Otsu's mask without it.")] = None,
    bias: Annotated[Path | None, typer.Option("--bias", help="Write the bias field: INPUT = OUTPUT x field.")] = None,
    iterations: Annotated[
        str, typer.Option("--iterations", metavar="N N ..", help="Most iterations at each level.")
    ] = "50,50,50,50",
    shrink: Annotated[
        str, typer.Option("--shrink", metavar="N", help="Fit on means of N voxels along each axis, or Z,Y,X of them.")
    ] = "1",
    spline_um: Annotated[
        float | None, typer.Option("--spline-um", help="Distance of the first level's knots, micrometres.")
    ] = None,
    control_points: Annotated[
        str | None, typer.Option("--control-points", metavar="N", help="Of the first level, each axis or Z,Y,X; 4.")
    ] = None,
    tolerance: Annotated[float, typer.Option("--tolerance", min=0, help="Where a level ends.")] = 1e-3,
    backend: Annotated[str, typer.Option("--backend", help="auto, cpu, gpu or itk.")] = "auto",
    voxel_um: VoxelUm = None,
    channel: Channel = None,
    threads: Threads = None,
    json_file: JsonFile = None,
) -> None:
    """Correct the bias field of one image with N4: any format to any format, voxel size and orientation kept."""
    from n4flow.n4_bias.files import correct_file
    from n4flow.pipeline.parameters import iteration_list, voxel_size

    with step("N4", threads, json_file) as numbers:
        facts = correct_file(
            image,
            output,
            mask=mask,
            bias=bias,
            iterations=iteration_list(iterations),
            shrink=_counts(shrink, "shrink"),
            spline_um=spline_um,
            control_points=None if control_points is None else _counts(control_points, "control-points"),
            tolerance=tolerance,
            backend=backend,
            voxel_um=voxel_size(voxel_um),
            channel=channel,
            threads=threads,
        )
        numbers.update(facts)
    made = ", ".join(str(count) for count in numbers["iterations"]) or numbers["reason"]
    typer.echo(f"{output}: iterations {made}; fitted in {numbers['fit_seconds']:.3g} s by {numbers['backend']}")


def _counts(text: str, name: str) -> int | tuple[int, ...]:
    """Read one number, or one for each axis."""
    from n4flow.pipeline.parameters import numbers

    values = tuple(int(value) for value in numbers(text, name))
    return values[0] if len(values) == 1 else values
