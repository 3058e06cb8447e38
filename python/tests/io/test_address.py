"""Stores at addresses: the voxels of the same store in a folder, from a server of this machine."""

import functools
import http.server
import json
import re
import threading
import zlib
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import zarr

from n4flow.commands import main
from n4flow.errors import InputError
from n4flow.io.address import located
from n4flow.io.omezarr import tensorstore_use
from n4flow.io.open import open_volume
from n4flow.io.writers import write_volume
from n4flow.pipeline.run import run

SHAPE, VOXEL = (12, 40, 50), {"z": 20.0, "y": 5.0, "x": 5.0}


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, with entity tags and parts of files as web servers do; closes some connections first."""

    drop, whole, requests = 0, False, 0

    def do_GET(self):
        Handler.requests += 1
        if Handler.drop:
            Handler.drop -= 1
            self.close_connection = True
            self.connection.close()
            return
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data, part = path.read_bytes(), self.headers.get("Range")
        self.send_response(206 if part and not Handler.whole else 200)
        self.send_header("ETag", f'"{hash(data)}"')
        self.send_header("x-goog-generation", str(zlib.crc32(data)))
        if part and not Handler.whole:
            first, last = part.removeprefix("bytes=").split("-")
            start = int(first) if first else len(data) - int(last)
            stop = min(int(last) + 1, len(data)) if first and last else len(data)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
            data = data[start:stop]
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def translate_path(self, path):
        """Take an object that Google's JSON API is asked for, and else a path, also that of a bucket of S3."""
        asked = re.fullmatch(r"/storage/v1/b/([^/]+)/o/([^/?]+)\?alt=media&?.*", path)
        return super().translate_path("/".join(asked.groups()) if asked else path)

    def log_message(self, *_arguments):
        pass


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder and its address."""
    for name, value in (("drop", 0), ("whole", False), ("requests", 0)):
        monkeypatch.setattr(Handler, name, value)
    folder = tmp_path / "served"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def impatient(monkeypatch):
    few = {"max_retries": 3, "initial_delay": "10ms", "max_delay": "10ms"}
    monkeypatch.setattr(tensorstore_use, "RETRIES", {"http_request_retries": few})
    tensorstore_use.shared_context.cache_clear()
    yield
    tensorstore_use.shared_context.cache_clear()


@pytest.fixture
def voxels():
    return np.random.default_rng(3).integers(1, 4000, SHAPE).astype("uint16")


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("whole", [False, True])
def test_a_store_at_an_address(served, voxels, version, whole, monkeypatch):
    folder, address = served
    monkeypatch.setattr(Handler, "whole", whole)
    write_volume(folder / "a.ome.zarr", voxels, voxel_um=VOXEL, ome_zarr_version=version)
    here = open_volume(folder / "a.ome.zarr", level=0)
    there = open_volume(f"{address}/a.ome.zarr")
    assert str(there.source) == f"{address}/a.ome.zarr"
    assert (there.shape, there.dtype, there.voxel_um) == (here.shape, here.dtype, here.voxel_um)
    assert there.metadata == here.metadata
    assert there.digest() == here.digest()
    assert np.array_equal(there.read(slice(3, 9), slice(5, 20), slice(7, 33)), voxels[3:9, 5:20, 7:33])
    assert there.reader.by_chunks


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_a_store_in_a_bucket(served, voxels, scheme, monkeypatch):
    folder, address = served
    for name in ("TENSORSTORE_GCS_HTTP_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.setenv(name, address)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    (folder / "bucket/of all").mkdir(parents=True)
    write_volume(folder / "bucket/of all/a.ome.zarr", voxels, voxel_um=VOXEL)
    volume = open_volume(f"{scheme}://bucket/of all/a.ome.zarr")
    assert np.array_equal(volume.read(slice(3, 9)), voxels[3:9])
    seen = volume.reader.state()
    chunk = folder / "bucket/of all/a.ome.zarr/0/c/0/0/0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    assert volume.reader.state() != seen
    with pytest.raises(InputError, match=f"{scheme}://bucket/none.zarr is not a readable Zarr store"):
        open_volume(f"{scheme}://bucket/none.zarr")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"zarr_format": 2},
        {"shards": (4, 32, 32)},
        {"zarr_format": 2, "compressors": None, "filters": [numcodecs.Delta("<u2")]},
    ],
)
def test_absent_files_at_an_address(served, voxels, options):
    folder, address = served
    voxels[4:8], voxels[:, :16] = 0, 0
    stored = zarr.create_array(folder / "s.zarr", shape=SHAPE, dtype="uint16", **{"chunks": (4, 16, 16), **options})
    stored[...] = voxels
    read = {"require_voxel_um": False}
    with pytest.raises(InputError, match="s.zarr lacks .* files, or they are cut short") as here:
        open_volume(folder / "s.zarr", **read)
    with pytest.raises(InputError) as there:
        open_volume(f"{address}/s.zarr", **read)
    assert str(there.value) == str(here.value).replace(str(folder), address)
    here, there = (open_volume(f"{place}/s.zarr", allow_missing_chunks=True, **read) for place in (folder, address))
    assert there.metadata == here.metadata
    assert np.array_equal(there.read(slice(None)), voxels)


@pytest.mark.parametrize("shards", [None, (8, 32, 32)])
def test_a_file_that_vanishes_after_opening_is_named(served, voxels, shards):
    folder, address = served
    stored = zarr.create_array(folder / "s.zarr", shape=SHAPE, dtype="uint16", chunks=(4, 16, 16), shards=shards)
    stored[...] = voxels
    volume = open_volume(f"{address}/s.zarr", require_voxel_um=False)
    seen = volume.reader.state()
    assert volume.reader.state() == seen
    (folder / "s.zarr/c/0/0/0").unlink()
    assert volume.reader.state() != seen
    with pytest.raises(InputError, match="http.*s.zarr is not readable .*planes 0 to 4.*missing"):
        volume.read(slice(0, 4))
    stored[...] = voxels + 1
    assert volume.reader.state() != seen


def test_lost_connections_are_repeated_and_then_a_sentence(served, voxels, impatient, monkeypatch, capsys):
    folder, address = served
    write_volume(folder / "a.ome.zarr", voxels, voxel_um=VOXEL)
    monkeypatch.setattr(Handler, "drop", 2)
    volume = open_volume(f"{address}/a.ome.zarr")
    monkeypatch.setattr(Handler, "drop", 2)
    assert np.array_equal(volume.read(slice(None)), voxels)
    monkeypatch.setattr(Handler, "drop", 10**6)
    with pytest.raises(InputError, match="a.ome.zarr/0/c/0/0/0 cannot be read: .*retry attempts failed"):
        volume.read(slice(None))
    with pytest.raises(SystemExit) as end:
        main(["inspect", f"{address}/a.ome.zarr"])
    assert end.value.code == InputError.exit_code
    said = capsys.readouterr().err
    assert said.startswith(f"n4flow: sample a: {address}/a.ome.zarr is not a readable Zarr store: ")
    assert "Traceback" not in said


def test_what_is_not_there(served, impatient):
    _folder, address = served
    with pytest.raises(InputError, match=f"{address}/none.zarr is not a readable Zarr store"):
        open_volume(f"{address}/none.zarr")


def test_a_run_on_an_address_is_that_on_the_folder(served, tmp_path, voxels, capsys):
    folder, address = served
    write_volume(folder / "a.ome.zarr", voxels, voxel_um=VOXEL)
    write_volume(folder / "m.ome.zarr", (voxels > 500).astype("uint8"), voxel_um=VOXEL)
    (tmp_path / "sheet.csv").write_text(f"sample,image,mask\na,{address}/a.ome.zarr,{address}/m.ome.zarr\n")
    settings = {"bias": "off", "sections": 2}
    here = run(folder / "a.ome.zarr", tmp_path / "here", mask=str(folder / "m.ome.zarr"), **settings).samples[0]
    there = run(tmp_path / "sheet.csv", tmp_path / "there", **settings).samples[0]
    assert np.array_equal(*(open_volume(result.store).read(slice(None)) for result in (here, there)))
    crate = json.loads((tmp_path / "there/ro-crate-metadata.json").read_bytes())
    assert f"{address}/a.ome.zarr" in [entity["@id"] for entity in crate["@graph"]]
    with pytest.raises(SystemExit) as end:
        main(["inspect", f"{address}/a.ome.zarr", "--sections", "2", "--json"])
    assert end.value.code == 0
    assert json.loads(capsys.readouterr().out)["plan"]["shape"] == list(SHAPE)


def test_addresses_and_paths():
    for text in ("https://h/a.zarr", "http:/h/a.zarr", "s3://b/k/a.zarr", "gs:/b/a.zarr"):
        place = located(Path(text))
        assert str(place) == text.replace("://", ":/").replace(":/", "://")
        assert (place.name, str(place / "0")) == ("a.zarr", f"{place}/0")
        assert not place.exists()
    for text in ("a.zarr", "/data/https:/a.zarr", "ftp://h/a.zarr", "C:/a.zarr"):
        assert str(located(text)) == str(Path(text))
