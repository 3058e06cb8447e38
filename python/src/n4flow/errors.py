"""Exceptions of n4flow, each with the exit code of a command that it ends.

A message is one sentence that says what was expected, what arrived and what to do, and names the sample, section or
parameter. Commands print the message alone, without a traceback.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike

LONGEST = 2000  # Characters of a message: what a file holds may be of any length.
LONGEST_REASON = 400  # Of what a library says.


class N4flowError(Exception):
    """Base class of all errors that n4flow raises on purpose."""

    exit_code = 1

    def __str__(self) -> str:
        text = " ".join(map(str.strip, super().__str__().splitlines()))  # Libraries and names may break lines.
        return _cut(text, LONGEST)


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


@contextmanager
def reading(
    path: str | PathLike[str], kind: str, remedy: str = "write or copy it again", *, small: bool = False
) -> Iterator[None]:
    """Turn whatever a library raises while it reads a file into one sentence: the boundary between files and us.

    Errors of n4flow pass, and so do signals; a panic of Rust, which is no `Exception`, does not.

    Parameters
    ----------
    path : path
    kind : str
        What the file is expected to be, for "PATH is not KIND".
    remedy : str
        What the user may do.
    small : bool
        What is read is small, a header or a table: where memory ends, a size that the file states is wrong.

    Raises
    ------
    InputError
        With the library's reason in one line, and its error as the cause.
    """
    try:
        yield
    except (N4flowError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        if isinstance(error, MemoryError) and not small:
            raise
        msg = f"{path} is not {kind}: {reason(error)}; {remedy}"
        raise InputError(msg) from error


def reason(error: BaseException) -> str:
    """Return what an error of a library says, in one line of at most `LONGEST_REASON` characters."""
    lines = str(error).strip().splitlines()
    if lines and "SimpleITK" in lines[0]:
        lines = lines[-1:]  # the cause, behind where in ITK's code it arose
    text = " ".join(" ".join(lines).split()) or type(error).__name__
    text = f"{type(error).__name__}: {text}" if isinstance(error, LookupError | TypeError | AttributeError) else text
    return _cut(text, LONGEST_REASON)


def _cut(text: str, most: int) -> str:
    """Return a text without its middle, if it is too long: causes stand at the end."""
    return text if len(text) <= most else f"{text[: most // 2 - 3]} ... {text[-most // 2 + 2 :]}"
