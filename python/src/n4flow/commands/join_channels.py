"""`n4flow join-channels`: the results of all channels of a sample as one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from n4flow.commands.options import as_step


def _join_channels(
    parts: Annotated[list[Path], typer.Argument(help="What finish made of each channel, in their order.")],
    out: Annotated[Path, typer.Option("--out", help="The sample's results.")],
    numbers: dict[str, Any],
) -> None:
    from n4flow.pipeline.channels import join

    numbers["verdict"] = join(out, parts)["verdict"]


join_channels = as_step("JOIN_CHANNELS", _join_channels)
