"""`n4flow n4`: correct the bias field of one image."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from n4flow.commands import ants, options
from n4flow.commands.options import as_step
from n4flow.commands.terminal import Quiet, telling
from n4flow.compute import clock
from n4flow.errors import InputError, N4flowWarning


class Command(options.Command):
    """A command that reads ANTs' spelling, and lists ANTs' options in its help."""

    def settled(self, args: Sequence[str]) -> list[str]:
        """Return arguments as the parser takes them; brackets may hold spaces, and --apply-to takes several files."""
        return ants.normalized(super().settled(args))

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """List ANTs' options."""
        with formatter.section("Options of ANTs' N4BiasFieldCorrection, and what they are here"):
            formatter.write_dl(list(ants.TABLE))


def _n4(
    context: typer.Context,
    settings: Mapping[str, Any],
    numbers: dict[str, Any],
    image: Annotated[
        Path | None, typer.Argument(metavar="INPUT", help="The image, in any format that n4flow reads.")
    ] = None,
    output: Annotated[
        Path | None, typer.Argument(metavar="OUTPUT", help="The corrected image; its suffix says the format.")
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option("--mask", "-x", "--mask-image", help="Voxels to fit: not 0. Otsu's mask without it."),
    ] = None,
    mask_label: Annotated[
        int | None, typer.Option("--mask-label", metavar="N", help="Fit where the mask is N, and nowhere else.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option("--weights", "-w", "--weight-image", help="Confidence in each voxel, 0 or above.")
    ] = None,
    bias: Annotated[Path | None, typer.Option("--bias", help="Write the bias field: INPUT = OUTPUT x field.")] = None,
    shrink: Annotated[
        str | None,
        typer.Option(
            "--shrink",
            "-s",
            "--shrink-factor",
            metavar="N",
            help="Fit on means of N voxels along each axis, or Z,Y,X of them; 1.",
        ),
    ] = None,
    control_points: Annotated[
        str | None, typer.Option("--control-points", metavar="N", help="Of the first level, each axis or Z,Y,X; 4.")
    ] = None,
    fit_channel: Annotated[
        str | None,
        typer.Option(
            "--fit-channel",
            metavar="N|mean|each",
            help="Fit this channel, or volume of a 4-D image, or the mean of all; correct all of them by that field. "
            "Or correct each by its own, as --channel all alone does.",
        ),
    ] = None,
    volume: Annotated[
        str | None,
        typer.Option("--volume", metavar="N|all", help="Of a 4-D image: this volume, or all by one field."),
    ] = None,
    apply_to: Annotated[
        list[Path] | None,
        typer.Option(
            "--apply-to",
            metavar="FILE...",
            help="Correct these files by the same field, too: each is written beside OUTPUT as NAME_corrected, with "
            "the ending of OUTPUT. Give them last.",
        ),
    ] = None,
    keep_level: Annotated[
        bool, typer.Option("--keep-level", help="Keep the mean of the fitted voxels; N4 lets the level drift.")
    ] = False,
    in_bids: Annotated[
        bool,
        typer.Option(
            "--bids",
            help="OUTPUT is the folder of a BIDS derivative dataset: the result is named as INPUT with desc-n4, and "
            "has a sidecar.",
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results that exist.")] = False,
    quiet: Quiet = False,
    dimensions: Annotated[int | None, typer.Option("-d", "--image-dimensionality", hidden=True)] = None,
    ants_image: Annotated[Path | None, typer.Option("-i", "--input-image", hidden=True)] = None,
    ants_output: Annotated[str | None, typer.Option("-o", "--output", hidden=True)] = None,
    convergence: Annotated[str | None, typer.Option("-c", "--convergence", hidden=True)] = None,
    mesh: Annotated[str | None, typer.Option("-b", "--bspline-fitting", hidden=True)] = None,
    sharpening: Annotated[str, typer.Option("-t", "--histogram-sharpening", hidden=True)] = "[0.15,0.01,200]",
    rescale: Annotated[str | None, typer.Option("-r", "--rescale-intensities", hidden=True)] = None,
    verbose: Annotated[str, typer.Option("-v", "--verbose", hidden=True)] = "0",
    threads: int | None = None,
    json_file: Path | None = None,
) -> str:
    """Correct the bias field of one image with N4: any format to any format, voxel size and orientation kept.

    From --spline-um, levels double the spans of an axis up to four; from --control-points or -b, all levels do.
    """
    from n4flow.io.open import EACH, MEAN, open_volume
    from n4flow.n4_bias import bids
    from n4flow.n4_bias.ants import AntsHabits
    from n4flow.n4_bias.files import correct_file
    from n4flow.pipeline.parameters import iteration_list, spelled, voxel_size
    from n4flow.pipeline.warm_up import compile_beside

    source = _one(image, ants_image, "INPUT", "-i")
    named, ants_bias = (None, None) if ants_output is None else ants.output_files(ants_output)
    result = _one(output, named, "OUTPUT", "-o")
    made = bids.derivative(source, result) if in_bids else None
    result = result if made is None else made.path
    like_ants, typed = ants_image is not None, _typed(context)
    for option, value, replaced in (
        ("-c", convergence, {"iterations", "tolerance"}),
        ("-b", mesh, {"spline_um", "control_points"}),
    ):
        if value is not None and typed & replaced:
            msg = f"{option} and {spelled(min(typed & replaced))} say the same; give one of them"
            raise InputError(msg)
    if bias is not None and ants_bias is not None:
        msg = f"--bias {bias} and -o {ants_output} both name the bias field; give one of them"
        raise InputError(msg)

    channel = settings["channel"]
    if volume is not None:
        if channel is not None or fit_channel is not None:
            msg = "--volume says which volumes are corrected; leave --channel and --fit-channel out"
            raise InputError(msg)
        if volume != "all" and not volume.isdecimal():
            msg = f"--volume must be a number from 0 on, or all, got {volume}"
            raise InputError(msg)
        channel, fit_channel = (None, MEAN) if volume == "all" else (int(volume), None)
    if channel == "all":
        channel, fit_channel = None, fit_channel or EACH
    iterations, tolerance = iteration_list(settings["iterations"]), settings["tolerance"]
    if convergence is not None:
        iterations, tolerance = ants.convergence(convergence)
    elif like_ants and "tolerance" not in typed:
        tolerance = 0.0
    lattice = ants.mesh(mesh) if mesh is not None else ants.Mesh(None, None)
    points = None if control_points is None else _counts(control_points, "control-points")
    if lattice.spans is not None or dimensions is not None:
        read = {name: settings[name] for name in ("axes", "allow_missing_chunks")} | {"require_voxel_um": False}
        shape = open_volume(source, channel=channel or 0, **read).shape
        if dimensions is not None:
            ants.check_dimensions(dimensions, shape, source)
        if lattice.spans is not None:
            points = ants.control_points(lattice.spans, ants.dimensions(shape))
    ranged = like_ants and mask is not None and not keep_level
    if rescale is not None:
        ranged = ants.switch(rescale, "-r")
        if ranged and mask is None:
            warnings.warn("-r 1 changes nothing without a mask, as in ANTs; give one with -x", N4flowWarning, 2)
            ranged = False
    talks = ants.switch(verbose, "-v")
    compile_beside("n4-parts")
    with telling(quiet=quiet) as progress:
        facts = correct_file(
            source,
            result,
            mask=mask,
            mask_label=mask_label,
            weights=weights,
            bias=bias if ants_bias is None else Path(ants_bias),
            iterations=iterations,
            shrink=_counts(shrink or ("4" if like_ants else "1"), "shrink"),
            spline_um=settings["spline_um"],
            control_points=points,
            tolerance=tolerance,
            sharpening=ants.sharpening(sharpening),
            backend=settings["backend"],
            voxel_um=voxel_size(settings["voxel_um"]),
            channel=channel,
            allow_missing_chunks=settings["allow_missing_chunks"],
            axes=settings["axes"],
            fit_channel=fit_channel,
            apply_to=apply_to or (),
            keep_level=keep_level,
            dtype=settings["dtype"],
            ants=AntsHabits(
                spline_mm=lattice.spline_mm,
                pick_voxels=like_ants,
                whole_image=like_ants,
                keep_outside=like_ants and mask is not None,
                rescale=ranged,
            ),
            overwrite=overwrite,
            json_file=json_file,
            threads=threads,
            progress=progress,
        )
    if made is not None:
        bids.describe(made, facts)
    numbers.update(facts)
    return "" if quiet else "\n".join([*(_measures(facts) if talks else ()), *_summary(facts)])


def _one(place: Path | None, option: str | Path | None, name: str, flag: str) -> Path:
    """Return the file that is given by its place or by ANTs' option."""
    if (place is None) == (option is None):
        fault = "both name a file; give one of them" if place is not None else "are missing; give one of them"
        msg = f"{name} and {flag} {fault}: n4flow n4 INPUT OUTPUT, or n4flow n4 -i INPUT -o OUTPUT"
        raise InputError(msg)
    return Path(place or option or "")


def _typed(context: typer.Context) -> set[str]:
    """Return the options that stand on the command line, rather than having their defaults."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def _measures(facts: Mapping[str, Any]) -> Iterator[str]:
    """Say how each level went, for -v."""
    for name, fit in _fits(facts):
        for number, measures in enumerate(fit["convergence"], start=1):
            yield f"{name}level {number} of {len(fit['convergence'])}"
            yield from (f"  iteration {i}: convergence {measure:.6g}" for i, measure in enumerate(measures, start=1))


def _fits(facts: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return each fit, and what comes before what is said of it."""
    if "channels" not in facts:
        return [("", facts)]
    return [(f"channel {number}: ", fit) for number, fit in enumerate(facts["channels"])]


def _summary(facts: Mapping[str, Any]) -> Iterator[str]:
    """Say for each result what was done."""
    fitted = "; ".join(
        f"{name}iterations {', '.join(map(str, fit['iterations'])) or fit['reason']}; "
        f"fitted in {fit['fit_seconds']:.3g} s by {fit['backend']}"
        for name, fit in _fits(facts)
    )
    fitted += clock.said_of_compiling()
    for number, result in enumerate(facts["results"]):
        said = [fitted if number == 0 else "corrected by the same field"]
        if result["channels"] > 1:
            said.append(f"{result['channels']} channels")
        if result["voxels_clipped"]:
            said.append(f"{result['voxels_clipped']} voxels clipped to the range of {result['dtype']}")
        if result["voxels_undefined"]:
            said.append(f"{result['voxels_undefined']} voxels that were no number are 0")
        yield f"{result['path']}: {'; '.join(said)}"


def _counts(text: str, name: str) -> int | tuple[int, ...]:
    """Read one number, or one for each axis."""
    from n4flow.pipeline.parameters import numbers

    values = numbers(text, name)
    if not all(value.is_integer() for value in values):
        msg = f"{name} must be a whole number, or one for each axis, got {text}"
        raise InputError(msg)
    counts = tuple(map(int, values))
    return counts[0] if len(counts) == 1 else counts


n4 = as_step(
    "N4",
    _n4,
    ("iterations", "spline_um", "tolerance", "backend", "voxel_um", "channel", "axes", "allow_missing_chunks", "dtype"),
)
