"""Schedules side by side: alpha-bar, log-SNR, beta and SNR, with each one's terminal SNR."""

import math

import jax.numpy as jnp
import numpy as np

from noisesched import diffusion, schedules


def curves(schedule, points=1001):
    """u [P], log_snr, alpha_bar, snr and beta [P], float64: beta = -d log(alpha_bar) / du, the rate of the continuous process.

    For a discrete schedule beta is that of its table, times T.
    """
    u = np.linspace(0.0, 1.0, points)
    log_snr = np.asarray(schedule(u), np.float64)
    if schedule.table:
        beta = schedule.table.betas * schedule.table.num_steps
        beta = np.interp(u, np.arange(1, len(beta) + 1) / len(beta), beta)
    else:
        # d log sigmoid(l) = sigmoid(-l) dl
        beta = np.asarray(diffusion.sigma(jnp.asarray(log_snr)) ** 2 * schedules.rate(schedule, jnp.asarray(u)), np.float64)
    return u, log_snr, np.asarray(diffusion.alpha_bar(jnp.asarray(log_snr)), np.float64), np.exp(log_snr), beta


def plot(specs, path, say=print):
    """Draws the schedules of `specs` to the picture `path`, and says each one's terminal SNR. ValueError for a bad spec or path."""
    made = [schedules.make(text) for text in dict.fromkeys(specs)]

    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    if path.rsplit(".", 1)[-1] not in (known := plt.gcf().canvas.get_supported_filetypes()):
        raise ValueError(f"--out={path!r}: the picture's ending must be one of {', '.join(sorted(known))}")
    plt.close()
    figure, axes = plt.subplots(2, 2, figsize=(12, 8), sharex=True, layout="constrained")
    panels = dict(zip(("alpha_bar", "log_snr", "beta", "snr"), axes.flat, strict=True))
    floor = -20.0  # where the curves of log-SNR and SNR leave the picture
    for number, schedule in enumerate(made):
        u, log_snr, alpha_bar, snr, beta = curves(schedule)
        terminal = float(log_snr[-1])
        value = f"{math.exp(terminal):.3g}" if terminal > -math.inf else "0"
        say(f"{schedule}: terminal SNR {value} (log-SNR {terminal:.4g}), sqrt(alpha_bar) {math.sqrt(alpha_bar[-1]):.4g}")
        style = {"color": f"C{number % 10}", "linestyle": ("-", "--", ":", "-.")[number // 10 % 4]}
        panels["alpha_bar"].plot(u, alpha_bar, label=f"{schedule}   terminal SNR {value}", **style)
        panels["log_snr"].plot(u, log_snr, **style)
        panels["beta"].plot(u, np.where(np.isfinite(beta), beta, np.nan), **style)
        panels["snr"].plot(u, snr, **style)
        # The end of each curve: a dot where the terminal SNR is, an arrowhead on the edge where that is 0.
        end = {"clip_on": False, "color": style["color"], "zorder": 3, "linestyle": ""}
        panels["alpha_bar"].plot([1], [alpha_bar[-1]], marker="o", markersize=5, **end)
        panels["log_snr"].plot([1], [max(terminal, floor)], marker="o" if terminal > floor else "v", markersize=6, **end)
        panels["snr"].plot([1], [math.exp(max(terminal, floor))], marker="o" if terminal > floor else "v", markersize=6, **end)
    panels["alpha_bar"].set(ylabel=r"$\bar\alpha$ = share of signal variance", ylim=(-0.02, 1.02))
    panels["log_snr"].set(ylabel="log-SNR", ylim=(floor, 20), xlabel="u (0 clean, 1 noise)")
    panels["beta"].set(ylabel=r"$\beta$ per unit of u", yscale="log", ylim=(0.05, 1000))
    panels["snr"].set(ylabel="SNR", yscale="log", ylim=(math.exp(floor), math.exp(-floor)), xlabel="u (0 clean, 1 noise)")
    for panel in axes.flat:
        panel.grid(alpha=0.3)
        panel.set_xlim(0, 1)
    panels["log_snr"], panels["beta"] = panels["beta"], panels["log_snr"]
    figure.legend(loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    say(f"drawn to {path}")
