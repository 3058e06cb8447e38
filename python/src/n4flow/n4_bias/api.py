"""The bias field: N4 on an image in memory, per section, and as a correction of the recipe.

`n4` and `fit_bias` leave the level of the field as ITK leaves it. `n4_correct`, its variants and the workflow centre it
(mean log field 0 in the mask), so that the brightness of a section survives its correction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from n4flow.compute.arrays import array_module, as_mask, is_dask
from n4flow.compute.gpu import on_device, run_on_gpu
from n4flow.compute.jit import thread_count
from n4flow.errors import InputError
from n4flow.n4_bias import engine, sharpening
from n4flow.n4_bias.field import BiasField
from n4flow.n4_bias.gpu import sharpen as gpu_sharpen
from n4flow.n4_bias.inputs import image_and_mask, shrunken
from n4flow.n4_bias.problem import check_distance, controls_from_distance, level_controls
from n4flow.n4_bias.settings import DEFAULT_ITERATIONS, FitSettings, iteration_counts
from n4flow.n4_bias.shrink import factors, shrunken_shape

Factors = int | Sequence[int]


def fit_bias(
    image: Any,
    mask: Any = None,
    *,
    iters: Sequence[int] | int = DEFAULT_ITERATIONS,
    over_relax: float = 1.0,
    conv_threshold: float = 1e-3,
    nbins: int = 200,
    fwhm: float = 0.15,
    wiener: float = 0.01,
    control_points: int | Sequence[int] = 4,
    weights: Any = None,
    shrink: Factors = 1,
    convergence: str = "itk",
    backend: str = "auto",
    threads: int | None = None,
) -> BiasField:
    """Fit a bias field with N4.

    With `shrink` 1 the lattice, the iterations and the level of the field are ITK's.

    Parameters
    ----------
    image : (Z, Y, X) or (Y, X) array, real or integer, NumPy or CuPy
        Voxels that are not finite or not above 0 take no part; they are counted in `BiasField.voxels`.
    mask : array of the same shape, optional
        Where it is not 0, the voxel takes part: bool, 0/1, 0/255 and float masks are alike. By default Otsu's mask.
    iters : sequence of int
        Most iterations at each level; as many levels. Each level doubles the spans of the lattice.
    over_relax : float
        Factor on each step; the threshold is multiplied by it too. 1 is N4; 1.8 needs about half the iterations and
        ends within about 0.1 % of N4.
    conv_threshold : float
        A level ends when the coefficient of variation of the change of the field is at or below it.
    nbins, fwhm, wiener : int, float, float
        Bins of the histogram of log intensity, width of the Gaussian that blurs it, noise of the Wiener filter.
    control_points : int or sequence of int
        Control points along each axis at the first level, at least 4 (one span).
    weights : array of the same shape, optional
        ITK's confidence image: a voxel of weight 0 takes no part; the others enter the fit by their weight.
    shrink : int or sequence of int
        The fit runs on means of blocks of this size, the field is evaluated at full size. A single number is
        lowered along axes where it would leave fewer than 4 samples.
    convergence : {'itk', 'cv'}
        ITK's running measure, whose value depends on the order and number of voxels, or the coefficient of variation
        itself.
    backend : {'auto', 'cpu', 'gpu', 'itk'}
        `cpu` and `gpu` are n4flow's engine, `itk` is SimpleITK; `auto` is `gpu` where one works, else `cpu`. Host
        arrays pass through a GPU in blocks of planes; CuPy arrays stay there.
    threads : int, optional
        By default every processor this process may use. The result does not depend on it.

    Returns
    -------
    BiasField
        With `reason` set and a field of 1 where the image has nothing to fit (a warning says so).

    Raises
    ------
    InputError
        Shapes that do not match, or an option out of range.
    GpuError
        `backend` is 'gpu', and none works.
    OutOfMemoryError
        The GPU's memory is too small for the fitted image.
    """
    chosen = engine.choose_backend(backend)
    values, selected, confidence = image_and_mask(image, mask, weights, chosen)
    settings = FitSettings(
        iteration_counts(iters), conv_threshold, over_relax, nbins, fwhm, wiener, convergence, thread_count(threads)
    )
    first = (control_points,) * values.ndim if isinstance(control_points, int) else tuple(control_points)
    k = factors(shrink, values.shape)
    controls = level_controls(first, len(settings.iterations), shrunken_shape(values.shape, k))
    small = shrunken(values, selected, confidence, k, settings.threads, chosen)
    return engine.fit(*small, controls=controls, settings=settings, backend=chosen, shape=values.shape, shrink=k)


def n4(
    image: Any,
    mask: Any = None,
    *,
    iters: Sequence[int] | int = DEFAULT_ITERATIONS,
    over_relax: float = 1.0,
    conv_threshold: float = 1e-3,
    nbins: int = 200,
    fwhm: float = 0.15,
    wiener: float = 0.01,
    control_points: int | Sequence[int] = 4,
    weights: Any = None,
    shrink: Factors = 1,
    convergence: str = "itk",
    backend: str = "auto",
    threads: int | None = None,
    return_bias: bool = False,
) -> Any:
    """Correct an image with N4; the call and the meaning of n4ax.n4.

    n4ax's defaults (`iters=(8, 12, 12, 8)`, `over_relax=1.8`, threshold 0) are its own; ours are ITK's. Parameters are
    those of `fit_bias`.

    Returns
    -------
    corrected : float32 array
    log_bias : float32 array
        Only with `return_bias`.
    """
    bias = fit_bias(
        image,
        mask,
        iters=iters,
        over_relax=over_relax,
        conv_threshold=conv_threshold,
        nbins=nbins,
        fwhm=fwhm,
        wiener=wiener,
        control_points=control_points,
        weights=weights,
        shrink=shrink,
        convergence=convergence,
        backend=backend,
        threads=threads,
    )
    if bias.backend == "gpu" and not on_device(image):
        corrected = np.empty(bias.shape, np.float32)
        bias.apply_through_gpu(np.asarray(image), corrected)
    else:
        corrected = bias.apply(image, threads=threads)
    return (corrected, bias.log_field(threads=threads, gpu=on_device(image))) if return_bias else corrected


def fit_shrunken(
    mean: np.ndarray,
    mask: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    shrink: Sequence[int],
    full_shape: Sequence[int],
    voxel_um: Sequence[float],
    spline_um: float | None,
    iterations: Sequence[int] = DEFAULT_ITERATIONS,
    tolerance: float = 1e-3,
    backend: str = "auto",
    threads: int | None = None,
    centre: bool = True,
    name: str = "the volume",
) -> BiasField:
    """Fit a bias field to a section, or a volume, that was shrunken before; what the workflow calls.

    Parameters
    ----------
    mean : (z, y, x) float32 array
        The shrunken image.
    mask : (z, y, x) bool array
    weights : (z, y, x) float32 array, optional
        See `fit_bias`.
    shrink : three int
        Full-size voxels to a sample along each axis.
    full_shape : three int
        The full-size image.
    voxel_um : three float
        Full-size voxel (z, y, x) in micrometres.
    spline_um : float or None
        Distance of the first level's knots; None for one span along each axis. See `n4_correct`, which also says
        what a section of few planes gets. A single plane is fitted in two dimensions.
    iterations, tolerance, backend, threads
        See `fit_bias`.
    centre : bool
        Whether the mean log field over the mask is made 0.
    name : str
        What a warning calls the volume.

    Returns
    -------
    BiasField

    Raises
    ------
    InputError
        A knot distance that the image cannot carry, or an option out of range.
    """
    settings = FitSettings(iteration_counts(iterations), tolerance, threads=thread_count(threads))
    extents = [n * um for n, um in zip(full_shape, voxel_um, strict=True)]
    check_distance(spline_um, extents, mean.shape)
    first = controls_from_distance(extents, spline_um)
    bias = engine.fit(
        mean,
        mask,
        weights,
        controls=level_controls(first, len(settings.iterations), mean.shape, thin=True),
        settings=settings,
        backend=backend,
        shape=full_shape,
        shrink=shrink,
        voxel_um=voxel_um,
        name=name,
    )
    return bias.centred(mask & (mean > 0)) if centre else bias


def apply_bias_field(vol: Any, bias_field: Any, floor: float = 1e-6) -> Any:
    """Return vol / bias_field as float32.

    Parameters
    ----------
    vol : real or integer array, NumPy, CuPy or dask
        A dask array stays lazy.
    bias_field : array of the same shape, or BiasField
        The multiplicative field (not its log).
    floor : float
        Values of an array field below this are raised to it; a BiasField is positive everywhere.

    Returns
    -------
    float32 array
        Zeros and non-finite voxels of `vol` stay what they are.

    Raises
    ------
    InputError
        The field has another shape.
    """
    if isinstance(bias_field, BiasField):
        return bias_field.apply(vol)
    if tuple(bias_field.shape) != tuple(vol.shape):
        msg = f"the bias field must have the shape of the image, {tuple(vol.shape)}, got {tuple(bias_field.shape)}"
        raise InputError(msg)
    if is_dask(vol) and is_dask(bias_field):
        bias_field = bias_field.rechunk(vol.chunks)  # dask would cut the volume where either has a cut
    lazy = is_dask(vol) or is_dask(bias_field)
    xp = np if lazy else array_module(vol)
    return vol.astype(np.float32) / xp.maximum(bias_field, floor).astype(np.float32)


def sharpen_residual(
    log_v: Any,
    mask: Any,
    *,
    n_bins: int = 200,
    fwhm_log: float = 0.15,
    wiener_noise: float = 0.01,
    use_gpu: bool = False,
    mask_weights: Any = None,
) -> Any:
    """Return the sharpened log intensity E[true | observed] of every voxel.

    What is left of the observed one is what the bias field has to explain.

    Parameters
    ----------
    log_v : array of any shape, NumPy or CuPy
        Log intensity.
    mask : array of the same shape
        What is not 0 is inside. Voxels that are not finite take no part and are returned as they are.
    n_bins, fwhm_log, wiener_noise : int, float, float
        See `fit_bias`.
    use_gpu : bool
        Compute on the GPU also what is in host memory; CuPy arrays stay there.
    mask_weights : array of the same shape, optional
        How much each voxel counts in the histogram.

    Returns
    -------
    float32 array
        Outside the mask `log_v` itself. Where the values inside have no spread, `log_v`.

    Raises
    ------
    GpuError
        `use_gpu`, and no GPU works.
    InputError
        Shapes that do not match.
    """
    if use_gpu:
        engine.choose_backend("gpu")
    if mask_weights is not None and tuple(mask_weights.shape) != tuple(log_v.shape):
        msg = f"mask_weights must have the shape of log_v, {tuple(log_v.shape)}, got {tuple(mask_weights.shape)}"
        raise InputError(msg)
    inside = as_mask(mask, log_v.shape)
    settings = gpu_sharpen.Settings(n_bins, fwhm_log, wiener_noise)
    if on_device(log_v):
        return run_on_gpu(lambda _voxels: gpu_sharpen.sharpen(log_v, inside, mask_weights, settings), release=False)
    if use_gpu:
        host = np.asarray(log_v), np.asarray(inside), None if mask_weights is None else np.asarray(mask_weights)
        return run_on_gpu(lambda voxels: gpu_sharpen.sharpen_streamed(*host, settings, voxels), release=True)
    values = np.array(log_v, np.float32)
    inside = np.asarray(inside) & np.isfinite(values)
    observed = values[inside]
    if observed.size and observed.max() > observed.min():
        low, high = float(observed.min()), float(observed.max())
        counts = None if mask_weights is None else np.asarray(mask_weights)[inside]
        histogram = sharpening.histogram(observed, low, high, n_bins, counts)
        expected = sharpening.expected_log_intensity(histogram, low, high, fwhm_log, wiener_noise)
        values[inside] = sharpening.sharpen(observed, expected, low, high)
    return values
