"""What objects show of themselves: a short line, a table in a notebook, and pictures of what they hold."""

import sys
from html.parser import HTMLParser

import matplotlib as mpl
import numpy as np
import pytest

import n4flow
from n4flow.errors import InputError
from n4flow.io.writers import write_volume
from n4flow.sections import Section

mpl.use("Agg")
SHAPE = (9, 32, 40)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shown")
    volume = np.random.default_rng(3).integers(10, 20, SHAPE).astype(np.uint16)
    volume[:, 8:24, 10:30] += 200
    volume[3:6] *= 2
    write_volume(folder / "brain.ome.zarr", volume, voxel_um=(20, 4, 5))
    return n4flow.run(folder / "brain.ome.zarr", folder / "out", sections=3, shrink=1, iterations="3,2", trust="full")


class Cells(HTMLParser):
    """Collects the text of each cell, and says which tags were opened and not closed."""

    def __init__(self):
        super().__init__()
        self.cells, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.cells.append(data)


def cells(shown):
    parser = Cells()
    parser.feed(shown._repr_html_())
    assert parser.open == []
    return parser.cells


def test_each_object_is_a_short_line_and_a_table(result):
    volume = n4flow.open_volume(result.store)
    field = n4flow.BiasField(np.full((4, 4, 4), np.log(2), np.float32), SHAPE, SHAPE, (1, 1, 1))
    table = n4flow.SectionTable([Section("a<b", 0, 4, "damaged"), Section("c", 4, 9)], 9)
    array = n4flow.Volume.from_array(np.zeros(SHAPE, np.uint8))
    recipe = n4flow.Recipe.load(result.samples[0].folder / "recipe.json")
    phantom = n4flow.Phantom(n4flow.PhantomOptions(sections=2, planes=3, size=(20, 24), seed=7))
    voxel = "voxel 20 x 4 x 5 um, format ome-zarr"
    for shown, line in (
        (volume, f"Volume(source brain.ome.zarr, shape 9 x 32 x 40, dtype float32, {voxel})"),
        (array, "Volume(source array, shape 9 x 32 x 40, dtype uint8, voxel unknown, format array)"),
        (table, "SectionTable(sections 2, planes 9, flagged a<b)"),
        (recipe, "Recipe(bias_field, plane_range, section_lookup, plane_gain)"),
        (phantom, "Phantom(shape 6 x 20 x 24, dtype uint16, voxel 50 x 25 x 25 um, sections 2, seed 7)"),
        (result, f"Result(outdir {result.outdir}, brain {result.status})"),
    ):
        assert repr(shown) == line
        assert cells(shown)[0] == type(shown).__name__
    assert repr(field) == (
        "BiasField(shape 9 x 32 x 40, range 2 to 2, control points 4 x 4 x 4, iterations unknown, backend cpu)"
    )
    assert cells(table) == ["SectionTable", "sections", "2", "planes", "9", "flagged", "a<b"]
    assert repr(result.samples[0]).startswith(f"SampleResult(sample brain, status {result.status}, folder ")


def test_results_are_found_again(result):
    numbers = result.samples[0].numbers
    for place in (result.outdir, result.samples[0].folder):
        again = n4flow.Result.load(place)
        assert (again.outdir, again.store, again.report) == (result.outdir, result.store, result.report)
        assert again.samples[0].numbers["verdict"] == numbers["verdict"]
    assert again.samples[0].before().digest() == n4flow.open_volume(result.outdir.parent / "brain.ome.zarr").digest()
    with pytest.raises(InputError, match="holds no results of n4flow; give the outdir of a run"):
        n4flow.Result.load(result.outdir.parent)
    two = n4flow.Result(result.outdir, result.samples * 2)
    with pytest.raises(InputError, match="the run has 2 samples; take one of result.samples"):
        _ = two.store


def test_pictures_show_what_is_there(result):
    before, after = result.plot(z=4)[0]
    given = n4flow.open_volume(result.outdir.parent / "brain.ome.zarr").read(slice(4, 5))[0]
    assert np.array_equal(before.images[0].get_array(), given.astype(np.float32))
    assert np.array_equal(after.images[0].get_array(), n4flow.open_volume(result.store).read(slice(4, 5))[0])
    assert before.get_aspect() == 4 / 5
    recipe = n4flow.Recipe.load(result.samples[0].folder / "recipe.json")
    places = recipe.plot()[0]
    assert [place.get_title() for place in places] == [f"{n} {each.kind}" for n, each in enumerate(recipe, start=1)]
    assert np.array_equal(places[1].lines[0].get_ydata(), recipe[1].lower)
    assert len(places[2].lines) == len(recipe[2].offsets) - 1
    assert any(np.array_equal(line.get_ydata(), recipe[3].gain) for line in places[3].lines)
    assert [len(recipe[:number].plot()[0]) for number in (0, 1)] == [1, 1]  # of nothing, empty axes
    _start, _stop, field = recipe[0].fields[1]
    *planes, convergence = field.plot()[0]
    values = field.field(field.grid_shape)
    for axis, place in enumerate(planes):
        middle = values.take(values.shape[axis] // 2, axis)
        assert np.allclose(place.images[0].get_array(), middle, rtol=1e-6)
    made = [y for line in convergence.lines for y in line.get_ydata()]
    assert made == [measure for level in field.levels for measure in level.measures]
    with pytest.raises(InputError, match="z must be from 0 to 8, the planes of brain, got 9"):
        result.plot(z=9)


def test_a_picture_without_matplotlib_says_what_to_install(result, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"plot needs matplotlib, which is not installed; install n4flow\[plot\]"):
        result.plot()
