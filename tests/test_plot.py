"""The picture of schedules, and what is said of them."""

import math

import numpy as np
import pytest

from noisesched import schedules
from noisesched.diagnosis import plot


def said(specs, path):
    lines = []
    plot.plot(specs, str(path), lines.append)
    return lines


def test_terminal_snr_is_said(tmp_path):
    """Against closed forms: exp(-I(1)) of the continuous schedules, and DDPM's product of its thousand betas."""
    specs = ["linear", "scaled_linear", "cosine", "zero_terminal(linear)", "discrete(linear)", "constant"]
    *lines, last = said(specs, tmp_path / "a.png")
    assert last == f"written to {tmp_path / 'a.png'}"
    words = [line.split() for line in lines]
    assert [w[0] for w in words] == specs
    table = np.prod(1 - np.linspace(1e-4, 0.02, 1000))
    root = np.linspace(math.sqrt(0.85), math.sqrt(12), 100_001)
    alpha_bar = [math.exp(-10.05), math.exp(-np.trapezoid(root**2, dx=1e-5)), 0, 0, table, math.exp(-10)]
    for w, wanted in zip(words, alpha_bar, strict=True):
        snr, log_snr, root = float(w[3]), float(w[5]), float(w[7])
        assert snr == pytest.approx(wanted / (1 - wanted), rel=0.006)
        assert root == pytest.approx(math.sqrt(wanted), rel=0.001)
        assert log_snr == pytest.approx(math.log(wanted / (1 - wanted)) if wanted else -math.inf, rel=0.001)


def test_long_names_are_shortened(tmp_path):
    """A schedule from a file is called by its file; a long list loses its middle, in the lines and in the legend."""
    knots = [round(13 - 0.1 * k, 1) for k in range(200)]
    (file := tmp_path / "levels.txt").write_text("\n".join(map(str, knots)))
    specs = ["cosine", f"piecewise('{file}')", f"piecewise({knots})"]
    *lines, _ = said(specs, tmp_path / "a.png")
    names = [line.partition("  terminal SNR")[0] for line in lines]
    assert len({len(name) for name in names}) == 1 and len(names[0]) <= 60 and names[0].rstrip() == "cosine"
    assert names[1].startswith("piecewise('/") and names[1].rstrip().endswith("levels.txt')")
    assert names[2].startswith("piecewise([13.0, 12.9, ") and " ... " in names[2] and names[2].endswith(", -6.9])")
    assert lines[1].partition("  terminal SNR")[2] == lines[2].partition("  terminal SNR")[2]

    from matplotlib.figure import Figure

    plot.plot_panels(figure := Figure(), {text: schedules.make(text) for text in specs}, lambda line: None)
    assert [text.get_text().partition("   (")[0] for text in figure.legends[0].get_texts()] == [name.rstrip() for name in names]


def test_leaking_schedules_in_sigma_are_told_of(tmp_path):
    """With the sigma at which they end, and the schedule that does not leak, to be pasted."""
    specs = ["linear", "karras", "zero_terminal(karras)", "uniform_log_snr", "discrete(karras, num_steps=9)"]
    *lines, karras, table, _ = said(specs, tmp_path / "a.png")
    assert karras.startswith("karras ends at sigma_ve = 80: ") and "finite" in karras and len(karras) < 130
    for line, leaking in ((karras, "karras"), (table, "discrete(karras, num_steps=9)")):
        repaired = line.rpartition(": ")[2]
        assert repaired == str(schedules.with_zero_terminal(leaking)) and schedules.make(repaired)(1.0) == -math.inf
    assert len(lines) == len(specs) and not any("sigma_ve" in line for line in lines)


def test_where_unevenness_is_not_defined(tmp_path):
    """One finite level is drawn as well as several."""
    specs = ["sigmas([80, 1, 0], zero_terminal=True)", "discrete(linear, num_steps=2, zero_terminal=True)", "linear"]
    *lines, _ = said(specs, tmp_path / "a.png")
    assert [line.split()[-1] for line in lines[:2]] == ["-", "-"] and 0 < float(lines[2].split()[-1]) < 1


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_picture(tmp_path, ending):
    path = tmp_path / "made" / f"picture.{ending}"
    said(["cosine", "flow", "cosine"], path)  # one twice; the folder is made
    content = path.read_bytes()
    assert content.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[ending])
    assert list(path.parent.iterdir()) == [path]
    if ending == "png":
        from PIL import Image

        with Image.open(path) as picture:
            assert min(picture.size) > 800 and len(picture.convert("P").getcolors()) > 20


def test_every_schedule_can_be_drawn(tmp_path, recwarn):
    lines = said(list(schedules.EXAMPLES.values()), tmp_path / "all.png")
    assert len(lines) == len(schedules.EXAMPLES) + 3  # where it is written; lines on karras and sigmas
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]


@pytest.mark.parametrize("spec", ["linear", "cosine", "karras", "zero_terminal(scaled_linear)", "discrete(linear)", "constant"])
def test_curves_agree_with_each_other(spec):
    """alpha_bar falls by the rate beta: its logarithm is the integral of -beta, and the SNR is alpha_bar / (1 - alpha_bar)."""
    u, log_snr, alpha_bar, snr, beta = plot.curves(schedules.make(spec))
    assert u[0] == 0 and u[-1] == 1 and (np.diff(u) > 0).all()
    inside = (alpha_bar > 1e-3) & (alpha_bar < 0.999)
    u, log_snr, alpha_bar, snr, beta = (values[inside] for values in (u, log_snr, alpha_bar, snr, beta))
    np.testing.assert_allclose(snr, alpha_bar / (1 - alpha_bar), rtol=1e-3)
    np.testing.assert_allclose(log_snr, np.log(snr), atol=1e-3)
    np.testing.assert_allclose(np.trapezoid(beta, u), np.log(alpha_bar[0] / alpha_bar[-1]), rtol=0.01)


def test_beta_is_infinite_where_the_snr_is_zero():
    assert plot.curves(schedules.make("cosine"))[-1][-1] == math.inf
    assert plot.curves(schedules.make("linear"))[-1][-1] == pytest.approx(20, rel=1e-3)
    assert plot.curves(schedules.make("discrete(linear)"))[-1][-1] == pytest.approx(20, rel=1e-6)


@pytest.mark.parametrize(
    ("specs", "path", "message"),
    [
        (["cosin"], "a.png", "did you mean 'cosine'"),
        (["linear", "cosine(5"], "a.png", "cannot read the spec"),
        (["flow(shift=-1)"], "a.png", "shift is a number from 1e-06 to 1e+06; got -1"),
        (["sigmas([80, 1, 0.1], zero_terminal=3)"], "a.png", "zero_terminal must be True or False; got 3"),
        (["discrete(scaled_linear, zero_terminal=maybe)"], "a.png", "zero_terminal must be True or False; got maybe"),
        (["linear"], "a.bmpx", "ending must be one of"),
        (["linear"], "nothing", "ending must be one of"),
        (["linear"], "file/a.png", "cannot be written"),
    ],
)
def test_faults_in_one_line(tmp_path, specs, path, message):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ValueError) as fault:
        said(specs, tmp_path / path)
    assert message in str(fault.value) and "\n" not in str(fault.value)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
