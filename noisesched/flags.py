"""The flags of every command, and their help. The only file with flags; what they ask for is done in `__main__`."""

import argparse
import textwrap

from noisesched import __version__

EXAMPLES = """
examples:
  noisesched train --config=configs/digits.py --workdir=runs/digits
  noisesched train --config=configs/digits.py --workdir=runs/slow --config.optimizer.learning_rate=1e-4
  noisesched train --workdir=runs/digits                   # go on with a run, with the settings it has
  noisesched sample --workdir=runs/digits --schedule=cosine --steps=20 --out=samples
  noisesched sample --workdir=runs/digits --schedule linear karras "shifted(cosine, by=-2)" --steps 5 10 50 --out=samples
  noisesched evaluate --workdir=runs/digits --discrete cosine:100 --metrics "frechet(classifier)"
  noisesched diagnose --config=configs/digits.py --config.schedule=scaled_linear --spacing=leading
  noisesched diagnose --scheduler=scheduler_config.json --config=configs/image_folder.py --config.data.image_size=64
  noisesched plot linear cosine "zero_terminal(scaled_linear)" --out=schedules.png
  noisesched interchange --read=scheduler_config.json
  noisesched benchmark --config=configs/digits.py
"""


class Parser(argparse.ArgumentParser):
    """Argparse with one-line errors, and an epilog that is made only when it is shown."""

    def __init__(self, *args, more=None, **kwargs):
        super().__init__(*args, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)
        self.more = more

    def format_help(self):
        if self.more:
            self.epilog = self.more()
        return super().format_help()

    def error(self, message):
        self.exit(2, f"noisesched: error: {message}; see {self.prog} --help\n")


def parser():
    top = Parser(
        prog="noisesched",
        description=textwrap.dedent("""\
        Train a diffusion network that is told the log-SNR, then sample that one checkpoint under any noise schedule,
        number of steps and sampler, and see what each schedule does."""),
        epilog=EXAMPLES,
    )
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name, help, description, more=None, cluster=False):
        sub = commands.add_parser(name, help=help, description=textwrap.dedent(description), more=more)
        sub.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
        if cluster:
            several = sub.add_argument_group(
                "one job of several processes, each on its own host or devices",
                textwrap.dedent("""\
                All run the same command. On Cloud TPU, SLURM and Open MPI they find each other; elsewhere give all three."""),
            )
            several.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 is, and a free port there")
            several.add_argument("--num_processes", type=positive, metavar="N", help="how many there are")
            several.add_argument("--process_id", type=natural, metavar="K", help="the number of this one, from 0")
        return sub

    train = command(
        "train",
        "train a network, or go on training one",
        """\
        Train the network that a config file describes, in a workdir. The same command again goes on from the last checkpoint,
        as after a kill. The workdir holds config.json, checkpoints, metrics.jsonl, TensorBoard events and sample grids.
        Exit status: 0 done; 75 stopped by a signal, saved: the same command goes on; 1 stopped by a fault; 2 wrong input.""",
        more=lambda: f"Any setting can be overridden, --config.group.name=value; configs/digits.py explains them.\n{EXAMPLES}",
        cluster=True,
    )
    train.add_argument("--workdir", required=True, type=folder, help="folder of the run")
    train.add_argument("--config", help="config file; may be left out to go on with the run in the workdir")
    train.add_argument(
        "--accept_changes",
        action="store_true",
        help="go on with a run although the config differs from its own: not in its network or data",
    )
    train.add_argument(
        "--profile",
        type=positive,
        default=0,
        metavar="N",
        help="trace N steps, after 10 others, into WORKDIR/profile, for TensorBoard (none)",
    )

    sample = command(
        "sample",
        "sample a trained network under any schedules",
        """\
        Sample the run in a workdir under every combination of the given schedules, steps and methods. It needs nothing but
        the workdir. Writes samples.npy, grid.png and settings.json; for several combinations, a folder each and overview.png.""",
        more=known_specs,
        cluster=True,
    )
    sample.add_argument("--workdir", required=True, type=folder, help="folder of the run")
    sample.add_argument("--schedule", nargs="+", default=[], metavar="SPEC", help="inference schedules (the training one)")
    sample.add_argument("--steps", nargs="+", type=positive, default=[25], metavar="N", help="numbers of levels (25)")
    sample.add_argument(
        "--method", nargs="+", default=["ddim"], metavar="SPEC", help='samplers, e.g. ddim "ddim(eta=1)" heun (ddim)'
    )
    sample.add_argument(
        "--spacing",
        default="trailing",
        choices=("trailing", "leading", "linspace"),
        help="where the levels lie on the schedule (trailing)",
    )
    sample.add_argument("--num_images", type=positive, default=64, metavar="N", help="images of each combination (64)")
    sample.add_argument("--seed", type=natural, default=0, help="of the noise; the same for all combinations (0)")
    sample.add_argument("--parameters", default="ema", choices=("ema", "params"), help="averaged or raw parameters (ema)")
    sample.add_argument("--checkpoint", type=natural, metavar="STEP", help="step of the checkpoint (the latest)")
    sample.add_argument(
        "--translation",
        choices=("nearest", "interpolated", "raw"),
        help="for a network told timesteps: how a level becomes one (as its config says)",
    )
    sample.add_argument(
        "--guidance",
        nargs="+",
        default=["none"],
        metavar="SPEC",
        help='for a network with classes, e.g. none "cfg(3)" "cfg(3, rescaled(0.7))" (none)',
    )
    sample.add_argument("--labels", nargs="+", type=natural, default=[], metavar="K", help="classes, cycled through (all)")
    sample.add_argument("--out", required=True, type=folder, help="folder to write to")

    evaluate = command(
        "evaluate",
        "measure a trained network on images it has not seen",
        """\
        Measure the run in a workdir on held-out images: bits per dimension, in continuous time and for the levels of given
        schedules; the network's error against log-SNR; what it knows at its last trained level and answers at zero SNR; and, if
        metrics are given, distances of samples from real images. Writes evaluation.json and profile.png. An evaluation that is
        there already is not made again.""",
        more=known_metrics,
        cluster=True,
    )
    evaluate.add_argument("--workdir", required=True, type=folder, help="folder of the run")
    given_only = {"default": argparse.SUPPRESS}  # the defaults are evaluate.Request's
    evaluate.add_argument("--split", **given_only, help="held-out images, e.g. test, 'test[:100]' (test)")
    evaluate.add_argument("--num_images", type=natural, metavar="N", **given_only, help="the first so many; 0: all (0)")
    evaluate.add_argument(
        "--noises", type=positive, metavar="N", **given_only, help="draws of (level, noise) for each image, an even number (16)"
    )
    evaluate.add_argument("--log_snr_min", type=float, **given_only, help="noisiest level of the bound (-12)")
    evaluate.add_argument("--log_snr_max", type=float, **given_only, help="cleanest level of the bound (13.3)")
    evaluate.add_argument("--profile_levels", type=positive, metavar="N", **given_only, help="levels of the loss profile (41)")
    evaluate.add_argument(
        "--discrete",
        nargs="+",
        type=schedule_and_count,
        metavar="SPEC:N",
        **given_only,
        help="also the bound in discrete time, for N levels of a schedule, e.g. cosine:100",
    )
    evaluate.add_argument(
        "--best_levels",
        type=natural,
        metavar="N",
        **given_only,
        help="also find the N levels of the least discrete bound, written as a schedule (0: none)",
    )
    evaluate.add_argument("--checkpoint", type=natural, metavar="STEP", **given_only, help="step of the checkpoint (the latest)")
    evaluate.add_argument("--parameters", choices=("ema", "params"), **given_only, help="averaged or raw parameters (ema)")
    evaluate.add_argument(
        "--translation",
        choices=("nearest", "interpolated"),
        **given_only,
        help="for a network told timesteps: how a level becomes one (as the run's config says)",
    )
    evaluate.add_argument("--seed", type=natural, **given_only, help="of levels, noise and samples (0)")
    evaluate.add_argument(
        "--metrics",
        nargs="+",
        metavar="METRIC",
        **given_only,
        help='distances of samples from real images, e.g. "frechet(classifier)" (none)',
    )
    evaluate.add_argument("--schedule", metavar="SPEC", **given_only, help="of the samples (the training one)")
    evaluate.add_argument("--steps", type=positive, metavar="N", **given_only, help="levels of the samples (25)")
    evaluate.add_argument("--method", metavar="SPEC", **given_only, help="sampler (ddim)")
    evaluate.add_argument("--guidance", metavar="SPEC", **given_only, help='of the samples, e.g. "cfg(3)" (none)')
    evaluate.add_argument("--num_samples", type=positive, metavar="N", **given_only, help="samples to measure (256)")
    evaluate.add_argument("--inception_weights", metavar="FILE", **given_only, help="Inception-V3's, for metrics that need it")
    evaluate.add_argument("--out", type=folder, **given_only, help="folder to write to (evaluation, in the workdir)")

    diagnose = command(
        "diagnose",
        "find what is wrong with a config before it is trained",
        """\
        Say what is wrong with a config and the levels it is to be sampled at, before anything is trained: what the training
        schedule leaks at its end, where the weight of the loss lies over log-SNR, whether sampling starts where training ended
        and stays where it went; each with the words that repair it (those that begin with --config are for a run begun anew).
        Trains nothing; where the data set is not there, it says what it assumes. With --scheduler, what is diagnosed is the
        scheduler_config.json of a network of PyTorch's diffusers; images, their size (of a latent network: of its latents) and
        weighting stay the config's, and repairs are told as fields of the file, too. Of those, timestep_spacing needs no new
        training. Exit status: 0; 1 if there is a fault; 2 if nothing could be diagnosed.""",
        more=lambda: f"Any setting can be overridden, --config.group.name=value; configs/digits.py explains them.\n{EXAMPLES}",
    )
    diagnose.add_argument("--config", help="config file")
    diagnose.add_argument("--workdir", help="or the folder of a run")
    diagnose.add_argument(
        "--scheduler",
        type=folder,
        metavar="FILE",
        help="a scheduler_config.json, which says schedule, prediction and levels in place of the config",
    )
    diagnose.add_argument("--schedule", nargs="+", default=[], metavar="SPEC", help="inference schedules (that of the previews)")
    diagnose.add_argument("--steps", nargs="+", type=positive, default=[], metavar="N", help="numbers of levels (the previews')")
    diagnose.add_argument(
        "--spacing", choices=("trailing", "leading", "linspace"), help="where the levels lie on the schedule (trailing)"
    )
    diagnose.add_argument("--out", type=folder, metavar="DIR", help="also write diagnosis.json and diagnosis.png to a folder")

    plot = command(
        "plot",
        "draw schedules side by side",
        """\
        Draw alpha-bar, log-SNR, beta and SNR of schedules side by side, with each one's terminal SNR marked and printed.""",
        more=known_specs,
    )
    plot.add_argument("schedules", nargs="+", metavar="SPEC", help="schedules, e.g. linear cosine 'shifted(cosine, by=-2)'")
    plot.add_argument("--out", default="schedules.png", help="picture to write, .png, .svg or .pdf (schedules.png)")

    compare = command(
        "compare",
        "measure networks under schedules, samplers and numbers of network calls",
        """\
        Carry out the comparison that a config file describes (configs/compare.py is the page that explains it): train what is
        not trained yet, then sample and measure every run x schedule x sampler x number of calls x seed, a line each in
        compare.jsonl. The same command goes on where it was stopped.""",
        more=lambda: "Any setting can be overridden: --config.name=value.",
        cluster=True,
    )
    compare.add_argument("--config", required=True, help="config file of the comparison")
    compare.add_argument("--out", required=True, type=folder, help="folder of the comparison")
    compare.add_argument(
        "--share",
        type=share,
        metavar="K/N",
        help="carry out only the K-th of N shares of the runs, beside "
        "other processes or machines with the same --out; afterwards, without it, put them together",
    )

    report = command(
        "report",
        "write the report of a comparison",
        """\
        Tell what `compare` left in a folder as a short paper: report.html, one page that needs no network, and report.md with its
        pictures. It says what differs, by a rule that it states, what it cost, and what the data do not show.""",
    )
    report.add_argument("--compare", required=True, type=folder, metavar="DIR", help="folder of the comparison")
    report.add_argument("--out", type=folder, metavar="DIR", help="folder to write to (DIR/report)")

    interchange = command(
        "interchange",
        "read and write the scheduler_config.json of PyTorch's diffusers",
        """\
        Read a scheduler_config.json into a schedule, a prediction, a spacing and a sampler here, and say what does not carry
        over; or write one with which that library samples as we do. Neither it nor PyTorch is needed.""",
    )
    either = interchange.add_mutually_exclusive_group(required=True)
    either.add_argument("--read", metavar="FILE", help="a scheduler_config.json to tell about")
    either.add_argument("--write", metavar="FILE", help="a scheduler_config.json to write, of a --workdir or a --schedule")
    interchange.add_argument("--workdir", **given_only, help="folder of a run, whose schedule and prediction to write")
    interchange.add_argument("--schedule", metavar="SPEC", **given_only, help="schedule to write (the run's)")
    interchange.add_argument("--prediction", choices=("eps", "v", "x"), **given_only, help="of the network (the run's)")
    interchange.add_argument(
        "--spacing", choices=("trailing", "leading", "linspace"), **given_only, help="of the steps to write (trailing)"
    )
    interchange.add_argument("--method", metavar="SPEC", **given_only, help="sampler to write (ddim)")
    interchange.add_argument("--steps", type=positive, metavar="N", help="number of steps, for --sigmas")
    interchange.add_argument(
        "--sigmas",
        type=folder,
        metavar="FILE",
        help="write the levels of these steps, as sigmas, for that library, and for \"sigmas('FILE')\" here",
    )
    interchange.add_argument("--betas", type=folder, metavar="FILE", help="write the table's betas, for \"betas('FILE')\" here")

    benchmark = command(
        "benchmark",
        "measure training, sampling, input and compilation speed",
        """\
        Measure a config's training step against the bare jitted step of the same network, loss, optimizer and EMA; sampling
        against bare network calls; the wait for input; compilation, and compilation from the persistent cache.""",
        more=lambda: "Any setting can be overridden: --config.group.name=value.",
    )
    benchmark.add_argument("--config", required=True, help="config file")
    benchmark.add_argument("--seconds", type=positive, default=60, help="about how long to measure, compilation apart (60)")
    benchmark.add_argument("--calls", type=positive, default=50, metavar="N", help="network calls of the sampling run (50)")
    benchmark.add_argument("--json", metavar="FILE", help="also write the figures to this file")
    return top


def known_specs():
    import inspect

    from noisesched import guidance, samplers, schedules, spec

    def listed(title, rows):
        width = max(len(name) for name, _ in rows) + 2
        return f"{title}\n" + "\n".join(f"  {name:{width}}{text}" for name, text in rows)

    first_line = lambda function: function.__doc__.split("\n")[0]  # noqa: E731

    def with_options(name, move):
        options = list(inspect.signature(move).parameters.values())[5:]
        return str(spec.Call(name, (), tuple((option.name, option.default) for option in options)))

    return (
        "\n\n".join(
            [
                listed(
                    "schedules (a spec is a name, with or without parameters):",
                    [(schedules.EXAMPLES[name], first_line(f)) for name, f in schedules.DEFINITIONS.items()],
                ),
                listed(
                    "methods, with their options:",
                    [(with_options(name, method.move), first_line(method.move)) for name, method in samplers.METHODS.items()],
                ),
                listed(
                    "guidance: none, or cfg(scale, correction, log_snr_min=.., log_snr_max=..), scale 1 being the label, 0 none; "
                    "corrections:",
                    [
                        (f"{name}({function.__defaults__[0]})", first_line(function))
                        for name, function in guidance.CORRECTIONS.items()
                    ],
                ),
            ]
        )
        + "\n"
        + EXAMPLES
    )


def known_metrics():
    from noisesched.evaluation import metrics

    return f"metrics: {', '.join(metrics.METRICS)}; those of features name an extractor, as in frechet(classifier)\n{EXAMPLES}"


# -- what flags may be


def positive(text):
    if int(text) < 1:
        raise ValueError
    return int(text)


def natural(text):
    if not 0 <= int(text) < 2**32:
        raise ValueError
    return int(text)


def schedule_and_count(text):
    spec, _, count = text.rpartition(":")
    if not spec:
        raise ValueError
    return spec, positive(count)


def folder(text):
    if not text:
        raise argparse.ArgumentTypeError("empty: name a folder")
    return text


def share(text):
    number, _, total = text.partition("/")
    return positive(number), positive(total)


# What argparse says of a bad value.
positive.__name__, natural.__name__ = "whole number from 1 up", "whole number from 0 up"
schedule_and_count.__name__, share.__name__ = "SPEC:N, such as cosine:100", "share K/N, such as 1/2"
