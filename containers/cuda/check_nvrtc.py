"""Compile a kernel with the image's own NVRTC and CUDA headers, which needs no GPU: a build fails, not a later run."""

from pathlib import Path

import nvidia
from cupy.cuda import nvrtc

KERNEL = """
#include <cuda_fp16.h>
extern "C" __global__ void halve(__half *v) { v[threadIdx.x] = __hmul(v[threadIdx.x], __float2half(0.5f)); }
"""

headers = next(path.parent for root in nvidia.__path__ for path in Path(root).rglob("cuda_fp16.h"))
program = nvrtc.createProgram(KERNEL, "halve.cu", (), ())
try:
    nvrtc.compileProgram(program, ("-arch=sm_80", f"-I{headers}"))
except nvrtc.NVRTCError:
    raise SystemExit(nvrtc.getProgramLog(program)) from None
version = ".".join(str(number) for number in nvrtc.getVersion())
print(f"NVRTC {version}: {len(nvrtc.getCUBIN(program))} bytes for compute capability 8.0")
