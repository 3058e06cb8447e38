"""The recipe: the ordered corrections of one sample, what the render applies and what is published as provenance."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from n4flow.compute.arrays import array_module, probe_gpu
from n4flow.compute.gpu import on_device
from n4flow.corrections import (  # noqa: F401  a kind is known once its module is imported
    background,
    bias_field,
    harmonization,
    outside,
    plane_gain,
    plane_range,
    section_lookup,
)
from n4flow.corrections.base import KINDS, Correction, Where, in_frame
from n4flow.corrections.fused import groups, on_host
from n4flow.corrections.fused_gpu import on_gpu, render_through_gpu
from n4flow.display import Shown, axes
from n4flow.errors import InputError, reading
from n4flow.io.open import open_volume
from n4flow.io.publishing import MASK_NAME

SETTINGS = "settings"  # name under which a correction's settings lie in its .npz


def save_correction(correction: Correction, path: str | Path) -> None:
    """Write one correction as an .npz: its arrays and, as JSON text, its settings. Equal corrections, equal bytes."""
    settings, arrays = correction.to_arrays()
    text = json.dumps({"kind": correction.kind, **settings}, sort_keys=True)
    with Path(path).open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **{SETTINGS: np.array(text)}, **arrays)


def load_correction(path: str | Path) -> Correction:
    """Read what `save_correction` wrote.

    Raises
    ------
    InputError
        The file is missing, damaged, or holds a kind of correction that this version does not know.
    """
    path = Path(path)
    with reading(path, "a correction that n4flow wrote", "give a file of a recipe", small=True):
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        settings = json.loads(str(arrays.pop(SETTINGS)))
        kind = str(settings.pop("kind"))
    if kind not in KINDS:
        known = ", ".join(sorted(KINDS))
        msg = f"{path} holds a correction of kind {kind!r}, this version knows {known}; use the version that wrote it"
        raise InputError(msg)
    try:
        with reading(path, f"a {kind}", "give the file as n4flow wrote it", small=True):
            return KINDS[kind].from_arrays(settings, arrays)
    except InputError as error:
        msg = f"{path} holds a {kind} with parts missing or wrong ({error}); give the file as n4flow wrote it"
        raise InputError(msg) from error


def recipes(path: Path) -> list[Path]:
    """Return the recipe of a result, or those of its channels, which a `recipe.json` of several names."""
    with reading(path, "a recipe that n4flow wrote", "restore it", small=True):
        stored = json.loads(path.read_text(encoding="utf-8"))
        return [path.parent / str(name) for name in stored["channels"]] if "channels" in stored else [path]


class Recipe(Shown, Sequence[Correction]):
    """Corrections in the order in which they are applied, from the first to the last."""

    shape: tuple[int, ...] | None = None  # (Z, Y, X) of the volume that a stored recipe was made for
    mask: Path | None = None  # the tissue mask that was published beside a stored recipe

    def __init__(self, corrections: Sequence[Correction] = ()) -> None:
        self._corrections = tuple(corrections)
        self._passes = groups(self._corrections)

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a `recipe.json`, or the correction files of a folder in the order of their names.

        Consecutive files of one stage are one correction where that stage works in batches; see `Correction.joined`.
        """
        path = Path(path)
        stored: dict[str, Any] = {}
        if path.is_dir() and path.name != "recipe.json":
            files = sorted(path.glob("*.npz"))
        elif path.is_file():
            files, stored = cls._listed(path)
        else:
            msg = f"recipe {path} does not exist or is no file; give a recipe.json that n4flow wrote"
            raise InputError(msg)
        corrections: list[Correction] = []
        stages: list[str] = []
        for file in files:
            correction, stage = load_correction(file), file.stem.partition(".")[0]
            joined = corrections[-1].joined(correction) if stage in stages[-1:] else None
            if joined is not None:
                corrections[-1] = joined
            else:
                corrections.append(correction)
                stages.append(stage)
        recipe = cls(corrections)
        if stored.get("shape"):
            recipe.shape = tuple(stored["shape"])
        mask = path.parent / str(stored.get("mask", MASK_NAME))
        if stored and mask.exists():
            recipe.mask = mask
        return recipe

    @staticmethod
    def _listed(path: Path) -> tuple[list[Path], dict[str, Any]]:
        with reading(path, "a recipe that n4flow wrote", "restore it", small=True):
            stored = json.loads(path.read_text(encoding="utf-8"))
            if "channels" in stored:
                names = ", ".join(map(str, stored["channels"]))
                msg = f"{path} names the recipes of several channels; give one of them, {names}, with its channel"
                raise InputError(msg)
            listed = [(path.parent / entry["file"], entry["sha256"]) for entry in stored["corrections"]]
            shape = stored.get("shape")
            if shape is not None and not (len(shape) == 3 and all(isinstance(n, int) and n > 0 for n in shape)):
                msg = f"recipe {path} is for a volume of shape {shape}; expected three counts of voxels, so restore it"
                raise InputError(msg)
        for file, expected in listed:
            if not file.is_file():
                keep = f"keep the folder {file.parent.name}/ together with recipe.json"
                msg = f"recipe {path} lists {file.name}, which is not beside it; {keep}"
                raise InputError(msg)
            if hashlib.sha256(file.read_bytes()).hexdigest() != expected:
                msg = f"{file} differs from what recipe {path} was written with; restore both from the same run"
                raise InputError(msg)
        return [file for file, _expected in listed], stored

    def save(self, path: str | Path, **provenance: Any) -> None:
        """Write `recipe.json`, and the corrections' arrays in a folder `corrections` beside it, where there are any."""
        path = Path(path)
        folder = path.parent / "corrections"
        path.parent.mkdir(parents=True, exist_ok=True)
        entries = []
        for number, correction in enumerate(self):
            folder.mkdir(exist_ok=True)
            file = folder / f"{number:02d}_{correction.kind}.npz"
            save_correction(correction, file)
            entries.append(
                {
                    "kind": correction.kind,
                    "file": f"{folder.name}/{file.name}",
                    "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
                    "summary": correction.summary(),
                }
            )
        text = json.dumps({**provenance, "corrections": entries}, indent=2, ensure_ascii=False, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8")

    @property
    def margin(self) -> tuple[int, int]:
        """Voxels (y, x) of neighbourhood that a block needs on each side."""
        return sum(correction.margin[0] for correction in self), sum(correction.margin[1] for correction in self)

    def apply_block(self, block: Any, where: Where) -> Any:
        """Apply every correction in order to a float32 block, which may be overwritten.

        Corrections that follow each other voxel by voxel are one pass, to the same bits.
        """
        in_one_pass: Any = on_gpu if on_device(block) else on_host
        for group in self._passes:
            planes = where.z, where.z + len(block)
            if len(group) == 1 or not (on_device(block) or all(part.fusible(*planes) for part in group)):
                for correction in group:
                    block = correction.apply(block, where)
            else:  # only a field has a frame, and it comes first; around it nothing is changed
                block = in_frame(group[0].frame, block, where, partial(in_one_pass, group))
        return block

    def apply(
        self,
        array: NDArray[Any],
        z_start: int = 0,
        *,
        tissue: NDArray[np.bool_] | None = None,
        shape: tuple[int, int, int] | None = None,
        gpu: bool = False,
    ) -> NDArray[np.float32]:
        """Return a corrected copy of whole planes.

        Parameters
        ----------
        array : (z, Y, X) array
            Consecutive planes in full size; NumPy or CuPy, any real dtype; not modified.
        z_start : int
            Index of the first plane in the volume.
        tissue : (z, Y, X) bool array, optional
            Tissue mask, needed where the recipe has a gain on tissue. By default the one beside a stored recipe.
        shape : tuple of int, optional
            Shape (Z, Y, X) of the whole volume; the array's own when `z_start` is 0.
        gpu : bool
            Let an array in host memory pass through the GPU, in blocks of planes. Without a working GPU that is a
            GpuError.

        Returns
        -------
        (z, Y, X) float32 array

        Raises
        ------
        InputError
            Planes of another shape than those that a stored recipe was made for.
        """
        xp = array_module(array)
        if self.shape is not None and tuple(array.shape[1:]) != self.shape[1:]:
            shapes = f"the recipe was made for planes of {self.shape[1:]} voxels (Y, X), got {tuple(array.shape[1:])}"
            msg = f"{shapes}; give whole planes of the volume it was made for"
            raise InputError(msg)
        full = shape if shape is not None else (z_start + array.shape[0], *array.shape[1:])
        if known := shape or self.shape:
            self.check((int(known[0]), int(known[1]), int(known[2])))
        if tissue is None and self.mask is not None:
            planes = slice(z_start, z_start + array.shape[0])
            tissue = xp.asarray(open_volume(self.mask, require_voxel_um=False).read(planes) > 0)
        where = Where(z_start, 0, 0, full, tissue)
        if gpu and xp is np:
            probe_gpu()
            return render_through_gpu(self.apply_block, np.asarray(array), where)
        return self.apply_block(xp.array(array, dtype=xp.float32), where)

    def check(self, shape: tuple[int, int, int]) -> None:
        """Look at everything that compiled loops will index by or compute with.

        Raises
        ------
        InputError
            A correction holds what cannot be, or does not fit a volume of `shape` (Z, Y, X).
        """
        for number, correction in enumerate(self):
            for fault in correction.faults(shape):
                msg = (
                    f"correction {number} of the recipe, {correction.kind}, does not fit a volume of {shape} voxels: "
                    f"{fault}; give the recipe as n4flow wrote it for this volume"
                )
                raise InputError(msg)

    def margin_first(self) -> tuple[Recipe, Recipe]:
        """Split after the last correction that looks at neighbours: what needs a halo, and what is pointwise."""
        last = max((i + 1 for i, correction in enumerate(self) if any(correction.margin)), default=0)
        return self[:last], self[last:]

    @overload
    def __getitem__(self, index: int) -> Correction: ...

    @overload
    def __getitem__(self, index: slice) -> Recipe: ...

    def __getitem__(self, index: int | slice) -> Correction | Recipe:
        return Recipe(self._corrections[index]) if isinstance(index, slice) else self._corrections[index]

    def __len__(self) -> int:
        return len(self._corrections)

    def facts(self) -> Mapping[str, str]:
        """Return the kind of each correction, and what it does."""
        named = {f"{number} {correction.kind}": correction.title for number, correction in enumerate(self, start=1)}
        return named or {"corrections": "none"}

    def __repr__(self) -> str:
        return f"Recipe({', '.join(correction.kind for correction in self)})"

    def plot(self) -> NDArray[np.object_]:
        """Draw what each correction holds: fields, levels and gains along Z, look-up tables.

        Returns
        -------
        array of matplotlib axes
            One for each correction.

        Raises
        ------
        InputError
            matplotlib is not installed.
        """
        places = axes(max(1, len(self)))
        for number, (place, correction) in enumerate(zip(places[0], self, strict=False), start=1):
            correction.draw(place)
            place.set_title(f"{number} {correction.kind}")
        return places
