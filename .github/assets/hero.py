"""Makes hero.png, the picture at the top of the README. In the repository's folder:

    noisesched train  --config=configs/brightness.py --workdir=runs/leaking --config.schedule="discrete(scaled_linear)"
    noisesched sample --workdir=runs/leaking --steps=10 --spacing=leading --out=samples/leaking
    noisesched sample --workdir=runs/leaking --steps=10 --out=samples/repaired \\
                      --schedule="discrete(scaled_linear, zero_terminal=True)"
    python .github/assets/hero.py

The upper half shows 16 of the 64 noises: every fourth, in the order of their brightness under the repaired schedule. The lower
half is cut out of photographs.png, which is a picture of a report (see configs/README.md).
"""

from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402

ASSETS = Path(__file__).resolve().parent
SAMPLES = {  # a label, and the folder of the samples
    "Stable Diffusion's schedule,\nleading spacing": "leaking",
    "with zero terminal SNR,\ntrailing spacing": "repaired",
}
SCHEDULES = ("linear (as trained)", "cosine", "karras", "flow")
# Where the cells are in photographs.png, in pixels.
LEFT, WIDTH = (231, 532, 832, 1133), 289
TOP, HEIGHT = {"told the log-SNR": 54, "told the timesteps\nof the training schedule": 221}, 74


def brightness_rows():
    """{label: a row of images, float [h, w]}, from the same noises, darkest first."""
    made = {label: np.load(f"samples/{name}/samples.npy")[..., 0] for label, name in SAMPLES.items()}
    for name, images in zip(SAMPLES.values(), made.values(), strict=True):
        print(f"{name}: spread of brightness {(images.mean((1, 2)) / 127.5).std():.2f}, {len(images)} images")
    *_, repaired = made.values()
    order = np.argsort(repaired.mean((1, 2)))[2::4]
    framed = {label: np.pad(images[order], ((0, 0), (1, 1), (1, 1)), constant_values=128) for label, images in made.items()}
    return {label: np.concatenate(list(images), axis=1) for label, images in framed.items()}


def photograph_rows():
    """{label: the cells of a row under each of SCHEDULES, uint8 [h, w, 3]}."""
    page = np.asarray(Image.open(ASSETS / "photographs.png").convert("RGB"))
    return {label: [page[top : top + HEIGHT, left : left + WIDTH] for left in LEFT] for label, top in TOP.items()}


def bare(axis, image, label=""):
    axis.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.set_frame_on(False)
    axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9.5)


def main():
    figure = plt.figure(figsize=(10.4, 3.15), facecolor="white")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1.45, 1.7))
    sides = {"left": 0.2, "right": 0.995}
    axes = upper.subplots(2, 1, gridspec_kw=sides | {"top": 0.78, "bottom": 0.02, "hspace": 0.06})
    axes[0].set_title("One network, the same noise, 10 network calls", fontsize=10.5, fontweight="bold", loc="left")
    for axis, (label, image) in zip(axes, brightness_rows().items(), strict=True):
        bare(axis, image, label)
    axes = lower.subplots(2, 4, gridspec_kw=sides | {"top": 0.67, "bottom": 0.01, "hspace": 0.06, "wspace": 0.04})
    lower.suptitle("Two networks, under four schedules", x=0.2, y=0.95, ha="left", fontsize=10.5, fontweight="bold")
    for row, (label, cells) in zip(axes, photograph_rows().items(), strict=True):
        for axis, cell in zip(row, cells, strict=True):
            bare(axis, cell, label if axis is row[0] else "")
    for axis, name in zip(axes[0], SCHEDULES, strict=True):
        axis.set_title(name, fontsize=9.5)
    figure.savefig(ASSETS / "hero.png", dpi=150)


if __name__ == "__main__":
    main()
