"""napari's widget "n4flow: correct this layer": N4 of an image layer, as `n4flow n4` does it of a file.

napari finds it by the package's `napari.yaml` and makes the form from the function's signature, of which it resolves
no annotations but those of types; hence no `from __future__ import annotations` here.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from n4flow.errors import InputError
from n4flow.n4_bias.api import fit_bias
from n4flow.n4_bias.problem import Knots
from n4flow.pipeline.parameters import defaults, iteration_list, schema

if TYPE_CHECKING:
    import napari.layers
    import napari.qt.threading
    import napari.types

_DEFAULTS = defaults()


def correct_layer(
    image: "napari.layers.Image",
    mask: "napari.layers.Labels | None" = None,
    shrink: Annotated[int, {"min": 1, "max": 64, "tooltip": "Fit on means of this many voxels along each axis."}] = 4,
    spline_um: Annotated[float, {"max": 1e9, "tooltip": schema()["spline_um"]["description"] + " 0: one span."}] = 0.0,
    iterations: Annotated[str, {"tooltip": schema()["iterations"]["description"]}] = _DEFAULTS["iterations"],
    tolerance: Annotated[
        float, {"min": 0, "max": 1, "step": 1e-4, "tooltip": schema()["tolerance"]["description"]}
    ] = _DEFAULTS["tolerance"],
    backend: Annotated[str, {"choices": schema()["backend"]["enum"]}] = "auto",
) -> "napari.qt.threading.FunctionWorker[list[napari.types.LayerDataTuple]]":
    """Correct the bias field of an image layer, in a thread; two layers are added, the corrected image and the field.

    Parameters
    ----------
    image : layer of (Z, Y, X) or (Y, X) data
        Of a layer of several resolutions, the finest.
    mask : layer of the same shape, optional
        Labels that are not 0 are fitted. By default Otsu's mask.
    shrink, spline_um, iterations, tolerance, backend
        As of `n4flow n4`; `spline_um` needs a layer whose scale has a unit of length.

    Raises
    ------
    InputError
        The layer has channels or more than three dimensions, the mask another shape, or the scale no unit.
    """
    from napari.qt.threading import create_worker

    voxels = image.data[0] if image.multiscale else image.data
    if image.rgb or voxels.ndim not in (2, 3):
        msg = f"layer {image.name} must have axes (z, y, x) or (y, x), got shape {voxels.shape}; split its channels"
        raise InputError(msg)
    labels = None
    if mask is not None:
        labels = mask.data[0] if mask.multiscale else mask.data
        if labels.shape != voxels.shape:
            msg = f"mask {mask.name} must have the shape of {image.name}, {voxels.shape}, got {labels.shape}"
            raise InputError(msg)
    control_points: int | Knots = 4
    if spline_um:
        sides = zip(voxels.shape, voxel_um(image.name, image.scale, image.units), strict=True)
        control_points = Knots(spline_um, tuple(count * um for count, um in sides))
    place = {name: getattr(image, name) for name in ("scale", "translate", "rotate", "shear", "units")}

    def fit() -> list[tuple[np.ndarray, dict[str, Any], str]]:
        values = np.asarray(voxels)
        field = fit_bias(
            values,
            None if labels is None else np.asarray(labels),
            shrink=shrink,
            iters=iteration_list(iterations),
            conv_threshold=tolerance,
            control_points=control_points,
            backend=backend,
        )
        if field.reason is not None:
            msg = f"layer {image.name}: {field.reason}; the field is 1"
            raise InputError(msg)
        made = {"n4": field.apply(values), "bias field": field.field()}
        return [(data, {"name": f"{image.name} {what}", **place}, "image") for what, data in made.items()]

    return create_worker(fit, _start_thread=True, _progress={"desc": f"N4 of {image.name}"})


def voxel_um(name: str, scale: Sequence[float], units: Sequence[Any]) -> tuple[float, ...]:
    """Return a layer's scale in micrometres; an InputError names the layer where its unit is no length."""
    from pint.errors import DimensionalityError

    try:
        return tuple(float((size * unit).to("micrometer").magnitude) for size, unit in zip(scale, units, strict=True))
    except DimensionalityError:
        msg = f"spline_um needs the voxel size of layer {name}, whose unit is {units[-1]}; set layer.units"
        raise InputError(msg) from None
