"""Changed files, each made from a whole one by a seed: the same seed makes the same bytes."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import os
import random
import re
import shutil
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hostile.originals import WRITERS, voxels

NUMBERS = [*map(str, (0, -1, 1, 7, 65536, 2**31, 10**15, 2**64)), "1e308", "nan", "x", "9" * 5000, ""]
VALUES: list[Any] = [None, True, -1, 0, 1.5, 10**15, 2**64, 1e308, "", "x", "\ud800", [], [[]], {}, [1, 2]]
ZEROS = 2**31  # Bytes of zeros that a bomb holds.
NAMES = ["a b.npy", "-x.npy", "$(touch owned).npy", "a\nb.npy", "<img src=x>.npy", "'.npy", "=1+1.npy", "..npy"]
NAMES += ["mask.npy", "pipeline_info.npy", "[a]*.npy", "%s{}.npy", "\x1b[31m.npy", "\u202e.npy", "x" * 251 + ".npy"]
NAMES += [os.fsdecode(b"\xe9.npy")]
JSON_NAMES = ("zarr.json", ".zarray", ".zattrs", ".zgroup", "recipe.json", "checksums.json")


@dataclass(frozen=True)
class Mutant:
    """One changed file; `place` may hold whole copies beside it."""

    family: str  # volume, sections, sheet, recipe or results
    original: str
    kind: str
    number: int

    @property
    def name(self) -> str:
        """Name under which it is made again."""
        return f"{self.original}/{self.kind}/{self.number}"

    def make(self, originals: Path, place: Path, seed: int) -> Path:
        """Make it in a folder; return its path."""
        path = place / self.original
        whole = originals / self.original
        (shutil.copytree if whole.is_dir() else shutil.copyfile)(whole, path)
        rng = random.Random(f"{seed}/{self.name}")
        if self.kind == "bomb":
            BOMBS[self.original][self.number](path)
        elif self.kind == "name":
            return path.rename(place / NAMES[self.number])
        elif self.kind in SPECIAL:
            SPECIAL[self.kind](_file(path, rng), rng, originals)
        elif self.kind == "number":
            _rewrite(_file(path, rng, JSON_NAMES), lambda data: _absurd(data, rng))
        elif self.kind == "type":
            _rewrite(_file(path, rng, JSON_NAMES), lambda data: _other_type(data, rng))
        elif self.kind == "inside":
            _rewrite_inside(path, rng)
        else:
            file = _file(path, rng)
            file.write_bytes(BYTES[self.kind](file.read_bytes(), rng))
        return path


def _file(path: Path, rng: random.Random, names: tuple[str, ...] = ()) -> Path:
    """Return the file itself, or one of a folder's, of one of the names where there are some."""
    if not path.is_dir():
        return path
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return rng.choice([file for file in files if file.name in names] or files)


def _span(data: bytes, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(max(1, len(data)))
    return start, min(len(data), start + rng.choice((1, 4, 64, 512)))


def _flipped(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


def _zeroed(data: bytes, rng: random.Random) -> bytes:
    start, stop = _span(data, rng)
    return data[:start] + bytes(stop - start) + data[stop:]


def _removed(data: bytes, rng: random.Random) -> bytes:
    start, stop = _span(data, rng)
    return data[:start] + data[stop:]


def _inserted(data: bytes, rng: random.Random) -> bytes:
    start, stop = _span(data, rng)
    return data[:start] + rng.randbytes(max(1, stop - start)) + data[start:]


BYTES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "flipped": _flipped,
    "truncated": lambda data, rng: data[: rng.randrange(len(data))],
    "zeroed": _zeroed,
    "removed": _removed,
    "inserted": _inserted,
    "empty": lambda _data, _rng: b"",
    "noise": lambda data, rng: rng.randbytes(len(data)),
}


def _socket(path: Path) -> None:
    """Bind a socket; the name of one is short, so it is bound from within its folder."""
    before = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(before)


def _in_its_place(make: Callable[[Path], Any]) -> Callable[[Path, random.Random, Path], None]:
    def replace(path: Path, _rng: random.Random, _originals: Path) -> None:
        path.unlink()
        make(path)

    return replace


def _foreign(path: Path, rng: random.Random, originals: Path) -> None:
    others = sorted(file for file in originals.iterdir() if file.is_file() and file.name != path.name)
    shutil.copyfile(rng.choice(others), path)


SPECIAL: dict[str, Callable[[Path, random.Random, Path], None]] = {
    "absent": _in_its_place(lambda path: None),
    "fifo": _in_its_place(os.mkfifo),
    "socket": _in_its_place(_socket),
    "device": _in_its_place(lambda path: path.symlink_to("/dev/zero")),
    "loop": _in_its_place(lambda path: path.symlink_to(path.name)),
    "folder": _in_its_place(Path.mkdir),
    "foreign": _foreign,
}


def _rewrite(file: Path, change: Callable[[bytes], bytes]) -> None:
    """Change the bytes of a file, those inside of a gzip file, or of one member of a zip file."""
    data = file.read_bytes()
    if data[:2] == b"\x1f\x8b":
        file.write_bytes(gzip.compress(change(gzip.decompress(data)), mtime=0))
    elif data[:2] == b"PK" and file.suffix == ".zip":
        with zipfile.ZipFile(file) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, change(content) if name.endswith(JSON_NAMES) else content)
    else:
        file.write_bytes(change(data))


def _absurd(data: bytes, rng: random.Random) -> bytes:
    """Put a number that cannot be into a header: text where there is some, or the fields of a binary one."""
    head, behind = data[:4096], data[4096:]
    found = [match.span() for match in re.finditer(rb"(?<![\w.])-?\d+(\.\d+)?", head)]
    if head[:1] in b"{[#N\x93Os" and found:
        start, stop = rng.choice(found)
        return head[:start] + rng.choice(NUMBERS).encode() + head[stop:] + behind
    place = rng.randrange(min(len(head), 352) // 2) * 2
    field = rng.choice(
        [struct.pack("<h", n) for n in (-1, 0, 32767, -32768)]
        + [struct.pack("<i", n) for n in (-1, 2**31 - 1, 2**30)]
        + [struct.pack("<f", n) for n in (float("nan"), float("inf"), -1e30, 1e-40)]
    )
    return data[:place] + field + data[place + len(field) :]


def _other_type(data: bytes, rng: random.Random) -> bytes:
    """Replace or remove a value of a JSON file; of another file, a line."""
    try:
        content = json.loads(data)
    except ValueError:
        lines = data.split(b"\n")
        lines[rng.randrange(min(len(lines), 20))] = rng.choice([b"", b"\xff\xfe", b"a: b", b"sizes: 1 2", b"x = y"])
        return b"\n".join(lines)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            walk(node[key])

    walk(content)
    if not places:
        return json.dumps(rng.choice(VALUES)).encode()
    node, key = rng.choice(places)
    if rng.random() < 0.2:
        del node[key]
    else:
        node[key] = rng.choice(VALUES)
    return json.dumps(content).encode()


def _rewrite_inside(path: Path, rng: random.Random) -> None:
    """Change a correction file of a recipe, and the checksum that recipe.json has of it."""
    file = rng.choice(sorted(path.rglob("*.npz")))
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    changed = rng.choice(sorted(members))
    members[changed] = rng.choice(
        [_flipped, _zeroed, _removed, lambda data, rng: _absurd(data[:128], rng) + data[128:]]
    )(members[changed], rng)
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    stored = json.loads((path / "recipe.json").read_text())
    for entry in stored["corrections"]:
        entry["sha256"] = hashlib.sha256((path / entry["file"]).read_bytes()).hexdigest()
    (path / "recipe.json").write_text(json.dumps(stored))


def _deflated_zeros(container: int) -> bytes:
    """Return 2 GB of zeros as deflate has them: one flushed block many times, in gzip (31) or zlib (15)."""
    packer = zlib.compressobj(9, zlib.DEFLATED, container)
    first = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return first + again * (ZEROS // 2**20) + packer.flush()


def _zstd_zeros() -> bytes:
    """Return a frame of Zstandard (RFC 8878) of blocks that each repeat one byte 2**17 times; no length is stated."""
    block = struct.pack("<I", 2**17 << 3 | 1 << 1)[:3] + b"\0"
    last = struct.pack("<I", 2**17 << 3 | 1 << 1 | 1)[:3] + b"\0"
    return b"\x28\xb5\x2f\xfd\x00\x58" + block * (ZEROS // 2**17) + last


def _nifti_header(path: Path, dims: tuple[int, ...]) -> bytes:
    data = bytearray(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
    data[42:48] = struct.pack("<3h", *dims)
    return bytes(data)


def _stated(path: Path, old: bytes, new: bytes) -> None:
    """Replace a text in the header of a file, or in the metadata of a store's array."""
    file = path / "0" / "zarr.json" if (path / "0" / "zarr.json").exists() else path
    file = path / "0" / ".zarray" if (path / "0" / ".zarray").exists() else file
    data = re.sub(rb"\s+", b" ", file.read_bytes()) if file.name in JSON_NAMES else file.read_bytes()
    assert old in data, (path.name, old)
    file.write_bytes(data.replace(old, new))


def _chunk(path: Path, content: bytes) -> None:
    first = next(file for file in sorted((path / "0").rglob("*")) if file.is_file() and file.name not in JSON_NAMES)
    first.write_bytes(content)


def _tall(path: Path) -> None:
    _stated(path, b'"shape": [ 5, 20, 24 ]', b'"shape": [ 1000000, 100000, 100000 ]')


def _wide_chunks(path: Path) -> None:
    for name in (b'"chunk_shape": [ 2, 8, 16 ]', b'"chunks": [ 2, 8, 16 ]', b'"chunk_shape": [ 4, 16, 16 ]'):
        try:
            _stated(path, name, name.partition(b"[")[0] + b"[ 1000000, 100000, 100000 ]")
        except AssertionError:
            continue


def _deep(path: Path) -> None:
    file = next(file for file in sorted(path.rglob("*")) if file.name in JSON_NAMES)
    file.write_bytes(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}")


def _tiff_strip(path: Path, code: int, strip: bytes) -> None:
    """Write a TIFF whose first strip lies behind the file, and holds more than a strip."""
    import tifffile

    tifffile.imwrite(path, voxels(), compression="zlib", rowsperstrip=20, photometric="minisblack")
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tif:
        for page in tif.pages:
            struct.pack_into("<H", data, page.tags["Compression"].valueoffset, code)
        for name, value in (("StripOffsets", len(data)), ("StripByteCounts", len(strip))):
            tag = tif.pages.first.tags[name]
            struct.pack_into({3: "<H", 4: "<I"}[int(tag.dtype)], data, tag.valueoffset, value)
    path.write_bytes(bytes(data) + strip)


def _tiff_width(path: Path) -> None:
    data = bytearray(path.read_bytes())
    ifd = struct.unpack_from("<I", data, 4)[0]
    for entry in range(struct.unpack_from("<H", data, ifd)[0]):
        place = ifd + 2 + 12 * entry
        if struct.unpack_from("<H", data, place)[0] in (256, 257):  # width and height
            struct.pack_into("<HII", data, place + 2, 4, 1, 10**6)
    path.write_bytes(data)


def _zip_member(path: Path) -> None:
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("zarr.json", "w", force_zip64=True) as member,
    ):
        member.writelines(bytes(2**24) for _block in range(ZEROS // 2**24))


def _npy_header(shape: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        text = f"{{'descr': '<u2', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
        path.write_bytes(b"\x93NUMPY\x02\x00" + struct.pack("<I", len(text)) + text + bytes(100))

    return make


def _behind_header(path: Path, content: bytes, sign: bytes) -> None:
    path.write_bytes(path.read_bytes().partition(sign)[0] + sign + content)


Bomb = Callable[[Path], Any]
STORE: list[Bomb] = [_tall, _wide_chunks, _deep]
BOMBS: dict[str, list[Bomb]] = {
    "nifti.nii": [lambda path: path.write_bytes(_nifti_header(path, (32767, 32767, 32767)))],
    "nifti.nii.gz": [
        lambda path: path.write_bytes(gzip.compress(_nifti_header(path, (16384, 16384, 8))[:400], mtime=0)),
        lambda path: path.write_bytes(
            gzip.compress(_nifti_header(path, (16384, 16384, 8))[:352])[:-4] + struct.pack("<I", (352 + 2**32) % 2**32)
        ),
        lambda path: path.write_bytes(gzip.compress(_nifti_header(path, (24, 20, 5))) + _deflated_zeros(31)),
        lambda path: path.write_bytes(
            gzip.compress(_nifti_header(path, (32767, 32767, 32767))[:352]) + _deflated_zeros(31)
        ),
    ],
    "array.npy": [
        _npy_header("(1000000, 1000000, 1000000)"),
        _npy_header("(" * 10_000),
        _npy_header("(" + "9" * 9_000 + ",)"),
        _npy_header("(-1, 20, 24)"),
    ],
    "raw.nrrd": [lambda path: _stated(path, b"sizes: 24 20 5", b"sizes: 100000 100000 100000")],
    "gzip.nrrd": [
        lambda path: _stated(path, b"sizes: 24 20 5", b"sizes: 100000 100000 100000"),
        lambda path: _behind_header(path, _deflated_zeros(31), b"\n\n"),
    ],
    "raw.mha": [lambda path: _stated(path, b"DimSize = 24 20 5", b"DimSize = 100000 100000 100000")],
    "zlib.mha": [
        lambda path: _stated(path, b"DimSize = 24 20 5", b"DimSize = 100000 100000 100000"),
        lambda path: _behind_header(path, _deflated_zeros(15), b"= LOCAL\n"),
    ],
    "plain.tif": [_tiff_width],
    "zlib.tif": [
        _tiff_width,
        lambda path: _tiff_strip(path, 8, _deflated_zeros(15)),
        lambda path: _tiff_strip(path, 8, zlib.compress(bytes(2**26))),
        lambda path: _tiff_strip(path, 34925, lzma.compress(bytes(2**28))),
        lambda path: _tiff_strip(path, 32773, b"\x81\0" * 2**24),
    ],
    "imagej.tif": [_tiff_width],
    "ome.ome.tif": [_tiff_width],
    **{name: STORE for name in WRITERS if name.endswith(".zarr")},
    "gzip.zarr": [*STORE, lambda path: _chunk(path, _deflated_zeros(31))],
    "zstd.zarr": [*STORE, lambda path: _chunk(path, _zstd_zeros())],
    "v2_zlib.zarr": [*STORE, lambda path: _chunk(path, _deflated_zeros(15))],
    "zipped.zarr.zip": [_zip_member],
    "sections.tsv": [lambda path: path.write_text("id\tz_start\tz_stop\n" + "a\t0\t5\n" * 100_000)],
    "sheet.csv": [
        lambda path: path.write_text("sample,image\na," + "x" * 200_000 + "\n"),
        lambda path: path.write_text("sample,image\n" + "a,array.npy\n" * 100_000),
        lambda path: path.write_bytes(b"sample,image\n\xe9,array.npy\n"),
        lambda path: path.write_text("sample,image\n" + "a" * 300 + ",array.npy\n"),
        lambda path: path.write_text("sample,image\na," + "x" * 300 + ".npy\n"),
        lambda path: path.write_text("sample,image,sections\na,array.npy," + "9" * 5000 + "\n"),
    ],
    "recipe": [_deep, lambda path: (path / "recipe.json").write_text('{"corrections": [' + "9" * 5000 + "]}")],
    "results": [_deep, lambda path: (path / "brain" / "checksums.json").write_text('{"files": ' + "9" * 5000 + "}")],
}


def mutants(number: int) -> Iterator[Mutant]:
    """Yield all mutants, `number` of each class of original and kind that a seed changes."""
    texts = ("sections.tsv", "sheet.csv")
    for original in [*WRITERS, *texts, "recipe", "results"]:
        family = "volume" if original in WRITERS else original.partition(".")[0]
        kinds = [*BYTES, *SPECIAL, "number", "type", *(["inside"] if family == "recipe" else [])]
        for kind in kinds:
            once = kind == "empty" or (kind in SPECIAL and not original.endswith(".zarr") and family != "results")
            for item in range(1 if once else number):
                yield Mutant(family, original, kind, item)
        for item in range(len(BOMBS.get(original, ()))):
            yield Mutant(family, original, "bomb", item)
    for item in range(len(NAMES)):
        yield Mutant("volume", "array.npy", "name", item)
