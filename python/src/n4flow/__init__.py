"""n4flow: even out the intensity of large serial-section volumes without harming anatomy.

Axes are always (Z, Y, X), lengths are in micrometres, results are float32. Names are imported when they are
first used, so that `import n4flow` costs nothing and needs no GPU.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import Any

__version__ = version("n4flow")

_HOME = {
    "BiasField": "bias",
    "Phantom": "phantom",
    "PhantomOptions": "phantom",
    "Recipe": "recipe",
    "Section": "sections",
    "SectionTable": "sections",
    "Volume": "volume",
    "apply_bias_field": "bias",
    "apply_histogram_matching": "histogram",
    "apply_zprofile_smoothing": "zprofile",
    "bkgd_spatial_mean": "background",
    "compute_scale_factors": "normalize",
    "compute_tissue_mask": "mask",
    "fit_bias": "bias",
    "get_agarose_mask": "agarose",
    "harmonize": "harmonization.api",
    "n4": "bias",
    "n4_correct": "bias",
    "n4_correct_gpu": "bias",
    "n4_correct_per_section": "bias",
    "normalize_volume": "normalize",
    "open_volume": "volume",
    "otsu_mask": "mask",
    "render": "rendering",
    "run": "local",
    "sharpen_residual": "bias",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        msg = f"module 'n4flow' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(f"n4flow.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
