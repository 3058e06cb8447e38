"""The CUDA backend of N4, with its sources in `cuda`. It is reached through `engine`; CuPy is imported on first use."""
