"""A report of a small volume, and what a page refers to, for tests of pages."""

from html.parser import HTMLParser

import numpy as np

from n4flow.corrections.bias_field import BiasCorrection
from n4flow.corrections.plane_gain import PlaneGain
from n4flow.n4_bias.field import BiasField
from n4flow.report.html import write_report
from n4flow.report.metrics import pair_metrics
from n4flow.report.pair import Pair
from n4flow.sections import Section, SectionTable
from n4flow.statistics.measure import shrink_planes

SHAPE = (9, 40, 56)
VOXEL_UM = {"z": 50.0, "y": 10.0, "x": 10.0}
VOID = {"meta", "br", "img", "input"}  # html elements without an end tag; SVG ones close themselves


class Page(HTMLParser):
    """Collects what a page refers to, its text, its ids, and whether every element is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.links, self.text = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.note(attrs)

    def handle_startendtag(self, tag, attrs):
        self.note(attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    def note(self, attrs):
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src", "xlink:href", "srcset", "data", "action"):
                self.links.append(value)

    def words(self):
        return " ".join(" ".join(self.text).split())


def made(flags=("ok", "ok", "ok"), recipe=None):
    """A small volume with sections of different brightness, shading, padding and masks, as a report gets them."""
    tissue = np.zeros(SHAPE, bool)
    tissue[:, 10:30, 12:44] = True
    signal = np.where(np.arange(SHAPE[2]) // 5 % 2, 800.0, 400.0) * np.ones(SHAPE)
    gains = np.repeat([1.0, 1.4, 0.9], 3)[:, None, None]
    noise = np.random.default_rng(0).lognormal(0, 0.05, SHAPE)
    before = 100 + np.where(tissue, signal * gains * noise, noise)
    after = 0.001 * np.where(tissue, signal * noise, noise)
    for volume in (before, after):
        volume[:, :3] = 0
    sections = SectionTable([Section(f"s{i}", 3 * i, 3 * i + 3, flag) for i, flag in enumerate(flags)], SHAPE[0])
    if recipe is None:
        lattice = np.random.default_rng(1).normal(0, 0.1, (4, 4, 4)).astype(np.float32)
        lattice -= lattice.mean()
        gain = PlaneGain(np.linspace(0.9, 1.1, SHAPE[0]).astype(np.float32), np.ones(SHAPE[0], bool), 2.0)
        recipe = [BiasCorrection(((0, SHAPE[0], BiasField(lattice, SHAPE, SHAPE, (1, 1, 1), backend="itk")),)), gain]
    return {
        "before": shrink_planes(before.astype(np.float32), 1),
        "after": shrink_planes(after.astype(np.float32), 1),
        "tissue": tissue,
        "agarose": ~tissue.any(axis=0),
        "sections": sections,
        "recipe": recipe,
    }


STAGES = [
    {"stage": "SHRINK", "seconds": 1.25, "planes": [0, 5], "shrink": 1, "n_zero": 500, "threads": 2},
    {"stage": "SHRINK", "seconds": 2.5, "planes": [5, 9], "shrink": 1, "n_zero": 500, "threads": 2},
    {"stage": "N4_VOLUME", "seconds": 61.0, "fields": [{"backend": "itk"}], "extra_numbers": [1, 2, 3]},
    {"stage": "NORMALIZE", "seconds": 0.02, "borrowed_planes": []},
]
ESTIMATES = {"N4_VOLUME": "bias_field", "NORMALIZE": "plane_range"}


def report(path, arrays, sample="brain 1", stages=STAGES, parameters=None, warnings=(), megabytes=0, **volume):
    """Write a report and return its text, its parsed page and its metrics."""
    pair = Pair(**arrays)
    facts = {"shape": list(SHAPE), "dtype": "uint16", "voxel_um": VOXEL_UM, "format": "ome-zarr", "mask": "estimated"}
    numbers = {
        "sample": sample,
        "plan": {**facts, "warnings": list(warnings), **volume},
        "metrics": (metrics := pair_metrics(pair)),
        "verdict": metrics["verdict"],
        "stages": stages,
        "parameters": parameters if parameters is not None else {"bias": "volume", "spline_um": None, "smooth_z": 2.0},
    }
    write_report(path, numbers, pair, ESTIMATES, command="n4flow run 'a b' out", megabytes=megabytes)
    text = path.read_text(encoding="utf-8")
    return text, Page(text), numbers["metrics"]
