"""A look at results: what a browser gets over HTTP is what lies in the stores, and napari gets the same."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import types
from html import unescape
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
import tensorstore
import tifffile

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


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A folder with a package that has the client's first page where Neuroglancer's has it."""
    folder = tmp_path_factory.mktemp("site")
    client = folder / "neuroglancer" / "static" / "client"
    client.mkdir(parents=True)
    (client / "index.html").write_text("the client")
    (folder / "neuroglancer" / "__init__.py").write_text("raise SystemExit('imported, which takes long')")
    return folder


@pytest.fixture
def address(samples, package, monkeypatch, request):
    """The address at which a sample is served by a thread."""
    monkeypatch.setattr(view, "client_folder", lambda: package / "neuroglancer" / "static" / "client")
    sample = next(each for each in samples[1].samples if each.sample == request.param)
    started, loop, found = threading.Event(), asyncio.new_event_loop(), {}

    async def begin():
        found["server"], found["address"] = view.serve(sample, view.volumes_of(sample))
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
    yield found["address"]
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


def fetched(address):
    with urlopen(address, timeout=10) as answer:
        return answer.read()


def array_at(address, driver, path):
    kvstore = {"driver": "http", "base_url": address, "path": path}
    return tensorstore.open({"driver": driver, "kvstore": kvstore}, read=True, open=True).result().read().result()


@pytest.mark.parametrize("address", ["a", "b"], indirect=True)
def test_what_is_served_is_what_lies_in_the_stores(samples, address):
    """tensorstore reads it over HTTP; from a store it asks for ranges of bytes of the shards."""
    voxels, result = samples
    made = "n4flow: a<" in fetched(address).decode()  # from planes, which is no store
    before = array_at(address, "zarr" if made else "zarr3", "before/0/")
    assert np.array_equal(before, voxels)
    after = array_at(address, "zarr3", "after/0/")
    assert np.array_equal(after, n4flow.open_volume(result.samples[0].store).read(slice(None)))
    mask = array_at(address, "zarr3", "mask/0/")
    assert np.array_equal(mask, n4flow.open_volume(result.samples[0].folder / "mask.ome.zarr").read(slice(None)))
    assert fetched(f"{address}client/index.html") == b"the client"


@pytest.mark.parametrize("address", ["a"], indirect=True)
def test_the_page_leads_to_a_state_with_all_layers(samples, address):
    page = fetched(address).decode()
    state = json.loads(json.loads(unescape(re.search(r"const state = (\".*\")\.replaceAll", page)[1])))
    assert [layer["source"] for layer in state["layers"]] == [f"zarr://ORIGIN/{name}/" for name in view.LAYERS]
    low, high = state["layers"][0]["shaderControls"]["normalized"]["range"]
    assert (low, high) == tuple(np.percentile(samples[0][SHAPE[0] // 2], [0.5, 99.5]))
    scale, origin = json.loads(fetched(f"{address}before/.zattrs"))["multiscales"][0]["datasets"][0][
        "coordinateTransformations"
    ]
    assert (scale["scale"], origin["translation"]) == ([30, 10, 12], [0, 0, 0])


@pytest.mark.parametrize("address", ["a"], indirect=True)
def test_nothing_else_is_served(samples, address):
    outside = samples[1].outdir / "a" / "metrics.json"
    assert outside.is_file()
    root = address.rsplit("/", 2)[0]
    for wrong in (
        f"{root}/",
        f"{root}/guess/after/zarr.json",
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


def test_the_command_prints_a_link_and_ends_with_the_keyboard(samples, package):
    environment = os.environ | {"PYTHONPATH": f"{package}:{os.environ.get('PYTHONPATH', '')}"}
    command = [Path(sys.executable).with_name("n4flow"), "view", samples[1].outdir / "a", "--in", "neuroglancer"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    link = re.fullmatch(
        r"Open (http://127\.0\.0\.1:(\d+)/\S+/) in a browser; Ctrl-C ends\.\n", process.stdout.readline()
    )
    tunnel = process.stdout.readline()
    assert f" -L {link[2]}:127.0.0.1:{link[2]} " in tunnel
    assert b"client/index.html" in fetched(link[1])
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    assert process.communicate()[1] == ""


def ended(*arguments):
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code


def test_what_cannot_be_shown_is_said_with_its_remedy(samples, tmp_path, monkeypatch, capsys):
    out = samples[1].outdir
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert ended("view", out, "--sample", "a") == 2
    assert "neither napari nor neuroglancer is installed" in capsys.readouterr().err
    monkeypatch.setattr(view, "client_folder", lambda: tmp_path)
    for line, said in (
        ([out], "holds 2 samples; choose one with --sample: a, b"),
        ([out, "--sample", "c"], "holds no sample c; it has a, b"),
        ([tmp_path], "holds no results of n4flow"),
        ([out, "--in", "word"], "--in must be auto, napari or neuroglancer, got 'word'"),
        ([out, "--sample", "a", "--before", tmp_path / "none"], "the input of a cannot be opened: "),
        ([out, "--sample", "a", "--in", "napari"], "napari cannot be imported"),
    ):
        assert ended("view", *line) == 2
        assert said in capsys.readouterr().err
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
