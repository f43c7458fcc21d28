"""From the chapters to the library and the README: `python tools/export.py`. Every call of nbdev is
here."""
import ast
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import nbformat

import docstrings
from address import install_cell

ROOT = Path(__file__).parent.parent


def wrap_names(path: Path) -> None:
    """Write a module's `__all__` in lines of at most 100 characters: nbdev fills them up to 120 and
    over."""
    source = path.read_text(encoding="utf-8")
    names = re.search(r"^__all__ = (\[[^\]]*\])$", source, re.MULTILINE)
    if not names: return
    words = ", ".join(f'"{name}"' for name in ast.literal_eval(names[1]))
    lines = textwrap.wrap(words, 95, break_long_words=False, break_on_hyphens=False)
    text = "\n".join(["__all__ = [", *(f"    {line}" for line in lines), "]"])
    path.write_text(source[: names.start()] + text + source[names.end() :], encoding="utf-8")


INSTALL = {"tags": ["install"], "jupyter": {"source_hidden": True}}  # JupyterLab folds it


def write_install_cell(path: Path) -> None:
    """The cell that installs the package in Colab, as the first code cell of a chapter; with the
    address of settings.ini."""
    notebook = nbformat.read(path, as_version=4)
    first = next(i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code")
    if "install" not in notebook.cells[first].metadata.get("tags", []):
        notebook.cells.insert(first, nbformat.v4.new_code_cell(metadata=INSTALL, id="install"))
    if notebook.cells[first].source == install_cell(): return
    notebook.cells[first].source = install_cell()
    nbformat.write(notebook, path)


def main() -> None:
    """Write the cell for Colab, export the library, write docstrings into it, clean the chapters,
    and make the README."""
    for path in sorted((ROOT / "nbs").glob("*.ipynb")): write_install_cell(path)
    for command in ("nbdev_export", "nbdev_clean"):
        subprocess.run([Path(sys.executable).parent / command], cwd=ROOT, check=True)
    modules = sorted((ROOT / "detr_nb").glob("[a-z]*.py"))
    docstrings.main(modules)
    for path in modules: wrap_names(path)
    subprocess.run([sys.executable, ROOT / "tools" / "make_readme.py"], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
