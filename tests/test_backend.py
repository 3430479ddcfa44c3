"""Each case runs in a process of its own: what `prepare` settles, it settles for the whole process."""

import json
import os
import subprocess
import sys

import jax
import pytest

from noisesched.runtime import backend

PREPARE = """
import dataclasses, json, os, sys
from noisesched.runtime import backend
chosen = backend.prepare()
print(json.dumps(dict(dataclasses.asdict(chosen), text=str(chosen), flags=os.environ.get("XLA_FLAGS"))))
"""
COMPUTE = """
import jax, jax.numpy as jnp
seen = []
jax.monitoring.register_event_listener(lambda name, **_: seen.append(name.rsplit("/", 1)[-1]))
x = jnp.linspace(-1, 1, 2 * 8 * 8 * 3).reshape(2, 8, 8, 3)
f = jax.jit(jax.grad(lambda k: jax.lax.conv(x.transpose(0, 3, 1, 2), k, (1, 1), "SAME").var()))
print(json.dumps([f(jnp.ones((4, 3, 3, 3))).sum().item(), seen.count("cache_hits"), seen.count("cache_misses")]))
"""


def run(code, tmp_path, **environment):
    """The JSON lines that `code` prints, in a fresh process with the given environment (None: unset)."""
    fresh = {
        "XDG_CACHE_HOME": str(tmp_path),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": None,
        backend.SWITCH: None,
        "JAX_COMPILATION_CACHE_DIR": None,
        "JAX_ENABLE_COMPILATION_CACHE": None,
        "GLIBC_TUNABLES": None,
        **{name: None for name in os.environ if name.startswith("MALLOC_")},
        **environment,
    }
    environment = {k: v for k, v in {**os.environ, **fresh}.items() if v is not None}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # not a warning either
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def known(monkeypatch):
    monkeypatch.setattr(backend.importlib.metadata, "version", lambda name: backend.XLA_FLAG_JAXLIBS[0])


def test_second_start_compiles_nothing_and_computes_the_same(tmp_path):
    first_chosen, (value, hits, misses) = run(PREPARE + COMPUTE, tmp_path)
    again_chosen, (again, hits_again, misses_again) = run(PREPARE + COMPUTE, tmp_path)
    assert first_chosen == again_chosen
    assert first_chosen["cpu_only"] and first_chosen["cache_dir"] == str(tmp_path / "noisesched" / "xla")
    assert hits == 0 and misses > 0
    assert hits_again == misses and misses_again == 0
    assert again == value


def test_switched_off(tmp_path):
    (chosen,) = run(PREPARE, tmp_path, NOISESCHED_CPU_SETTINGS="off")
    assert chosen["xla_flag"] is None and chosen["flags"] is None and not chosen["allocator"]
    assert chosen["cache_dir"]  # the cache is no CPU setting; JAX has its own switch for it


def test_users_own_settings_win(tmp_path):
    mine = f"--{backend.XLA_SETTING}=reduce"
    own_cache = str(tmp_path / "mine")
    (chosen,) = run(PREPARE, tmp_path, XLA_FLAGS=mine, MALLOC_ARENA_MAX="4", JAX_COMPILATION_CACHE_DIR=own_cache)
    assert chosen["flags"] == mine and chosen["xla_flag"] is None
    assert not chosen["allocator"] and chosen["cache_dir"] == own_cache


@pytest.mark.parametrize("setting", [{"jax_enable_compilation_cache": False}, {"jax_compilation_cache_dir": "file/folder"}])
def test_a_cache_that_is_switched_off_or_cannot_be_written_is_no_cache(tmp_path, monkeypatch, setting):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("not a folder")
    before = {name: getattr(jax.config, name) for name in setting}
    try:
        for name, value in setting.items():
            jax.config.update(name, value)
        assert backend._cache_compilations() is None
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
    assert "compilation cache none" in str(backend.Chosen(True, None, False, None))


def test_flag_is_appended_once(known, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    for _ in range(2):
        assert backend._add_xla_flag() == backend.XLA_FLAG
        assert os.environ["XLA_FLAGS"] == f"--xla_force_host_platform_device_count=8 {backend.XLA_FLAG}"


def test_flag_is_left_out_for_a_jaxlib_it_was_not_tried_on(monkeypatch):
    monkeypatch.setattr(backend.importlib.metadata, "version", lambda name: "99.0")
    monkeypatch.setenv("XLA_FLAGS", "")
    assert backend._add_xla_flag() is None and os.environ["XLA_FLAGS"] == ""


@pytest.mark.parametrize(
    "platforms, plugins, expected",
    [
        ("cpu", ["cuda"], True),
        ("cuda,cpu", [], False),
        ("cpu,cuda", ["cuda"], False),
        ("tpu", [], False),
        (None, ["cuda"], False),
        (None, [], True),
    ],
)
def test_cpu_only(monkeypatch, platforms, plugins, expected):
    monkeypatch.delitem(sys.modules, "jax", raising=False)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.delenv("PJRT_NAMES_AND_LIBRARY_PATHS", raising=False)
    if platforms:
        monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr(backend.importlib.metadata, "entry_points", lambda group: plugins)
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    assert backend.is_cpu_only() is expected
