"""N4 by knot distance, at full size: a volume, or each of its sections."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from n4flow.compute.arrays import array_module, as_mask, to_numpy
from n4flow.compute.gpu import on_device
from n4flow.compute.jit import thread_count
from n4flow.errors import InputError
from n4flow.n4_bias import engine
from n4flow.n4_bias.field import BiasField, check_out
from n4flow.n4_bias.inputs import image_and_mask, shrunken
from n4flow.n4_bias.problem import check_distance, controls_from_distance, level_controls
from n4flow.n4_bias.settings import FitSettings, iteration_counts
from n4flow.n4_bias.shrink import factors
from n4flow.sections import SectionTable

Factors = int | Sequence[int]


def n4_correct(
    vol: Any,
    mask: Any = None,
    *,
    shrink_factor: Factors = 4,
    n_iterations: Sequence[int] | int | None = None,
    spline_distance_mm: float = 10.0,
    voxel_size_mm: Sequence[float] = (1.0, 1.0, 1.0),
    backend: str = "cpu",
    out: Any = None,
    bias_out: Any = None,
    threads: int | None = None,
    name: str = "the image",
) -> tuple[Any, Any]:
    """Correct a volume with N4; linumpy's call and meaning, with its voxel axes kept apart.

    Parameters
    ----------
    vol : (Z, Y, X) or (Y, X) array, real or integer, NumPy or CuPy
    mask : array of the same shape, optional
        See `fit_bias`.
    shrink_factor : int or sequence of int
        See `fit_bias`.
    n_iterations : sequence of int, optional
        Most iterations at each level; four levels of 50 by default.
    spline_distance_mm : float
        Distance of the first level's knots: ceil(extent / distance) + 3 control points along each axis. An axis stops
        doubling its spans where they would be finer than its samples, so that a thin section gets few along Z.
    voxel_size_mm : sequence of float
        Voxel size in the order of the axes, (z, y, x). With two axes the last two are taken.
    backend : {'cpu', 'gpu', 'auto', 'itk'}
    out, bias_out : float arrays of the shape of `vol`, optional
        Where the results go; `out` may be `vol`.
    threads : int, optional
        By default every processor this process may use. The result does not depend on it.
    name : str
        What a warning calls the image.

    Returns
    -------
    corrected, bias_field : float32 arrays, or `out` and `bias_out`
        Full size; vol = corrected x bias_field. The mean log field over the mask is 0.

    Raises
    ------
    InputError
        A knot distance that the image cannot carry, shapes that do not match, or an option out of range.
    """
    settings = FitSettings(iteration_counts(n_iterations), threads=thread_count(threads))
    bias = _fit_distance(vol, mask, shrink_factor, spline_distance_mm, voxel_size_mm, settings, backend, name)
    return _corrected(vol, bias, out, bias_out, settings.threads)


def n4_correct_gpu(
    vol: Any,
    mask: Any = None,
    *,
    shrink_factor: Factors = 4,
    n_iterations: Sequence[int] | int | None = None,
    spline_distance_mm: float = 10.0,
    voxel_size_mm: Sequence[float] = (1.0, 1.0, 1.0),
    n_bins: int = 200,
    fwhm_log: float = 0.15,
    wiener_noise: float = 0.01,
    convergence_tol: float = 1e-3,
    use_gpu: bool = True,
    out: Any = None,
    bias_out: Any = None,
) -> tuple[Any, Any]:
    """Correct a volume on the GPU, or with `use_gpu=False` on the CPU; see `n4_correct`.

    The same algorithm with the same defaults on both. A GPU that was asked for and does not work is an error.

    Raises
    ------
    GpuError
        `use_gpu` and no GPU backend works.
    """
    settings = FitSettings(
        iteration_counts(n_iterations),
        convergence_tol,
        bins=n_bins,
        fwhm=fwhm_log,
        wiener=wiener_noise,
        threads=thread_count(None),
    )
    backend = "gpu" if use_gpu else "cpu"
    bias = _fit_distance(vol, mask, shrink_factor, spline_distance_mm, voxel_size_mm, settings, backend)
    return _corrected(vol, bias, out, bias_out, settings.threads)


def n4_correct_per_section(
    vol: Any, n_serial_slices: Any, mask: Any = None, *, n_processes: int = 1, **options: Any
) -> tuple[Any, Any]:
    """Correct each section of a volume by itself.

    Parameters
    ----------
    vol : (Z, Y, X) array
    n_serial_slices : int or section table
        A count (equal split, a remainder spread over the stack), a SectionTable, a path to one, or a sequence of
        Section. A section that is not flagged `ok` keeps its intensities.
    mask : array of the same shape, optional
        By default Otsu's mask of each section.
    n_processes : int
        Sections fitted at a time, in threads (the compiled loops run side by side). The result does not depend on it.
    **options
        Of `n4_correct`.

    Returns
    -------
    corrected, bias_field : see `n4_correct`
    """
    values = to_numpy(vol)
    sections = SectionTable.coerce(n_serial_slices, values.shape[0])
    selected = None if mask is None else as_mask(to_numpy(mask), values.shape)
    corrected, field = (_result(options.pop(name, None), values.shape, name) for name in ("out", "bias_out"))

    def correct(number: int) -> None:
        section = sections[number]
        planes = section.planes
        if not section.usable:
            corrected[planes], field[planes] = values[planes], 1
            return
        part = None if selected is None else selected[planes]
        places: dict[str, Any] = {"out": corrected[planes], "bias_out": field[planes], "name": f"section {section.id}"}
        n4_correct(values[planes], part, **places, **options)

    if n_processes > 1:
        options.setdefault("threads", max(1, thread_count(None) // n_processes))
        with ThreadPoolExecutor(n_processes) as pool:
            list(pool.map(correct, range(len(sections))))
    else:
        for number in range(len(sections)):
            correct(number)
    xp = array_module(vol)
    return xp.asarray(corrected), xp.asarray(field)


def _fit_distance(
    vol: Any,
    mask: Any,
    shrink: Factors,
    distance_mm: float,
    voxel_mm: Sequence[float],
    settings: FitSettings,
    backend: str,
    name: str = "the image",
) -> BiasField:
    """Fit with knots `distance_mm` apart, on an axis no finer than its samples; centred."""
    chosen = engine.choose_backend(backend)
    values, selected, _weights = image_and_mask(vol, mask, None, chosen)
    voxel_um = [1000.0 * float(mm) for mm in voxel_mm][-values.ndim :]
    if len(voxel_um) != values.ndim or min(voxel_um) <= 0:
        msg = f"voxel_size_mm must be above 0 along each of the {values.ndim} axes, got {tuple(voxel_mm)}"
        raise InputError(msg)
    k = factors(shrink, values.shape)
    small, small_mask, _none = shrunken(values, selected, None, k, settings.threads, chosen)
    extents = [n * um for n, um in zip(values.shape, voxel_um, strict=True)]
    distance_um = 1000.0 * distance_mm
    check_distance(distance_um, extents, small.shape)
    first = controls_from_distance(extents, distance_um)
    bias = engine.fit(
        small,
        small_mask,
        None,
        controls=level_controls(first, len(settings.iterations), small.shape, thin=True),
        settings=settings,
        backend=chosen,
        shape=values.shape,
        shrink=k,
        voxel_um=voxel_um,
        name=name,
    )
    return bias.centred(small_mask & (small > 0))


def _result(given: Any, shape: Sequence[int], name: str) -> np.ndarray:
    return np.empty(tuple(shape), np.float32) if given is None else check_out(given, shape, name)


def _corrected(vol: Any, bias: BiasField, out: Any, bias_out: Any, threads: int) -> tuple[Any, Any]:
    """Return the corrected image and the field at full size."""
    if on_device(vol):
        return bias.apply(vol, out), bias.field(out=bias_out, gpu=True)
    corrected, field = _result(out, bias.shape, "out"), _result(bias_out, bias.shape, "bias_out")
    if bias.backend == "gpu":
        bias.apply_through_gpu(np.asarray(vol), corrected, field)
    else:
        bias.field(out=field, threads=threads)
        bias.apply(np.asarray(vol), corrected, threads=threads)
    return corrected, field
