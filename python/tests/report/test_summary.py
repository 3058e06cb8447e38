"""Samples side by side: tiles, index, outliers, the table for MultiQC."""

import json
import math
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from n4flow.report.summary import KEYS, index_page, multiqc_table, outliers, steps_removed, summarize, tiles

SENTENCE = "contrast between neighbouring tissue is kept."


def metrics(kept=1.0, after=0.01, unproven=0.004):
    return {
        "contrast": {"local_median": kept, "local_worst": kept and kept - 0.01, "local_worst_in": "s3"},
        "steps": {"median_before": 0.2, "median_after": after, "inside_sections_after": 0.008},
        "change": {"rms": 0.123, "unproven": None if unproven is None else {"all": unproven}},
        "tissue": {"share": 0.4},
        "sections": [{"status": "warn"}, {"status": "pass"}],
    }


def sample(name="brain", status="pass", sentence=SENTENCE, **changes):
    numbers = {"sample": name, "verdict": {"status": status, "sentence": sentence}, "metrics": metrics(**changes)}
    return summarize(numbers, {"before": "data:image/png;base64,AA", "after": "data:image/png;base64,AB"})


class Cells(HTMLParser):
    """Collects the cells of the table of samples, class and text, and what the page refers to."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.open, self.links = [], False, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append([attrs.get("class", ""), ""])
            self.open = True
        self.links += [attrs[name] for name in ("href", "src") if name in attrs]

    def handle_endtag(self, tag):
        self.open = self.open and tag not in ("td", "th")

    def handle_data(self, data):
        if self.open:
            self.rows[-1][-1][1] += data


def test_tiles_say_contrast_steps_and_change():
    kept, steps, change = tiles(metrics())
    assert kept == ("Contrast kept, median section", "100.0%", "worst section 99.0% (s3)")
    assert steps[:2] == ("Steps between sections removed", "95.0%")  # 1 - 0.01 / 0.2
    assert steps[2].startswith(f"median {math.expm1(0.2):.1%} before, {math.expm1(0.01):.1%} after")
    assert change[1:] == ("12.3%", "rms; 0.4% not proven by neighbouring planes")
    assert tiles(metrics(after=0.3))[1][:2] == ("Steps between sections grew by", "50.0%")
    assert tiles(metrics(unproven=None))[2][2] == "rms"


def test_without_cuts_no_step_was_removed():
    without = metrics()
    without["steps"] = dict.fromkeys(without["steps"])
    assert steps_removed(without) is None
    assert tiles(without)[1][1:] == ("–", "no cut between sections could be measured")


def test_outliers_are_far_from_the_median_by_robust_standard_deviations():
    values = [0.99, 1.0, 1.01, 1.0, 0.995, 1.3, None]
    known = [v for v in values if v is not None]
    median = float(np.median(known))
    spread = 1.4826 * float(np.median([abs(v - median) for v in known]))
    assert outliers(values, 0.02) == [v is not None and abs(v - median) > max(3.5 * spread, 0.02) for v in values]
    assert outliers(values, 0.02) == [False] * 5 + [True, False]
    assert outliers([1.0, 1.0, 1.0, 5.0], 0.02) == [False] * 4  # too few to say so
    assert outliers([1.0] * 6 + [1.01], 0.02) == [False] * 7  # next to nothing


def test_the_index_has_a_row_for_each_sample_and_marks_what_is_far():
    every = [sample(f"s {n}") for n in range(5)] + [sample("<b>odd</b>", "look", kept=0.7, sentence="<i>why</i>.")]
    text = index_page(every)
    cells = Cells(text)
    header, *rows = cells.rows
    assert [text for _kind, text in header[3:]] == [key.title for key in KEYS]
    assert [row[0][1] for row in rows] == [one["sample"] for one in every]
    assert [text for _kind, text in rows[-1][3:5]] == ["70.0%", "69.0%"]
    far = [[key.name for key, (kind, _text) in zip(KEYS, row[3:], strict=True) if "far" in kind] for row in rows]
    assert far == [[]] * 5 + [["contrast_kept", "contrast_worst"]]
    assert "1 of 6 deserves a look" in text
    assert "<b>odd" not in text
    assert "<i>why" not in text
    assert "s%200/report.html" in cells.links
    assert all(link.startswith("data:image/") or link.endswith("/report.html") for link in cells.links)
    assert "script-src 'none'" in text.replace("&#39;", "'")


def test_the_table_for_multiqc_has_the_same_numbers():
    content = json.loads(multiqc_table([sample("a"), sample("b", "look", kept=None)]))
    assert list(content["data"]) == ["a", "b"]
    assert set(content["data"]["a"]) == {"verdict", *(key.name for key in KEYS)} == set(content["headers"])
    assert content["data"]["a"]["contrast_kept"] == 100.0
    assert content["data"]["a"]["step_before"] == pytest.approx(100 * math.expm1(0.2), rel=1e-5)
    assert content["data"]["a"]["sections"] == 2
    assert "contrast_kept" not in content["data"]["b"]  # which is not known
    assert content["data"]["b"]["verdict"] == "look"


@pytest.mark.skipif(shutil.which("multiqc") is None, reason="no multiqc is on PATH")
def test_multiqc_reads_its_table(tmp_path):
    info = tmp_path / "results/pipeline_info"
    info.mkdir(parents=True)
    (info / "n4flow_mqc.json").write_text(multiqc_table([sample("a"), sample("b", "look")]))
    command = ["multiqc", str(tmp_path / "results"), "--outdir", str(tmp_path / "out"), "--no-version-check"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    table = (tmp_path / "out/multiqc_data/multiqc_n4flow_samples.txt").read_text().splitlines()
    header, *rows = [line.split("\t") for line in table]
    assert [row[0] for row in rows] == ["a", "b"]
    assert {"verdict", "contrast_kept", "steps_removed"} <= set(header)
    assert rows[1][header.index("verdict")] == "look"
    assert float(rows[0][header.index("steps_removed")]) == pytest.approx(95)
