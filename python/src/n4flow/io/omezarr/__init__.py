"""OME-Zarr: reading stores of any writer, planning, writing and checking our own.

May import `io` beside it, `compute` and `errors`.
"""
