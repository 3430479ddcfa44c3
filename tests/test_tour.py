"""The notebook: it runs from end to end beside a tiny run, and what is stored in it came from the code that stands there.

After a change of its code, executed again and stored, in a folder that holds the quickstart's runs/digits:

    python tests/test_tour.py [FOLDER]
"""

import os
import re
import sys
import zlib
from pathlib import Path

import nbclient
import nbformat

ROOT = Path(__file__).resolve().parent.parent  # not from conftest, whose settings are no user's
NOTEBOOK = ROOT / "launch" / "tour.ipynb"


def executed(folder, environment):
    """The notebook with the outputs of running it in a folder; raises CellExecutionError for a cell that fails."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}, record_timing=False)
    client.execute(env=os.environ | {"PYTHONPATH": str(ROOT)} | environment)
    return notebook


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def checksum(notebook):
    return zlib.crc32("\n".join(cell.source for cell in code_cells(notebook)).encode())


def kinds(cell):
    """The kinds of a cell's outputs: "image/png", "text/html", "stdout", .."""
    for output in cell.outputs:
        yield from sorted(output.data) if "data" in output else [output.get("name", output.output_type)]


def test_it_runs_and_makes_what_is_stored(main, words, tmp_path):
    from conftest import QUICK

    code, _, err = main("train", f"--workdir={tmp_path}/runs/digits", *words({"training.num_steps": 2}))
    assert code == 0, err
    made = executed(tmp_path, {"XLA_FLAGS": QUICK, "IPYTHONDIR": str(tmp_path / "ipython")})
    stored = nbformat.read(NOTEBOOK, as_version=4)
    of = lambda notebook: [[kind for kind in kinds(cell) if kind != "stderr"] for cell in code_cells(notebook)]
    assert of(made) == of(stored)  # but for warnings: two steps of training draw few levels


def test_what_is_stored_came_from_its_code_in_one_go_and_knows_no_machine():
    stored = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(stored)
    assert stored.metadata["executed_crc32"] == checksum(stored), "its code was changed: execute it again, see above"
    cells = code_cells(stored)
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    seen = [kind for cell in cells for kind in kinds(cell)]
    assert seen.count("image/png") >= 10 and not {"stderr", "error"} & {*seen}
    assert NOTEBOOK.stat().st_size < 400_000  # pictures are a third longer as text
    for output in (output for cell in cells for output in cell.outputs):
        texts = [output.get("text", ""), *(text for kind, text in output.get("data", {}).items() if kind.startswith("text"))]
        assert not re.search(r"(?<![\w<])/\w+/\w", " ".join(texts)), texts  # a path from the root


if __name__ == "__main__":
    finished = executed(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT), {})
    finished.metadata["executed_crc32"] = checksum(finished)
    finished.metadata["language_info"] = {"name": "python"}  # not which version: it says nothing of the results
    nbformat.write(finished, NOTEBOOK)
