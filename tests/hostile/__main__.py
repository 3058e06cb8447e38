"""`python -m hostile`: the sweep from the command line; `make hostile` runs all of it."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from hostile.mutants import mutants
from hostile.sweep import BAD, forked, make_originals, shared_out, table, warm_up

parser = argparse.ArgumentParser(prog="python -m hostile", description=__doc__)
parser.add_argument("--seed", type=int, default=19)
parser.add_argument("--number", type=int, default=12, help="mutants of each class of format and kind")
parser.add_argument("--every", type=int, default=6, help="give one of so many to n4 and run, too; 0 is none")
parser.add_argument("--only", default="", help="part of the names of the mutants to make, as in array.npy/flipped")
parser.add_argument("--families", nargs="*", help="volume, sections, sheet, recipe, results; all of them without it")
parser.add_argument("--share", type=int, default=1, help="take one of so many")
parser.add_argument("--jobs", type=int, default=os.cpu_count())
parser.add_argument("--show", nargs="*", default=list(BAD), help="outcomes whose mutants are listed")
options = parser.parse_args()

chosen = [
    mutant
    for mutant in mutants(options.number)
    if options.only in mutant.name and mutant.family in (options.families or mutant.family)
][:: options.share]
with tempfile.TemporaryDirectory(prefix="hostile") as name:
    folder = Path(name)
    (folder / "originals").mkdir()
    results = any(mutant.family in ("recipe", "results") for mutant in chosen)
    if forked(lambda: make_originals(folder / "originals", results=results), folder / "said", 600)[0]:
        sys.exit((folder / "said").read_text())
    warm_up(folder / "originals", fit=options.every > 0)
    findings = shared_out(chosen, folder, options.seed, options.jobs, options.every)
for finding in findings:
    if finding.outcome in options.show:
        print(f"{finding.outcome}: {finding.mutant.name}, {finding.action}: {finding.said}")
print(table(findings, lambda mutant: mutant.original), table(findings, lambda mutant: mutant.kind), sep="\n\n")
sys.exit(any(finding.outcome in BAD for finding in findings))
