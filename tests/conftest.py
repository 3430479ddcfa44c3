"""A forgotten broadcast is an error, and programs find eight devices on the CPU. What the tests of programs share."""

import dataclasses
import importlib.metadata
import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
# What is compiled here runs a few times: compiling is most of the work, and takes half as long so.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
QUICK = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
if importlib.metadata.version("jaxlib") != "0.10.2":  # XLA ends the process at a flag that it does not know
    QUICK = ""
os.environ["XLA_FLAGS"] += f" {QUICK}"

import signal  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
# A shell starts its background jobs with SIGINT ignored, and so would the processes be that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)

ROOT = Path(__file__).resolve().parent.parent
BASE = str(ROOT / "configs" / "digits.py")
SMALL = {  # the base config, made small enough to compile in two seconds
    "model.width": "8",
    "model.multipliers": "(1,)",
    "model.attention": "()",
    "optimizer.learning_rate": "3e-3",
    "optimizer.warmup_steps": "3",
    "optimizer.decay": "constant",  # a decay is part of the compiled program, which here serves runs of all lengths
    "training.num_steps": "6",
    "training.batch_size": "16",
    "training.log_every": "1",
    "training.checkpoint_every": "2",
    "preview.every": "0",
    "preview.num_images": "3",
    "preview.steps": "2",
}


# The longest files, the longest first: pytest's workers take them in this order, and end together.
LONGEST = [
    f"test_{name}.py"
    for name in (
        "processes train faults schedules samplers compare cli tour sample sharding hostile unet2d interchange loss checkpoints "
        "evaluate report diagnose unet brightness features data likelihood zero_snr workers metrics inception guidance plot "
        "configs launch wrap"
    ).split()
]
# `launch/test quick` leaves out those that compile networks or start processes, and single tests marked slow.
QUICK_TOO = {f"test_{name}.py" for name in ("schedules", "samplers", "loss")}


def pytest_collection_modifyitems(items):
    assert all((ROOT / "tests" / name).exists() for name in LONGEST)
    for item in items:
        if item.path.name in LONGEST and item.path.name not in QUICK_TOO:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session", autouse=True)
def user_cache(tmp_path_factory):
    """The user's cache folder, of prepared data and compiled programs: one for all workers of the session, not the real one."""
    base = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "user_cache"
        folder.mkdir(exist_ok=True)
        patch.setenv("XDG_CACHE_HOME", str(folder))
        jax.config.update("jax_compilation_cache_dir", str(folder / "noisesched" / "xla"))  # what one test compiled, another has
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
        yield folder


@pytest.fixture(scope="session")
def words():
    """`words({"model.width": 16})`: the words that follow `noisesched train`, for the small config with changes."""
    return lambda changes=(): [f"--config={BASE}", *(f"--config.{k}={v}" for k, v in (SMALL | dict(changes)).items())]


@pytest.fixture(scope="session")
def small(words):
    """`small({"model.width": 16})`: the small Config with changes."""
    from noisesched.runs import config

    return lambda changes=(): config.load(words(changes)[0].partition("=")[2], words(changes)[1:])


@pytest.fixture
def stand_in(small, monkeypatch):
    """Within the test, networks have one parameter, answer 0 until they are trained, and compile in a second; it is `small`."""
    from flax import nnx

    from noisesched.models import build

    class Scaled(nnx.Module):
        def __init__(self, **given):
            self.scale = nnx.Param(jax.numpy.zeros(()))

        def __call__(self, z, features, labels=None, dropout_keys=None):
            return self.scale[...] * z

    monkeypatch.setitem(build.NETWORKS, "unet", dataclasses.replace(build.NETWORKS["unet"], make=Scaled))
    monkeypatch.setattr(build, "_abstract_denoiser", build._abstract_denoiser.__wrapped__)  # it keeps networks
    return small


@pytest.fixture
def main(monkeypatch, capsys):
    """`main("train", ..)` -> (exit code, stdout, stderr) of the command line in this process, on its eight devices."""
    from noisesched import __main__ as cli
    from noisesched.runtime import backend

    monkeypatch.setattr(backend, "prepare", lambda: None)  # this process has its settings

    def finished(*arguments):
        code = 0
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as ended:
            code = ended.code
            out, err = capsys.readouterr()
            if cli.BUG in err:  # a test that means to see it calls `cli.main`
                raise ended.__context__ from None
            return code, out, err
        return code, *capsys.readouterr()

    return finished


@pytest.fixture(scope="session")
def start(user_cache, tmp_path_factory):
    """`start("train", ..)`: the command line as a process of its own, on one device, where only the package can be imported."""
    site = tmp_path_factory.mktemp("site")
    (site / "noisesched").symlink_to(ROOT / "noisesched")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    environment = os.environ | {"PYTHONPATH": str(site), "XDG_CACHE_HOME": str(user_cache)}
    environment["XLA_FLAGS"] = QUICK

    def process(*arguments):
        command = [sys.executable, "-m", "noisesched", *map(str, arguments)]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, cwd=elsewhere, env=environment, text=True, **pipes)

    return process


@pytest.fixture(scope="session")
def run(start):
    """`run("plot", ..)` -> (exit code, stdout, stderr) of the command line as a process of its own."""

    def finished(*arguments):
        process = start(*arguments)
        out, err = process.communicate(timeout=600)
        return process.returncode, out, err

    return finished
