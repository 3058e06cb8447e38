"""The bias field: its lattice, the grid of the fitted image, and the report of the fit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from n4flow.compute.arrays import check_float32, is_dask
from n4flow.compute.gpu import as_float32, on_device, run_on_gpu
from n4flow.compute.threads import thread_count
from n4flow.display import Shown, axes, picture, sizes
from n4flow.errors import InputError, reading
from n4flow.n4_bias import bspline
from n4flow.n4_bias.evaluate import Evaluator
from n4flow.n4_bias.gpu.evaluate import DeviceEvaluator, correct_streamed
from n4flow.n4_bias.problem import MOST_CONTROLS, Voxels
from n4flow.n4_bias.settings import Level

Slices = tuple[slice, ...]
RULES = ("aligned", "index")
NO_VOXELS = Voxels(0, 0, 0)
_SETTINGS = "settings"  # name of the settings in an .npz


@dataclass(frozen=True, repr=False)
class BiasField(Shown):
    """A multiplicative bias field: corrected image = image / exp(log field).

    Parameters
    ----------
    lattice : (cz, cy, cx) or (cy, cx) float32 array
        Control points of the log field's cubic B-spline; one along an axis where the fitted image has one sample.
    grid_shape : tuple of int
        Shape of the image that was fitted.
    shape : tuple of int
        Shape of the full-size image.
    shrink : tuple of int
        Full-size voxels for each sample of the fitted image, along each axis.
    levels : tuple of Level
        Control points and convergence measures of every level.
    reason : str, optional
        Why no field was fitted; the lattice is then 0 and the field 1.
    backend : str
        The backend that fitted the field.
    seconds : float
        Duration of the fit.
    convergence : str
        Convergence measure of the fit: 'itk' or 'cv'.
    voxels : Voxels
        Numbers of voxels of the fitted image: in the mask, and those of them that are not finite or not above 0.
    voxel_um : tuple of float, optional
        Full-size voxel in micrometres, if known.
    share : float
        Of the rms of the field that was fitted, what this one has: below 1 where only a part of it was kept.
    """

    lattice: np.ndarray
    grid_shape: tuple[int, ...]
    shape: tuple[int, ...]
    shrink: tuple[int, ...]
    levels: tuple[Level, ...] = ()
    reason: str | None = None
    backend: str = "cpu"
    seconds: float = 0.0
    convergence: str = "itk"
    voxels: Voxels = NO_VOXELS
    voxel_um: tuple[float, ...] | None = None
    share: float = 1.0

    def facts(self) -> Mapping[str, str]:
        """Return the image's shape, the range of the field, control points, iterations and backend."""
        if self.reason is not None:
            return {"shape": sizes(self.shape), "not fitted:": self.reason}
        log_field = self.log_field(self.grid_shape)
        low, high = np.exp(log_field.min()), np.exp(log_field.max())
        return {
            "shape": sizes(self.shape),
            "range": f"{low:.3g} to {high:.3g}",
            "control points": sizes(self.lattice.shape),
            "iterations": " ".join(str(level.iterations) for level in self.levels) or "unknown",
            "backend": self.backend,
        }

    def plot(self) -> Any:
        """Draw the field in the middle plane along each axis, and the convergence of each level.

        Returns
        -------
        array of matplotlib axes

        Raises
        ------
        InputError
            matplotlib is not installed.
        """
        field = np.exp(self.log_field(self.grid_shape)).reshape((1,) * (3 - len(self.shape)) + self.grid_shape)
        middle = [n // 2 for n in field.shape]
        cuts = [(axis, name) for axis, name in enumerate("ZYX") if axis == 0 or field.shape[0] > 1]
        places = axes(len(cuts) + 1)
        for place, (axis, name) in zip(places[0], cuts, strict=False):
            picture(place, field.take(middle[axis], axis), f"field, middle of {name}", aspect="auto", cmap="viridis")
        last, first = places[0][-1], 0
        for level in self.levels:
            last.semilogy(range(first + 1, first + 1 + level.iterations), level.measures, ".-")
            first += level.iterations
        last.set(title="convergence", xlabel="iteration", ylabel="measure")
        return places

    @property
    def knot_um(self) -> tuple[float, ...] | None:
        """Knot distance of the last level along each axis in micrometres: the finest scale of the field."""
        if self.voxel_um is None:
            return None
        steps = [max(n - 1, 1) * k * um for n, k, um in zip(self.grid_shape, self.shrink, self.voxel_um, strict=True)]
        return tuple(step / max(bspline.spans(c), 1) for step, c in zip(steps, self.lattice.shape, strict=True))

    def log_field(
        self,
        shape: Sequence[int] | None = None,
        where: Slices | None = None,
        *,
        rule: str = "aligned",
        threads: int | None = None,
        gpu: bool = False,
    ) -> Any:
        """Return the log field on a grid over the image's field of view.

        Parameters
        ----------
        shape : sequence of int, optional
            Shape of the grid; by default that of the full-size image. With the shape of the fitted image, the grid is
            its samples.
        where : tuple of slice, optional
            The part of the grid to return; by default all of it.
        rule : {'aligned', 'index'}
            'aligned' places the samples of a shrunken fit at the centres of their blocks. 'index' is ITK's rule, which
            places the first and last sample at the first and last voxel; the two differ for shrunken fits.
        threads : int, optional
            By default every core that this process may use. The result does not depend on it.
        gpu : bool
            Evaluate on the device and return a CuPy array with identical values.

        Returns
        -------
        float32 array
        """
        lattice, coordinates, out_shape = self._grid(shape, where, rule)
        if gpu:
            return _on_gpu(lattice, coordinates, None, out_shape, DeviceEvaluator.log_field)
        target = np.empty(out_shape, np.float32)
        Evaluator(lattice, coordinates).log_field(_volume_view(target), thread_count(threads))
        return target

    def field(
        self,
        shape: Sequence[int] | None = None,
        where: Slices | None = None,
        *,
        out: Any = None,
        threads: int | None = None,
        gpu: bool = False,
    ) -> Any:
        """Return exp of the log field, in `out` if that is given; see `log_field`."""
        lattice, coordinates, out_shape = self._grid(shape, where, "aligned")
        if gpu:
            return _on_gpu(lattice, coordinates, out, out_shape, DeviceEvaluator.field)
        target = np.empty(out_shape, np.float32) if out is None else check_out(out, out_shape)
        Evaluator(lattice, coordinates).field(_volume_view(target), thread_count(threads))
        return target

    def apply(
        self,
        image: Any,
        out: Any = None,
        *,
        where: Slices | None = None,
        rule: str = "aligned",
        threads: int | None = None,
    ) -> Any:
        """Return image / field. Zeros and non-finite voxels are unchanged.

        Parameters
        ----------
        image : array of the full-size shape, real or integer, NumPy, CuPy or dask
            A CuPy array is corrected on its device, with identical results; a dask array stays lazy.
        out : float32 or float64 array, optional
            Array for the result; it may be `image`.
        where : tuple of slice, optional
            The part of the full-size image that `image` is.
        rule : {'aligned', 'index'}
            See `log_field`.
        threads : int, optional

        Returns
        -------
        float32 array, or `out`

        Raises
        ------
        InputError
            The shape of `image` or `out` differs from the field's, or `out` cannot hold the result.
        """
        if is_dask(image):
            return self._apply_lazily(image)
        lattice, coordinates, shape = self._grid(None, where, rule)
        if tuple(image.shape) != shape:
            msg = f"the bias field is for an image of shape {shape}, got {tuple(image.shape)}"
            raise InputError(msg)
        image = np.asarray(image) if not on_device(image) else image
        check_float32(image, "the image")
        if on_device(image):

            def correct(evaluator: DeviceEvaluator, target: Any) -> None:
                evaluator.correct(_volume_view(as_float32(image)), target)

            return _on_gpu(lattice, coordinates, out, shape, correct)
        values = _volume_view(image)
        target = np.empty(shape, np.float32) if out is None else check_out(out, shape)
        Evaluator(lattice, coordinates).correct(values, _volume_view(target), thread_count(threads))
        return target

    def apply_through_gpu(self, image: np.ndarray, out: np.ndarray, field: np.ndarray | None = None) -> None:
        """Write image / field to `out`, which may be `image`, and the field to `field`, computed on the GPU by blocks.

        All are host arrays. The result is identical to that of `apply`.
        """
        lattice, coordinates, _shape = self._grid(None, None, "aligned")
        source, target = _volume_view(image), _volume_view(out)
        field_target = None if field is None else _volume_view(field)

        def work(voxels: int) -> None:
            correct_streamed(DeviceEvaluator(lattice, coordinates), source, target, field_target, voxels)

        run_on_gpu(work, release=True)

    def on_gpu(self, where: Slices) -> DeviceEvaluator:
        """Return an evaluator on the device of a part of the full-size volume."""
        lattice, coordinates, _shape = self._grid(None, where, "aligned")
        return DeviceEvaluator(lattice, coordinates)

    def centred(self, mask: Any) -> BiasField:
        """Return the field scaled so that its mean log is 0 over a mask of the fitted image, a NumPy or CuPy array.

        Correction by it keeps the brightness in the mask. N4 does not determine the level of the field, which drifts
        with the number of iterations.
        """
        if self.reason is not None or not mask.any():
            return self
        inside = self.log_field(self.grid_shape, gpu=on_device(mask))[mask]
        level = float(inside.mean(dtype=np.float64))  # synchronize
        return replace(self, lattice=(self.lattice - np.float32(level)))  # since the weights of a spline sum to 1

    def faults(self) -> Iterator[str]:
        """Yield in words what in a stored field cannot be."""
        for name, values in (("shape", self.shape), ("grid_shape", self.grid_shape), ("shrink", self.shrink)):
            whole = all(isinstance(n, (int, np.integer)) and n >= 1 for n in values)
            if len(values) != self.lattice.ndim or not whole:
                yield f"{name} must be {self.lattice.ndim} whole numbers above 0, got {tuple(values)}"
                return
        if any(n > most for n, most in zip(self.grid_shape, self.shape, strict=True)):
            yield f"grid_shape {self.grid_shape} must be at most the shape {self.shape}"
        fits = all(c == 1 if n == 1 else c >= 4 for n, c in zip(self.grid_shape, self.lattice.shape, strict=True))
        if not fits or self.lattice.size > MOST_CONTROLS:
            yield f"a lattice of {self.lattice.shape} control points is none of a grid of {self.grid_shape}"
        elif not np.isfinite(self.lattice).all():
            yield "the lattice must hold numbers, and one of them is not finite"

    def save(self, path: str | Path) -> None:
        """Write the field to an .npz file of a few kilobytes."""
        settings, lattice = self.to_settings()
        with Path(path).open("wb") as stream:
            np.savez(stream, allow_pickle=False, lattice=lattice, **{_SETTINGS: np.array(json.dumps(settings))})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote.

        Raises
        ------
        InputError
            The file is missing or is no bias field.
        """
        with (
            reading(path, "a bias field that n4flow wrote", "restore it", small=True),
            np.load(path, allow_pickle=False) as stored,
        ):
            return cls.from_settings(json.loads(str(stored[_SETTINGS])), stored["lattice"])

    def to_settings(self) -> tuple[dict[str, Any], np.ndarray]:
        """Return all attributes but the lattice as JSON types, and the lattice."""
        settings = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "lattice"}
        settings["levels"] = [asdict(level) for level in self.levels]
        settings["voxels"] = asdict(self.voxels)
        return settings, self.lattice

    @classmethod
    def from_settings(cls, settings: dict[str, Any], lattice: np.ndarray) -> Self:
        """Rebuild the field from the result of `to_settings`, also after a round trip through JSON."""
        known = dict(settings)
        for name in ("grid_shape", "shape", "shrink", "voxel_um"):
            known[name] = None if known[name] is None else tuple(known[name])
        known["levels"] = tuple(
            Level(tuple(level["control_points"]), tuple(level["measures"]), level["converged"])
            for level in known["levels"]
        )
        known["voxels"] = Voxels(**known["voxels"])
        return cls(lattice=np.asarray(lattice, np.float32), **known)

    def evaluator(self) -> Evaluator:
        """Return an evaluator of the full-size image, for callers that evaluate it part by part."""
        lattice, coordinates, _shape = self._grid(None, None, "aligned")
        return Evaluator(lattice, coordinates)

    def _grid(
        self, shape: Sequence[int] | None, where: Slices | None, rule: str
    ) -> tuple[np.ndarray, list[np.ndarray], tuple[int, ...]]:
        """Return lattice and coordinates of a grid along three axes, and the shape of the grid."""
        if rule not in RULES:
            msg = f"rule must be one of {', '.join(RULES)}, got {rule!r}"
            raise InputError(msg)
        whole = self.shape if shape is None else tuple(int(n) for n in shape)
        if len(whole) != len(self.shape):
            msg = f"the bias field has {len(self.shape)} axes, shape has {len(whole)}: {whole}"
            raise InputError(msg)
        part = tuple(slice(None) for _ in whole) if where is None else where
        coordinates = [self._coordinates(axis, n, rule)[s] for axis, (n, s) in enumerate(zip(whole, part, strict=True))]
        out_shape = tuple(t.size for t in coordinates)
        lattice = self.lattice
        for _missing in range(3 - lattice.ndim):
            lattice, coordinates = lattice[None], [np.zeros(1), *coordinates]
        return lattice, coordinates, out_shape

    def _coordinates(self, axis: int, size: int, rule: str) -> np.ndarray:
        samples, controls = self.grid_shape[axis], self.lattice.shape[axis]
        if size == samples:
            return bspline.grid_coordinates(size, samples, controls)
        if rule == "index":
            return bspline.sample_coordinates(size, controls)  # ITK's rule stretches the field to the outer voxels.
        return bspline.grid_coordinates(size, samples, controls, per_sample=self.shrink[axis] * size / self.shape[axis])

    def _apply_lazily(self, image: Any) -> Any:
        if tuple(image.shape) != self.shape:
            msg = f"the bias field is for an image of shape {self.shape}, got {tuple(image.shape)}"
            raise InputError(msg)
        starts = [np.cumsum((0, *sizes)) for sizes in image.chunks]

        def correct(block: np.ndarray, block_info: Any = None) -> np.ndarray:
            at = block_info[0]["chunk-location"]
            place = tuple(slice(int(s[i]), int(s[i]) + n) for s, i, n in zip(starts, at, block.shape, strict=True))
            return self.apply(block, where=place, threads=1)

        return image.map_blocks(correct, dtype=np.float32, meta=np.empty((0,) * image.ndim, np.float32))


def check_out(out: Any, shape: Sequence[int], name: str = "out") -> np.ndarray:
    """Return `out` if it can hold a result of `shape`.

    Raises
    ------
    InputError
        It is no NumPy array of float32 or float64, or has another shape.
    """
    if not isinstance(out, np.ndarray) or out.dtype.kind != "f" or out.dtype.itemsize < 4:
        kind = getattr(out, "dtype", type(out).__name__)
        msg = f"{name} must be a NumPy array of float32 or float64, got {kind}"
        raise InputError(msg)
    if out.shape != tuple(shape):
        msg = f"{name} must have the shape of the image, {tuple(shape)}, got {out.shape}"
        raise InputError(msg)
    return out


def _on_gpu(
    lattice: np.ndarray,
    coordinates: Sequence[np.ndarray],
    out: Any,
    shape: Sequence[int],
    write: Callable[[DeviceEvaluator, Any], Any],
) -> Any:
    """Return the float32 CuPy array of `shape` that `write` fills; in `out`, if that is given."""
    import cupy

    there = out is not None and on_device(out)
    if there and (out.shape != tuple(shape) or out.dtype.kind != "f" or out.dtype.itemsize < 4):
        msg = f"out must be a float32 or float64 array of shape {tuple(shape)}, got {out.dtype} of {out.shape}"
        raise InputError(msg)
    if out is not None and not there:
        check_out(out, shape)

    def work(_voxels: int) -> Any:
        in_place = there and out.dtype == np.float32 and out.flags.c_contiguous
        target = out if in_place else cupy.empty(tuple(shape), cupy.float32)
        write(DeviceEvaluator(lattice, coordinates), _volume_view(target))
        if out is None or in_place:
            return target
        out[...] = target if there else target.get()  # synchronize
        return out

    return run_on_gpu(work, release=False)


def _volume_view(array: Any) -> Any:
    """Return a (z, y, x) view of an array with two or three axes."""
    return array if array.ndim == 3 else array[(None,) * (3 - array.ndim)]
