"""Harmonisation: all sections made even together, from the shrunken volume; docs/quality.md says how well it does.

What is proven is taken off: shading that changes with depth, each section's own shading and gain, jitter of planes and
slow drift along the stack. What anatomy may have done stays, unless it is asked for. `estimator` has the model.
"""

from n4flow.harmonization.api import harmonize
from n4flow.harmonization.fields import Harmonization
from n4flow.harmonization.flat import read_flat
from n4flow.harmonization.prepare import MODES, estimate_harmonization

__all__ = ["MODES", "Harmonization", "estimate_harmonization", "harmonize", "read_flat"]
