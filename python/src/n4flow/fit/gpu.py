"""The GPU backend: its room is here, its engine is not part of this version."""

from __future__ import annotations

from typing import NoReturn

from n4flow.errors import GpuError


def require() -> NoReturn:
    """Say that this version fits on the CPU only.

    Raises
    ------
    GpuError
        Always.
    """
    msg = "backend gpu is not part of this version of n4flow yet; choose backend cpu (or auto, or itk)"
    raise GpuError(msg)
