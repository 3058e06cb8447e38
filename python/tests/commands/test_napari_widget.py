"""napari's widget: the form that is made of its signature, and what it does to a layer; where napari is installed."""

import os
import time

import numpy as np
import pytest

import n4flow
from n4flow.errors import InputError
from n4flow.n4_bias.problem import Knots

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
layers = pytest.importorskip("napari.layers", reason="napari is not installed")
pytest.importorskip("qtpy.QtWidgets", reason="napari has no Qt here", exc_type=ImportError)

SHAPE, MM = (12, 40, 50), (3.0, 1.0, 0.5)


@pytest.fixture(scope="module")
def voxels() -> np.ndarray:
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij")
    tissue = np.where(y * y + x * x < 0.8, np.where(np.sin(9 * x) > 0, 200, 130), 20)
    noise = 1 + 0.02 * np.random.default_rng(0).standard_normal(SHAPE)
    return (tissue * np.exp(0.2 * x + 0.1 * z) * noise).astype(np.float32)


def test_napari_finds_the_widget():
    from importlib.resources import files

    from npe2 import PluginManifest

    manifest = PluginManifest.from_file(str(files("n4flow") / "napari.yaml"))
    manifest.validate_imports()
    assert [widget.display_name for widget in manifest.contributions.widgets] == ["correct this layer"]


def test_the_form_corrects_a_layer(voxels):
    from magicgui import magicgui
    from qtpy.QtWidgets import QApplication

    from n4flow.commands.napari_widget import correct_layer

    application = QApplication.instance() or QApplication([])
    image = layers.Image(voxels, name="brain", scale=MM, units=("mm",) * 3)
    mask = layers.Labels((voxels > 60).astype(np.uint8), scale=MM)
    form = magicgui(correct_layer)
    form.image.choices, form.mask.choices = [image], [mask]
    form.update(image=image, mask=mask, shrink=2, iterations="5,5", spline_um=20000)
    made = []
    worker = form()
    worker.returned.connect(made.extend)
    end = time.monotonic() + 60
    while not made and time.monotonic() < end:
        application.processEvents()
        time.sleep(0.02)
    (corrected, named, kind), (field, _, _) = made
    assert (named["name"], kind) == ("brain n4", "image")
    assert np.array_equal(named["scale"], MM)
    assert np.allclose(corrected * field, voxels, rtol=1e-6)  # two roundings to float32
    knots = Knots(20000.0, tuple(1000 * n * mm for n, mm in zip(SHAPE, MM, strict=True)))
    expected = n4flow.fit_bias(voxels, voxels > 60, shrink=2, iters=(5, 5), control_points=knots)
    assert np.array_equal(field, expected.field())


def test_layers_that_do_not_fit_are_refused(voxels):
    from n4flow.commands.napari_widget import correct_layer

    image = layers.Image(voxels, name="brain")
    with pytest.raises(InputError, match="needs the voxel size of layer brain, whose unit is pixel"):
        correct_layer(image, spline_um=20000)
    with pytest.raises(InputError, match="split its channels"):
        correct_layer(layers.Image(np.zeros((2, 3, 4, 5)), name="series"))
    with pytest.raises(InputError, match=r"mask small must have the shape of brain, \(12, 40, 50\), got \(3, 4, 5\)"):
        correct_layer(image, layers.Labels(np.zeros((3, 4, 5), int), name="small"))
