"""Draw before_after.png: the default phantom, and what n4flow makes of it with default parameters."""

import tempfile
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt

import n4flow


def main() -> None:
    """Run the chain on the phantom and draw a plane and a cut along Z, before and after."""
    phantom = n4flow.Phantom(n4flow.PhantomOptions(sections=9, size=(200, 260)))
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "phantom.ome.zarr"
        phantom.write(image)
        sections = str(Path(folder) / "phantom.sections.tsv")
        result = n4flow.run(image, Path(folder) / "out", sections=sections)
        before = n4flow.open_volume(image).read(slice(None)).astype(np.float32)
        after = n4flow.open_volume(result.samples[0].store).read(slice(None))
    plane, row = before.shape[0] // 2, before.shape[1] // 2
    stretch = phantom.voxel_um["z"] / phantom.voxel_um["y"]
    heights = (before.shape[1], before.shape[0] * stretch)
    figure, axes = plt.subplots(2, 2, figsize=(9, 5.4), height_ratios=heights, facecolor="black")
    for column, (volume, title) in enumerate([(before, "before"), (after, "after")]):
        top = np.percentile(volume[phantom.planes(0, len(volume)).tissue], 99.5)
        for picture, axis, aspect in [(volume[plane], axes[0, column], 1), (volume[:, row], axes[1, column], stretch)]:
            axis.imshow(picture, cmap="gray", vmin=0, vmax=top, aspect=aspect)
            axis.set_axis_off()
        axes[0, column].set_title(title, color="white")
    figure.tight_layout(pad=0.4)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=100)


if __name__ == "__main__":
    main()
