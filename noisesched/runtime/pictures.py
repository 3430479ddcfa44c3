"""From bytes to x and back, sets of images as one picture, PNG files, and what all plots have in common."""

import contextlib
import functools
import io
import os

import jax.numpy as jnp
import numpy as np

from noisesched.runtime.files import reason, replacing

SEPARATOR = 2  # pixels between cells, and around them: without it, digits on black run together
GRAY = 128  # of the separators: visible beside black and beside white
LEGIBLE = 48  # pixels: about the smallest cell in which a person reads a digit without effort
# Okabe and Ito's colours, which the colour-blind can tell apart; black last.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
NOISE_LEFT = "log-SNR: noise left, clean right"  # the label of every log-SNR axis


# -- images


def scale(image, dtype=np.float32):
    """Grey values 0..255 -> x in [-1, 1], of that dtype. Jittable; numpy in, numpy out."""
    # Not image / 127.5 - 1: compilers turn that into a multiply and add whose 255 is 1.0000001.
    return (image.astype(dtype) - 127.5) / 127.5


def as_x(image, dtype=np.float32):
    """Images as x, of that dtype: uint8 is scaled to [-1, 1], floats are x already. Jittable; numpy in, numpy out."""
    return scale(image, dtype) if image.dtype == np.uint8 else image.astype(dtype)


def visible(images: np.ndarray) -> np.ndarray:
    """Images [.., H, W, C], uint8 or floats, as uint8 pictures [.., H, W, 1 or 3].

    Of three channels or more, the first three are red, green and blue; of fewer, the first is grey. The range of the floats that
    are shown goes from black to white.
    """
    images = np.asarray(images)
    images = images[..., : 3 if images.shape[-1] >= 3 else 1]
    if images.dtype == np.uint8:
        return images
    low, high = images.min(), images.max()
    return np.round((images - low) * (255 / max(high - low, 1e-30))).astype(np.uint8)


def unscale(x):
    """x in [-1, 1] -> uint8 0..255, clipped and rounded: the inverse of `scale`. Jittable."""
    return jnp.clip(jnp.round((jnp.asarray(x, jnp.float32) + 1) * 127.5), 0, 255).astype(jnp.uint8)


def grid(images: np.ndarray, columns: int, scale: int | None = None) -> np.ndarray:
    """Images side by side, row by row: uint8 [N, H, W, C] -> uint8 [H', W', C].

    `scale`: whole-number enlargement by repeating pixels; None takes the smallest that makes cells legible.
    Unused cells of the last row have the separator's grey.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.dtype != np.uint8 or 0 in images.shape:
        raise ValueError(f"a grid takes uint8 images [N, H, W, C], got {images.dtype} {images.shape}")
    if columns < 1 or (scale is not None and scale < 1):
        raise ValueError(f"a grid takes columns and scale of 1 or more, got columns {columns}, scale {scale}")
    count, height, width, channels = images.shape
    if scale is None:
        scale = -(-LEGIBLE // min(height, width))
    columns = min(columns, count)
    rows = -(-count // columns)
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    pitch = np.array([height, width]) * scale + SEPARATOR  # from one cell to the next, down and across
    canvas = np.full((*(pitch * [rows, columns] + SEPARATOR), channels), GRAY, np.uint8)
    for index, image in enumerate(images):
        top, left = pitch * divmod(index, columns) + SEPARATOR
        canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
    return canvas


def write_png(path: str | os.PathLike, image: np.ndarray) -> None:
    """Writes a PNG file atomically: uint8 [H, W] or [H, W, C], C 1 (grey), 3 (RGB) or 4 (RGBA)."""
    from PIL import Image

    image = np.asarray(image)
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    if image.dtype != np.uint8 or not (image.ndim == 2 or image.ndim == 3 and image.shape[2] in (3, 4)):
        raise ValueError(f"a picture is uint8 [H, W, C] with C 1, 3 or 4, got {image.dtype} {image.shape}")
    with replacing(path) as file:
        Image.fromarray(image).save(file, format="PNG")


# -- plots


@contextlib.contextmanager
def beside_results(say):
    """Around a picture of results that are on disk already: if it cannot be drawn or written, that is a warning in one line."""
    try:
        yield
    except Exception as error:
        say(f"warning: the results are complete, but a picture of them could not be made: {reason(error)}")


def new_figure(width: float, height: float, **options):
    """An empty matplotlib figure of that size in inches, which a notebook displays; `options` are matplotlib's."""
    from matplotlib.figure import Figure  # not pyplot, which keeps figures and looks for a display

    figure = Figure(figsize=(width, height), **options)
    figure._repr_png_ = functools.partial(_png, figure)  # IPython's protocol: it knows figures of pyplot alone
    return figure


def _png(figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def tidy_axes(axes) -> None:
    """Gives each of these axes a pale grid, and no frame at the top and right."""
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)


def line_and_band(axis, x, mean, margin, opacity=0.12, **line) -> None:
    """Draws a line with a band of one margin to each side; none where the margin is NaN. `line`: its options, with `color`."""
    axis.plot(x, mean, **line)
    mean, margin = np.asarray(mean), np.nan_to_num(np.asarray(margin, float))
    axis.fill_between(x, mean - margin, mean + margin, color=line["color"], alpha=opacity, linewidth=0)


def save_figure(path: str | os.PathLike, figure, dpi: float = 110) -> None:
    """Writes a figure atomically, in the format that the path's ending names."""
    with replacing(path) as file:
        figure.savefig(file, dpi=dpi, format=str(path).rpartition(".")[2].lower())
