"""Time our training step against PyTorch's on the same network, and print a table.

Both sides train a UNet of exactly the same parameter count (checked) on one fixed batch: forward, mean squared error, backward,
AdamW, EMA of the parameters; float32 on the CPU. PyTorch is diffusers' `UNet2DModel`, eager, with the fused AdamW and a fused
EMA; ours is `noisesched.models.unet.UNet` with the settings that `noisesched.runtime.backend` chooses by itself. Each side is
a process of its own, and the two take turns at blocks of steps, so that whatever else the machine does falls on both alike:
believe the ratio rather than the times. Neither means anything on a busy machine, where PyTorch's threads wait for one another;
there, compare on one core: `taskset -c 1 launch/versus_pytorch`.
"""

import argparse
import dataclasses
import statistics
import subprocess
import sys
import time


@dataclasses.dataclass(frozen=True)
class Size:
    image_size: int
    channels: int
    width: int
    multipliers: tuple[int, ...]
    attention: tuple[int, ...]
    batch: int
    blocks: int = 1
    heads: int = 4


SIZES = {
    "quickstart": Size(8, 1, 16, (1, 2, 2), (), 64),
    "small": Size(16, 1, 32, (1, 2), (8,), 64),
    "large": Size(32, 3, 64, (1, 2, 2), (16,), 32),
}


def jax_step(size: Size):
    """(parameter count, step): `step(n)` trains n steps and returns when they are done."""
    from noisesched.runtime import backend

    print(backend.prepare(), file=sys.stderr)
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx

    from noisesched.models.unet import UNet

    network = dataclasses.asdict(size)
    batch = network.pop("batch")
    model = UNet(**network, dropout=0.0, features=size.width, num_classes=0, dtype=jnp.float32, rngs=nnx.Rngs(0))
    z, target = jax.random.normal(jax.random.key(0), (2, batch, size.image_size, size.image_size, size.channels))
    features = jax.random.normal(jax.random.key(1), (batch, size.width))
    optimizer = optax.adamw(1e-4)

    def train(state, z, features, target):
        model, moments, ema = state
        loss, grads = jax.value_and_grad(lambda model: jnp.mean((model(z, features) - target) ** 2))(model)
        updates, moments = optimizer.update(grads, moments, model)
        model = optax.apply_updates(model, updates)
        return (model, moments, optax.incremental_update(model, ema, 1e-3)), loss

    train = jax.jit(train, donate_argnums=0)
    state = model, optimizer.init(model), jax.tree.map(jnp.copy, model)

    def step(n):
        nonlocal state
        for _ in range(n):
            state, loss = train(state, z, features, target)
        return loss.block_until_ready()

    return sum(leaf.size for leaf in jax.tree.leaves(model)), step


def torch_step(size: Size):
    """As `jax_step`, for diffusers' UNet2DModel."""
    import torch
    from diffusers import UNet2DModel

    attends = [size.image_size >> level in size.attention for level in range(len(size.multipliers))]
    widths = [size.width * m for m in size.multipliers]
    groups = min(32, size.width)
    attended = [width for width, attend in zip(widths, attends, strict=True) if attend] or [size.width]
    model = UNet2DModel(
        sample_size=size.image_size,
        in_channels=size.channels,
        out_channels=size.channels,
        layers_per_block=size.blocks,
        block_out_channels=widths,
        down_block_types=["AttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        up_block_types=["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        add_attention=attends[-1],
        attention_head_dim=attended[0] // size.heads,
        norm_num_groups=groups,
        attn_norm_num_groups=groups,
        resnet_time_scale_shift="scale_shift",
    )
    parameters = list(model.parameters())
    ema = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    z, target = torch.randn(2, size.batch, size.channels, size.image_size, size.image_size)
    timestep = torch.randint(0, 1000, (size.batch,))

    def step(n):
        for _ in range(n):
            optimizer.zero_grad(set_to_none=True)
            torch.nn.functional.mse_loss(model(z, timestep).sample, target).backward()
            optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(ema, parameters, 1e-3)

    return sum(parameter.numel() for parameter in parameters), step


SIDES = {"noisesched": jax_step, "pytorch": torch_step}


def serve(side, size):
    """The process of one side: prints its parameter count, then for each number of steps read, the seconds they took."""
    count, step = SIDES[side](SIZES[size])
    step(3)
    print(count, flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        step(int(line))
        print(time.perf_counter() - start, flush=True)


class Side:
    """A running `serve`."""

    def __init__(self, side, size):
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve", side, "--sizes", size], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.count = int(self._read())

    def _read(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"one side stopped: {' '.join(self.process.args)}")
        return line

    def seconds_per_step(self, steps):
        print(steps, file=self.process.stdin, flush=True)
        return float(self._read()) / steps

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def compare(size, pairs, seconds):
    """Alternate blocks of about `seconds`; print one row: median step of each side (quartiles) and their ratio."""
    ours, theirs = sides = [Side(side, size) for side in SIDES]
    if ours.count != theirs.count:
        sys.exit(f"{size}: {ours.count} parameters against {theirs.count}: not the same network")
    steps = [max(2, round(seconds / side.seconds_per_step(2))) for side in sides]
    times = [[side.seconds_per_step(n) for side, n in zip(sides, steps, strict=True)] for _ in range(pairs)]
    for side in sides:
        side.close()
    columns = [*zip(*times, strict=True), [b / a for a, b in times]]
    low, mid, high = zip(*(statistics.quantiles(column, n=4, method="inclusive") for column in columns), strict=True)
    row = [f"{1e3 * mid[i]:7.1f} ({1e3 * low[i]:.1f}..{1e3 * high[i]:.1f})" for i in range(2)]
    print(f"{size:12}{ours.count:>12,}  {row[0]:>24}  {row[1]:>24}  {mid[2]:8.2f} ({low[2]:.2f}..{high[2]:.2f})", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="which networks (all)")
    parser.add_argument("--pairs", type=int, default=15, help="blocks of steps that each side is timed for (15)")
    parser.add_argument("--seconds", type=float, default=1.0, help="about how long one block takes (1)")
    parser.add_argument("--serve", choices=SIDES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        return serve(given.serve, given.sizes[0])
    print("Median time of a training step in ms, and PyTorch's time over ours pair by pair; quartiles in brackets.")
    print(f"{'network':12}{'parameters':>12}  {'noisesched':>24}  {'PyTorch':>24}  speed of ours / PyTorch's")
    for size in given.sizes:
        compare(size, given.pairs, given.seconds)


if __name__ == "__main__":
    main()
