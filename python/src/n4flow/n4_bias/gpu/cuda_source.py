"""The CUDA sources of the GPU backend, compiled for the device in use.

NVRTC, which comes with CuPy's wheels, compiles them on first use; CuPy keeps the result on disk (`CUPY_CACHE_DIR`).
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

from n4flow.compute.gpu import NULL

SOURCES = ("common", "packing", "sweeps", "sharpening", "measure", "evaluate", "shrink", "residual")
# The compiler must not contract multiply and add itself, so that results are identical on every device.
OPTIONS = ("--std=c++14", "--fmad=false")
CUPYS_OWN = ("-ftz=true",)  # CuPy always appends this option: float32 numbers below 1.2e-38 are 0 on a device.


def source() -> str:
    """Return the concatenated CUDA C++ of all kernels, with the names of their files for compiler messages."""
    folder = resources.files("n4flow.n4_bias.gpu") / "cuda"
    parts = [(name, (folder / f"{name}.cu").read_text(encoding="utf-8")) for name in SOURCES]
    return "".join(f'#line 1 "{name}.cu"\n{text}' for name, text in parts)


@cache
def _module(_device: int) -> Any:
    import cupy

    return cupy.RawModule(code=source(), options=OPTIONS)


@cache
def _kernel(device: int, name: str) -> Any:
    return _module(device).get_function(name)


def compile_for(architecture: str) -> bytes:
    """Return the machine code for an architecture such as 'sm_80'; it needs NVRTC but no device. Images test it.

    Raises
    ------
    RuntimeError
        The sources do not compile; the message is the compiler's log.
    """
    from cupy.cuda import nvrtc

    program = nvrtc.createProgram(source(), "n4flow.cu", (), ())
    try:
        nvrtc.compileProgram(program, (*OPTIONS, *CUPYS_OWN, f"-arch={architecture}"))
        return bytes(nvrtc.getCUBIN(program))
    except nvrtc.NVRTCError as error:
        raise RuntimeError(nvrtc.getProgramLog(program)) from error
    finally:
        nvrtc.destroyProgram(program)


def launch(name: str, blocks: int, threads: int, *arguments: Any, shared: int = 0) -> None:
    """Start a kernel on the current stream, compiled for the current device.

    Arguments are arrays or None, a null pointer, and NumPy numbers of the width in the kernel's signature.
    """
    import cupy

    if blocks:
        given = tuple(NULL if argument is None else argument for argument in arguments)
        _kernel(cupy.cuda.Device().id, name)((blocks,), (threads,), given, shared_mem=shared)
