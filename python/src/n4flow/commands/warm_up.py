"""`n4flow warm-up`: compile the kernels once, for an image or after an install."""

from __future__ import annotations

from n4flow.commands.step import JsonFile, Threads, step


def warm_up(threads: Threads = None, json_file: JsonFile = None) -> None:
    """Compile every kernel into the cache (NUMBA_CACHE_DIR), so that no later run waits for it."""
    from n4flow.warm_up import warm_up as compile_kernels

    with step("WARM_UP", threads, json_file) as numbers:
        numbers.update(compile_kernels())
