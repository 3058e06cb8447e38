"""The plan of a sample: what is decided, and what is refused, before any voxel is read."""

import json
from pathlib import Path

import numpy as np
import pytest
import zarr

from n4flow.errors import InputError
from n4flow.io.formats import name_without_suffix
from n4flow.io.omezarr import planning
from n4flow.io.writers import write_volume
from n4flow.pipeline.parameters import resolve
from n4flow.pipeline.plan import check_name, make_plan
from n4flow.statistics.measure import choose_fit_step, choose_shrink


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "brain.ome.zarr"
    write_volume(path, np.full((20, 50, 70), 5, np.uint16), voxel_um=(20, 4, 5))
    return path


def plan(image, **parameters):
    return make_plan(image, resolve(parameters))


@pytest.mark.parametrize(
    ("shape", "shrink"),
    [((5, 160, 200), 1), ((5, 512, 512), 1), ((5, 513, 400), 2), ((9, 10000, 15000), 30), ((9, 40, 4000), 1)],
)
def test_shrink_brings_planes_to_512_voxels_and_not_below_32(shape, shrink):
    assert choose_shrink(shape) == shrink


@pytest.mark.parametrize(
    ("shape", "knot", "step"),
    [((8, 256, 200), None, 1), ((8, 500, 512), None, 2), ((8, 40, 512), None, 1), ((8, 512, 512), 31.0, 1)],
)
def test_bias_fields_are_fitted_to_256_samples_and_to_16_between_knots(shape, knot, step):
    assert choose_fit_step(shape, knot) == step


def test_slabs_and_batches_cover_everything_once(image):
    made = plan(image, sections=7, sections_per_task=3, slab_planes=6)
    assert made.batches == [(0, 3), (3, 6), (6, 7)]
    planes = [z for start, stop in made.slabs for z in range(start, stop)]
    assert planes == list(range(20))
    assert made.layout.slab_planes == made.mask_layout.slab_planes
    summary = made.summary()
    assert summary["shape"] == [20, 50, 70]
    assert summary["voxel_um"] == {"z": 20, "y": 4, "x": 5}
    assert summary["sections"] == 7


def test_slabs_are_whole_chunks_of_the_input_so_that_none_is_decoded_twice(tmp_path, monkeypatch):
    """Three chunks of 32 planes. Slabs of 24 begin and end in the middle of some: six chunks are decoded for three."""
    store = zarr.create_array(tmp_path / "deep.zarr", shape=(96, 64, 64), chunks=(32, 64, 64), dtype="uint8")
    store[:] = 7
    asked = {"voxel_um": "20 5 5", "dtype": "uint8"}
    assert plan(tmp_path / "deep.zarr", **asked, slab_planes=24).read_amplification == 2
    monkeypatch.setattr(planning, "SLAB_BYTES", (20 * 64 * 64, 96 * 64 * 64))  # smallest and largest slab
    made = plan(tmp_path / "deep.zarr", **asked)
    assert made.slabs == [(0, 32), (32, 64), (64, 96)]
    assert made.summary()["read_amplification"] == 1
    whole = zarr.create_array(tmp_path / "whole.zarr", shape=(96, 64, 64), chunks=(96, 64, 64), dtype="uint8")
    whole[:] = 7
    monkeypatch.setattr(planning, "SLAB_BYTES", (20 * 64 * 64, 95 * 64 * 64))  # too small for a chunk
    assert plan(tmp_path / "whole.zarr", **asked).read_amplification == 3


@pytest.mark.parametrize(("dtype", "written"), [("float32", "float32"), ("input", "uint16"), ("uint8", "uint8")])
def test_the_result_s_type_follows_the_parameter(image, dtype, written):
    assert plan(image, dtype=dtype).layout.dtype == written


def test_a_whole_stack_as_one_section_is_said(image):
    assert "treated as one section" in plan(image).warnings[0]
    assert plan(image, sections=4).warnings == []


def test_faults_name_the_sample(image, tmp_path):
    mask = tmp_path / "mask.npy"
    np.save(mask, np.ones((20, 50, 69), np.uint8))
    with pytest.raises(InputError, match=r"^sample brain: the mask .* has the shape \(20, 50, 69\), .* \(20, 50, 70\)"):
        plan(image, mask=str(mask))
    with pytest.raises(InputError, match=r"^sample brain: sections must be .* number of planes \(20\), got 21"):
        plan(image, sections=21)
    with pytest.raises(InputError, match=r"^sample brain: shrink 40 leaves fewer than 2 voxels"):
        plan(image, shrink=40)


def test_knots_finer_than_the_voxels_are_refused_with_what_would_do(image):
    # 200 micrometres with voxels of 5: at most 20 spans of two voxels, which are 23 control points
    with pytest.raises(InputError, match=r"spline_um 8 with 4 levels ends at knots 9.09\d* micrometres .* least 8.696"):
        plan(image, spline_um=8)
    assert plan(image, spline_um=8.7).shrink == 1  # levels that begin at a distance do not get finer than it asks for
    with pytest.raises(InputError, match=r"spline_section_um 8 with 4 levels"):
        plan(image, spline_um=40, spline_section_um=8)
    assert plan(image, spline_um=40, spline_volume_um=8).shrink == 1  # no field of the volume is asked for
    with pytest.raises(InputError, match=r"spline_volume_um 8 with 4 levels"):
        plan(image, spline_um=40, spline_volume_um=8, bias="two_pass")
    with pytest.raises(InputError, match=r"one span of 200 micrometres with 6 levels.*give fewer levels"):
        plan(image, iterations="9,9,9,9,9,9")
    assert plan(image, spline_um=8, bias="off").shrink == 1


@pytest.mark.parametrize("shape", [(6, 40, 1), (6, 1, 40), (6, 1, 1)])
def test_planes_of_one_row_or_column_have_no_knots_along_it(tmp_path, shape):
    np.save(tmp_path / "thin.npy", np.full(shape, 7, np.uint16))
    assert plan(tmp_path / "thin.npy", voxel_um="20 5 5").volume.shape == shape


def test_settings_that_do_nothing_are_named(image):
    asked = {"bias": "off", "bias_strength": 0.5, "spline_section_um": 40, "match": "off", "tissue_threshold": 0.1}
    said = plan(image, sections=4, **asked).warnings
    assert said == [
        "spline_section_um 40 does nothing with bias off",
        "bias_strength 0.5 does nothing with bias off",
        "tissue_threshold 0.1 does nothing with match off",
    ]
    assert plan(image, sections=4, bias="two_pass", bias_strength=0.5, spline_section_um=40).warnings == []


def test_a_gpu_that_nothing_would_use_is_refused(image):
    with pytest.raises(InputError, match="backend gpu is for the field of the whole volume, and bias is sections"):
        plan(image, backend="gpu")
    assert plan(image, backend="gpu", bias="two_pass").shrink == 1


@pytest.mark.parametrize(
    "name", ["../up", "a/b", "bob's", "scan [1]", "", "mask", "pipeline_info", "ro-crate-metadata.json", "-x", "a;b"]
)
def test_a_sample_name_that_cannot_be_a_folder_is_refused(name):
    with pytest.raises(InputError, match="must be letters, digits, spaces and"):
        check_name(name)


def test_the_workflow_reads_names_by_the_same_rules():
    """Both take the suffixes of formats and the rule of names from one file each."""
    root = Path(__file__).parents[3]
    assert "python/src/n4flow/io/formats.json" in (root / "modules" / "formats.nf").read_text()
    assert "nextflow_schema.json" in (root / "modules" / "rules.nf").read_text()
    table = json.loads((root / "python/src/n4flow/io/formats.json").read_text())
    for suffix in (suffix for known in table["formats"] for suffix in known["suffixes"]):
        assert name_without_suffix(f"a.b{suffix}") == name_without_suffix(f"a.b{suffix.upper()}") == "a.b"
    for name in ("Hirn 3", "Ü_1.2", "a+b"):
        check_name(name)
