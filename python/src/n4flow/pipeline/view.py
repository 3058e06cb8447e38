"""Look at results in full resolution: in napari, or in a Neuroglancer that this machine serves to a browser."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from n4flow.corrections.recipe import MASK_NAME
from n4flow.errors import InputError
from n4flow.io.omezarr.layout import AXES
from n4flow.io.open import open_volume
from n4flow.io.volume import Volume

if TYPE_CHECKING:
    from n4flow.pipeline.run import SampleResult

LAYERS = ("before", "after", "mask")
MOST_SIDE = 256  # Voxels of a side of a chunk of a volume that is no store.
INSTALL = "install n4flow[view], or napari"
SHOWN = ("uint8", "uint16", "uint32", "int8", "int16", "int32", "float32")  # Types that Neuroglancer draws.


def volumes_of(sample: SampleResult, before: str | Path | None = None) -> dict[str, Volume]:
    """Open the volumes of a sample: `before`, `after` and `mask`.

    Parameters
    ----------
    sample : SampleResult
    before : path, optional
        Where the input lies now; where it lay when it was read without it.

    Raises
    ------
    InputError
        The input cannot be read, or is another one.
    """
    after = open_volume(sample.store)
    try:
        given = sample.before() if before is None else open_volume(before, voxel_um=after.voxel_um)
    except InputError as error:
        msg = f"the input of {sample.sample} cannot be opened: {error}; give it with --before"
        raise InputError(msg) from error
    if given.shape != after.shape:
        msg = f"{given.source} has the shape {given.shape}, and the result {after.shape}; give the input with --before"
        raise InputError(msg)
    return {"before": given, "after": after, "mask": open_volume(sample.folder / MASK_NAME)}


def is_store(volume: Volume) -> bool:
    """Return whether a viewer may read a volume's own files: an OME-Zarr of three axes on this machine."""
    return (
        volume.metadata.get("format") == "ome-zarr"
        and volume.source.is_dir()
        and volume.reader.channels == 1
        and len(_multiscales(volume)["axes"]) == len(AXES)
    )


def _multiscales(volume: Volume) -> dict[str, Any]:
    import zarr

    attributes: dict[str, Any] = zarr.open_group(volume.source, mode="r").attrs.asdict()
    found: dict[str, Any] = attributes.get("ome", attributes)["multiscales"][0]
    return found


def in_napari(sample: SampleResult, volumes: Mapping[str, Volume]) -> None:
    """Open volumes in napari, each with its pyramid where it has one, and wait until it is closed.

    Raises
    ------
    InputError
        napari is not installed.
    """
    import dask.array as da

    try:
        import napari
    except ImportError as error:
        msg = f"napari cannot be imported ({error}); {INSTALL}, or take --in neuroglancer"
        raise InputError(msg) from error
    viewer = napari.Viewer(title=f"n4flow: {sample.sample}")
    for name, volume in volumes.items():
        levels = [volume.data]
        if is_store(volume):
            levels = [da.from_zarr(str(volume.source / each["path"])) for each in _multiscales(volume)["datasets"]]
        placed: dict[str, Any] = {"name": name, "multiscale": len(levels) > 1}
        voxel_um = volume.voxel_um or dict.fromkeys(AXES, 1.0)
        placed["scale"] = [voxel_um[axis] for axis in AXES]
        data = levels if len(levels) > 1 else levels[0]
        if name == "mask":
            viewer.add_labels(data, opacity=0.3, visible=False, **placed)
        else:
            viewer.add_image(data, contrast_limits=_window(volume), **placed)
    napari.run()


def _window(volume: Volume) -> tuple[float, float]:
    """Return the 0.5th and 99.5th percentile of the valid voxels of the middle plane."""
    middle = volume.shape[0] // 2
    plane = volume.read(slice(middle, middle + 1))
    valid = plane[np.isfinite(plane) & (plane != 0)]
    low, high = (float(value) for value in np.percentile(valid, [0.5, 99.5])) if valid.size else (0.0, 1.0)
    return low, high if high > low else low + 1.0


def state_of(volumes: Mapping[str, Volume], address: str) -> dict[str, Any]:
    """Return the state of a Neuroglancer that shows before beside after, and the mask on request.

    Parameters
    ----------
    volumes : mapping
    address : str
        Below which the volumes are served by their names.
    """
    layers: list[dict[str, Any]] = []
    for name, volume in volumes.items():
        layer: dict[str, Any] = {"name": name, "source": f"zarr://{address}/{name}/"}
        if name == "mask":
            layers.append(layer | {"type": "segmentation", "segments": ["1"], "selectedAlpha": 0.3, "visible": False})
        else:
            layers.append(layer | {"type": "image", "shaderControls": {"normalized": {"range": list(_window(volume))}}})
    shown = [name for name in volumes if name != "mask"]
    views = [{"type": "viewer", "layers": [name, "mask"], "layout": "4panel"} for name in shown]
    return {"layers": layers, "layout": {"type": "row", "children": views}}


def handlers(volumes: Mapping[str, Volume], token: str) -> list[Any]:
    """Return what of tornado answers for volumes as OME-Zarr, below `/volumes/TOKEN`.

    A store is served as the files that it is, any other volume as a store without a pyramid, whose chunks are read when
    they are asked for.
    """
    from tornado import web

    class Made(web.RequestHandler):
        def initialize(self, volume: Volume) -> None:
            """Take the volume that is served."""
            self.made = MadeStore(volume)

        def get(self, key: str) -> None:
            """Send metadata or a chunk."""
            found = self.made.get(key)
            if found is None:
                raise web.HTTPError(404)
            self.set_header("Content-Type", "application/octet-stream")
            self.finish(found)

    rules: list[Any] = []
    for name, volume in volumes.items():
        files = (web.StaticFileHandler, {"path": str(volume.source.resolve())})
        rules.append((f"/volumes/{token}/{name}/(.*)", *(files if is_store(volume) else (Made, {"volume": volume}))))
    return rules


class MadeStore:
    """A volume as the files of an OME-Zarr 0.4 without a pyramid, made when they are asked for.

    Parameters
    ----------
    volume : Volume
    """

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.chunks = tuple(min(c, n, MOST_SIDE) for c, n in zip(volume.chunks, volume.shape, strict=True))
        self.dtype = volume.dtype if volume.dtype.name in SHOWN else np.dtype(np.float32)

    def get(self, key: str) -> bytes | None:
        """Return the file of a name; None where there is none."""
        voxel_um = self.volume.voxel_um or dict.fromkeys(AXES, 1.0)
        transforms = [
            {"type": "scale", "scale": [voxel_um[axis] for axis in AXES]},
            {"type": "translation", "translation": [self.volume.origin_um[axis] for axis in AXES]},
        ]
        scales = {
            "version": "0.4",
            "axes": [{"name": axis, "type": "space", "unit": "micrometer"} for axis in AXES],
            "datasets": [{"path": "0", "coordinateTransformations": transforms}],
        }
        array = {
            "zarr_format": 2,
            "shape": self.volume.shape,
            "chunks": self.chunks,
            "dtype": self.dtype.newbyteorder("<").str,
            "compressor": None,
            "filters": None,
            "fill_value": 0,
            "order": "C",
            "dimension_separator": "/",
        }
        files: dict[str, Any] = {
            ".zgroup": {"zarr_format": 2},
            ".zattrs": {"multiscales": [scales]},
            "0/.zarray": array,
        }
        return json.dumps(files[key]).encode() if key in files else self._chunk(key)

    def _chunk(self, key: str) -> bytes | None:
        level, *place = key.split("/")
        if level != "0" or len(place) != len(AXES) or not all(number.isdecimal() for number in place):
            return None
        starts = [int(number) * size for number, size in zip(place, self.chunks, strict=True)]
        if any(start >= n for start, n in zip(starts, self.volume.shape, strict=True)):
            return None
        values = self.volume.read(*(slice(start, start + n) for start, n in zip(starts, self.chunks, strict=True)))
        chunk = np.zeros(self.chunks, self.dtype.newbyteorder("<"))
        chunk[tuple(slice(n) for n in values.shape)] = values
        return chunk.tobytes()


def serve(volumes: Mapping[str, Volume], port: int = 0) -> tuple[Any, str]:
    """Serve volumes and a Neuroglancer on the loopback interface, from threads of its own.

    Parameters
    ----------
    volumes : mapping
    port : int
        0 takes a free one.

    Returns
    -------
    viewer : neuroglancer.Viewer
        The server ends with the process.
    address : str
        To be opened in a browser; it holds a token that nobody guesses, as the addresses of the volumes do.

    Raises
    ------
    InputError
        Neuroglancer is not installed, or the port is taken.
    """
    try:
        import neuroglancer
        import neuroglancer.server
    except ImportError as error:
        msg = f"neither napari nor neuroglancer can be imported ({error}), one of which shows volumes; {INSTALL}"
        raise InputError(msg) from error
    token = secrets.token_urlsafe(16)
    neuroglancer.set_server_bind_address("127.0.0.1", port)
    try:
        viewer = neuroglancer.Viewer(token=token)
    except OSError as error:
        msg = f"port {port} cannot be used ({error.strerror}); give another one, or none for a free one"
        raise InputError(msg) from error
    server = neuroglancer.server.global_server
    server.app.add_handlers(".*", handlers(volumes, token))
    address = f"http://127.0.0.1:{server.port}"
    viewer.set_state(state_of(volumes, f"{address}/volumes/{token}"))
    return viewer, f"{address}/v/{token}/"
