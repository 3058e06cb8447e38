"""What lies outside the tissue set to zero, for programs that expect a background of zeros."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from n4flow.compute.arrays import array_module, as_mask
from n4flow.corrections.base import Correction, Where
from n4flow.errors import InputError


@dataclass(frozen=True)
class Outside(Correction):
    """Sets every voxel outside the tissue mask to 0, also those that are not finite."""

    kind: ClassVar[str] = "outside"
    title: ClassVar[str] = "voxels outside the tissue set to zero"
    needs_tissue: ClassVar[bool] = True
    zeroes_outside: ClassVar[bool] = True

    def apply(self, block: Any, where: Where) -> Any:
        """Return the block with zeros outside the tissue (`where.tissue`)."""
        if where.tissue is None:
            msg = "what lies outside the tissue is set to zero: give the block's tissue mask"
            raise InputError(msg)
        xp = array_module(block)
        return xp.where(xp.asarray(as_mask(where.tissue, block.shape, "tissue mask")), block, xp.float32(0))

    @property
    def avoided_by(self) -> str:
        """See `Correction.avoided_by`."""
        return "--outside keep"

    def summary(self) -> dict[str, Any]:
        """Return nothing: it has no numbers."""
        return {}
