"""A small fixed share of the sweep of hostile files; `make hostile` runs all of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_no_hostile_file_is_silent_hangs_or_ends_in_a_traceback():
    # A process of its own: its children are forked, and threads of other tests would not exist in them.
    share = [
        "--families",
        "volume",
        "sections",
        "sheet",
        "recipe",
        "results",
        "--number",
        "1",
        "--every",
        "0",
        "--share",
        "11",
        "--jobs",
        "1",
    ]
    command = [sys.executable, "-W", "ignore", "-m", "hostile", *share]
    folder = Path(__file__).parent
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    totals = run.stdout.splitlines()[-1].split()
    assert totals[0] == "all"
    assert int(totals[1]) >= 40
    assert "." not in totals[2:4]  # some mutants are read, and some are refused
