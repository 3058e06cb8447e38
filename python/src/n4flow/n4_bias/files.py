"""N4 of an image file, written to another file: `n4flow n4`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from n4flow.compute.arrays import LARGEST
from n4flow.compute.progress import Listener
from n4flow.errors import InputError, N4flowWarning
from n4flow.io.doubts import doubts, rounding
from n4flow.io.geometry import on_grid
from n4flow.io.omezarr.chunk_grid import listed
from n4flow.io.open import EACH, MEAN, open_channels, open_volume
from n4flow.io.volume import Volume
from n4flow.io.writers import check_destination, keeps_without_size, write_volume
from n4flow.n4_bias.ants import AntsHabits, Domain, follow, spline_domain
from n4flow.n4_bias.api import fit_bias
from n4flow.n4_bias.field import BiasField
from n4flow.n4_bias.file_inputs import mean_of, open_beside, read_channel, read_mask, read_weights
from n4flow.n4_bias.intensity import converted, level_kept, result_dtype
from n4flow.n4_bias.problem import Knots, wide_spline
from n4flow.n4_bias.results import Named, applied_name, check_distinct
from n4flow.n4_bias.shrink import shrink_factors

NO_HABITS = AntsHabits()
OTSU_SHARES = (0.01, 0.9)  # Of an image: less than tissue usually has, and more.
MOST_NEGATIVE = 0.05  # Share of the voxels from which on it is said.
LEVEL_MOVED = 1.1  # Factor between the means before and after, from which on it is said.


def correct_file(
    image: str | Path,
    output: str | Path,
    *,
    mask: str | Path | None = None,
    mask_label: int | None = None,
    weights: str | Path | None = None,
    bias: str | Path | None = None,
    iterations: Sequence[int] = (50, 50, 50, 50),
    shrink: int | Sequence[int] = 1,
    spline_um: float | None = None,
    control_points: int | Sequence[int] | None = None,
    tolerance: float = 1e-3,
    sharpening: tuple[float, float, int] = (0.15, 0.01, 200),
    backend: str = "auto",
    voxel_um: Mapping[str, float] | None = None,
    channel: int | str | None = None,
    axes: str | None = None,
    allow_missing_chunks: bool = False,
    fit_channel: int | str | None = None,
    apply_to: Sequence[str | Path] = (),
    keep_level: bool = False,
    dtype: str = "float32",
    ants: AntsHabits = NO_HABITS,
    overwrite: bool = False,
    json_file: str | Path | None = None,
    threads: int | None = None,
    progress: Listener | None = None,
) -> dict[str, Any]:
    """Correct the bias field of one image, from any format to any format; voxel size and orientation are kept.

    Every file and option is judged before the fit.

    Parameters
    ----------
    image, output : path
    mask : path, optional
        Voxels where it is not 0 are fitted. By default Otsu's mask.
    mask_label : int, optional
        Fit voxels where the mask has this value, and no others.
    weights : path, optional
        Confidence in each voxel, 0 or above; see `fit_bias`.
    bias : path, optional
        File for the bias field; image = output x field, unless `ants` or `dtype` change the intensities further.
    iterations, shrink, tolerance, backend, threads, progress
        See `fit_bias`.
    spline_um : float, optional
        Distance of the first level's knots in micrometres; the lattice is that of `n4_correct`.
    control_points : int or sequence of int, optional
        Control points of the first level, 4 by default. Of these two and `ants.spline_mm`, one can be given.
    sharpening : (float, float, int)
        `fwhm`, `wiener` and `nbins` of `fit_bias`.
    voxel_um, channel, axes, allow_missing_chunks
        See `open_volume`.
    fit_channel : int, 'mean' or 'each', optional
        Fit this channel, or this volume of a 4-D NIfTI, or the mean of all; correct all of them by the one field. With
        `each`, correct every channel by a field of its own; `bias` gets as many, and the facts of the fits are a list,
        `channels`.
    apply_to : sequence of path
        Files on the image's grid whose channels are corrected by the same field, each written beside `output` as
        NAME_corrected with the ending of `output`.
    keep_level : bool
        Scale the field so that the mean of the fitted voxels is kept; otherwise its level is ITK's, as with `fit_bias`.
    dtype : {'float32', 'input', 'uint16', 'uint8'}
        Type of the results. Integers are rounded and clipped.
    ants : AntsHabits, optional
        What to do as ANTs does.
    overwrite : bool
        Replace files that exist.
    json_file : path, optional
        Where the caller is going to write the facts: none of the other files.

    Returns
    -------
    dict
        Facts of the fit, in JSON types.

    Raises
    ------
    InputError
        A file is missing or is no volume, shapes do not match, an option is out of range, two files are the same, a
        result exists or cannot be written, or intensities are beyond the range of float32.
    """
    lattice = {"spline_um": spline_um, "control_points": control_points, "ANTs' -b": ants.spline_mm}
    named = [name for name, option in lattice.items() if option is not None]
    _refuse(
        (len(named) > 1, f"{' and '.join(named)} both say how fine the lattice is; give one of them"),
        (mask_label is not None and mask is None, f"mask-label {mask_label} needs a mask; give it with --mask"),
        (
            channel is not None and fit_channel is not None,
            "channel and fit-channel exclude each other; give one of them",
        ),
        (
            fit_channel == EACH and bool(apply_to),
            "--apply-to needs one field, and each channel has its own; give --fit-channel mean, or one channel",
        ),
        (ants.rescale and keep_level, "-r 1 and --keep-level both set the level; leave one out, or give -r 0"),
    )
    image, output = Path(image), Path(output)
    sources = [Path(path) for path in apply_to]
    applied = [applied_name(output, source) for source in sources]
    inputs = [("the input", image), ("the mask", mask), ("the weights", weights)]
    results = [("the output", output), ("the bias field", bias), ("the file of --json", json_file)]
    check_distinct(
        [
            *(Named(role, Path(path)) for role, path in inputs if path is not None),
            *(Named("the file to apply to", path) for path in sources),
            *(Named(role, Path(path), written=True) for role, path in results if path is not None),
            *(Named("the result of apply-to", path, written=True) for path in applied),
        ]
    )
    read: dict[str, Any] = {"voxel_um": voxel_um, "allow_missing_chunks": allow_missing_chunks}
    if fit_channel is None:
        channels = [open_volume(image, channel=channel or 0, axes=axes, require_voxel_um=False, **read)]
        count = channels[0].reader.channels
        remedy = f"choose one with --channel, 0 to {count - 1}, or correct all by the field of --fit-channel"
        _refuse((channel is None and count > 1, f"{image} has {count} channels; {remedy}"))
    else:
        channels = open_channels(image, axes=axes, require_voxel_um=False, **read)
    series = [channels, *(open_channels(path, require_voxel_um=False, **read) for path in sources)]
    volume = channels[_index(fit_channel, channels)]
    sized = spline_um is not None or ants.spline_mm is not None
    sizes = _sizes(volume, read) if sized else (0.0,) * 3
    made = list(zip([output, *applied], series, strict=True))
    kinds = [result_dtype(dtype, volumes[0].dtype) for volumes in series]
    for volumes in series[1:]:
        on_grid(volumes[0], volume, "the file to apply to", turn=False)
    labels = None if mask is None else open_beside(mask, volume, "the mask", **read)
    confidences = None if weights is None else open_beside(weights, volume, "the weights", **read)
    of_fields = channels if fit_channel == EACH else [volume]
    for path, volumes in [*made, *([(Path(bias), of_fields)] if bias is not None else [])]:
        check_destination(path, len(volumes), overwrite=overwrite)
        if (volumes[0].voxel_um or volume.voxel_um) is None and not keeps_without_size(path, volumes[0]):
            open_volume(
                volumes[0].source, channel=0, allow_missing_chunks=allow_missing_chunks
            )  # raises the error that says that the voxel size is missing

    for file in dict.fromkeys((volume, labels, confidences, *(volumes[0] for volumes in series[1:]))):
        for doubt in doubts(file) if file is not None else ():
            warnings.warn(doubt, N4flowWarning, 2)
    for said in dict.fromkeys(map(rounding, (volumes[0] for volumes in series))):
        if said is not None:
            warnings.warn(said, N4flowWarning, 2)
    if spline_um is not None:
        extents = [n * um for n, um in zip(volume.shape, sizes, strict=True)]
        if (wide := wide_spline(spline_um, extents, "the image")) is not None:
            warnings.warn(f"spline_um: {wide}", N4flowWarning, 2)
    confidence = None if confidences is None else read_weights(confidences)
    fwhm, wiener, bins = sharpening
    domain = _domain(volume.shape, sizes, spline_um, control_points, ants)
    factors = shrink_factors(shrink, domain.padded_shape)
    if ants.pick_voxels:
        domain, shrink = replace(domain, steps=factors), 1

    def fitted(values: np.ndarray) -> _Fit:
        inside = read_mask(labels, mask_label, values, whole=ants.whole_image)
        _warn_of_values(values, inside if labels is None and not ants.whole_image else None, image)
        field = fit_bias(
            domain.samples(values),
            domain.samples(inside),
            weights=None if confidence is None else domain.samples(confidence),
            iters=iterations,
            conv_threshold=tolerance,
            control_points=domain.control_points,
            shrink=shrink,
            fwhm=fwhm,
            wiener=wiener,
            nbins=bins,
            backend=backend,
            threads=threads,
            progress=progress,
        )
        field = domain.over_all(field)
        if keep_level:
            level = inside & np.isfinite(values) & (values > 0)
            level = level if confidence is None else level & (confidence > 0)
            field = level_kept(field, values, level, domain.image, threads)
        return _Fit(field, inside)

    values = None
    if fit_channel == EACH:
        fits = [fitted(read_channel(one, channels)) for one in channels]
    else:
        values = mean_of(channels) if fit_channel == MEAN else read_channel(volume, channels)
        fits = [fitted(values)]
    if bias is not None:
        fields = np.stack([one.field.field(where=domain.image, threads=threads) for one in fits])
        write_volume(bias, fields, like=volume)
    writer = _Corrector(fits, domain, ants, threads)
    facts = [
        writer.write(path, volumes, kind, volume, values if volumes == [volume] else None)
        for (path, volumes), kind in zip(made, kinds, strict=True)
    ]
    moved = facts[0]["level"]
    if not ants.rescale and not 1 / LEVEL_MOVED <= moved <= LEVEL_MOVED:
        said = f"the mean of the fitted voxels is {moved:.3g} times that of the input; --keep-level keeps it"
        warnings.warn(said, N4flowWarning, 2)
    common = {
        "shape": list(volume.shape),
        "mask": str(mask) if mask is not None else "all" if ants.whole_image else "otsu",
        "shrink": list(factors),
        "results": facts,
    }
    if fit_channel == EACH:
        return {**common, "channels": [one.facts() for one in fits]}
    return {**common, **fits[0].facts()}


def _warn_of_values(values: np.ndarray, otsu: np.ndarray | None, image: Path) -> None:
    """Warn of a mask of Otsu's that is seldom what tissue is, and of many negative voxels."""
    share = 0.5 if otsu is None else float(np.mean(otsu))
    if not OTSU_SHARES[0] <= share <= OTSU_SHARES[1]:
        said = f"Otsu's mask is {share:.2%} of {image.name}, seldom what tissue is; look at it, or give one (--mask)"
        warnings.warn(said, N4flowWarning, 4)
    if (negative := float(np.mean(values < 0))) > MOST_NEGATIVE:
        share, fault = float(np.mean(values <= 0)), "not above 0 and lie outside the fit"
        said = f"{share:.0%} of the voxels of {image.name} are {fault} ({negative:.0%} are negative)"
        warnings.warn(f"{said}; N4 takes 0 for no signal, so add what is missing first (1024 to CT)", N4flowWarning, 4)


@dataclass(frozen=True)
class _Fit:
    """A field, and the voxels that it was fitted to."""

    field: BiasField
    mask: np.ndarray

    def facts(self) -> dict[str, Any]:
        """Return how the fit went, in JSON types."""
        levels, voxels = self.field.levels, self.field.voxels
        return {
            "iterations": [level.iterations for level in levels],
            "measures": [level.measures[-1] if level.measures else None for level in levels],
            "convergence": [list(level.measures) for level in levels],
            "converged": [level.converged for level in levels],
            "control_points": list(self.field.lattice.shape),
            "voxels": voxels.masked,
            "voxels_nonfinite": voxels.nonfinite,
            "voxels_nonpositive": voxels.nonpositive,
            "reason": self.field.reason,
            "backend": self.field.backend,
            "fit_seconds": self.field.seconds,
        }


@dataclass(frozen=True)
class _Corrector:
    """Corrects the channels of files, by one field or each by its own, and writes them."""

    fits: list[_Fit]
    domain: Domain
    ants: AntsHabits
    threads: int | None

    def write(
        self, path: Path, volumes: list[Volume], dtype: np.dtype, like: Volume, values: np.ndarray | None
    ) -> dict[str, Any]:
        """Write the corrected channels of a file and release it; `values` are its only one, if already read."""
        result = np.empty((len(volumes) if len(volumes) > 1 else 0, *like.shape), dtype)
        counts, levels = np.zeros(2, int), []
        for number, volume in enumerate(volumes):
            given = read_channel(volume, volumes) if values is None else values
            fit = self.fits[number % len(self.fits)]
            finite = np.isfinite(given)
            fitted = fit.mask & finite & (given > 0)
            before = given[fitted].mean(dtype=np.float64) if fitted.any() else 1.0
            exact = self._correct(given, fit)
            if over := np.count_nonzero(finite) - np.count_nonzero(np.isfinite(exact)):
                beyond = f"beyond {LARGEST:.2g}, the largest float32, after division by the field"
                msg = f"{over} voxels of {volume.source.name} are {beyond}; divide the image by a constant first"
                raise InputError(msg)
            levels.append(float(exact[fitted].mean(dtype=np.float64) / before) if fitted.any() else 1.0)
            corrected, *lost = converted(exact, dtype)
            counts += lost
            if len(volumes) == 1:
                result = corrected
            else:
                result[number] = corrected
        for volume in volumes:
            volume.reader.release()
        write_volume(path, result, like=volumes[0], voxel_um=volumes[0].voxel_um or like.voxel_um)
        facts = {"path": str(path), "channels": len(volumes), "dtype": dtype.name, "level": float(np.mean(levels))}
        return facts | {"voxels_clipped": int(counts[0]), "voxels_undefined": int(counts[1])}

    def _correct(self, values: np.ndarray, fit: _Fit) -> np.ndarray:
        needed = self.ants.keep_outside or self.ants.rescale
        reusable = values.dtype == np.float32 and values.flags.writeable and not needed
        corrected = values if reusable else np.empty(values.shape, np.float32)
        fit.field.apply(values, corrected, where=self.domain.image, threads=self.threads)
        follow(self.ants, corrected, values, fit.mask)
        return corrected


def _refuse(*faults: tuple[bool, str]) -> None:
    """Raise the first sentence that is the case."""
    for wrong, msg in faults:
        if wrong:
            raise InputError(msg)


def _index(fit_channel: int | str | None, channels: Sequence[Volume]) -> int:
    """Return which channel is fitted; the first one stands for the mean, and for all of them."""
    count, labels = len(channels), list(channels[0].metadata.get("channels", []))
    if fit_channel in (None, MEAN, EACH):
        return 0
    if fit_channel in labels:
        return labels.index(str(fit_channel))
    number = int(str(fit_channel)) if str(fit_channel).isdecimal() else count
    if number >= count:
        named = f", one of {listed(labels)}" if labels else ""
        msg = f"fit-channel must be a number from 0 to {count - 1}{named}, mean or each, got {fit_channel}"
        raise InputError(msg)
    return number


def _sizes(volume: Volume, read: Mapping[str, Any]) -> tuple[float, ...]:
    """Return the voxel size along (z, y, x) in micrometres; 0 along an axis of one plane that has none."""
    stated = volume.reader.voxel_um | dict(read["voxel_um"] or {})
    if any(n > 1 and axis not in stated for axis, n in zip("zyx", volume.shape, strict=True)):
        open_volume(volume.source, channel=0, **read)  # raises the error that says what is missing
    return tuple(stated.get(axis, 0.0) for axis in "zyx")


def _domain(
    shape: tuple[int, ...],
    voxel_um: Sequence[float],
    spline_um: float | None,
    control_points: int | Sequence[int] | None,
    ants: AntsHabits,
) -> Domain:
    """Return the domain of the spline: the image, or with ANTs' distance a whole number of spans."""
    if ants.spline_mm is not None:
        return spline_domain(shape, voxel_um, ants.spline_mm)
    if spline_um is not None:
        return Domain(Knots(spline_um, tuple(n * um for n, um in zip(shape, voxel_um, strict=True))), shape)
    return Domain(4 if control_points is None else control_points, shape)
