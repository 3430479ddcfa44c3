"""FID's Inception-V3: its parts against scipy, the whole against an independent implementation, and bad weights files."""

import pickle
import zipfile
from math import prod

import jax
import numpy as np
import pytest
import scipy.ndimage
import scipy.signal

from noisesched.evaluation import inception

SHAPES = inception.tensors()
FIRST = "Conv2d_1a_3x3.conv.weight"


def uniform(count, seed):
    """`count` numbers in [0, 1) that no version of numpy changes: those of a bit generator are guaranteed, a Generator's not."""
    return ((np.random.PCG64(seed).random_raw(count) >> np.uint64(11)) * 2.0**-53).astype(np.float32)


def made_up(name, shape, seed):
    """A tensor of that name that keeps activations of order one to a hundred through all 94 layers."""
    centred = lambda width: (uniform(prod(shape), seed).reshape(shape) - np.float32(0.5)) * np.float32(width)
    if name == "fc.weight" or name.endswith("conv.weight"):
        return centred((24 / prod(shape[1:])) ** 0.5)
    if name.endswith(("running_var", "bn.weight")):
        return 1 + centred(0.8)
    return centred(1)


def pictures(count=4, length=32, seed=1000):
    return (uniform(count * length * length * 3, seed) * 256).astype(np.uint8).reshape(count, length, length, 3)


@pytest.fixture(scope="module")
def arrays():
    tracked = {name.replace("weight", "num_batches_tracked"): np.int64(0) for name in SHAPES if name.endswith("bn.weight")}
    return {name: made_up(name, shape, seed) for seed, (name, shape) in enumerate(SHAPES.items())} | tracked


@pytest.fixture(scope="module")
def file(arrays, tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "weights.npz"
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="module")
def params(file):
    return inception.load(file)


@pytest.fixture(scope="module")
def outputs(params):
    return [np.asarray(output) for output in inception.apply(params, pictures())]


# -- the network


def test_the_tensors_count_as_other_implementations_count_theirs():
    kernels = {name: shape for name, shape in SHAPES.items() if name.endswith(".conv.weight")}
    weights, channels = sum(map(prod, kernels.values())), sum(shape[0] for shape in kernels.values())
    assert len(kernels) == 94 and len(SHAPES) == 94 * 5 + 2
    # Keras' InceptionV3 without its top has 21,802,784 parameters: kernels and, for each channel, a shift, a mean and a variance.
    assert weights + 3 * channels == 21_802_784
    # torchvision's has 27,161,264: kernels, for each channel a scale and a shift, 1000 classes, and an auxiliary classifier.
    auxiliary = 768 * 128 + 2 * 128 + 128 * 768 * 5 * 5 + 2 * 768 + 769 * 1000
    assert weights + 2 * channels + 2049 * 1000 + auxiliary == 27_161_264
    assert sum(map(prod, SHAPES.values())) == weights + 4 * channels + 2049 * 1008 == 23_885_392


def test_names_and_shapes_of_the_state_dict():
    known = {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "Conv2d_4a_3x3.bn.running_var": (192,),
        "Mixed_5b.branch_pool.conv.weight": (32, 192, 1, 1),
        "Mixed_5d.branch5x5_2.conv.weight": (64, 48, 5, 5),
        "Mixed_6a.branch3x3.conv.weight": (384, 288, 3, 3),
        "Mixed_6b.branch7x7_2.conv.weight": (128, 128, 1, 7),
        "Mixed_6e.branch7x7dbl_4.conv.weight": (192, 192, 7, 1),
        "Mixed_7a.branch7x7x3_4.bn.bias": (192,),
        "Mixed_7b.branch3x3_2a.conv.weight": (384, 384, 1, 3),
        "Mixed_7b.branch1x1.conv.weight": (320, 1280, 1, 1),
        "Mixed_7c.branch3x3dbl_3b.conv.weight": (384, 384, 3, 1),
        "Mixed_7c.branch_pool.conv.weight": (192, 2048, 1, 1),
        "fc.weight": (1008, 2048),
        "fc.bias": (1008,),
    }
    assert {name: SHAPES.get(name) for name in known} == known


def test_the_whole_is_an_independent_implementation_in_float64(outputs):
    """The figures are PyTorch's, float64, from the same made-up weights and pictures: its own convolutions, pools and batch
    normalisation, put together from the paper's tables and not from this module."""
    features, logits = outputs
    assert features.shape == (4, 2048) and logits.shape == (4, 1008) and features.dtype == logits.dtype == np.float32
    known = [[2.5830125, 1.2929509], [2.5647542, 1.2055969], [2.5063379, 1.3732410], [2.4850035, 1.2122781]]
    known_logits = [
        [1.1615458, 5.1446561, 0.3336185],
        [1.0567615, 5.2709834, 0.2891800],
        [1.1064912, 5.1333943, 0.3371208],
        [1.0948664, 5.1885826, 0.2038386],
    ]
    np.testing.assert_allclose(features[:, [0, 700]], known, atol=1e-4)  # float32's error here: 5e-6
    np.testing.assert_allclose(logits[:, [0, 500, 1007]], known_logits, atol=1e-4)
    assert (features.mean(), features.std()) == pytest.approx((1.99464486, 2.71239071), rel=1e-5)
    assert (logits.mean(), logits.std()) == pytest.approx((0.02426685, 4.68042591), rel=1e-5)


def test_an_image_does_not_depend_on_its_batch(params, outputs):
    order, (features, logits) = [2, 0, 3, 1], outputs
    again, again_logits = map(np.asarray, inception.apply(params, pictures()[order]))
    np.testing.assert_allclose(again, features[order], rtol=1e-4, atol=1e-5 * features.max())
    np.testing.assert_allclose(again_logits, logits[order], rtol=1e-4, atol=1e-5 * abs(logits).max())
    assert abs(features[0] - features[1]).max() > 1e-3 * features.max()


def test_every_product_is_computed_in_full_float32(params):
    program = str(jax.make_jaxpr(inception.apply)(params, pictures(1)))
    products = program.count("conv_general_dilated[") + program.count("dot_general[")
    assert (
        products
        == 95
        == program.count("precision=Precision.HIGHEST") + program.count("precision=(Precision.HIGHEST, Precision.HIGHEST)")
    )


@pytest.mark.parametrize(
    "images, said",
    [
        (np.zeros((1, 32, 32, 3), np.float32), "got float32 [1, 32, 32, 3]"),
        (np.zeros((1, 32, 32, 1), np.uint8), "[1, 32, 32, 1]"),
        (np.zeros((32, 32, 3), np.uint8), "[32, 32, 3]"),
        (np.zeros((0, 32, 32, 3), np.uint8), "[0, 32, 32, 3]"),
    ],
)
def test_other_images_are_refused(images, said):
    with pytest.raises(ValueError) as error:
        inception.apply({}, images)
    assert said in str(error.value) and "\n" not in str(error.value)


# -- its parts


@pytest.mark.parametrize("size, stride, padding", [((3, 3), 2, "VALID"), ((1, 7), 1, "SAME"), ((5, 5), 1, "SAME")])
def test_a_convolution_is_correlation_normalisation_and_rectification(size, stride, padding):
    draw = np.random.default_rng(0)
    x, kernel = draw.normal(size=(9, 11, 2)), draw.normal(size=(3, 2, *size))
    scale, shift, mean, variance = (draw.uniform(0.2, 2, 3) for _ in range(4))
    modes = {"SAME": "same", "VALID": "valid"}
    wanted = [sum(scipy.signal.correlate(x[:, :, i], kernel[o, i], modes[padding]) for i in range(2)) for o in range(3)]
    wanted = np.moveaxis(wanted, 0, 2)[::stride, ::stride]
    wanted = np.maximum((wanted - mean) / np.sqrt(variance + 1e-3) * scale + shift, 0)
    file = {"a.conv.weight": kernel, "a.bn.weight": scale, "a.bn.bias": shift}
    file |= {"a.bn.running_mean": mean, "a.bn.running_var": variance}
    step = inception.Conv("a", 3, size, stride, padding)
    got = inception._run([step], x[None].astype(np.float32), {"a": inception._fold("a", file)})
    np.testing.assert_allclose(got[0], wanted, rtol=1e-5, atol=1e-5)


def test_pools_are_scipys():
    x = np.random.default_rng(0).normal(size=(1, 8, 5, 2)).astype(np.float32)
    mean = scipy.ndimage.uniform_filter(x, (0, 3, 3, 0), mode="constant")
    inside = scipy.ndimage.uniform_filter(np.ones_like(x), (0, 3, 3, 0), mode="constant")
    largest = scipy.ndimage.maximum_filter(x, (1, 3, 3, 1), mode="constant", cval=-np.inf)
    np.testing.assert_allclose(inception.mean_pool(x), mean / inside, atol=1e-6)
    np.testing.assert_array_equal(inception.max_pool(x), largest)
    np.testing.assert_array_equal(inception.halve(x), largest[:, 1:-1:2, 1:-1:2])


@pytest.mark.parametrize("height, width", [(32, 32), (8, 28), (1, 299), (300, 640)])
def test_resizing_reads_pixel_i_at_i_times_length_over_299(height, width):
    x = np.random.default_rng(0).uniform(0, 255, (height, width)).astype(np.float32)
    where = np.meshgrid(np.arange(299) * height / 299, np.arange(299) * width / 299, indexing="ij")
    wanted = scipy.ndimage.map_coordinates(x.astype(np.float64), where, order=1, mode="nearest")
    np.testing.assert_allclose(inception.resize(x[None, :, :, None])[0, :, :, 0], wanted, atol=0.02)  # positions are float32


def test_resizing_by_hand():
    x = np.array([[0, 100], [200, 240]], np.float32)[None, :, :, None]
    quarters = [[0, 50, 100, 100], [100, 135, 170, 170], [200, 220, 240, 240], [200, 220, 240, 240]]
    np.testing.assert_array_equal(inception.resize(x, 4)[0, :, :, 0], quarters)
    same = np.random.default_rng(0).uniform(0, 255, (1, 299, 299, 1)).astype(np.float32)
    np.testing.assert_array_equal(inception.resize(same), same)


# -- the weights file


def refused(path):
    """What `load` says of a file, which must be one line that starts with its name."""
    with pytest.raises(ValueError) as error:
        inception.load(path)
    line = str(error.value)
    assert line.startswith(f"{path}: ") and "\n" not in line
    return line.removeprefix(f"{path}: ")


def headers_alone(path, shapes, kind="<f4"):
    """A .npz that announces arrays and holds no data at all: a fault found in it was found before any was asked for."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, shape in shapes.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
    return path


@pytest.mark.parametrize(
    "change, said",
    [
        (
            {FIRST: (10**9, 10**9)},
            "tensor Conv2d_1a_3x3.conv.weight is float32 [1000000000, 1000000000], not float32 [32, 3, 3, 3]",
        ),
        ({"fc.weight": (1000, 2048)}, "tensor fc.weight is float32 [1000, 2048], not float32 [1008, 2048]"),
        ({FIRST: None}, "no tensor Conv2d_1a_3x3.conv.weight [32, 3, 3, 3]; wanted"),
        (
            {FIRST: None, "conv0.kernel": (32, 3, 3, 3)},
            "no tensor Conv2d_1a_3x3.conv.weight [32, 3, 3, 3], but conv0.kernel, which",
        ),
        ({"AuxLogits.fc.bias": (10**12,)}, "tensor AuxLogits.fc.bias is not one of the network's"),
    ],
)
def test_names_and_shapes_are_checked_before_data_is_read(tmp_path, change, said):
    shapes = {name: shape for name, shape in (SHAPES | change).items() if shape is not None}
    line = refused(headers_alone(tmp_path / "weights.npz", shapes))
    assert line.startswith(said) and "pt_inception-2015-12-05-6726825d.pth" in line


@pytest.mark.parametrize("kind, name", [("<f8", "float64"), ("<f2", "float16"), ("|O", "object")])
def test_other_kinds_of_numbers_are_refused(tmp_path, kind, name):
    assert f"{FIRST} is {name} [32, 3, 3, 3], not float32" in refused(headers_alone(tmp_path / "weights.npz", SHAPES, kind))


def test_values_that_no_network_has_are_refused(tmp_path, arrays, monkeypatch):
    bad = dict(arrays)
    monkeypatch.setitem(inception.READERS, ".npz", lambda path, wanted: {name: bad[name] for name in wanted})
    (path := tmp_path / "weights.npz").touch()
    bad["Mixed_6b.branch1x1.bn.running_var"] = np.full(192, -0.25, np.float32)
    assert "Mixed_6b.branch1x1.bn.running_var is a variance, but has values down to -0.25" in refused(path)
    bad["Mixed_5c.branch5x5_1.bn.bias"] = np.full(48, np.nan, np.float32)
    assert refused(path).startswith("tensor Mixed_5c.branch5x5_1.bn.bias has values that are not finite")


def test_damaged_files_are_refused(tmp_path, file):
    whole = bytearray(file.read_bytes())
    path = tmp_path / "weights.npz"
    no_data = headers_alone(path, SHAPES).read_bytes()
    for damaged in (b"", b"nothing of the kind", pickle.dumps({}), no_data, whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        assert refused(path).startswith("not a .npz file, or damaged, or cut short: ")
    whole[len(whole) // 2] ^= 1  # one bit of one weight
    path.write_bytes(whole)
    assert "Bad CRC-32" in refused(path)


def test_pickles_are_refused_with_what_to_do(tmp_path):
    for suffix in (".pth", ".pt", ".pkl"):
        line = refused(tmp_path / f"weights{suffix}")
        assert "torch.load(" in line and "weights_only=True" in line and f"{tmp_path}/weights.npz" in line


def test_other_names_and_missing_files(tmp_path):
    for folder in (tmp_path, tmp_path / "folder.npz", tmp_path / "folder.pth"):
        folder.mkdir(exist_ok=True)
        with pytest.raises(ValueError, match=f"{folder} is a folder; Inception's weights are a file .npz or .safetensors"):
            inception.load(folder)
    assert refused(tmp_path / "weights.h5") == "Inception's weights are a file .npz or .safetensors"
    with pytest.raises(FileNotFoundError, match="no such file"):
        inception.load(tmp_path / "weights.npz")


def test_safetensors_give_the_same_arrays(tmp_path, arrays):
    from safetensors import numpy as safetensors

    path = tmp_path / "weights.safetensors"
    safetensors.save_file({name: np.asarray(array) for name, array in arrays.items()}, path)
    read = inception.READERS[".safetensors"](path, SHAPES)
    assert read.keys() == SHAPES.keys() and all(np.array_equal(read[name], arrays[name]) for name in SHAPES)

    path.write_bytes(path.read_bytes()[:-4])
    assert refused(path).startswith("not a .safetensors file, or damaged, or cut short: SafetensorError")
    safetensors.save_file({FIRST: np.zeros((32, 3, 3, 4), np.float32)}, path)
    assert refused(path).startswith("tensor Conv2d_1a_3x3.conv.weight is float32 [32, 3, 3, 4], not float32 [32, 3, 3, 3]")
