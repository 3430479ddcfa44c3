"""The shape of the package: imports point one way, nothing heavy is loaded before its time, and files stay small."""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

LAYERS = {  # lowest first; a module imports from its own layer and earlier ones, without cycles
    "mathematics": ["spec", "listing", "tables", "diffusion", "curves", "schedules", "ends"],
    "network": ["conditioning", "unet", "denoiser", "inception"],
    "algorithms": ["objective", "samplers", "guidance", "likelihood", "noisiest", "appearance", "metrics", "leak", "judgement",
                   "diagnosis"],
    "outside world": ["backend", "cluster", "parallel", "vitals", "files", "pictures", "events", "workdir", "claims", "quiet",
                      "checkpoints", "builders", "workers", "data", "config", "features", "document", "foreign", "interchange",
                      "scheduler_file"],
    "programs": ["recorder", "signals", "train", "sample", "evaluate", "study", "compare", "findings", "pairing", "sentences",
                 "limits", "figures", "heatmaps", "histograms", "brightness", "report", "plot", "diagnose", "benchmark", "flags",
                 "__main__"],
}
DEPTH = {module: depth for depth, modules in enumerate(LAYERS.values()) for module in modules}
PACKAGE = {path.stem: path for path in ROOT.glob("noisesched/*.py") if path.stem != "__init__"}


def imports(module):
    """The package's modules that one of them imports, anywhere in its file."""
    found = set()
    for node in ast.walk(ast.parse(PACKAGE[module].read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("noisesched.")} & set(PACKAGE)
    return found


def test_every_module_has_its_layer():
    assert set(DEPTH) == set(PACKAGE)
    assert "utils" not in PACKAGE


@pytest.mark.parametrize("module", DEPTH)
def test_imports_point_one_way(module):
    upwards = {other for other in imports(module) if DEPTH[other] > DEPTH[module]}
    assert not upwards, f"{module} imports from a later layer: {', '.join(upwards)}"


def test_no_cycles():
    left, order = {module: imports(module) for module in PACKAGE}, []
    while left:
        free = sorted(module for module, needs in left.items() if needs <= set(order))
        assert free, f"a cycle among {', '.join(left)}"
        order += free
        left = {module: needs for module, needs in left.items() if module not in free}
    assert order[-1] == "__main__"


@pytest.mark.parametrize("module", ["spec", "tables", "diffusion", "curves", "unet", "inception", "events", "files"])
def test_the_first_ones_stand_alone(module):
    assert imports(module) == set()


def test_mathematics_needs_no_more_than_schedules_says():
    assert imports("schedules") == {"spec", "listing", "tables", "diffusion", "curves"}


def test_only_the_command_line_reads_flags():
    assert {module for module, path in PACKAGE.items() if "import argparse" in path.read_text()} == {"flags"}


# -- what is loaded, seen from outside

SPY = """
import sys
class Spy:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {watched}:
            print("looked for", name)
sys.meta_path.insert(0, Spy())
"""


def looked_for(watched, program):
    """What of `watched` a fresh process so much as looks for, whether it is installed or not."""
    program = SPY.format(watched=set(watched)) + program
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return {line for line in done.stdout.splitlines() if line.startswith("looked for")}


def test_the_spy_sees():
    assert looked_for({"torch"}, "try:\n    import torch.nn\nexcept ImportError: pass") >= {"looked for torch"}


def test_no_module_loads_tensorflow_or_torch():
    program = "\n".join(f"import noisesched.{module}" for module in sorted(PACKAGE))
    assert looked_for({"tensorflow", "torch"}, program) == set()


def test_the_mathematics_loads_no_flax_and_no_data_library():
    program = "\n".join(f"import noisesched.{module}" for module in (*LAYERS["mathematics"], "samplers", "objective"))
    assert looked_for({"flax", "optax", "orbax", "grain", "tensorflow_datasets", "ml_collections"}, program) == set()


HELP = [["--help"], ["--version"], *([name, "--help"] for name in ("train", "compare", "report", "diagnose"))]


@pytest.mark.parametrize("words", HELP, ids=" ".join)
def test_help_does_not_wait_for_jax(words):
    program = f"import runpy\nsys.argv[1:] = {words!r}\ntry:\n    runpy.run_module('noisesched', run_name='__main__')\n"
    assert looked_for({"jax", "flax", "numpy"}, program + "except SystemExit as end:\n    assert end.code == 0") == set()


# -- size

@pytest.mark.parametrize("folder", ["noisesched", "configs", "launch"])
def test_no_file_over_400_lines(folder):
    lengths = {path.name: len(path.read_text().splitlines()) for path in (ROOT / folder).glob("*") if path.is_file()}
    assert lengths and {name: length for name, length in lengths.items() if length > 400} == {}
