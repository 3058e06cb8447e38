"""A look at results: what a browser gets over HTTP is what lies in the stores, and napari gets the same."""

import asyncio
import json
import re
import signal
import subprocess
import sys
import threading
import types
from dataclasses import replace
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
import tensorstore
import tifffile
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application

import n4flow
from n4flow.commands import main
from n4flow.errors import InputError
from n4flow.io.writers import write_volume
from n4flow.pipeline import view

SHAPE = (6, 80, 300)
PLAIN = {"sections": 2, "bias": "off", "match": "off", "smooth_z": 0}


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """The same volume from a folder of planes and from a store, and what became of both."""
    folder = tmp_path_factory.mktemp("view")
    voxels = np.random.default_rng(5).integers(1, 900, SHAPE).astype(np.uint16)
    (folder / "planes").mkdir()
    for z, plane in enumerate(voxels):
        tifffile.imwrite(folder / "planes" / f"p{z}.tif", plane)
    write_volume(folder / "brain.ome.zarr", voxels, voxel_um=(30, 10, 12))
    (folder / "sheet.csv").write_text("sample,image,voxel_um\na,planes,30 10 12\nb,brain.ome.zarr,\n")
    return voxels, n4flow.run(folder / "sheet.csv", folder / "out", **PLAIN)


@pytest.fixture
def address(samples, request):
    """The address below which a thread serves the volumes of a sample, as Neuroglancer's server does."""
    sample = next(each for each in samples[1].samples if each.sample == request.param)
    started, loop, found = threading.Event(), asyncio.new_event_loop(), {}

    async def begin():
        sockets = bind_sockets(0, "127.0.0.1")
        found["server"] = HTTPServer(Application(view.handlers(view.volumes_of(sample), "token")))
        found["server"].add_sockets(sockets)
        found["port"] = sockets[0].getsockname()[1]
        started.set()

    def work():
        loop.create_task(begin())
        loop.run_forever()
        found["server"].stop()
        loop.run_until_complete(found["server"].close_all_connections())
        loop.close()

    thread = threading.Thread(target=work)
    thread.start()
    assert started.wait(30)
    yield f"http://127.0.0.1:{found['port']}/volumes/token/"
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


def fetched(address):
    with urlopen(address, timeout=10) as answer:
        return answer.read()


def array_at(address, driver, path):
    kvstore = {"driver": "http", "base_url": address, "path": path}
    return tensorstore.open({"driver": driver, "kvstore": kvstore}, read=True, open=True).result().read().result()


@pytest.mark.parametrize(("address", "driver"), [("a", "zarr"), ("b", "zarr3")], indirect=["address"])
def test_what_is_served_is_what_lies_in_the_stores(samples, address, driver):
    """tensorstore reads it over HTTP; from a store it asks for ranges of bytes of the shards."""
    voxels, result = samples
    before = array_at(address, driver, "before/0/")
    assert np.array_equal(before, voxels)
    after = array_at(address, "zarr3", "after/0/")
    assert np.array_equal(after, n4flow.open_volume(result.samples[0].store).read(slice(None)))
    mask = array_at(address, "zarr3", "mask/0/")
    assert np.array_equal(mask, n4flow.open_volume(result.samples[0].folder / "mask.ome.zarr").read(slice(None)))


def test_the_state_has_all_layers_with_their_windows_and_sizes(samples):
    voxels, result = samples
    volumes = view.volumes_of(result.samples[0])
    state = view.state_of(volumes, "http://here")
    assert [layer["source"] for layer in state["layers"]] == [f"zarr://http://here/{name}/" for name in view.LAYERS]
    low, high = state["layers"][0]["shaderControls"]["normalized"]["range"]
    assert (low, high) == tuple(np.percentile(voxels[SHAPE[0] // 2], [0.5, 99.5]))
    described = json.loads(view.MadeStore(volumes["before"]).get(".zattrs"))["multiscales"][0]["datasets"][0]
    scale, origin = described["coordinateTransformations"]
    assert (scale["scale"], origin["translation"]) == ([30, 10, 12], [0, 0, 0])


@pytest.mark.parametrize("address", ["a"], indirect=True)
def test_nothing_else_is_served(samples, address):
    outside = samples[1].outdir / "a" / "metrics.json"
    assert outside.is_file()
    root = address.removesuffix("token/")
    for wrong in (
        root,
        f"{root}guess/after/zarr.json",
        f"{address}after/../metrics.json",
        f"{address}after/%2e%2e/metrics.json",
        f"{address}before/0/0/0/9",
        f"{address}before/0/0/0/-1",
        f"{address}before/nothing",
    ):
        with pytest.raises(HTTPError) as error:
            urlopen(Request(wrong), timeout=10)
        error.value.close()
        assert error.value.code in (403, 404), wrong


def test_the_command_prints_a_link_and_ends_with_the_keyboard(samples):
    """With Neuroglancer's own server and client."""
    pytest.importorskip("neuroglancer", reason="neuroglancer is not installed (n4flow[view])")
    voxels, result = samples
    command = [Path(sys.executable).with_name("n4flow"), "view", result.outdir / "a", "--in", "neuroglancer"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    said = process.stdout.readline()
    link = re.fullmatch(r"Open (http://127\.0\.0\.1:(\d+))/v/(\S+)/ in a browser; Ctrl-C ends\.\n", said)
    address, port, token = link.groups()
    assert f" -L {port}:127.0.0.1:{port} " in process.stdout.readline()
    assert b"<script" in fetched(f"{address}/v/{token}/index.html")
    assert np.array_equal(array_at(f"{address}/volumes/{token}/", "zarr", "before/0/"), voxels)
    again = subprocess.run([*command, "--port", port], capture_output=True, text=True, timeout=60, check=False)
    assert again.returncode == 2
    assert f"n4flow: port {port} cannot be used (Address already in use); give another one" in again.stderr
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    assert process.communicate()[1] == ""


def ended(*arguments):
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code


def test_what_cannot_be_shown_is_said_with_its_remedy(samples, tmp_path, monkeypatch, capsys):
    out = samples[1].outdir
    for name in ("napari", "neuroglancer"):
        monkeypatch.setitem(sys.modules, name, None)
    for line, said in (
        ([out], "holds 2 samples; choose one with --sample: a, b"),
        ([out, "--sample", "c"], "holds no sample c; it has a, b"),
        ([tmp_path], "holds no results of n4flow"),
        ([out, "--in", "word"], "--in must be auto, napari or neuroglancer, got 'word'"),
        ([out, "--sample", "a", "--before", tmp_path / "none"], "the input of a cannot be opened: "),
        ([out, "--sample", "a", "--in", "napari"], "napari cannot be imported"),
        ([out, "--sample", "a", "--in", "neuroglancer"], "neither napari nor neuroglancer can be imported"),
    ):
        assert ended("view", *line) == 2
        assert said in capsys.readouterr().err
    early = replace(samples[1].samples[0], numbers={"plan": {}})
    with pytest.raises(
        InputError, match=r"a cannot be opened: .*does not say where the input lay.*; give it with --bef"
    ):
        view.volumes_of(early)
    np.save(tmp_path / "other.npy", np.ones((2, 3, 4)))
    with pytest.raises(InputError, match=r"has the shape \(2, 3, 4\), and the result \(6, 80, 300\)"):
        view.volumes_of(samples[1].samples[0], tmp_path / "other.npy")


def test_napari_gets_the_volumes_and_their_sizes(samples, monkeypatch):
    """Of napari, which needs a screen, what is called is here."""
    voxels, result = samples
    shown = {}

    class Viewer:
        def __init__(self, title):
            shown["title"] = title

        def add_image(self, data, **options):
            shown[options["name"]] = (np.asarray(data[0] if options["multiscale"] else data), options)

        add_labels = add_image

    napari = types.SimpleNamespace(Viewer=Viewer, run=lambda: shown.update(ran=True))
    monkeypatch.setitem(sys.modules, "napari", napari)
    view.in_napari(result.samples[1], view.volumes_of(result.samples[1]))
    assert shown["ran"]
    for name, expected in (
        ("before", voxels),
        ("after", n4flow.open_volume(result.samples[1].store).read(slice(None))),
    ):
        data, options = shown[name]
        assert np.array_equal(data, expected)
        assert options["scale"] == [30, 10, 12]
    assert shown["mask"][0].dtype == np.uint8
