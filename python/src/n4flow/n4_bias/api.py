"""N4 of an image in memory: fit a bias field, correct by it, or apply one of its steps.

`n4` and `fit_bias` return the overall level of the field that ITK returns. `n4_correct`, its variants and the workflow
centre the field (its mean log over the mask is 0), so that a section keeps its brightness.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from n4flow.compute.arrays import array_module, as_mask, is_dask, takes_arrays
from n4flow.compute.gpu import on_device, run_on_gpu
from n4flow.compute.progress import Listener, Progress, counted
from n4flow.errors import InputError, N4flowWarning
from n4flow.n4_bias import engine, sharpening
from n4flow.n4_bias.field import BiasField
from n4flow.n4_bias.gpu import sharpen as gpu_sharpen
from n4flow.n4_bias.inputs import FitInput, prepare
from n4flow.n4_bias.otsu_mask import otsu_mask
from n4flow.n4_bias.problem import MOST_SPANS, Knots, first_controls, level_controls, too_fine
from n4flow.n4_bias.settings import DEFAULT_ITERATIONS, FitSettings, fit_settings
from n4flow.n4_bias.shrink import Factors


@takes_arrays
def fit_bias(
    image: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    iters: Sequence[int] | int = DEFAULT_ITERATIONS,
    over_relax: float = 1.0,
    conv_threshold: float = 1e-3,
    nbins: int = 200,
    fwhm: float = 0.15,
    wiener: float = 0.01,
    control_points: int | Sequence[int] | Knots = 4,
    weights: ArrayLike | None = None,
    shrink: Factors = 1,
    convergence: str = "itk",
    backend: str = "auto",
    threads: int | None = None,
    progress: Listener | None = None,
) -> BiasField:
    """Fit a bias field with N4 [1]_.

    With `shrink` 1 the lattice, the numbers of iterations and the level of the field are ITK's.

    Parameters
    ----------
    image : (Z, Y, X) or (Y, X) array, real or integer, NumPy or CuPy
        Voxels that are not finite or not above 0 are excluded; `BiasField.voxels` counts them.
    mask : array of the same shape, optional
        Voxels where it is not 0 are fitted; it may be bool, 0/1, 0/255 or float. By default Otsu's mask.
    iters : sequence of int
        Maximum number of iterations at each level; its length is the number of levels. Each level doubles the spans of
        the lattice.
    over_relax : float
        Factor on each step and on the threshold. 1 is N4; 1.8 needs about half the iterations and ends within about
        0.1 % of N4.
    conv_threshold : float
        A level ends when the coefficient of variation of the change of the field is at or below it.
    nbins, fwhm, wiener : int, float, float
        Number of bins of the histogram of log intensity, full width at half maximum of the Gaussian that blurs it, and
        noise term of the Wiener filter.
    control_points : int, sequence of int or Knots
        Control points along each axis at the first level, at least 4 (one span). With the distance of `Knots`, the
        lattice is that of `n4_correct`: later levels double the spans up to four, and a warning says where knots are
        so close that the field may take anatomy for bias.
    weights : array of the same shape, optional
        ITK's confidence image: a voxel of weight 0 is excluded; the others enter the fit by their weight.
    shrink : int or sequence of int
        The fit runs on means of blocks of this size, the field is evaluated at full size. A single number is
        lowered along axes where it would leave fewer than 4 samples.
    convergence : {'itk', 'cv'}
        ITK's running measure, whose value depends on the order and number of voxels, or the coefficient of variation
        itself.
    backend : {'auto', 'cpu', 'gpu', 'itk'}
        `cpu` and `gpu` are n4flow's own implementations, `itk` is SimpleITK; `auto` is `gpu` if one works, else `cpu`.
        Host arrays pass through a GPU in blocks of planes; CuPy arrays stay on the device.
    threads : int, optional
        By default every core that this process may use. The result does not depend on it.
    progress : callable, optional
        Is called with a `Progress`, now and then, while the field is fitted; its unit is iterations.

    Returns
    -------
    BiasField
        If the image has nothing to fit, `reason` says why, the field is 1, and a warning is issued.

    Raises
    ------
    InputError
        Shapes that do not match, or an option out of range.
    GpuError
        `backend` is 'gpu', and no GPU works.
    OutOfMemoryError
        The GPU's memory is too small for the fitted image.

    References
    ----------
    .. [1] N. J. Tustison et al., N4ITK: Improved N3 Bias Correction, IEEE Trans. Medical Imaging 29(6), 2010.
    """
    chosen = engine.choose_backend(backend)
    settings = fit_settings(
        iters,
        threads,
        threshold=conv_threshold,
        over_relax=over_relax,
        bins=nbins,
        fwhm=fwhm,
        wiener=wiener,
        convergence=convergence,
    )
    small = prepare(image, mask, weights, shrink, chosen, settings.threads)
    levels = len(settings.iterations)
    if isinstance(control_points, Knots):
        controls = _spaced_controls(small, control_points.extents_um, control_points.distance_um, levels, "the image")
    else:
        first = (control_points,) * len(small.shape) if isinstance(control_points, int) else tuple(control_points)
        controls = level_controls(first, levels, small.image.shape)
    with counted(Progress("N4", sum(settings.iterations), "iterations"), progress):
        return engine.fit(small, controls=controls, settings=settings, backend=chosen)


@takes_arrays
def n4(
    image: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    return_bias: bool = False,
    tiny: float | None = None,
    iters: Sequence[int] | int = DEFAULT_ITERATIONS,
    over_relax: float = 1.0,
    conv_threshold: float = 1e-3,
    nbins: int = 200,
    fwhm: float = 0.15,
    wiener: float = 0.01,
    control_points: int | Sequence[int] | Knots = 4,
    weights: ArrayLike | None = None,
    shrink: Factors = 1,
    convergence: str = "itk",
    backend: str = "auto",
    threads: int | None = None,
    progress: Listener | None = None,
) -> NDArray[Any] | tuple[NDArray[Any], NDArray[Any]]:
    """Correct an image with N4; a drop-in replacement of n4ax.n4.

    Parameters mean what n4ax means by them. Defaults are ITK's; n4ax has others (`iters=(8, 12, 12, 8)`,
    `over_relax=1.8`, threshold 0).

    Parameters
    ----------
    image : (Z, Y, X) or (Y, X) array
        Real or integer, NumPy or CuPy; voxels that are not finite or not above 0 are left out of the fit.
    mask : array of the same shape, optional
        Voxels where it is not 0 are fitted. By default Otsu's mask.
    return_bias : bool
        Return the log of the bias field, too.
    tiny : float, optional
        n4ax's: intensities below it enter the fit as `tiny`. Without it, voxels not above 0 are left out of the fit,
        which is better: many voxels of one small value are a spike in the histogram of log intensity.
    iters : sequence of int
        Most iterations at each level; as many levels as numbers, each with twice the spans of the one before.
    over_relax : float
        Factor on each step: 1 is N4, 1.8 needs about half the iterations.
    conv_threshold : float
        A level ends when the coefficient of variation of the field's change is at or below it.
    nbins, fwhm, wiener : int, float, float
        Bins of the histogram of log intensity, width of the Gaussian that blurs it, noise of the Wiener filter.
    control_points : int, sequence of int or Knots
        Control points along each axis at the first level, at least 4, or their distance.
    weights : array of the same shape, optional
        Confidence in each voxel; 0 leaves it out.
    shrink : int or sequence of int
        The fit runs on means of blocks of this size; the result has full size.
    convergence : {'itk', 'cv'}
        Which measure `conv_threshold` is of.
    backend : {'auto', 'cpu', 'gpu', 'itk'}
        What computes it; `auto` is `gpu` where one works, else `cpu`.
    threads : int, optional
        By default every core that this process may use. The result does not depend on it.
    progress : callable, optional
        Is called with a `Progress`, now and then, while the field is fitted.

    Returns
    -------
    corrected : float32 array
        NumPy, or CuPy where `image` is.
    log_bias : float32 array
        Only with `return_bias`.

    See Also
    --------
    fit_bias : the same fit in full words, its errors, and the field itself.
    """
    if tiny is not None and not tiny > 0:
        msg = f"tiny must be above 0, the least intensity that has a logarithm, got {tiny}"
        raise InputError(msg)
    given: Any = image
    raised = given if tiny is None else array_module(given).maximum(given, np.float32(tiny))
    bias = fit_bias(
        raised,
        otsu_mask(given) if mask is None and tiny is not None else mask,
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
        progress=progress,
    )
    if bias.backend == "gpu" and not on_device(given):
        corrected = np.empty(bias.shape, np.float32)
        bias.apply_through_gpu(np.asarray(given), corrected)
    else:
        corrected = bias.apply(given, threads=threads)
    return (corrected, bias.log_field(threads=threads, gpu=on_device(given))) if return_bias else corrected


def fit_spaced(
    small: FitInput,
    *,
    voxel_um: Sequence[float],
    spline_um: float | None,
    settings: FitSettings,
    backend: str = "auto",
    name: str = "the volume",
) -> BiasField:
    """Fit a bias field with a given knot distance and centre it: its mean log over the mask is 0.

    Parameters
    ----------
    small : FitInput
        The shrunken image. A single plane is fitted in two dimensions.
    voxel_um : sequence of float
        Full-size voxel along each axis, in micrometres.
    spline_um : float or None
        Distance of the first level's control points; None for one span along each axis. `n4_correct` describes the
        lattice, also that of a section of few planes.
    settings : FitSettings
    backend : {'auto', 'cpu', 'gpu', 'itk'}
    name : str
        What a warning calls the volume.

    Raises
    ------
    InputError
        The knot distance does not fit the image.
    """
    extents = [n * um for n, um in zip(small.shape, voxel_um, strict=True)]
    controls = _spaced_controls(small, extents, spline_um, len(settings.iterations), name)
    bias = engine.fit(small, controls=controls, settings=settings, backend=backend, voxel_um=voxel_um, name=name)
    return bias.centred(small.mask & (small.image > 0))


def _spaced_controls(
    small: FitInput, extents_um: Sequence[float], spline_um: float | None, levels: int, name: str
) -> tuple[tuple[int, ...], ...]:
    """Return the control points of each level, and warn where a distance puts knots too close."""
    if len(extents_um) != len(small.shape):
        msg = f"knots need the extent of {name} along each of its {len(small.shape)} axes, got {tuple(extents_um)}"
        raise InputError(msg)
    first = first_controls(extents_um, spline_um, small.image.shape)
    most = None if spline_um is None else MOST_SPANS
    controls = level_controls(first, levels, small.image.shape, thin=True, most=most)
    if spline_um is not None and (doubt := too_fine(small.mask, controls[-1], extents_um)):
        warnings.warn(f"{name}: {doubt}", N4flowWarning, stacklevel=4)
    return controls


@takes_arrays
def apply_bias_field(vol: Any, bias_field: Any, floor: float = 1e-6) -> NDArray[np.float32]:
    """Return vol / bias_field as float32.

    Parameters
    ----------
    vol : real or integer array, NumPy, CuPy or dask
        A dask array stays lazy.
    bias_field : array, or BiasField
        The multiplicative field, not its log. Its shape is that of `vol`, or one that broadcasts to it, such as
        (1, Y, X) for one field of all planes.
    floor : float
        Lower values of a field array are raised to this; a BiasField is positive everywhere.

    Returns
    -------
    float32 array
        Zeros and non-finite voxels of `vol` are unchanged.

    Raises
    ------
    InputError
        The field has a shape that does not broadcast to that of `vol`.
    """
    if isinstance(bias_field, BiasField):
        return bias_field.apply(vol)
    sizes = zip(bias_field.shape[::-1], vol.shape[::-1], strict=False)
    if bias_field.ndim > vol.ndim or any(n not in (1, whole) for n, whole in sizes):
        msg = (
            f"the bias field must have the shape of the image, {tuple(vol.shape)}, or one that broadcasts to it, got "
            f"{tuple(bias_field.shape)}"
        )
        raise InputError(msg)
    if is_dask(vol) and is_dask(bias_field):  # else the result would have the chunk borders of both
        chunks = vol.chunks[vol.ndim - bias_field.ndim :]
        bias_field = bias_field.rechunk(tuple(c if n > 1 else n for n, c in zip(bias_field.shape, chunks, strict=True)))
    lazy = is_dask(vol) or is_dask(bias_field)
    xp = np if lazy else array_module(vol)
    return vol.astype(np.float32) / xp.maximum(bias_field, floor).astype(np.float32)


@takes_arrays
def sharpen_residual(
    log_v: Any,
    mask: Any = None,
    *,
    n_bins: int = 200,
    fwhm_log: float = 0.15,
    wiener_noise: float = 0.01,
    use_gpu: bool = False,
    mask_weights: Any = None,
) -> NDArray[np.float32]:
    """Return the sharpened log intensity E[true | observed] of every voxel; see `n4_bias.sharpening`.

    The bias field is fitted to the difference between observed and sharpened log intensity.

    Parameters
    ----------
    log_v : array of any shape, NumPy or CuPy
        Log intensity.
    mask : array of the same shape, optional
        Voxels where it is not 0 are inside; by default all of them. Voxels that are not finite are excluded and
        returned unchanged.
    n_bins, fwhm_log, wiener_noise : int, float, float
        See `fit_bias`.
    use_gpu : bool
        Whether host arrays are computed on the GPU; CuPy arrays always are.
    mask_weights : array of the same shape, optional
        Weight of each voxel in the histogram.

    Returns
    -------
    float32 array
        `log_v` outside the mask, and everywhere if all values inside are equal.

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
    inside = array_module(log_v).ones(log_v.shape, bool) if mask is None else as_mask(mask, log_v.shape)
    settings = (n_bins, fwhm_log, wiener_noise)
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
