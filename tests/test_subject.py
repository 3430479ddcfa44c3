"""Anybody's own network on the command line: sampled and measured as a run is, and refused in one line where it cannot be."""

import json

import numpy as np
import pytest

from noisesched import __main__ as cli
from noisesched.runs.settings import ConfigError
from noisesched.runs.subject import asked, of_file

FILE = '''"""The exact answer for Gaussian data of standard deviation 1/4, told timesteps of DDPM's table."""
import jax.numpy as jnp
import numpy as np

from noisesched import schedules, wrap

TABLE = "discrete(linear, num_steps=1000)"
alpha_bar = jnp.asarray(schedules.make(TABLE).table.alpha_bar)


def eps(z, timestep):
    a = alpha_bar[timestep.astype(int) - 1][:, None, None, None]
    return jnp.sqrt(1 - a) * z / (a / 16 + 1 - a)


denoise = wrap(eps, table=TABLE, shape=(8, 8, 1))
flow = wrap(lambda y, t: 0.5 * y, "velocity", "flow_time", coordinates="flow", shape=(8, 8, 1))
told = wrap(lambda z, log_snr: 0.5 * z, "x", "log_snr", shape=(8, 8, 1), drawn="cosine")
torch = wrap(lambda z, log_snr: 0.5 * z, "x", "log_snr", shape=(8, 8, 1), drawn="cosine", numpy=True)
labelled = wrap(lambda z, t, labels: labels[:, None, None, None] * z / 10, "v", table=TABLE, shape=(8, 8, 1), num_classes=10)
shapeless = wrap(eps, table=TABLE)
latent = wrap(eps, table=TABLE, shape=(8, 8, 4))
undrawn = wrap(lambda z, log_snr: z, "x", "log_snr", shape=(8, 8, 1))
edm = wrap(lambda y, c_noise: 0 * y, "edm", "c_noise", shape=(8, 8, 1), drawn="log_normal")
complex_ = wrap(lambda z, log_snr: z * 1j, "x", "log_snr", shape=(8, 8, 1), drawn="cosine")
numpy = wrap(lambda z, log_snr: np.asarray(z), "x", "log_snr", shape=(8, 8, 1), drawn="cosine")
raises = wrap(lambda z, log_snr: 1 / 0, "x", "log_snr", shape=(8, 8, 1), drawn="cosine", numpy=True)
late = wrap(lambda z, log_snr: choose(z), "x", "log_snr", shape=(8, 8, 1), drawn="cosine", numpy=True)
broken = wrap(lambda z, t: z * jnp.nan, table=TABLE, shape=(8, 8, 1))
raising = wrap(lambda z, t: z @ "x", table=TABLE, shape=(8, 8, 1))
other = wrap(lambda z, t: z[:, :4], table=TABLE, shape=(8, 8, 1))
plain = eps


def choose(z):
    if len(z) == 8:
        raise KeyError("no batches of eight")
    return z
'''


@pytest.fixture
def file(tmp_path):
    (tmp_path / "my.py").write_text(FILE)
    return str(tmp_path / "my.py")


def test_samples_of_a_gaussian_are_gaussian(main, file, tmp_path):
    code, out, err = main(
        "sample", f"--denoiser={file}:denoise", "--data=digits", "--steps=50", "--num_images=32", f"--out={tmp_path / 'out'}"
    )
    assert code == 0 and f"1 x 32 images of {file}:denoise" in out + err
    images = np.load(tmp_path / "out" / "samples.npy")
    assert 0.22 < images.std() / 127.5 < 0.25  # ddim shrinks it a little
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["denoiser"] == f"{file}:denoise" and settings["checkpoint"] is None and "workdir" not in settings
    assert settings["schedule"] == "discrete(linear, num_steps=1000)"


@pytest.mark.parametrize("name", ["flow", "told", "torch", "labelled"])
def test_every_kind_is_sampled(main, file, tmp_path, name):
    more = ("--guidance=cfg(2)", "--labels", "3", "10") if name == "labelled" else ()
    asked = ("sample", f"--denoiser={file}:{name}", "--data=digits", "--steps=2", "--num_images=8", f"--out={tmp_path / 'out'}")
    assert main(*asked, *more)[0] == 0
    assert np.load(tmp_path / "out" / "samples.npy").shape == (8, 8, 8, 1)


def test_an_evaluation_is_not_repeated_unless_the_network_changes(main, file, tmp_path):
    words = ("evaluate", f"--denoiser={file}:told", "--data=digits", "--num_images=4", "--noises=2", "--profile_levels=5")
    words += (f"--out={tmp_path / 'out'}",)
    assert main(*words)[0] == 0
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert found["bits_per_dim"]["value"] > 0 and found["drawn"] == "cosine" and found["zero_snr"]["spread"] > 0
    code, out, err = main(*words)
    assert code == 0 and "is evaluated already" in out + err
    (tmp_path / "my.py").write_text(FILE.replace("0.5 * z", "0.4 * z"))
    code, out, err = main(*words)
    assert code == 0 and "is evaluated already" not in out + err
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["bits_per_dim"] != found["bits_per_dim"]


def test_what_a_numpy_function_raises_is_told(main, file, tmp_path, monkeypatch):
    words = ("sample", f"--denoiser={file}:late", "--steps=2", "--num_images=8", f"--out={tmp_path / 'out'}")
    with pytest.warns(UserWarning, match="a function of NumPy arrays failed: KeyError: 'no batches of eight'"):
        code, out, err = main(*words)  # on eight devices, which wait for each other
    assert code == 2 and "8 of 8 images have values that are not finite" in err
    error = RuntimeError(
        "INTERNAL: callback failed: Traceback (most recent call last):\n  File ..\nKeyError: 'no batches of eight'"
    )
    assert cli.told(error) == ("a function of NumPy arrays failed: KeyError: 'no batches of eight'", 2)


def test_a_density_without_an_end_is_measured_where_it_is_rare(main, file, tmp_path):
    words = ("--data=digits", "--num_images=2", "--noises=2", "--profile_levels=5", f"--out={tmp_path / 'out'}")
    assert main("evaluate", f"--denoiser={file}:edm", *words)[0] == 0
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert found["last_level"]["log_snr"] == pytest.approx(2.4 - 3.09 * 2.4, abs=0.01) and found["zero_snr"]["spread"] is None


def test_eps_has_no_answer_at_zero_snr(main, file, tmp_path):
    words = ("--data=digits", "--num_images=2", "--noises=2", "--profile_levels=5", f"--out={tmp_path / 'out'}")
    assert main("evaluate", f"--denoiser={file}:denoise", *words)[0] == 0
    assert "predicts eps" in json.loads((tmp_path / "out" / "evaluation.json").read_text())["zero_snr"]["reason"]


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("my.py", "digits", "must be FILE.py:NAME"),
        ("other.py:denoise", "digits", "there is no file"),
        ("my.py:nothing", "digits", "has no 'nothing'; made there by noisesched.wrap: broken, complex_, denoise"),
        ("my.py:plain", "digits", "is a function: make it by noisesched.wrap"),
        ("my.py:shapeless", "digits", r"shape=\(\)\) must be the shape of an image"),
        (
            "my.py:latent",
            "digits",
            r"data='digits': for latents of shape \(8, 8, 4\), give a config file with data.name='arrays'",
        ),
        ("my.py:undrawn", "digits", "say which levels it was trained on"),
        ("my.py:numpy", "digits", r"function of NumPy arrays: wrap\(.., numpy=True\)"),
        ("my.py:raises", "digits", "are not finite"),  # on eight devices: see `late`
        ("my.py:complex_", "digits", r"answers images \(3, 8, 8, 1\) with complex64 \(3, 8, 8, 1\)"),
        ("my.py:denoise", "no_such_folder", "there is no such folder, config file or prepared data set"),
        ("my.py:broken", "digits", "answers at log-SNR -6.48, -2.46, 0.659 are not finite"),
        ("my.py:raising", "digits", "the network cannot be called: TypeError"),
        ("my.py:other", "digits", r"answers images \(3, 8, 8, 1\) with float32 \(3, 4, 8, 1\)$"),
        ("my.py:denoise", "", "name the images that it was trained on"),
        ("my.py:denoise", "cifar10.py", r"has images \(32, 32, 3\), but the network's have the shape \(8, 8, 1\)"),
        ("my.py:denoise", "no_config.py", "config file 'no_config.py' not found"),
        ("bad.py:denoise", "digits", r"bad.py, line 2: ZeroDivisionError: division by zero"),
    ],
)
@pytest.mark.filterwarnings("ignore:a function of NumPy arrays failed")
def test_faults_of_own_networks_are_one_line(file, tmp_path, monkeypatch, name, data, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.py").write_text("x = 1\ny = 1 / 0\n")
    with pytest.raises(ConfigError, match=says) as error:
        of_file(name, data)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "give the --workdir of a run, or your own network"),
        (("--workdir=a", "--denoiser=my.py:denoise"), "give the --workdir of a run, or your own network"),
        (("--workdir=a", "--data=digits"), "is for a --denoiser"),
        (("--denoiser=my.py:denoise", "--data=digits", "--checkpoint=3"), "checkpoint: this is for a run"),
        (("--denoiser=my.py:denoise", "--data=digits", "--translation=raw"), "translation: this is for a run"),
        (("--denoiser=my.py:denoise", "--data=digits", "--guidance=cfg(2)"), "was trained without classes"),
        (("--denoiser=my.py:denoise", "--data=digits", "--schedule=cosine"), "cannot be called at log-SNR -inf"),
        (("--denoiser=my.py:denoise", "--data=digits", "--schedule=karras"), "lie outside the table of timesteps"),
    ],
)
def test_faults_of_requests_are_one_line(main, file, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    code, out, err = main("sample", *words, "--out=out")
    assert code == 2 and says in err and err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_config_of_its_images_is_taken_whole(file, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from configs import digits\n\ndef get_config():\n    config = digits.get_config()\n"
        "    config.data.split = 'train[:90%]'\n    return config\n"
    )
    assert of_file(f"{file}:denoise", str(tmp_path / "mine.py")).data.split == "train[:90%]"
    assert of_file(f"{file}:denoise", str(tmp_path)).data.path == str(tmp_path)
    (tmp_path / "mine.py").write_text(
        "from configs import digits\n\ndef get_config():\n    config = digits.get_config()\n    config.data.name = 'arrays'\n"
        "    config.data.channels, config.data.dtype = 4, 'float32'\n    return config\n"
    )
    assert of_file(f"{file}:latent", str(tmp_path / "mine.py")).data.dtype == "float32"


def test_a_latent_network_makes_floats(main, file, tmp_path):
    assert main("sample", f"--denoiser={file}:latent", "--steps=2", "--num_images=8", f"--out={tmp_path / 'out'}")[0] == 0
    made = np.load(tmp_path / "out" / "samples.npy")
    assert made.dtype == np.float32 and made.shape == (8, 8, 8, 4) and (tmp_path / "out" / "grid.png").exists()


def test_nothing_of_a_workdir_is_run(tmp_path):
    class Request:
        workdir, denoiser, data = str(tmp_path), "", ""

    (tmp_path / "my.py").write_text("raise SystemExit('it was run')")
    with pytest.raises(FileNotFoundError, match="holds no run"):
        asked(Request)
