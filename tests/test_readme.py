"""What the READMEs say: their links, commands and code work, and the package holds what its listing names."""

import re
import shlex
import tomllib

import jax
import jax.numpy as jnp
import pytest
import yaml
from conftest import ROOT
from test_imports import FACE, PACKAGE, folder, imports

import noisesched
from noisesched import flags
from noisesched.comparison.study import Study
from noisesched.runs import config

PAGES = {
    name: (ROOT / name).read_text() for name in ("README.md", "configs/README.md", "launch/README.md", ".github/CONTRIBUTING.md")
}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page, language):
    return [body for kind, body in BLOCK.findall(PAGES[page]) if kind == language]


def anchors(text):
    """GitHub's names for the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands():
    """(page, words) of every command line `noisesched ..`, in blocks and in the text."""
    for page, text in PAGES.items():
        lines = [line for body in blocks(page, "bash") for line in body.replace("\\\n", " ").splitlines()]
        lines += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", BLOCK.sub("", text))]
        for line in lines:
            words = shlex.split(line, comments=True)
            if "noisesched" in words[:-1] and not line.startswith(("export", "gcloud")):
                yield page, words[words.index("noisesched") + 1 :]


def test_the_front_page_is_short():
    assert len(PAGES["README.md"].splitlines()) <= 250


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_are_there(page):
    for target in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text()), target


def test_every_picture_is_shown():
    shown = "".join(PAGES.values())
    assert [path.name for path in (ROOT / ".github/assets").glob("*.png") if f"assets/{path.name}" not in shown] == []


@pytest.mark.parametrize("page", PAGES)
def test_the_files_it_names_are_there(page):
    for name in re.findall(r"(?:launch|configs|tests|\.ci)/[a-z_]+(?:\.\w+)?\b(?!/)", PAGES[page]):
        assert (ROOT / name).exists(), name


def test_commands_are_accepted():
    seen = set()
    for page, words in commands():
        try:
            given, rest = flags.parser().parse_known_args(words)
        except SystemExit:
            pytest.fail(f"{page}: noisesched {' '.join(words)}")
        unknown = [word for word in rest if not word.startswith("--config.")]
        assert not unknown, f"{page}: {unknown[0]} of noisesched {' '.join(words)}"
        if (ROOT / str(getattr(given, "config", None))).is_file() and "$" not in "".join(rest):
            config.read(str(ROOT / given.config), Study if given.command == "compare" else config.Config, rest)
        seen.add(given.command)
    assert seen >= {"train", "sample", "evaluate", "compare", "report", "diagnose", "plot", "interchange", "benchmark"}


def test_the_table_of_commands_is_complete():
    (choices,) = [action.choices for action in flags.parser()._actions if action.dest == "command"]
    (table,) = re.findall(r"^\| command \|.*?\n\n", PAGES["README.md"], re.MULTILINE | re.DOTALL)
    assert sorted(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\|(.*?)\|", table, re.MULTILINE)))) == sorted(choices)


def test_the_code_for_ones_own_code_runs():
    own, wrapped = [body for body in blocks("README.md", "python") if "from noisesched import" in body]
    z = jax.random.normal(jax.random.key(0), (2, 4, 4, 1))
    names = {"denoise": lambda z, log_snr: 0.5 * z, "key": jax.random.key(1), "z": z}
    exec(own, names)
    assert names["x"].shape == z.shape and names["log_snrs"][0] == -jnp.inf and names["table"].betas.shape == (1000,)
    told = []
    exec(wrapped, names | {"my_network": lambda z, timestep: told.append(timestep.shape) or 0 * z})
    assert told == [(2,)] * len(told) and told


def test_the_schedule_to_add_is_one():
    (added,) = [body for body in blocks("README.md", "python") if "@definition" in body]
    names = {"jnp": jnp, "definition": lambda example: lambda function: function}
    exec(added, names)
    log_snr = names["my_power"](jnp.array([0.0, 0.5, 1.0]), power=3)
    assert jnp.allclose(jax.nn.sigmoid(log_snr), jnp.array([1, 0.5**6, 0]))


def test_the_tree_lists_every_folder_below_those_it_imports():
    (tree,) = [body for body in blocks("README.md", "") if body.startswith("noisesched/")]
    listed = re.findall(r"^  (\w+)/ ", tree, re.MULTILINE)
    assert sorted(listed) == sorted({folder(module) for module in PACKAGE if "." in module})
    rank = {"mathematics": -1, "face": len(listed)} | {name: place for place, name in enumerate(listed)}
    for module in PACKAGE:
        assert all(rank[folder(needed)] <= rank[folder(module)] for needed in imports(module)), module
    files = set(re.findall(r"(\w+)\.py", tree))
    assert files == {module for module in PACKAGE if "." not in module} and files > FACE


def test_a_wheel_holds_every_folder_and_the_configs():
    given = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert given["package-dir"] == {"noisesched.configs": "configs"}
    folders = {f"noisesched.{folder(module)}" for module in PACKAGE if "." in module}
    assert set(given["packages"]) == {"noisesched", "noisesched.configs"} | folders


def test_the_version_is_everywhere_the_same():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.search(r"^## (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    assert {project["version"], str(citation["version"]), newest} == {noisesched.__version__}
    assert citation["license"] == project["license"]
