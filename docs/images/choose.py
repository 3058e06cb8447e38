"""Draw choose_*.png: too little and too much of a setting, on volumes whose truth is known, and print their scores."""

import tempfile
from pathlib import Path

import matplotlib as mpl
import nibabel as nib
import nilearn.datasets
import numpy as np
from PIL import Image

mpl.use("Agg")
from matplotlib import pyplot as plt

import n4flow

FOLDER = Path(__file__).parent
TEMPLATE = Path(nilearn.datasets.__file__).parent / "data" / "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
# Of `n4flow run`: the settings of each picture, by what stands above it.
RUNS = {
    "sections": {"sections 1": {"sections": 1}, "sections 9, as cut": {}, "sections 12": {"sections": 12}},
    "shrink": {"shrink 1, without it": {}, "shrink 8": {"shrink": 8}, "shrink 32": {"shrink": 32}},
    "trust": {
        "bias off, match off": {"bias": "off", "match": "off", "smooth_z": 0},
        "trust proven": {},
        "trust full": {"trust": "full"},
    },
    "harmonize": {f"harmonize {mode}": {"harmonize": mode} for mode in ("safe", "auto", "full")},
}
SPANS = {"1 span": (50,), "8 spans, without it": (50, 50, 50, 50), "64 spans": (50,) * 7}


def main() -> None:
    """Draw every picture and print its scores."""
    for wrong in (True, False):
        options = (
            {} if wrong else {"shading": 0, "section_shading": 0, "attenuation": 0, "gain": 0, "drift": 0, "jitter": 0}
        )
        phantom = n4flow.Phantom(n4flow.PhantomOptions(sections=9, size=(200, 260), **options))
        known = phantom.planes(0, 72)
        with tempfile.TemporaryDirectory() as folder:
            image = Path(folder) / "phantom.ome.zarr"
            phantom.write(image)
            usual = {"sections": str(Path(folder) / "phantom.sections.tsv")}
            for name, runs in RUNS.items() if wrong else [("nothing_wrong", RUNS["trust"])]:
                made = {"truth": known.truth, "as given": known.observed.astype(np.float32)}
                for number, (title, settings) in enumerate(runs.items()):
                    result = n4flow.run(image, Path(folder) / f"{name}{number}", **usual | settings)
                    made[f"{title}\n{result.status}"] = n4flow.open_volume(result.store).read(slice(None))
                draw(name, made, known.tissue, known.truth, stretch=2.0)
    template = nib.as_closest_canonical(nib.load(TEMPLATE)).slicer[::2, ::2, ::2]
    truth = template.get_fdata(dtype=np.float32).transpose(2, 1, 0)[:, ::-1]
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in truth.shape), indexing="ij")
    given = truth * np.exp(0.35 * x - 0.25 * y**2 + 0.2 * z).astype(np.float32)
    made = {"truth": truth, "as given": given}
    for title, iterations in SPANS.items():
        made[title] = n4flow.n4(given, iters=iterations)
    draw("spline", made, truth > 0, truth, stretch=1.0)


def draw(name: str, made: dict[str, np.ndarray], inside: np.ndarray, truth: np.ndarray, stretch: float) -> None:
    """Draw a plane and a cut along Z of each volume, in grey windows that end at the same share of their tissue."""
    plane, row = (n // 2 for n in truth.shape[:2])
    heights = (truth.shape[1], truth.shape[0] * stretch)
    wide = 2.2 * len(made)
    figure, axes = plt.subplots(
        2,
        len(made),
        figsize=(wide, 2.2 * sum(heights) / truth.shape[2] + 0.5),
        height_ratios=heights,
        facecolor="black",
    )
    for column, (title, volume) in enumerate(made.items()):
        r = np.corrcoef(volume[inside], truth[inside])[0, 1]
        print(f"{name}: {' '.join(title.split())}: {r:.3f}", flush=True)
        top = np.percentile(volume[inside], 99.5)
        for picture, axis, aspect in [
            (volume[plane], axes[0, column], 1),
            (volume[::-1, row], axes[1, column], stretch),
        ]:
            axis.imshow(picture, cmap="gray", vmin=0, vmax=top, aspect=aspect)
            axis.set_axis_off()
        shown = title if title == "truth" else f"{title}{', ' if chr(10) in title else chr(10)}r {r:.3f}"
        axes[0, column].set_title(shown, color="white", fontsize=8)
    figure.tight_layout(pad=0.3)
    file = FOLDER / f"choose_{name}.png"
    figure.savefig(file, dpi=90)
    plt.close(figure)
    Image.open(file).convert("L").quantize(64).save(file, optimize=True)


if __name__ == "__main__":
    main()
