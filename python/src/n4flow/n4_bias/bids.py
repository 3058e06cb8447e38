"""Names and descriptions of results in a BIDS derivative dataset.

References
----------
Brain Imaging Data Structure 1.10, "Derivatives" and "Entities".
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from n4flow.errors import InputError, reading
from n4flow.io.formats import WRITTEN, name_without_suffix, suffix_of, written_as

_NAME = re.compile(r"(?P<entities>sub-[0-9A-Za-z+]+(?:_[a-z]+-[0-9A-Za-z+]+)*)_(?P<suffix>[0-9A-Za-z]+)")
_EXAMPLE = "sub-01/anat/sub-01_T1w.nii.gz"
_DATASET = "dataset_description.json"
_FACTS = ("iterations", "control_points", "shrink", "mask", "backend")  # Of the fit, or of that of each channel.


class Derivative(NamedTuple):
    """A result in a BIDS derivative dataset."""

    dataset: Path  # The folder of the derivative dataset.
    source: Path  # The image.
    raw: Path  # The folder of the image's dataset.
    place: Path  # Of the result, within the dataset.
    metadata: dict[str, Any]  # Of the image's own sidecar.

    @property
    def path(self) -> Path:
        """The result."""
        return self.dataset / self.place


def derivative(image: str | Path, dataset: str | Path) -> Derivative:
    """Return where the result of an image of a BIDS dataset lies in a derivative dataset: `desc-n4` before its suffix.

    Raises
    ------
    InputError
        The image's name or its folders are not those of a BIDS dataset, its format is not written, or the dataset of
        results is that of the image; or the image's sidecar is no JSON.

    Examples
    --------
    >>> derivative("raw/sub-01/anat/sub-01_run-2_T1w.nii.gz", "raw/derivatives/n4").path.as_posix()
    'raw/derivatives/n4/sub-01/anat/sub-01_run-2_desc-n4_T1w.nii.gz'
    """
    image, dataset = Path(image), Path(dataset)
    source = Path(os.path.abspath(image))
    found = _NAME.fullmatch(name_without_suffix(image))
    # The folder of the subject is the last one of its name, below which are at most a session and the kind of data.
    subject = found["entities"].split("_")[0] if found else ""
    depth = next((number for number, folder in enumerate(source.parents) if folder.name == subject), None)
    if found is None or depth not in (1, 2):
        msg = (
            f"--bids needs an image of a BIDS dataset, such as {_EXAMPLE}, got {image}; name it so, or leave --bids out"
        )
        raise InputError(msg)
    if written_as(image) is None:
        msg = f"--bids keeps the format of {image}, which n4flow does not write; convert it first, or leave --bids out"
        raise InputError(msg)
    raw = source.parents[depth + 1]
    if raw == Path(os.path.abspath(dataset)):
        msg = f"{dataset} is the dataset of {image} itself; with --bids, OUTPUT is another folder, such as "
        raise InputError(msg + str(dataset / "derivatives" / "n4flow"))
    entities = [entity for entity in found["entities"].split("_") if not entity.startswith("desc-")]
    name = "_".join([*entities, "desc-n4", found["suffix"]]) + source.name[-len(suffix_of(source, WRITTEN)) :]
    beside = _sidecar(source)
    with reading(beside, "a JSON sidecar"):
        metadata = dict(json.loads(beside.read_text(encoding="utf-8"))) if beside.is_file() else {}
    return Derivative(dataset, source, raw, source.parent.relative_to(raw) / name, metadata)


def describe(made: Derivative, facts: Mapping[str, Any]) -> None:
    """Write the metadata of a result beside it, and those of its dataset where it has none.

    The metadata of the image's own sidecar are carried over; a description of the dataset that exists is left alone.
    """
    # N4 strips nothing, and the validator asks for a word; a stripped image's own sidecar says that it is.
    metadata = (
        {"SkullStripped": False}
        | made.metadata
        | {
            "Description": "Intensities corrected by N4 bias field correction",
            "Sources": [f"bids:raw:{made.source.relative_to(made.raw).as_posix()}"],
            "N4": {name: facts[name] if name in facts else [fit[name] for fit in facts["channels"]] for name in _FACTS},
        }
    )
    _write(_sidecar(made.path), metadata)
    if not (made.dataset / _DATASET).exists():
        raw = os.path.relpath(made.raw, os.path.abspath(made.dataset))
        description = {
            "Name": "n4flow",
            "BIDSVersion": "1.10.0",
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": "n4flow", "Version": version("n4flow")}],
            "DatasetLinks": {"raw": Path(raw).as_posix()},
        }
        _write(made.dataset / _DATASET, description)


def _sidecar(path: Path) -> Path:
    return path.with_name(name_without_suffix(path) + ".json")


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
