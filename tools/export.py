"""From the chapters to the library and the README: `python tools/export.py`. Every call of nbdev is
here."""
import ast
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import docstrings

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


def main() -> None:
    "Export the library, write docstrings into it, clean the chapters, and make the README."
    for command in ("nbdev_export", "nbdev_clean"):
        subprocess.run([Path(sys.executable).parent / command], cwd=ROOT, check=True)
    modules = sorted((ROOT / "detr_nb").glob("[a-z]*.py"))
    docstrings.main(modules)
    for path in modules: wrap_names(path)
    subprocess.run([sys.executable, ROOT / "tools" / "make_readme.py"], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
