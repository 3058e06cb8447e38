"""`n4flow versions`: what the results depend on."""

from __future__ import annotations

import typer


def versions() -> None:
    """Print the versions of Python and of every package that a result may depend on."""
    from n4flow.provenance import tool_versions

    for tool, version in tool_versions().items():
        typer.echo(f"{tool}\t{version}")
