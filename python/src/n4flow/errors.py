"""Exceptions of n4flow: one sentence each, with the exit code its command ends with.

A message says what was expected, what arrived and what to do about it, and names
the sample, section or parameter. Commands print the message alone, without a traceback.
"""

from __future__ import annotations


class N4flowError(Exception):
    """Base of every error that n4flow raises on purpose."""

    exit_code = 1


class InputError(N4flowError, ValueError):
    """Wrong usage, or input that cannot be processed."""

    exit_code = 2


class GpuError(N4flowError, RuntimeError):
    """A GPU was asked for and none works."""

    exit_code = 3


class OutOfMemoryError(N4flowError, MemoryError):
    """Host or device memory is too small, also with smaller blocks."""

    exit_code = 4


class DiskFullError(N4flowError, OSError):
    """The disk, a quota or the inodes are used up."""

    exit_code = 5


class N4flowWarning(UserWarning):
    """Something the user should know about; the result is still defined."""
