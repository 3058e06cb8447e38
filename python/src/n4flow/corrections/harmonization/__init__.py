"""Harmonisation: all sections made even together, from the shrunken volume; docs/quality.md says how well it does.

What is proven is taken off: shading that changes with depth, each section's own shading and gain, jitter of planes and
slow drift along the stack. What anatomy may have done stays, unless it is asked for. `estimator` has the model.

Every task applies the correction, one estimates it. `api` and `prepare`, which estimate it, need SciPy, whose import
takes longer than many a task; so they are imported where they are used.
"""

from n4flow.corrections.harmonization.fields import Harmonization
from n4flow.corrections.harmonization.flat import read_flat

__all__ = ["Harmonization", "read_flat"]
