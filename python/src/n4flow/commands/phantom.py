"""`n4flow phantom`: make a serial-section volume with known truth."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from n4flow.commands.options import JsonFile, Threads
from n4flow.commands.step import set_threads
from n4flow.pipeline.timing import dumps


def phantom(
    out: Annotated[
        Path, typer.Argument(help="NAME.ome.zarr, or another format by its suffix (NAME.nii.gz, .tif, ...).")
    ],
    sections: Annotated[int, typer.Option("--sections", min=1, help="Number of sections.")] = 5,
    planes: Annotated[int, typer.Option("--planes", min=1, help="Planes of a section.")] = 8,
    size: Annotated[tuple[int, int], typer.Option("--size", metavar="Y X", help="Voxels of a plane.")] = (160, 200),
    voxel_um: Annotated[
        tuple[float, float, float], typer.Option("--voxel-um", metavar="Z Y X", help="Voxel size in micrometres.")
    ] = (50.0, 25.0, 25.0),
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Another seed is another brain and another instrument.")
    ] = 0,
    oblique: Annotated[
        float,
        typer.Option("--oblique", metavar="A", min=-60, max=60, help="Tilt of the planes against the brain, degrees."),
    ] = 0.0,
    truth: Annotated[
        Path | None,
        typer.Option("--truth", metavar="DIR", help="Write truth, bias field, masks, gains and jitter to a folder."),
    ] = None,
    strength: Annotated[
        float, typer.Option("--strength", min=0, help="Factor on shading, attenuation, gain, drift and jitter.")
    ] = 1.0,
    shading: Annotated[bool, typer.Option(help="Lateral shading shared by all sections.")] = True,
    section_shading: Annotated[bool, typer.Option(help="Lateral shading of each section.")] = True,
    attenuation: Annotated[bool, typer.Option(help="Attenuation with depth in the section.")] = True,
    gain: Annotated[bool, typer.Option(help="Brightness of each section, with its drift.")] = True,
    jitter: Annotated[bool, typer.Option(help="Brightness of each plane.")] = True,
    speckle: Annotated[bool, typer.Option(help="Speckle.")] = True,
    texture: Annotated[bool, typer.Option(help="Texture inside the tissue classes.")] = True,
    padding: Annotated[bool, typer.Option(help="Exact zeros around the mosaic.")] = True,
    empty: Annotated[
        list[int] | None, typer.Option("--empty", metavar="I", help="Section I (from 0) is all zero.")
    ] = None,
    damaged: Annotated[list[int] | None, typer.Option("--damaged", metavar="I", help="Section I lost a part.")] = None,
    saturated: Annotated[
        list[int] | None, typer.Option("--saturated", metavar="I", help="Section I is far too bright.")
    ] = None,
    flag_faults: Annotated[bool, typer.Option(help="Say so in the section table.")] = True,
    dtype: Annotated[str, typer.Option("--dtype", help="uint16, uint8 or float32.")] = "uint16",
    ome_zarr_version: Annotated[str, typer.Option("--ome-zarr-version", help="0.5 or 0.4.")] = "0.5",
    threads: Threads = None,
    json_file: JsonFile = None,
) -> None:
    """Make a brain-like serial-section volume, and its section table beside it."""
    from n4flow.phantom.options import PhantomOptions
    from n4flow.phantom.store import Phantom

    count = set_threads(threads)
    default = PhantomOptions()
    faults = {"empty": empty, "damaged": damaged, "saturated": saturated}
    options = replace(
        default,
        sections=sections,
        planes=planes,
        size=size,
        voxel_um=voxel_um,
        seed=seed,
        oblique=oblique,
        dtype=dtype,
        shading=default.shading * strength * shading,
        section_shading=default.section_shading * strength * section_shading,
        attenuation=default.attenuation * strength * attenuation,
        gain=default.gain * strength * gain,
        drift=default.drift * strength * gain,
        jitter=default.jitter * strength * jitter,
        speckle=default.speckle * speckle,
        texture=default.texture * texture,
        padding=default.padding * padding,
        faults=tuple((index, name) for name, indices in faults.items() for index in indices or ()),
        flag_faults=flag_faults,
    )
    made = Phantom(options)
    with typer.progressbar(
        length=made.shape[0], label="planes", file=sys.stderr, hidden=not sys.stderr.isatty()
    ) as bar:
        numbers = made.write(
            out,
            truth,
            threads=count,
            ome_zarr_version=ome_zarr_version,
            progress=lambda done: bar.update(done - bar.pos),
        )
    typer.echo(f"{numbers['store']}\n{numbers['sections']}")
    if json_file is not None:
        json_file.write_text(dumps(numbers) + "\n", encoding="utf-8")
