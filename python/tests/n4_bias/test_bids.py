"""`n4flow n4 --bids`: names, sidecars and descriptions as BIDS 1.10 has them, whose validator accepts these."""

import json

import nibabel
import numpy as np
import pytest

from n4flow.commands import main
from n4flow.n4_bias.bids import derivative

EXPECTED = "sub-01/ses-a/anat/sub-01_ses-a_run-2_desc-n4_T1w"


@pytest.fixture
def image(tmp_path):
    """Return an image of a BIDS dataset, with a sidecar."""
    folder = tmp_path / "raw/sub-01/ses-a/anat"
    folder.mkdir(parents=True)
    voxels = np.random.default_rng(0).uniform(50, 100, (8, 9, 10)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-2, 1, 1, 1])), folder / "sub-01_ses-a_run-2_T1w.nii.gz")
    (folder / "sub-01_ses-a_run-2_T1w.json").write_text('{"RepetitionTime": 2.3, "Sources": ["scanner"]}')
    return folder / "sub-01_ses-a_run-2_T1w.nii.gz"


def n4(*arguments):
    with pytest.raises(SystemExit) as end:
        main(["n4", *map(str, arguments), "--iterations", "1"])
    return end.value.code


def test_a_result_is_named_and_described_as_bids_asks(tmp_path, image):
    dataset = tmp_path / "raw/derivatives/n4flow"
    assert n4(image, dataset, "--bids") == 0
    made = dataset / f"{EXPECTED}.nii.gz"
    original, corrected = nibabel.load(image), nibabel.load(made)
    assert np.array_equal(corrected.affine, original.affine)
    ratio = np.asarray(corrected.dataobj) / np.asarray(original.dataobj)
    assert 0 < np.ptp(ratio) < 1  # it is the corrected image, not a copy
    sidecar = json.loads(made.with_name(made.name.replace(".nii.gz", ".json")).read_text())
    assert sidecar["RepetitionTime"] == 2.3
    assert sidecar["SkullStripped"] is False
    assert sidecar["Sources"] == ["bids:raw:sub-01/ses-a/anat/sub-01_ses-a_run-2_T1w.nii.gz"]
    assert sidecar["N4"]["iterations"] == [1]
    description = json.loads((dataset / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    assert description["DatasetLinks"] == {"raw": "../.."}
    assert description["GeneratedBy"][0]["Name"] == "n4flow"


def test_a_description_that_exists_is_left_alone(tmp_path, image):
    dataset = tmp_path / "made"
    dataset.mkdir()
    (dataset / "dataset_description.json").write_text("ours")
    assert n4(image, dataset, "--bids") == 0
    assert (dataset / "dataset_description.json").read_text() == "ours"


def test_a_result_replaces_the_word_of_an_earlier_one(tmp_path):
    earlier = tmp_path / "a/sub-01/anat/sub-01_desc-denoised_T1w.nii"
    assert derivative(earlier, tmp_path / "b").path == tmp_path / "b/sub-01/anat/sub-01_desc-n4_T1w.nii"


@pytest.mark.parametrize(
    ("name", "into", "sentence"),
    [
        ("raw/T1.nii.gz", "out", "needs an image of a BIDS dataset"),
        ("raw/anat/sub-01_T1w.nii.gz", "out", "needs an image of a BIDS dataset"),  # in no folder of its subject
        ("raw/sub-01/anat/sub-01_T1w.mgz", "out", "which n4flow does not write"),
        ("raw/sub-01/anat/sub-01_T1w.nii.gz", "raw", "is the dataset of"),
        ("raw/sub-01/anat/sub-01_T1w.nii.gz", "out", "is not a JSON sidecar"),
    ],
)
def test_refusals(tmp_path, capsys, name, into, sentence):
    image = tmp_path / name
    image.parent.mkdir(parents=True)
    image.write_bytes(b"")
    image.with_name("sub-01_T1w.json").write_text("{")
    assert n4(image, tmp_path / into, "--bids") == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
