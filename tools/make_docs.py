"""The website: `python tools/make_docs.py` writes pages from notebooks, guides and source, and builds them.

The site goes to `_docs/site`. Notebooks are not run: their outputs are shown as they were kept. Nothing is fetched,
neither here nor by a finished page.
"""
import re
import shutil
from pathlib import Path

import nbformat
from sphinx.cmd.build import build_main

from make_readme import FIG_ALT
from reference import api_page, chapter_of, command_page, module_page

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "_docs"
HIDDEN = ("#| default_exp", "#| hide")
SHOWN = {"image/png", "image/svg+xml", "text/plain"}


def page_links(text: str) -> str:
    """Links to notebooks, guides, the README and the teacher's page, wherever they lie, as links to
    this site's pages."""
    text = re.sub(r"\]\((?:\.\./)?course/README\.md(#[^)]*)?\)", r"](course.md\1)", text)
    text = re.sub(r"\]\(\.\./README\.md(#[^)]*)?\)", r"](index.ipynb\1)", text)
    return re.sub(r"\]\((?:\.\./)?(?:nbs/|docs/)?(\w+)\.(ipynb|md)(#[^)]*)?\)", r"](\1.\2\3)", text)


def prose(text: str) -> str:
    """A markdown cell or page. What a `<details>` folds is markdown too, if blank lines stand
    around it."""
    text = re.sub(r"</summary>[ \t]*\n*", "</summary>\n\n", text)
    text = re.sub(r"\n*[ \t]*</details>", "\n\n</details>\n", text)
    return page_links(text)


def with_reference(text: str, stem: str) -> str:
    "A chapter's import line (`from detr_nb… import …`) with a link to the page of its module in the reference."
    return re.sub(r"(?m)^(`from detr_nb[^`]* import [^`]*`.*)$", rf"\1 · [reference](api/{stem[3:]}.md)", text)


def alternative(code: str) -> str:
    "What a figure shows, in words: its cell's line `#| fig-alt: …`."
    words = FIG_ALT.search(code)
    if words: return words[1].strip()
    raise ValueError("a figure without words: want a line `#| fig-alt: …` in its cell")


def prepared(cell: nbformat.NotebookNode) -> nbformat.NotebookNode:
    "A code cell without its directives, its figures with words."
    options = {}
    for output in cell.outputs:
        if output.output_type == "stream": continue
        data = output.get("data", {})
        if not SHOWN & set(data):
            found = f"output of the kind {output.output_type!r} with {sorted(data)}"
            raise ValueError(f"{found}: want image/png, image/svg+xml or text/plain")
        output["data"] = {kind: text for kind, text in data.items() if kind in SHOWN}
        if "image/svg+xml" in data: options["image"] = {"alt": data["text/plain"]}  # the drawing's own words
        if "image/png" not in data: continue
        options["image"] = {"alt": output.metadata.get("image/png", {}).get("alt") or alternative(cell.source)}
    source = "\n".join(line for line in cell.source.splitlines() if not line.startswith("#|"))
    metadata = {"mystnb": options, "tags": [] if source.strip() else ["remove-input"]}
    return nbformat.v4.new_code_cell(source, metadata=metadata, outputs=cell.outputs)


def shown(cell: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    "A cell as the site shows it; a worked answer is folded."
    markdown = nbformat.v4.new_markdown_cell
    if cell.cell_type != "code": return [markdown(prose(cell.source))] if cell.cell_type == "markdown" else []
    if cell.source.startswith(HIDDEN): return []
    tags = cell.metadata.get("tags", [])
    if "solution" not in tags: return [prepared(cell)]
    name = next((f": {t[7:]}" for t in tags if t.startswith("answer:")), "")
    return [markdown(f"<details><summary>Answer{name}</summary>"), prepared(cell), markdown("</details>")]


def notebook_page(path: Path) -> nbformat.NotebookNode:
    "A notebook as the site shows it."
    notebook = nbformat.read(path, as_version=4)
    cells = []
    for i, cell in enumerate(notebook.cells):
        try:
            cells += shown(cell)
        except ValueError as error:
            raise ValueError(f"{path}, cell {i}: {error}") from error
    for cell in cells:
        if cell.cell_type == "markdown" and path.stem[0].isdigit():
            cell.source = with_reference(cell.source, path.stem)
    return nbformat.v4.new_notebook(cells=cells, metadata=notebook.metadata)


PARTS = {  # by the tens of the chapters' numbers
    "0": "0 See it",
    "1": "1 The detector",
    "2": "2 Masks",
    "3": "3 In, out, how good",
    "4": "4 Teach it",
    "5": "5 Use it",
    "9": "W Workshop",
}


def numbered(notebook: nbformat.NotebookNode, stem: str) -> str:
    "A chapter in the list of contents: its number, its title, its page."
    title = next(cell.source for cell in notebook.cells if cell.source.startswith("# ")).splitlines()[0]
    return f"{stem[:2]} · {title.removeprefix('# ')} <{stem}>"


def contents(caption: str, pages: list[str]) -> str:
    "A list of contents under its caption; none where it has no page."
    return "\n".join(["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```", ""]) if pages else ""


def sources() -> dict[str, str]:
    "Every page of the site, by the name of its file."
    chapters = sorted((ROOT / "nbs").glob("[0-9][0-9]_*.ipynb"))
    modules = sorted((p for p in (ROOT / "detr_nb").glob("*.py") if not p.name.startswith("_")), key=chapter_of)
    guides = {p.stem: p for p in sorted((ROOT / "docs").glob("*.md"))}
    if (ROOT / "course" / "README.md").exists(): guides["course"] = ROOT / "course" / "README.md"
    notebooks = {p.name: notebook_page(p) for p in (ROOT / "nbs" / "index.ipynb", *chapters)}
    lists = {
        part: [numbered(notebooks[p.name], p.stem) for p in chapters if p.stem[0] == ten]
        for ten, part in PARTS.items()
    }
    lists |= {"Guides": list(guides), "Reference": ["command_line", "api"]}
    text = "".join(contents(caption, names) for caption, names in lists.items())
    notebooks["index.ipynb"].cells.append(nbformat.v4.new_markdown_cell(text))
    pages = {name: nbformat.writes(notebook) for name, notebook in notebooks.items()}
    pages |= {f"{name}.md": prose(p.read_text(encoding="utf-8")) for name, p in guides.items()}
    pages |= {f"api/{p.stem}.md": module_page(p) for p in modules}
    return pages | {"api.md": api_page(ROOT / "detr_nb", modules), "command_line.md": command_page()}


def main() -> int:
    shutil.rmtree(BUILD, ignore_errors=True)
    for name, text in sources().items():
        path = BUILD / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    if (ROOT / "nbs" / "figures").exists(): shutil.copytree(ROOT / "nbs" / "figures", BUILD / "source" / "figures")
    folders = [str(BUILD / "source"), str(BUILD / "site")]
    return build_main(
        [
            "-q", "-W", "--keep-going", "-b", "html", "-c", str(ROOT / "tools" / "site"), "-d",
            str(BUILD / "doctrees"), *folders,
        ]
    )


if __name__ == "__main__":
    raise SystemExit(main())
