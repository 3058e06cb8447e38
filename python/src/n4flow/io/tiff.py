"""TIFF: series of pages, ImageJ stacks and hyperstacks, OME-TIFF of one or several files, BigTIFF.

The shape is that of the series, never of the first page: an ImageJ stack above 4 GB has one page. Uncompressed
voxels are memory mapped where they lie in one piece, others are decoded page by page. Several files of OME-TIFF are
opened by any of them, or by the companion file that describes them.
"""

from __future__ import annotations

import logging
import lzma
import math
import weakref
import zlib
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.etree import ElementTree as ET

import numpy as np

from n4flow.errors import InputError, reading
from n4flow.io.axes import named_axes, select
from n4flow.io.inflate import BEHIND
from n4flow.io.omezarr.chunk_grid import listed
from n4flow.io.reader import Reader, check_dtype, plane_chunks
from n4flow.io.units import micrometres_per, to_micrometres

if TYPE_CHECKING:
    from n4flow.io.volume import Volume

LONGER = 2**16  # Bytes by which a compressed strip may be longer than twice what it holds: none is, whatever the codec.
WHOLE_BITS = (1, 8, 16, 32, 64, 128)  # Of a voxel, which tifffile reads by itself.
COMPANION = ".companion.ome"  # Ends the name of a file of OME-XML that describes TIFF files beside it.


class TiffReader(Reader):
    """One channel of a TIFF file."""

    borrowed = True

    def __init__(self, path: Path, channel: int | str | None = None, *, axes: str | None = None) -> None:
        self.path = path
        with _opened(path) as tif:
            series = _series(path, tif)
            shape = tuple(int(n) for n in series.shape)
            own = _axes(series)
            check_dtype(series.dtype, path)
            self._stored = np.dtype(series.dtype).newbyteorder(tif.byteorder)
            self._stored_shape = shape
            self._offset = series.dataoffset
            _check_length(path, series)
            bound(series.keyframe, series.pages)
            _check_codec(path, series.keyframe)
            stated, self.reason, labels, flavour = _physical(tif, series)
        self.dtype = self._stored.newbyteorder("=")
        self.origin_um = dict.fromkeys("zyx", 0.0)
        named = named_axes(path, own, shape, axes)
        renamed = dict(zip(own, named, strict=True))
        self.voxel_um = {renamed.get(axis, axis): size for axis, size in stated.items()}
        self._select = select(path, named, shape, channel, labels)
        self.shape = self._select.volume(shape)
        self.channels = self._select.channels
        self.chunks = plane_chunks(self.shape, self.dtype)
        self.metadata = {"format": "tiff", "tiff": flavour, "axes": named, "channels": labels}

    @classmethod
    def data_files(cls, path: Path) -> list[Path]:
        """Return the other files of an OME-TIFF of several."""
        return _ome_set(path).files

    def read(self, z: slice, y: slice, x: slice) -> np.ndarray:
        """Return the voxels of a box."""
        if self._handle is None:
            self._handle = self._load()
        return self._select.transposed(self._handle[self._select.box(z, y, x)])

    def _load(self) -> Any:
        if self._offset is not None:
            return np.memmap(_ome_set(self.path).first, self._stored, "r", self._offset, self._stored_shape)
        import zarr
        from tifffile import TiffFile

        described = _ome_set(self.path)
        tif = TiffFile(described.first, omexml=described.xml)
        weakref.finalize(self, tif.close)  # the array reads from the open file as long as this reader lives
        return zarr.open_array(_series(self.path, tif).aszarr(level=0), mode="r")


class _OmeSet(NamedTuple):
    """The file that is opened, the OME-XML where it lies in another one, and the files beside that are read with it."""

    first: Path
    xml: str | None
    files: list[Path]


def _ome_set(path: Path) -> _OmeSet:
    """Find the files that OME-XML names: a file's own, or that of the file, TIFF or companion, that it points to.

    Raises
    ------
    InputError
        A file of them is missing, or OME-XML cannot be read: it might name others.
    """
    own = path.resolve()  # Files are named beside it, and not beside a link to it.
    describing, (root, text) = own, _ome_xml(path)
    pointers = [node.get("MetadataFile", "") for node in root if node.tag.endswith("BinaryOnly")]
    if pointers:
        describing = _beside(path, own.parent / pointers[0])
        root, text = _ome_xml(describing)
    named = {node.text: node.get("FileName", "") for node in root.iter() if node.tag.endswith("}UUID")}
    companion = describing.name.lower().endswith(COMPANION)
    if not companion:
        itself = named.pop(root.get("UUID"), None)  # It may have another name now.
        if itself is None and len(named) == 1:
            named.clear()
    members = [_beside(path, own.parent / name) for name in named.values() if name]
    files = [file for file in dict.fromkeys([describing, *members]) if file != own]
    if not companion:
        return _OmeSet(path if describing == own else describing, None, files)
    if describing == own and not members:
        msg = f"{path} names no file that holds planes; give a TIFF file"
        raise InputError(msg)
    return _OmeSet(members[0] if describing == own else path, text, files)


def _ome_xml(file: Path) -> tuple[ET.Element, str]:
    """Return the OME-XML of a TIFF or companion file; an empty element where there is none."""
    from tifffile import TiffFile

    with reading(file, "a readable TIFF file", "copy it again", small=True):
        if file.name.lower().endswith(COMPANION):
            text = file.read_text(encoding="utf-8")
        else:
            with TiffFile(file) as tif:
                text = tif.ome_metadata or "<none/>"
        return ET.fromstring(text), text


def _beside(path: Path, member: Path) -> Path:
    """Return a file of a set, which must exist."""
    if not member.is_file():
        msg = f"{path} is one of several files, of which {member} is missing; put it there"
        raise InputError(msg)
    return member


def stated_size(path: Path) -> tuple[dict[str, float], str]:
    """Return the voxel size that a TIFF file states, in micrometres by axis name, and why it is not complete."""
    with _opened(path) as tif:
        voxel_um, reason, *_others = _physical(tif, tif.series[0])
    return voxel_um, reason


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a TIFF file; a chain of pages that leads out of the file is an error, and not a shorter stack."""
    from tifffile import TiffFile, TiffFileError

    complaints: list[str] = []
    described = _ome_set(path)

    def listen(record: logging.LogRecord) -> bool:
        complaints.append(record.getMessage())
        return False  # Nobody else hears of it.

    logger = logging.getLogger("tifffile")
    logger.addFilter(listen)
    try:
        with TiffFile(described.first, omexml=described.xml) as tif:
            len(tif.series)
            if described.files and any(series.kind != "ome" for series in tif.series):
                msg = f"its OME-XML does not fit its {len(described.files)} files"
                raise TiffFileError(msg)
            broken = [text for text in complaints if "invalid page offset" in text or "corrupt" in text.lower()]
            if broken:
                raise TiffFileError(broken[0])
            yield tif
    finally:
        logger.removeFilter(listen)


def _series(path: Path, tif: Any) -> Any:
    """Return the one image of a file."""
    series = tif.series
    if not series:
        msg = f"{path} is not a readable TIFF file: it holds no image; write or copy it again"
        raise InputError(msg)
    if len(series) != 1:
        shapes = [f"{i}: {item.axes} {item.shape}" for i, item in enumerate(series)]
        msg = f"{path} holds {len(series)} images ({listed(shapes)}); expected one volume, so save it by itself"
        raise InputError(msg)
    if series[0].dataoffset is None and any(page is None for page in series[0].pages):
        msg = f"{path} lacks pages of its image of shape {series[0].shape}; write or copy it again"
        raise InputError(msg)
    return series[0]


def _axes(series: Any) -> list[str]:
    """Return the axes of a series among t, c, z, y, x; the one stack axis that has no name is z."""
    known = {"T": "t", "C": "c", "S": "c", "Z": "z", "Y": "y", "X": "x"}
    names = [known.get(axis, "" if n == 1 else "?") for axis, n in zip(series.axes, series.shape, strict=True)]
    return ["z" if name == "?" and "z" not in names and names.count("?") == 1 else name for name in names]


def _check_length(path: Path, series: Any) -> None:
    """Compare the end of the voxels with the length of each file that holds some: OME-TIFF may have one per plane."""
    ends = {path: 0}
    if series.dataoffset is not None:
        ends[path] = int(series.dataoffset + series.size * series.dtype.itemsize)
    else:
        for page in series.pages:
            held = Path(page.parent.filehandle.path)  # beside the file itself, where `path` is a link to it
            file = path if held == path.resolve() else held
            spans = zip(page.dataoffsets, page.databytecounts, strict=False)
            ends[file] = max([ends.get(file, 0), *(offset + count for offset, count in spans)])
    for file, end in ends.items():
        size = file.stat().st_size
        if end > size:
            msg = f"{file} is cut short: it has {size} bytes and refers to {end}; copy it again"
            raise InputError(msg)


def _check_codec(path: Path, page: Any) -> None:
    """Refuse pages that cannot be decoded here, before any of them is read."""
    if lacking := undecodable(page):
        msg = f"{path} cannot be decoded: {lacking}; install it, or save the file uncompressed or with zlib"
        raise InputError(msg)


def undecodable(page: Any) -> str:
    """Return what of a page cannot be decoded without the package imagecodecs; empty where all can.

    A decoder is tried on nothing, which tells one that is not there from one that refuses nothing.
    """
    from tifffile import TIFF

    decoders: tuple[tuple[str, Any, Any, Any], ...] = (
        ("compression", TIFF.DECOMPRESSORS, page.compression, b""),
        ("predictor", TIFF.UNPREDICTORS, page.predictor, np.zeros((1, 1), page.dtype)),
    )
    for what, decoder, name, nothing in decoders:
        try:
            decoder[name](nothing)
        except (LookupError, ImportError, AttributeError, NotImplementedError):
            return f"its {what} {getattr(name, 'name', name)} requires the package imagecodecs"
        except Exception:  # noqa: BLE001  It is there.
            continue
    bits = page.bitspersample
    if isinstance(bits, int) and bits not in WHOLE_BITS and find_spec("imagecodecs") is None:
        return f"its {bits} bits a voxel require the package imagecodecs"
    return ""


def bound(page: Any, pages: Iterable[Any]) -> None:
    """Refuse strips and tiles that are absent or longer than what they hold, and give tifffile's own decoders an end.

    Those inflate whatever there is; the decoders of imagecodecs have an end. What is absent tifffile reads as zeros.

    Parameters
    ----------
    page : tifffile.TiffPage
        What all pages are like.
    pages : iterable of tifffile.TiffPage

    Raises
    ------
    ValueError
    """
    import tifffile

    registry: Any = tifffile.TIFF
    if not isinstance(registry.DECOMPRESSORS, ChainMap) and find_spec("imagecodecs") is None:
        inflate = _Bounded(zlib.decompressobj)
        known = {8: inflate, 32946: inflate, 34925: _Bounded(lzma.LZMADecompressor)}
        registry.DECOMPRESSORS = ChainMap(known, registry.DECOMPRESSORS)
    parts = math.prod(page.chunked)
    for each in pages:
        offsets, counts = each.dataoffsets, each.databytecounts
        if min(len(offsets), len(counts)) < parts or 0 in (*offsets, *counts):
            msg = f"page {each.index} lacks some of its {parts} strips or tiles"
            raise ValueError(msg)
    size = math.prod(page.chunks) * page.dtype.itemsize
    longest = max((count for each in pages for count in each.databytecounts), default=0)
    if page.compression != 1 and longest > 2 * size + LONGER:
        msg = f"a strip or tile of {size} bytes is stored in {longest}"
        raise ValueError(msg)


class _Bounded:
    """A decoder of a strip or tile of which `out` bytes are expected, and more may come: rows of a whole strip."""

    def __init__(self, decoder: Callable[[], Any]) -> None:
        self._decoder = decoder

    def __call__(self, data: Any, /, *, out: int) -> bytes:
        decoder, most = self._decoder(), 2 * out + BEHIND
        decoded: bytes = decoder.decompress(bytes(data), most + 1)
        if len(decoded) > most or not decoder.eof:
            fault = f"goes on for more than {most}" if len(decoded) > most else f"ends after {len(decoded)}"
            msg = f"a strip or tile of {out} bytes {fault}"
            raise ValueError(msg)
        return decoded


def _physical(tif: Any, series: Any) -> tuple[dict[str, float], str, list[str], str]:
    """Return voxel size, why it is not complete, channel labels and the flavour of TIFF."""
    if series.kind == "ome" and tif.ome_metadata:
        return (*_ome_size(tif.ome_metadata), "ome")
    if tif.imagej_metadata is not None:
        return (*_imagej_size(tif, tif.imagej_metadata), "imagej")
    # Resolution tags count pixels per inch or centimetre of paper, mostly by default, and have no Z.
    return {}, "only OME-TIFF and ImageJ files state one", [], "plain"


def _ome_size(xml: str) -> tuple[dict[str, float], str, list[str]]:
    pixels = next(node for node in ET.fromstring(xml).iter() if node.tag.endswith("}Pixels"))
    voxel: dict[str, float] = {}
    reasons = []
    for axis in "zyx":
        value = pixels.get(f"PhysicalSize{axis.upper()}")
        unit = pixels.get(f"PhysicalSize{axis.upper()}Unit", "µm")  # the default of the OME schema
        unit_um = micrometres_per(unit)
        if value is not None and unit_um is None:
            reasons.append(f"axis {axis} has the unit {unit!r}")
        elif value is not None and unit_um is not None and float(value) > 0:
            voxel[axis] = to_micrometres(float(value), unit_um)
    channels = [node for node in pixels if node.tag.endswith("}Channel")]
    return voxel, "; ".join(reasons), [node.get("Name", str(i)) for i, node in enumerate(channels)]


def _imagej_size(tif: Any, metadata: dict[str, Any]) -> tuple[dict[str, float], str, list[str]]:
    tags = tif.pages.first.tags
    sizes: dict[str, tuple[float, Any]] = {}
    unit = metadata.get("unit")
    for axis, tag in (("y", "YResolution"), ("x", "XResolution")):
        if tag in tags and tags[tag].value[0] > 0:
            pixels, per = tags[tag].value
            sizes[axis] = (per / pixels, metadata.get("yunit", unit) if axis == "y" else unit)
    if metadata.get("spacing", 0) > 0:
        sizes["z"] = (float(metadata["spacing"]), metadata.get("zunit", unit))
    voxel = {}
    for axis, (size, name) in sizes.items():
        unit_um = micrometres_per(name)
        if unit_um is not None:
            voxel[axis] = to_micrometres(size, unit_um)
    reason = "" if len(voxel) == len(sizes) else f"its unit is {unit!r}" if unit else "it names no unit"
    return voxel, reason, []


def write_tiff(path: Path, array: np.ndarray, voxel_um: dict[str, float], _like: Volume | None) -> None:
    """Write a (Z, Y, X) array, or channels (C, Z, Y, X) of it, as OME-TIFF with its voxel size; BigTIFF near 4 GB."""
    from tifffile import imwrite

    metadata: dict[str, Any] = {"axes": "CZYX"[-array.ndim :]}
    for axis in "ZYX":
        metadata[f"PhysicalSize{axis}"] = voxel_um[axis.lower()]
        metadata[f"PhysicalSize{axis}Unit"] = "µm"
    imwrite(path, array, ome=True, photometric="minisblack", metadata=metadata)
