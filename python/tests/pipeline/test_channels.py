"""All channels of a sample as one result, beside runs of each channel alone and arithmetic on them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zarr

from n4flow.commands import main
from n4flow.corrections.recipe import Recipe
from n4flow.errors import InputError, N4flowError
from n4flow.io.open import open_volume
from n4flow.io.writers import write_volume
from n4flow.pipeline.channels import make_plans
from n4flow.pipeline.parameters import resolve
from n4flow.pipeline.run import run
from n4flow.pipeline.verify import verify

SHAPE, UM = (8, 60, 70), (30, 10, 10)
LABELS = ["DAPI", "GFP", "far red"]
FAST = {"iterations": "3,3", "backend": "cpu", "shrink": 2, "sections": 2}
ONLY_BIAS = {"normalize": False, "match": "off", "smooth_z": 0, "trust": "full"}


@pytest.fixture(scope="module")
def voxels() -> np.ndarray:
    """Three channels of one anatomy, with gains and shadings of their own; the second has a dark border."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[-1 : 1 : SHAPE[1] * 1j, -1 : 1 : SHAPE[2] * 1j]
    inside = y * y + x * x < 0.6
    channels = []
    for gain, slope in ((900, 0.4 * x), (300, -0.3 * y), (2000, 0.2 * (x + y))):
        signal = np.where(inside, gain, gain / 9) * np.exp(slope) * rng.uniform(0.9, 1.1, (SHAPE[0], 1, 1))
        channels.append(signal * rng.gamma(300, 1 / 300, SHAPE))
    channels[1][:, :4] = channels[1][:, :, -6:] = 0
    return np.stack(channels).astype(np.uint16)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, voxels) -> Path:
    path = tmp_path_factory.mktemp("channels") / "brain.ome.zarr"
    write_volume(path, voxels, voxel_um=UM)
    metadata = json.loads((path / "zarr.json").read_text())
    shown = metadata["attributes"]["ome"]["omero"]["channels"]
    for channel, label, colour in zip(shown, LABELS, ["0000FF", "00FF00", "A00000"], strict=True):
        channel.update(label=label, color=colour)
    (path / "zarr.json").write_text(json.dumps(metadata))
    return path


def read(path: Path, level: str = "0") -> np.ndarray:
    return np.asarray(zarr.open_group(path, mode="r")[level][:])


def test_each_channel_is_what_a_run_of_it_alone_gives(tmp_path, store):
    result = run(store, tmp_path / "all", channel="all", **FAST).samples[0]
    for number in range(3):
        alone = run(store, tmp_path / str(number), channel=number, **FAST).samples[0]
        part = result.folder / f"channel_{number}"
        assert np.array_equal(read(result.store)[number], read(alone.store))
        assert np.array_equal(read(part / "mask.ome.zarr"), read(alone.folder / "mask.ome.zarr"))
        assert (part / "sections.tsv").read_text() == (alone.folder / "sections.tsv").read_text()
        assert json.loads((part / "metrics.json").read_text())["verdict"] == alone.numbers["verdict"]
    verdicts = [channel["verdict"]["status"] for channel in result.numbers["channels"]]
    assert result.numbers["verdict"]["status"] == ("look" if "look" in verdicts else "pass")
    assert verify(tmp_path / "all").samples == ("brain",)
    assert all(
        f'href="channel_{n}/report.html">{label}<' in result.report.read_text() for n, label in enumerate(LABELS)
    )
    index = (tmp_path / "all" / "index.html").read_text()
    assert all(f'brain/channel_{n}/report.html">brain, {label}<' in index for n, label in enumerate(LABELS))
    ome = zarr.open_group(result.store, mode="r").attrs["ome"]
    (multiscale,) = ome["multiscales"]
    assert [axis["name"] for axis in multiscale["axes"]] == ["c", "z", "y", "x"]
    assert multiscale["datasets"][0]["coordinateTransformations"][0]["scale"] == [1.0, 30.0, 10.0, 10.0]
    assert [(c["label"], c["color"]) for c in ome["omero"]["channels"]] == list(
        zip(LABELS, ["0000FF", "00FF00", "A00000"], strict=True)
    )
    assert open_volume(result.store, channel="GFP").voxel_um == {"z": 30.0, "y": 10.0, "x": 10.0}


@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_the_field_of_one_channel_divides_all(tmp_path, store, voxels, version):
    options = {**FAST, **ONLY_BIAS, "ome_zarr_version": version}
    alone = run(store, tmp_path / "alone", channel=0, **options).samples[0]
    result = run(store, tmp_path / "all", channel="all", fit_channel="DAPI", **options).samples[0]
    corrected, by_itself = read(result.store), read(alone.store)
    field = voxels[0] / by_itself
    assert 0.1 < np.ptp(np.log(field)) < 3
    assert np.array_equal(corrected[0], by_itself)
    assert np.allclose(corrected * field, voxels, rtol=1e-5)
    assert np.array_equal(read(result.folder / "mask.ome.zarr"), read(alone.folder / "mask.ome.zarr"))
    assert not list(result.folder.glob("channel_*/mask.ome.zarr"))
    assert Recipe.load(result.folder / "channel_2" / "recipe.json").mask.resolve() == result.folder / "mask.ome.zarr"
    verify(tmp_path / "all")


def test_the_field_of_the_mean_divides_all(tmp_path, store, voxels):
    mean = voxels.mean(axis=0, dtype=np.float32)
    assert np.array_equal(open_volume(store, channel="mean").read(slice(None)), mean)
    write_volume(tmp_path / "mean.ome.zarr", mean, voxel_um=UM)
    alone = run(tmp_path / "mean.ome.zarr", tmp_path / "alone", **FAST, **ONLY_BIAS).samples[0]
    result = run(store, tmp_path / "all", channel="all", fit_channel="mean", **FAST, **ONLY_BIAS).samples[0]
    field = mean / read(alone.store)
    assert 0.02 < np.ptp(np.log(field)) < 3
    assert np.allclose(read(result.store) * field, voxels, rtol=1e-5)
    assert "of the mean of all channels" in result.report.read_text()
    verify(tmp_path / "all")


def test_the_field_reaches_where_its_channel_is_dark_and_others_are_not(tmp_path, store, voxels):
    """The second channel has nothing around rows 4 to 60 and columns 0 to 64; the others are corrected there, too."""
    result = run(store, tmp_path / "all", channel="all", fit_channel=1, **FAST, **ONLY_BIAS).samples[0]
    corrected = read(result.store)
    field = voxels[0] / corrected[0]
    assert np.ptp(np.log(field[:, :4])) > 0.01
    assert np.allclose(corrected[2] * field, voxels[2], rtol=1e-5)
    assert np.array_equal(corrected[1] == 0, voxels[1] == 0)


def test_a_mask_that_is_given_is_stored_once(tmp_path, store, voxels):
    mask = (voxels[2] > 800).astype(np.uint8)
    write_volume(tmp_path / "mask.ome.zarr", mask, voxel_um=UM)
    given = {"mask": str(tmp_path / "mask.ome.zarr"), **FAST}
    result = run(store, tmp_path / "all", channel="all", **given).samples[0]
    alone = run(store, tmp_path / "alone", channel="far red", **given).samples[0]
    assert np.array_equal(read(result.folder / "mask.ome.zarr"), mask)
    assert np.array_equal(read(result.store)[2], read(alone.store))
    assert [path.parent.name for path in result.folder.rglob("mask.ome.zarr")] == ["brain"]


def test_a_sheet_may_ask_for_all_channels_and_damage_is_found_in_any(tmp_path, store, voxels, capsys):
    write_volume(tmp_path / "one.ome.zarr", voxels[0], voxel_um=UM)
    sheet = f"sample,image,channel\nbrain,{store},all\none,one.ome.zarr,all\nlast,{store},2\n"
    (tmp_path / "sheet.csv").write_text(sheet)
    fast = {**FAST, **ONLY_BIAS, "bias": "off"}
    brain, one, last = run(tmp_path / "sheet.csv", tmp_path / "out", **fast).samples
    assert read(brain.store).shape == (3, *SHAPE)
    assert read(one.store).shape == read(last.store).shape == SHAPE
    assert set(brain.metrics) == set(LABELS)
    assert verify(tmp_path / "out").samples == ("brain", "last", "one")
    run(tmp_path / "sheet.csv", tmp_path / "out", **fast)
    shard = next(path for path in (brain.store / "0" / "c" / "2").rglob("*") if path.is_file())
    content = bytearray(shard.read_bytes())
    content[40] ^= 0xFF
    shard.write_bytes(content)
    with pytest.raises(N4flowError, match="level 0, chunk 2/0/0/0 "):
        verify(tmp_path / "out")
    with pytest.raises(InputError, match="holds the result of channel all, and channel 1 was asked for"):
        run(store, tmp_path / "out", channel=1, **FAST)
    with pytest.raises(InputError, match="several channels; give one of them, channel_0/recipe.json"):
        Recipe.load(brain.folder / "recipe.json")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"channel": "all", "fit_channel": 3},
            "must be each, mean, a number from 0 to 2, one of DAPI, GFP, far red, got",
        ),
        (
            {"channel": "all", "fit_channel": "red"},
            "must be each, mean, a number from 0 to 2, one of DAPI, GFP, far red",
        ),
    ],
)
def test_whose_field_is_asked_before_anything_is_done(tmp_path, store, given, sentence):
    with pytest.raises(InputError, match=sentence):
        run(store, tmp_path / "out", **given)
    assert not (tmp_path / "out" / "brain").exists()


def test_a_field_for_all_does_nothing_for_one(store):
    (plan,) = make_plans(store, resolve({"channel": 1, "fit_channel": "mean"}))
    assert plan.channel is None
    assert "fit_channel mean does nothing without channel all" in plan.warnings


def test_inspect_says_what_is_done_with_each_channel(tmp_path, store, capsys):
    given = ["--channel", "all", "--fit-channel", "GFP", "--json", str(tmp_path / "plan.json")]
    with pytest.raises(SystemExit) as end:
        main(["inspect", str(store), *given])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert "Channels: 3, DAPI, GFP, far red\n  Bias fields and tissue mask of a channel: of channel GFP\n" in said
    assert "--channel all --fit-channel GFP" in said
    plan = json.loads((tmp_path / "plan.json").read_text())["plan"]
    assert (plan["shape"], plan["fit_channel"]) == ([3, *SHAPE], 1)
    assert [(one["channel"], one["label"]) for one in plan["channels"]] == list(enumerate(LABELS))
    assert {one["frame"] for one in plan["channels"]} == {"0:60,0:70"}
    assert plan["needs"]["bytes"] == sum(one["needs"]["bytes"] for one in plan["channels"])
    assert plan["channels"][1]["memory_bytes"]["RENDER"] > 0
