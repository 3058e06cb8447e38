"""n4flow: even out the intensity of large serial-section volumes without harming anatomy.

Axes are always (Z, Y, X), lengths are in micrometres, results are float32. Names are imported when they are
first used, so that `import n4flow` costs nothing and needs no GPU.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "BiasField": "n4_bias.field",
    "Phantom": "phantom.store",
    "PhantomOptions": "phantom.options",
    "Progress": "compute.progress",
    "Recipe": "corrections.recipe",
    "Result": "pipeline.run",
    "Section": "sections",
    "SectionTable": "sections",
    "Volume": "io.volume",
    "apply_bias_field": "n4_bias.api",
    "apply_histogram_matching": "corrections.histogram_matching",
    "apply_zprofile_smoothing": "corrections.plane_gain",
    "bkgd_spatial_mean": "corrections.background",
    "compute_scale_factors": "corrections.plane_range",
    "compute_tissue_mask": "masks.tissue",
    "fit_bias": "n4_bias.api",
    "get_agarose_mask": "masks.agarose",
    "harmonize": "corrections.harmonization.api",
    "n4": "n4_bias.api",
    "n4_correct": "n4_bias.correct",
    "n4_correct_gpu": "n4_bias.correct",
    "n4_correct_per_section": "n4_bias.correct",
    "normalize_volume": "corrections.plane_range",
    "open_volume": "io.open",
    "otsu_mask": "n4_bias.otsu_mask",
    "render": "pipeline.render",
    "run": "pipeline.run",
    "sharpen_residual": "n4_bias.api",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("n4flow")
    if name not in _HOME:
        msg = f"module 'n4flow' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(f"n4flow.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
