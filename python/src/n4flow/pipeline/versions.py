"""Versions of everything that a result depends on."""

from __future__ import annotations

import platform
import re
from importlib import metadata

GPU_TOOLS = ("cupy-cuda12x", "cupy-cuda13x")  # what a result depends on as well where a GPU is used


def tool_versions() -> dict[str, str]:
    """Return the versions of Python, of n4flow and of every package that it requires."""
    required = [text for text in metadata.requires("n4flow") or () if "extra ==" not in text]
    names = [re.split(r"[^\w.-]", text, maxsplit=1)[0] for text in required]
    found = {"python": platform.python_version(), "n4flow": metadata.version("n4flow")}
    for tool in (*names, *GPU_TOOLS):
        try:
            found[tool] = metadata.version(tool)
        except metadata.PackageNotFoundError:
            continue
    return found
