"""What is odd about an input and may be meant: a sentence, and the same result."""

import warnings

import numpy as np
import pytest

from n4flow.errors import InputError, N4flowWarning
from n4flow.io.doubts import doubts
from n4flow.io.open import open_volume
from n4flow.io.volume import Volume
from n4flow.io.writers import write_volume
from n4flow.n4_bias import files
from n4flow.n4_bias.files import correct_file
from n4flow.pipeline.parameters import resolve
from n4flow.pipeline.plan import make_plan
from n4flow.pipeline.run import _Sample, run
from n4flow.pipeline.samples import check_channel


@pytest.mark.parametrize(
    ("voxel_um", "odd"),
    [
        ((20, 5, 5), False),
        ((0.02, 0.005, 0.005), True),
        ((5000, 5, 5), True),
        ((900, 1, 1), False),
        ((1, 0.01, 0.01), False),
    ],
)
def test_a_voxel_size_that_hardly_can_be(voxel_um, odd):
    said = doubts(Volume.from_array(np.ones((2, 3, 4), np.uint8), voxel_um))
    assert [("were millimetres meant?" in sentence) for sentence in said] == [True] * odd


def test_the_state_of_files_changes_with_them(tmp_path):
    for name in ("a.ome.zarr", "a.nii"):
        path = tmp_path / name
        write_volume(path, np.ones((4, 8, 8), np.uint8), voxel_um=(1, 1, 1))
        reader = open_volume(path).reader
        seen = reader.state()
        assert reader.state() == seen
        file = next(path.rglob("c/0/0/0")) if path.is_dir() else path
        file.write_bytes(file.read_bytes() + b"\0")
        assert reader.state() != seen


def test_a_spline_wider_than_the_volume_is_said(tmp_path):
    write_volume(tmp_path / "a.ome.zarr", np.ones((8, 40, 40), np.uint8), voxel_um=(20, 5, 5))
    for distance, wide in ((250, True), (190, False)):
        settings = resolve({"spline_um": distance, "iterations": "5", "bias": "two_pass", "sections": 2})
        said = [w for w in make_plan(tmp_path / "a.ome.zarr", settings).warnings if "is larger than" in w]
        assert (
            said
            == [
                f"spline_um: a distance of 250 micrometres is larger than the {kind} ({depth} x 200 x 200), so one "
                "span covers each axis, as without it; was another unit meant?"
                for kind, depth in (("section", 80), ("volume", 160))
            ]
            * wide
        )


def corrected(tmp_path, values, **options):
    """Return what is said of a correction, and the factor by which it moved the level."""
    np.save(tmp_path / "in.npy", values)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", N4flowWarning)
        facts = correct_file(tmp_path / "in.npy", tmp_path / "out.npy", iterations=(3,), overwrite=True, **options)
    return [str(w.message) for w in caught], facts["results"][0]["level"]


@pytest.mark.parametrize("share", [0.004, 0.2, 0.95])
def test_an_otsu_mask_of_an_unusual_share_is_said(tmp_path, share):
    values = np.full(16**3, 10, np.float32)
    values[: round(share * values.size)] = 100
    said, _level = corrected(tmp_path, values.reshape(16, 16, 16))
    odd = [sentence for sentence in said if "Otsu's mask is" in sentence]
    assert len(odd) == (share != 0.2)
    assert all(f"Otsu's mask is {np.mean(values > 50):.2%} of in.npy" in sentence for sentence in odd)


def test_a_level_that_moved_is_said(tmp_path, monkeypatch):
    x = np.linspace(0, 1, 32, dtype=np.float32)
    values = np.broadcast_to(100 * np.exp(2 * x), (8, 16, 32)).astype(np.float32)
    write_volume(tmp_path / "mask.npy", np.ones(values.shape, np.uint8))
    monkeypatch.setattr(files, "LEVEL_MOVED", 1.0001)
    said, level = corrected(tmp_path, values, mask=tmp_path / "mask.npy")
    assert level == pytest.approx(np.load(tmp_path / "out.npy").mean(dtype=float) / values.mean(dtype=float), rel=1e-5)
    assert abs(level - 1) > 0.0001
    assert said == [f"the mean of the fitted voxels is {level:.3g} times that of the input; --keep-level keeps it"]
    said, level = corrected(tmp_path, values, mask=tmp_path / "mask.npy", keep_level=True)
    assert (said, level) == ([], pytest.approx(1, abs=1e-5))


@pytest.mark.parametrize("share", [0.02, 0.54])
def test_negative_voxels_of_a_ct_are_said(tmp_path, share):
    values = np.random.default_rng(5).uniform(20, 80, (8, 20, 25)).astype(np.float32)
    values.flat[: round(share * values.size)] = -1000
    said, _level = corrected(tmp_path, values)
    assert [sentence.split(";")[0] for sentence in said if "negative" in sentence] == [
        "54% of the voxels of in.npy are not above 0 and lie outside the fit (54% are negative)"
    ] * (share > 0.05)


def test_a_result_of_another_channel_is_not_replaced(tmp_path):
    check_channel(tmp_path, 1)  # nothing is there
    (tmp_path / "metrics.json").write_text('{"parameters": {"channel": null}}')
    check_channel(tmp_path, 0)
    with pytest.raises(
        InputError, match="holds the result of channel 0, and channel 1 was asked for; choose another outdir"
    ):
        check_channel(tmp_path, 1)


def test_an_input_that_changes_during_a_run_gives_no_result(tmp_path, monkeypatch):
    path = tmp_path / "a.ome.zarr"
    write_volume(path, np.ones((4, 8, 8), np.uint8), voxel_um=(1, 1, 1))
    chunk = next(path.rglob("c/0/0/0"))
    changed = chunk.read_bytes() + b"\0"
    monkeypatch.setattr(_Sample, "go_through", lambda *_given: chunk.write_bytes(changed) and {})
    with pytest.raises(InputError, match="sample a: .*a.ome.zarr was changed during the run, so there is no result"):
        run(path, tmp_path / "out", bias="off")
    assert not (tmp_path / "out" / "a").exists()
