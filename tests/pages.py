"""The tutorials as a reader follows them: the commands of a page, and what it shows of their answers."""

from __future__ import annotations

import math
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = r"\d+(?:\.\d+)?"
# What depends on the machine: times, memory and rates; and what a machine says once.
MEASURED = re.compile(rf"(?:{NUMBER} (?:h|min) )?{NUMBER} (?:[kMG]?B/s|[kMG]?B|m?s|min|h)\b")
ONCE = re.compile(r"^compiling kernels .*\n", re.MULTILINE)


def steps(page: Path) -> list[tuple[str, str | None]]:
    """Return each block of shell commands of a page, with the block of text that follows it, if one does."""
    blocks = FENCE.findall(page.read_text(encoding="utf-8"))
    after = [text if kind == "text" else None for kind, text in blocks[1:]] + [None]
    return [(text, shown) for (kind, text), shown in zip(blocks, after, strict=True) if kind == "sh"]


def follow(page: Path, folder: Path, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Run the commands of a page in a folder, in order; return what each printed.

    A command must succeed, but where the page shows a sentence of n4flow's as its last line: then it must end with 2.
    """
    said = []
    for command, shown in steps(page):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        refused = shown is not None and shown.splitlines()[-1].startswith("n4flow: ")
        assert done.returncode == (2 if refused else 0), f"{command}\n{done.stdout}"
        if shown is not None:
            assert alike(shown, done.stdout), f"{page.name}: {command}\nshown:\n{shown}\nprinted:\n{done.stdout}"
        said.append(done.stdout)
    return said


def alike(shown: str, printed: str) -> bool:
    """Say whether a command printed what a page shows; `...` on the page is any text.

    Whole numbers are equal, others differ by at most 1 %: another processor rounds otherwise. What depends on the
    machine may have any size.
    """
    shown, printed = (" ".join(MEASURED.sub("?", ONCE.sub("", text)).split()) for text in (shown, printed))
    shown = re.sub(r" ?\.\.\. ?", "\0", shown)  # which may be no text at all
    parts = re.split(rf"(\0|{NUMBER})", shown)
    numbers = [part for part in parts if re.fullmatch(NUMBER, part)]
    pattern = "".join(
        ".*?" if part == "\0" else f"({NUMBER})" if re.fullmatch(NUMBER, part) else re.escape(part) for part in parts
    )
    found = re.fullmatch(pattern, printed)
    return found is not None and all(
        math.isclose(float(a), float(b), rel_tol=0.01) if "." in a else a == b
        for a, b in zip(numbers, found.groups(), strict=True)
    )
