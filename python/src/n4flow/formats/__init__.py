"""File formats: one module per format to read, and the OME-Zarr writer (layout, shards, slab, omezarr)."""
