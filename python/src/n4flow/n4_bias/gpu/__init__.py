"""The CUDA backend of N4, with its sources in `cuda`; `engine` calls it. CuPy is imported at the first use."""
