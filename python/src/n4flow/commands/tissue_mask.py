"""`n4flow tissue-mask`: tissue mask, agarose mask and background level of each section."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from n4flow.commands.step import GIVEN, SHRUNKEN, JsonFile, Sections, Slabs, Threads, parts, section_argument, step


def tissue_mask(
    slabs: Slabs,
    sections: Sections,
    out: Annotated[Path, typer.Option("--out", help="Both masks (.npz).")],
    threads: Threads = None,
    json_file: JsonFile = None,
) -> None:
    """Find tissue and agarose on the shrunken volume."""
    from n4flow.masks.packed_mask import PackedMask
    from n4flow.pipeline.estimate import find_masks
    from n4flow.sections import SectionTable
    from n4flow.statistics.shrunken import ShrunkenFiles

    with step("TISSUE_MASK", threads, json_file) as numbers:
        shrunken = ShrunkenFiles(parts(slabs, SHRUNKEN))
        table = SectionTable.coerce(section_argument(sections), shrunken.shape[0])
        given = sorted(slabs.glob(GIVEN))
        user = PackedMask.concatenate([PackedMask.of(np.load(slab)) for slab in given]) if given else None
        tissue, found = find_masks(shrunken, table, user)
        tissue.save(out)
        numbers.update(found)
