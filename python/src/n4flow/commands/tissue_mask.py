"""`n4flow tissue-mask`: tissue mask, agarose mask and background level of each section."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from n4flow.commands.options import Shrunken, as_step
from n4flow.commands.step import SLAB_FILES, parts
from n4flow.pipeline.stages import settings_of


def _tissue_mask(
    slabs: Shrunken,
    out: Annotated[Path, typer.Option("--out", help="Both masks (.npz).")],
    settings: Mapping[str, Any],
    numbers: dict[str, Any],
) -> None:
    from n4flow.masks.packed_mask import PackedMask
    from n4flow.pipeline.estimate import find_masks
    from n4flow.pipeline.parameters import voxel_size
    from n4flow.sections import SectionTable
    from n4flow.statistics.shrunken import ShrunkenFiles

    shrunken = ShrunkenFiles(parts(slabs, "shrunken"))
    table = SectionTable.coerce(settings["sections"], shrunken.shape[0])
    given = sorted(slabs.glob(SLAB_FILES["given"]))
    user = PackedMask.concatenate([PackedMask.of(np.load(slab)) for slab in given]) if given else None
    tissue, found = find_masks(
        shrunken, table, user, parameters=settings, voxel_um=voxel_size(settings["voxel_um"]) or {}
    )
    tissue.save(out)
    numbers.update(found)


tissue_mask = as_step("TISSUE_MASK", _tissue_mask, settings_of("TISSUE_MASK"), required=("sections", "voxel_um"))
