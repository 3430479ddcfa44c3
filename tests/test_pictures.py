"""Grids keep every pixel of every image, apart from each other; PNG files hold exactly the pixels given; bands surround lines."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from noisesched.runtime.pictures import GRAY, LEGIBLE, SEPARATOR, grid, line_and_band, new_figure, save_figure, write_png


def images(count, height=8, width=6, channels=3):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, channels), np.uint8)


@pytest.mark.parametrize("count, columns, rows", [(6, 3, 2), (7, 3, 3), (2, 5, 1), (1, 1, 1)])
def test_every_image_is_in_its_cell(count, columns, rows):
    given, scale, used = images(count), 3, min(count, columns)
    picture = grid(given, columns, scale)
    height, width = 8 * scale + SEPARATOR, 6 * scale + SEPARATOR
    assert picture.shape == (rows * height + SEPARATOR, used * width + SEPARATOR, 3)
    assert picture.dtype == np.uint8
    for index in range(rows * used):
        top, left = index // used * height + SEPARATOR, index % used * width + SEPARATOR
        cell = picture[top : top + 8 * scale, left : left + 6 * scale]
        if index < count:
            for dy in range(scale):
                for dx in range(scale):
                    np.testing.assert_array_equal(cell[dy::scale, dx::scale], given[index])
        else:
            assert (cell == GRAY).all()


def test_cells_are_separated():
    picture = grid(np.zeros((4, 8, 8, 1), np.uint8), 2, 1)
    gray = (picture == GRAY)[..., 0]
    lines = [0, 1, 10, 11, 20, 21]
    assert gray[lines].all() and gray[:, lines].all() and gray.sum() == 22 * 22 - 4 * 64


@pytest.mark.parametrize("size, cell", [(8, 48), (28, 56), (32, 64), (48, 48), (64, 64)])
def test_tiny_images_are_enlarged_until_legible(size, cell):
    assert cell >= LEGIBLE
    assert grid(images(1, size, size), 1).shape[0] == cell + 2 * SEPARATOR


@pytest.mark.parametrize(
    "given, columns, scale",
    [
        (np.zeros((2, 8, 8, 3)), 2, 1),
        (np.zeros((8, 8, 3), np.uint8), 2, 1),
        (np.zeros((0, 8, 8, 3), np.uint8), 2, 1),
        (np.zeros((2, 8, 8, 3), np.uint8), 0, 1),
        (np.zeros((2, 8, 8, 3), np.uint8), 2, 0),
    ],
)
def test_what_is_no_grid_is_refused(given, columns, scale):
    with pytest.raises(ValueError, match="a grid takes"):
        grid(given, columns, scale)


@pytest.mark.parametrize("channels, mode", [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_png_holds_the_pixels(tmp_path, channels, mode):
    image = images(1, channels=channels)[0]
    write_png(tmp_path / "a.png", image)
    with Image.open(tmp_path / "a.png") as read:
        assert read.format == "PNG" and read.mode == mode
        np.testing.assert_array_equal(np.asarray(read).reshape(image.shape), image)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("image", [np.zeros((8, 8, 2), np.uint8), np.zeros((8, 8, 3)), np.zeros(8, np.uint8)])
def test_what_is_no_picture_is_refused(tmp_path, image):
    with pytest.raises(ValueError, match="a picture is uint8"):
        write_png(tmp_path / "a.png", image)
    assert list(tmp_path.iterdir()) == []


def test_a_band_is_one_margin_wide_and_nothing_where_there_is_none():
    axis = new_figure(2, 2).subplots()
    line_and_band(axis, [0, 1, 2], [1.0, 2.0, 3.0], [0.5, np.nan, 1.0], color="black")
    (band,) = axis.collections
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices}
    assert corners == {(0, 0.5), (0, 1.5), (1, 2), (2, 2), (2, 4)}
    np.testing.assert_array_equal(axis.lines[0].get_ydata(), [1, 2, 3])


def test_a_notebook_displays_a_figure():
    figure = new_figure(1, 2)
    assert Image.open(io.BytesIO(figure._repr_png_())).size == (100, 200)
    assert pickle.loads(pickle.dumps(figure))._repr_png_() == figure._repr_png_()


@pytest.mark.parametrize(("ending", "first"), [("png", b"\x89PNG"), ("PDF", b"%PDF"), ("svg", b"<?xml")])
def test_a_figure_is_written_whole_in_the_format_of_its_ending(tmp_path, ending, first):
    save_figure(path := tmp_path / f"a.b.{ending}", new_figure(1, 2))
    assert path.read_bytes().startswith(first) and [*tmp_path.iterdir()] == [path]
    if ending == "png":
        assert Image.open(path).size == (110, 220)
