"""Compile the kernels with the image's own NVRTC and CUDA headers; without a GPU, so that a build fails and no run."""

from pathlib import Path

import nvidia
from cupy.cuda import nvrtc

from n4flow.n4_bias.gpu.cuda_source import compile_for

ARCHITECTURES = ("sm_70", "sm_75", "sm_80", "sm_86", "sm_90")
HALF = "#include <cuda_fp16.h>\n__global__ void halve(__half *v) { *v = __hmul(*v, __float2half(0.5f)); }"

known = [name for name in ARCHITECTURES if int(name[3:]) in nvrtc.getSupportedArchs()]
sizes = ", ".join(f"{name} {len(compile_for(name))} bytes" for name in known)
# the headers that CuPy's own kernels include
headers = next(path.parent for root in nvidia.__path__ for path in Path(root).rglob("cuda_fp16.h"))
program = nvrtc.createProgram(HALF, "halve.cu", (), ())
try:
    nvrtc.compileProgram(program, (f"-arch={known[0]}", f"-I{headers}"))
except nvrtc.NVRTCError:
    raise SystemExit(nvrtc.getProgramLog(program)) from None
print(f"NVRTC {'.'.join(str(number) for number in nvrtc.getVersion())}: {sizes}")
