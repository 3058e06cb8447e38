"""What all uses of tensorstore share in a process: limits, retries, and whether it may run at all."""

from __future__ import annotations

import os
import re
from functools import cache
from typing import Any

# A request is repeated, after 0.5, 1, 2, ... seconds, when the connection is lost or the server is busy: half a minute.
REPEATED = {"max_retries": 6, "initial_delay": "500ms", "max_delay": "8s"}
RETRIES = {f"{kind}_request_retries": REPEATED for kind in ("http", "s3", "gcs")}
_ran_in: list[int] = []  # Id of the process in which tensorstore runs, once it does; a forked process inherits it.


def tensorstore_runs() -> bool:
    """Return whether this process may use tensorstore: not if it was forked from one that does."""
    if not _ran_in:
        _ran_in.append(os.getpid())
    return _ran_in[0] == os.getpid()


def reason_of(error: BaseException) -> str:
    """Return what tensorstore says of an error, without its code and without what was opened."""
    said = re.sub(r"^[A-Z_]+: |\s*\[[\w ]+=.*", "", str(error), flags=re.DOTALL)
    return " ".join(said.split())


@cache
def shared_context(threads: int) -> Any:
    """Return what all arrays of a process share: a limit of threads that read and that decode, and no cache."""
    import tensorstore

    limits = {"data_copy_concurrency": {"limit": threads}, "file_io_concurrency": {"limit": threads}}
    return tensorstore.Context({**limits, **RETRIES, "cache_pool": {"total_bytes_limit": 0}})
