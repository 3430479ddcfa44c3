"""What may change when a run continues, and what becomes of its config then."""

import jax

from noisesched.models import build
from noisesched.runs import config as configuration
from noisesched.runs import untrusted
from noisesched.runs.settings import stated
from noisesched.runs.workdir import differences
from noisesched.training.step import learning_rate


def adopt(workdir, config, accept_changes=False):
    """Writes a new run's config, in place of that of a run that ended before its first step. For another run, returns the
    differing settings as lines if `accept_changes` allows them; raises ConfigError otherwise."""
    size = untrusted.num_bytes((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(build.abstract_denoiser(config)[1]))
    untrusted.check_memory(size, "the parameters of this network")
    mine = configuration.to_dict(config)
    if not workdir.config.exists():
        workdir.write_config(mine)
        return []
    changed = differences(configuration.to_dict(configuration.from_dict(workdir.read_config())), mine)
    if changed and not begun(workdir):  # as when it did not fit into memory, and a smaller batch is tried
        workdir.write_config(mine)
        return []
    reasons = stated("fixed", configuration.Config)
    fixed = {line: why for line in changed for name, why in reasons.items() if f"{line.split(':')[0]}.".startswith(f"{name}.")}
    if not changed or accept_changes and not fixed:
        return changed
    shown = "; ".join(f"{line} ({fixed[line]})" if line in fixed else line for line in changed)
    accept = ", or give --accept_changes to continue with these settings" if not fixed else ""
    raise configuration.ConfigError(
        f"{workdir.path} holds a run of another configuration ({shown}): take another --workdir, or "
        f"leave out --config to continue that run{accept}"
    )


def begun(workdir):
    """Whether a run has left anything of a step in its workdir."""
    logged = workdir.metrics.exists() and workdir.metrics.stat().length > 0
    return logged or workdir.checkpoints.exists() and any(workdir.checkpoints.iterdir())


def change(workdir, config, start, changes, say):
    """Continues from step `start` with another config, whose `changes` were found acceptable; the old one is kept."""
    before = configuration.from_dict(workdir.read_config())
    if config.training.num_steps < start:
        raise configuration.ConfigError(f"training.num_steps={config.training.num_steps}, but {start} steps are done")
    if start % config.training.steps_per_dispatch:
        raise configuration.ConfigError(
            f"training.steps_per_dispatch={config.training.steps_per_dispatch} does not divide the {start} steps that are done"
        )
    workdir.replace_config(configuration.to_dict(config), start)
    say(f"{workdir.path}: other settings from step {start} on, config.before_step_{start}.json has those before:")
    for line in changes:
        say(f"  {line}")
    rates = [float(learning_rate(each)(max(start - 1, 0))) for each in (before, config)]
    if start and rates[0] != rates[1]:
        say(f"  so the learning rate at step {start} is {rates[1]:.4g}, not {rates[0]:.4g}")
