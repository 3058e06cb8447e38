"""`n4flow probe-gpu`: say whether a GPU works here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from n4flow.commands.step import JsonFile, Threads, step
from n4flow.errors import GpuError
from n4flow.timing import dumps


def probe_gpu(
    answer: Annotated[
        Path | None, typer.Option("--answer", help="Write the device, or the fault, to a JSON file and end with 0.")
    ] = None,
    threads: Threads = None,
    json_file: JsonFile = None,
) -> None:
    """Say whether a GPU works here; without one, end with exit code 3."""
    from n4flow.arrays import probe_gpu as probe

    with step("PROBE_GPU", threads, json_file) as numbers:
        try:
            info = probe()
        except GpuError as error:
            if answer is None:
                raise
            answer.write_text(dumps({"fault": str(error), "exit_code": error.exit_code}) + "\n", encoding="utf-8")
            return
        numbers.update(device=info.name, driver=info.driver, free_bytes=info.memory_bytes)
        if answer is not None:
            answer.write_text(dumps(numbers) + "\n", encoding="utf-8")
        else:
            typer.echo(dumps(numbers))
