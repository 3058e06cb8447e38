"""Compile the kernels with the image's own NVRTC, which needs no GPU: a build fails, not a later run."""

from cupy.cuda import nvrtc

from n4flow.fit.gpu_module import compile_for

ARCHITECTURES = ("sm_70", "sm_75", "sm_80", "sm_86", "sm_90")
known = [name for name in ARCHITECTURES if int(name[3:]) in nvrtc.getSupportedArchs()]
sizes = ", ".join(f"{name} {len(compile_for(name))} bytes" for name in known)
print(f"NVRTC {'.'.join(str(number) for number in nvrtc.getVersion())}: {sizes}")
