"""Draw tutorial_*.png: what the commands of the tutorials make, before and after."""

import sys
import tempfile
from pathlib import Path

import matplotlib as mpl
import nibabel as nib
import numpy as np
import tifffile
import zarr

mpl.use("Agg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from pages import follow  # noqa: E402


def tiffs(folder: Path) -> None:
    """Draw a plane and a cut along Z."""
    tissue = np.load(folder / "known.npz")["tissue"]
    before = tifffile.imread(sorted((folder / "planes").iterdir()))
    after = zarr.open_array(folder / "results" / "planes" / "planes.ome.zarr" / "0", mode="r")[:]
    figure, axes = plt.subplots(2, 2, figsize=(8, 4.9), height_ratios=(160, 80), facecolor="black")
    for column, (volume, title) in enumerate([(before, "before"), (after, "after")]):
        top = np.percentile(volume[tissue], 99.5)
        for picture, axis, aspect in [(volume[20], axes[0, column], 1), (volume[:, 80], axes[1, column], 2)]:
            axis.imshow(picture, cmap="gray", vmin=0, vmax=top, aspect=aspect)
        axes[0, column].set_title(title, color="white")
    saved(figure, "tiffs")


def t1(folder: Path) -> None:
    """Draw a plane before and after, and the field between them."""
    names = ("t1", "field", "t1_corrected")
    before, field, after = (nib.load(folder / f"{name}.nii.gz").get_fdata()[:, :, 48].T[::-1] for name in names)
    figure, axes = plt.subplots(1, 3, figsize=(8, 3.8), facecolor="black")
    top = np.percentile(before, 99.8)
    for axis, plane, title in zip(axes, (before, field, after), ("before", "bias field", "after"), strict=True):
        grey = title != "bias field"
        axis.imshow(plane, cmap="gray" if grey else "viridis", vmin=0 if grey else None, vmax=top if grey else None)
        axis.set_title(title, color="white")
    saved(figure, "t1")


def saved(figure: plt.Figure, name: str) -> None:
    """Save a picture of a tutorial."""
    for axis in figure.axes:
        axis.set_axis_off()
    figure.tight_layout(pad=0.4)
    figure.savefig(Path(__file__).parent / f"tutorial_{name}.png", dpi=80)


if __name__ == "__main__":
    for draw in (tiffs, t1):
        with tempfile.TemporaryDirectory() as folder:
            follow(ROOT / "docs" / "tutorials" / f"{draw.__name__}.md", Path(folder))
            draw(Path(folder))
