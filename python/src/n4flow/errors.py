"""Exceptions of n4flow, each with the exit code of a command that it ends.

A message is one sentence that says what was expected, what arrived and what to do, and names the sample, section or
parameter. Commands print the message alone, without a traceback.
"""

from __future__ import annotations


class N4flowError(Exception):
    """Base class of all errors that n4flow raises on purpose."""

    exit_code = 1


class InputError(N4flowError, ValueError):
    """Wrong usage, or input that cannot be processed."""

    exit_code = 2


class GpuError(N4flowError, RuntimeError):
    """A GPU was requested and none works."""

    exit_code = 3


class OutOfMemoryError(N4flowError, MemoryError):
    """Host or device memory is too small, even for smaller blocks."""

    exit_code = 4


class DiskFullError(N4flowError, OSError):
    """Disk space, a quota or the inodes are exhausted."""

    exit_code = 5


class N4flowWarning(UserWarning):
    """A condition that the user should know about; the result is still valid."""
