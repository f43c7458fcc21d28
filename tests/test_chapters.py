"Every chapter runs from top to bottom in a real kernel, without a warning on stderr that a reader would stumble over."
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))
CHAPTERS = sorted((ROOT / "nbs").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_chapter_runs(path):
    from run_chapters import run
    notebook = run(path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert any(cell.outputs for cell in code)
    stored = __import__("nbformat").read(path, as_version=4)
    kinds = lambda nb: [[o.output_type for o in c.outputs] for c in nb.cells if c.cell_type == "code"]
    assert kinds(notebook) == kinds(stored), "the kept outputs are those of another run: make chapters"


def test_there_are_chapters():
    assert len(CHAPTERS) >= 18
