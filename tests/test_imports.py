"""The shape of the package, read from its folders: imports point one way, and nothing heavy is loaded before its time."""

import ast
import graphlib
import subprocess
import sys

import pytest
from conftest import ROOT

from noisesched import flags

PACKAGE = {  # "training.loop" -> its file
    ".".join(path.relative_to(ROOT / "noisesched").with_suffix("").parts): path
    for path in sorted((ROOT / "noisesched").rglob("*.py"))
    if path.name != "__init__.py"
}
FACE = {"flags", "__main__", "api"}  # at the root beside the mathematics: the command line and the Python face
MATHEMATICS = {module for module in PACKAGE if "." not in module} - FACE


def imports(module):
    """The package's modules that one of them imports, anywhere in its file."""
    found = set()
    for node in ast.walk(ast.parse(PACKAGE[module].read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        found |= {name.removeprefix("noisesched.") for name in names} & set(PACKAGE)
    return found - {module}


def folder(module):
    """ "training.loop" -> "training"; the mathematics is a folder of its own, and so is the command line."""
    return module.partition(".")[0] if "." in module else "mathematics" if module in MATHEMATICS else "face"


def order(graph):
    """A topological order of {node: what it needs}; fails, naming the cycle, if there is none."""
    try:
        return list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(f"a cycle: {' -> '.join(reversed(error.args[1]))}")


def test_the_mathematics_imports_nothing_but_itself():
    assert {module for module in PACKAGE if "." not in module} >= {"diffusion", "schedules", "samplers", "loss"}
    for module in MATHEMATICS:
        assert imports(module) <= MATHEMATICS, module


def test_imports_between_folders_point_one_way():
    graph = {}
    for module in PACKAGE:
        graph.setdefault(folder(module), set()).update(map(folder, imports(module)))
    order({name: needs - {name} for name, needs in graph.items()})
    assert not [module for module in PACKAGE if "__main__" in imports(module)]


def test_imports_between_modules_have_no_cycle():
    order({module: imports(module) for module in PACKAGE})


def test_every_command_has_its_program():
    for command in flags.COMMANDS.values():
        assert "\ndef main(request):" in PACKAGE[command.module].read_text()


def test_every_folder_says_what_it_is_for():
    for path in {path.parent for path in PACKAGE.values()}:
        assert ast.get_docstring(ast.parse((path / "__init__.py").read_text())), path
    assert not [module for module in PACKAGE if "util" in module]


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
    program = "\n".join(f"import noisesched.{module}" for module in sorted(MATHEMATICS))
    assert looked_for({"flax", "optax", "orbax", "grain", "tensorflow_datasets", "ml_collections"}, program) == set()


HELP = [["--help"], ["--version"], *([name, "--help"] for name in ("train", "compare", "report", "diagnose"))]


@pytest.mark.parametrize("words", HELP, ids=" ".join)
def test_help_does_not_wait_for_jax(words):
    program = f"import runpy\nsys.argv[1:] = {words!r}\ntry:\n    runpy.run_module('noisesched', run_name='__main__')\n"
    assert looked_for({"jax", "flax", "numpy"}, program + "except SystemExit as end:\n    assert end.code == 0") == set()
