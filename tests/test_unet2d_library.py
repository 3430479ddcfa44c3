"""UNet2DModel against PyTorch's diffusers itself, where it is installed (checked with 0.42 and torch 2.15): the same outputs, and
the same images from the same noise. As a program it writes the numbers that test_unet2d.py compares with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_unet2d import CASES, DDPM, OURS, PINNED, TOLD_STEPS, check, denoiser_of, inputs, random_run, weights

from noisesched import samplers, schedules
from noisesched.interchange import pipelines

diffusers = pytest.importorskip("diffusers")
torch = pytest.importorskip("torch")


def library(fields):
    """The library's network with `weights`."""
    net = diffusers.UNet2DModel.from_config(dict(fields)).eval()
    net.load_state_dict({name: torch.tensor(weights(name, tuple(leaf.shape))) for name, leaf in net.state_dict().items()})
    return net


@torch.no_grad()
def answer(net, z, timesteps, labels=None):
    """The library's output for images [B, H, W, C]."""
    labels = None if labels is None else torch.tensor(labels)
    return net(torch.tensor(z).permute(0, 3, 1, 2), torch.tensor(timesteps), labels).sample.permute(0, 2, 3, 1).numpy()


def images(net, z, steps):
    """The library's DDIM from the noise z [B, H, W, C], with the table of DDPM."""
    scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    for step in scheduler.timesteps:
        output = torch.tensor(answer(net, z, np.full(len(z), int(step))))
        z = scheduler.step(output, int(step), torch.tensor(z)).prev_sample.numpy()
    return z


def pinned():
    made = {name: answer(library(fields), *inputs(fields)) for name, fields in CASES.items()}
    return made | {"images": images(library(CASES["ddpm"]), inputs(CASES["ddpm"])[0], 5)}


def test_the_pinned_numbers_are_the_librarys():
    stored = np.load(PINNED)
    for name, expected in pinned().items():
        np.testing.assert_allclose(stored[name], expected, atol=1e-5 * np.abs(expected).max())


def test_a_run_is_loaded_there(main, small, tmp_path):
    denoise = random_run(small(OURS), tmp_path / "run")
    main("export", f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}")
    net = diffusers.UNet2DModel.from_pretrained(tmp_path / "out").eval()
    z = np.float32(np.random.default_rng(0).normal(size=(2, 8, 8, 1)))
    log_snr, labels = jnp.array([-2.0, 3.0]), np.array([1, 3])
    angle = 1000 * 2 / np.pi * np.arctan(np.exp(-np.float64(log_snr) / 2))
    check(answer(net, z, np.float32(angle), labels), np.asarray(jax.jit(lambda z: denoise.output(z, log_snr, labels))(z)))


def test_a_run_told_timesteps_is_a_pipeline_there(main, small, tmp_path):
    denoise = random_run(small(OURS | TOLD_STEPS), tmp_path / "run")
    main("export", f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}")
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path / "out")
    assert pipeline.scheduler.config.num_train_timesteps == 1000
    z = np.float32(np.random.default_rng(0).normal(size=(2, 8, 8, 1)))
    levels = schedules.levels(schedules.make("discrete(linear, num_steps=1000)"), 5)
    ours = np.asarray(samplers.sample(denoise, jax.random.key(0), jnp.asarray(z), levels, "ddim"))
    np.testing.assert_allclose(images(pipeline.unet.eval(), z, 5), ours, atol=2e-4 * np.abs(ours).max())


def test_a_saved_pipeline_is_read(tmp_path):
    """Weights drawn by PyTorch, written by the library."""
    net = diffusers.UNet2DModel.from_config(dict(DDPM)).eval()
    diffusers.DDPMPipeline(net, diffusers.DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    config, said = pipelines.read(tmp_path / "ddpm", tmp_path / "run")
    _, denoise = denoiser_of(tmp_path / "run")
    z = inputs(DDPM)[0]
    levels = schedules.levels(config.schedule, 10)
    ours = np.asarray(samplers.sample(denoise, jax.random.key(0), jnp.asarray(z), levels, "ddim"))
    np.testing.assert_allclose(images(net, z, 10), ours, atol=2e-5 * np.abs(ours).max())


if __name__ == "__main__":
    np.savez_compressed(PINNED, **pinned())
