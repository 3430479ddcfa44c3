"""The command `plot`: schedules side by side, as alpha-bar, log-SNR, beta and SNR, with their terminal SNRs."""

import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from noisesched import diffusion, schedules, spec
from noisesched.runtime.pictures import COLOURS, new_figure, save_figure, tidy_axes

LINES = ("-", "--", ":", "-.")
LOG_SNR = (-15.0, 15.0)  # the range of the log-SNR axis
SNR = (1e-6, 1e4)  # the range of the SNR axis; below the first it is linear down to 0


def curves(schedule, points=2001):
    """(u, log_snr, alpha_bar, snr, beta), float64 [points] each; beta = -d log(alpha_bar) / du, the continuous process's rate.

    The points are dense at both ends, where schedules are steep. For a discrete schedule beta is its table's, times T. Where the
    SNR is 0, beta is infinite.
    """
    u = (1 - np.cos(np.linspace(0.0, np.pi, points))) / 2
    log_snr = np.asarray(schedule(u), np.float64)
    if schedule.table:
        betas, num_steps = schedule.table.betas, schedule.table.num_steps
        beta = num_steps * betas[np.clip(np.ceil(u * num_steps).astype(int) - 1, 0, num_steps - 1)]
    else:
        # d log sigmoid(l) = sigmoid(-l) dl
        beta = np.asarray(diffusion.sigma(jnp.asarray(log_snr)) ** 2 * schedules.rate(schedule, jnp.asarray(u)), np.float64)
        beta[[0, -1]] = beta[[1, -2]]  # the derivative need not exist at the very ends
        beta[np.isneginf(log_snr)] = math.inf
    with np.errstate(over="ignore"):  # SNR at u = 0 may be infinite
        snr = np.exp(log_snr)
    return u, log_snr, np.asarray(diffusion.alpha_bar(jnp.asarray(log_snr)), np.float64), snr, beta


def plot(specs, path, say=print):
    """Plots the schedules of `specs` to the file `path` and says their terminal SNRs and unevenness.

    For schedules defined by sigma_ve that leak it says why, and which schedule does not. ValueError for a bad spec or path.
    """
    made = {text.strip(): schedules.make(text) for text in specs}
    figure = new_figure(12, 8.6, layout="constrained")
    if (ending := Path(path).suffix[1:].lower()) not in (known := figure.canvas.get_supported_filetypes()):
        raise ValueError(f"--out={path!r}: the picture's ending must be one of {', '.join(sorted(known))}; got {ending!r}")
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        plot_panels(figure, made, say)
        save_figure(path, figure, dpi=130)
    except OSError as error:
        raise ValueError(f"--out={path!r} cannot be written: {error.strerror or error}") from None
    for text, schedule in made.items():
        if sigma_ve := schedules.terminal_sigma_ve(schedule):
            say(
                f"{spec.shortened(text)} ends at sigma_ve = {sigma_ve:.4g}: x + sigma_ve eps has SNR 0 at no finite sigma_ve; "
                f"in unit variance, this has: {spec.shortened(str(schedules.with_zero_terminal(schedule)))}"
            )
    say(f"written to {path}")


def figure(specs):
    """The same as a Figure, which is not written. ValueError for a bad spec."""
    drawn = new_figure(12, 8.6, layout="constrained")
    plot_panels(drawn, {text.strip(): schedules.make(text) for text in specs}, say=lambda line: None)
    return drawn


def unevenness(schedule):
    """`schedules.unevenness` as text: "-" if it is not defined, as for a table with a single finite level."""
    try:
        return f"{schedules.unevenness(schedule):.3f}"
    except ValueError:
        return "-"


def plot_panels(figure, made, say):
    """Adds the four panels and the legend to an empty figure, and says a line per schedule. `made`: {name: schedule}."""
    (top_left, top_right), (bottom_left, bottom_right) = figure.subplots(2, 2, sharex=True)
    panels = {"alpha_bar": top_left, "log_snr": top_right, "beta": bottom_left, "snr": bottom_right}
    ends = []  # (terminal SNR, colour) of each schedule
    names = [spec.shortened(text) for text in made]
    for number, (name, schedule) in enumerate(zip(names, made.values(), strict=True)):
        u, log_snr, alpha_bar, snr, beta = curves(schedule)
        terminal, terminal_snr = log_snr[-1], snr[-1]
        say(
            f"{name:{max(map(len, names))}}  terminal SNR {terminal_snr:<9.3g} log-SNR {terminal:<8.4g} "
            f"sqrt(alpha_bar) {math.sqrt(alpha_bar[-1]):<8.4g} unevenness {unevenness(schedule)}"
        )
        colour = COLOURS[number % len(COLOURS)]
        # Curves may coincide (a table and its continuous namesake): later ones are thinner, so that all are visible.
        line = {
            "color": colour,
            "linestyle": LINES[number // len(COLOURS) % len(LINES)],
            "linewidth": np.linspace(3.2 if len(made) > 2 else 2.2, 1.4, len(made))[number],
        }
        for quantity, values in (("alpha_bar", alpha_bar), ("log_snr", log_snr), ("beta", beta), ("snr", snr)):
            panels[quantity].plot(u, np.where(np.isfinite(values), values, np.nan), **line)
        top_left.lines[-1].set_label(f"{name}   (terminal SNR {terminal_snr:.3g})")
        # Each curve's end: a dot, or an arrowhead where it leaves the picture for -inf.
        dot = {"color": colour, "clip_on": False, "zorder": 3, "linestyle": "", "markersize": 7, "markeredgecolor": "white"}
        top_left.plot([1], [alpha_bar[-1]], "o", **dot)
        bottom_right.plot([1], [terminal_snr], "o", **dot)
        top_right.plot([1], [max(terminal, LOG_SNR[0])], "o" if terminal > LOG_SNR[0] else "v", **dot)
        ends.append((terminal_snr, colour))
    top_left.set(title=r"Share of the image,  $\bar\alpha = \alpha^2$", ylim=(-0.02, 1.02))
    top_right.set(title=r"log-SNR $= \log(\alpha^2 / \sigma^2)$   (arrowhead: ends at $-\infty$)", ylim=LOG_SNR)
    bottom_left.set(title=r"$\beta$, noise added per unit of $u$", yscale="log", ylim=(0.05, 1000))
    bottom_right.set(title="SNR down to its terminal value")
    bottom_right.set_yscale("symlog", linthresh=SNR[0], linscale=0.7)
    bottom_right.set(ylim=(0, SNR[1]), yticks=[0, *(10.0**k for k in range(-6, 5, 2))])
    tidy_axes(panels.values())
    for panel in panels.values():
        panel.set_xlim(-0.01, 1.015)  # so that drops at the very ends are visible
    bottom_left.set_xlabel("$u$: 0 clean, 1 noise")
    bottom_right.set_xlabel("$u$: 0 clean, 1 noise")
    _label_ends(bottom_right, ends)
    columns = 2 if len(made) > 1 and max(map(len, names)) <= 45 else 1  # two longer names are wider than the picture
    figure.legend(loc="outside lower center", ncols=columns, frameon=False)


def _label_ends(panel, ends):
    """Writes the terminal SNRs beside their dots, moved apart where they would overlap; equal ones once."""
    lowest = 0.0
    for value, colours in _grouped(ends):
        if not value <= SNR[1]:
            continue
        at = panel.transAxes.inverted().transform(panel.transData.transform((1, value)))[1]
        lowest = at = max(at, lowest)
        panel.annotate(
            f"{value:.3g}",
            (1, at),
            (9, 0),
            xycoords="axes fraction",
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=colours[0] if len(colours) == 1 else "black",
            annotation_clip=False,
        )
        lowest += 0.045


def _grouped(ends):
    """(value, colours) in rising order, one for all ends with the same label."""
    groups = {}
    for value, colour in sorted(ends):
        groups.setdefault(f"{value:.3g}", (value, []))[1].append(colour)
    return groups.values()


def main(request):
    """The command."""
    plot(request.schedules, request.out)
