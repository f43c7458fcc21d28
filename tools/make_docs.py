"""The website: `python tools/make_docs.py` writes pages from notebooks, guides and source, and builds them.

The site goes to `_docs/site`. Notebooks are not run: their outputs are shown as they were kept. Nothing is fetched,
neither here nor by a finished page.
"""
import ast
import re
import shutil
from pathlib import Path

import nbformat
from PIL import Image, ImageOps
from sphinx.cmd.build import build_main

from address import Address, published
from make_readme import FIG_ALT, filled, minutes_of, named
from reference import api_page, chapter_of, command_page, module_page

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "_docs"
HIDDEN = ("#| default_exp", "#| hide")
UNSHOWN = "#| echo: false"  # only its output is shown
SHOWN = {"image/png", "image/svg+xml", "text/plain"}


def page_links(text: str) -> str:
    """Links to notebooks, guides, the README and the teacher's page, wherever they lie, as links to
    this site's pages."""
    text = re.sub(r"\]\((?:\.\./)?course/README\.md(#[^)]*)?\)", r"](course.md\1)", text)
    text = re.sub(r"\]\(README\.md(#[^)]*)?\)", r"](course.md\1)", text)  # from the teacher's plan
    text = text.replace("](capstone/README.md)", "](capstone.md)").replace("](exam/questions.md)", "](exam.md)")
    text = re.sub(r"\]\(\.\./README\.md(#[^)]*)?\)", r"](index.ipynb\1)", text)
    return re.sub(r"\]\((?:\.\./)*(?:nbs/|docs/)?(\w+)\.(ipynb|md)(#[^)]*)?\)", r"](\1.\2\3)", text)


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


def prepared(cell: nbformat.NotebookNode, late: bool = False) -> nbformat.NotebookNode:
    "A code cell without its directives, its figures with words; `late`: of a chapter's second half."
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
    unshown = cell.source.startswith(UNSHOWN)
    source = "\n".join(line for line in cell.source.splitlines() if not line.startswith("#|")) or "pass"
    own = cell.metadata.get("tags", [])
    folded = "" if "open" in own else folded_as(source, cell.source, late or "folded" in own)
    if "folded" in own: folded = folded or f"Code: {len(source.splitlines())} lines"
    tags = ["remove-input"] if unshown or source == "pass" else ["hide-input"] if folded else []
    if tags == ["hide-input"]: options |= {"code_prompt_show": folded, "code_prompt_hide": folded}
    return nbformat.v4.new_code_cell(source, metadata={"mystnb": options, "tags": tags}, outputs=cell.outputs)


# A cell with the tag `open` is never folded, one with the tag `folded` always.
LONG, PRIVATE = 25, 10  # more lines of library code than these a page folds in a chapter's second half
DRAWN = 20  # lines that draw a figure, likewise, in either half


def folded_as(code: str, cell: str, late: bool) -> str:
    "What stands in place of code that a page folds; nothing where it is shown."
    lines = len(code.splitlines())
    if only_prepares(code): return "Imports"
    exported = re.match(r"#\| export(i?)\n", cell)
    if late and exported and lines > (PRIVATE if exported[1] else LONG):
        names = [node.name for node in ast.parse(code).body if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
        named = [name for name in names if not name.startswith("_")] or names
        return f"Code of {', '.join(named[:3])}{' …' if len(named) > 3 else ''}: {lines} lines"
    if cell.startswith("#| fig-alt") and lines > DRAWN: return f"Code of the figure: {lines} lines"
    return ""


def only_prepares(code: str) -> bool:
    "Whether a cell has nothing but imports, a few names, and the drawing that opens a chapter: it is folded."
    try: body = ast.parse(code).body
    except SyntaxError: return False  # a command of the notebook
    rest = [node for node in body if not isinstance(node, (ast.Import, ast.ImportFrom))]
    imports = len(body) - len(rest)
    if rest and ast.unparse(rest[-1]).startswith("architecture("): rest.pop()
    return imports >= 3 >= len(rest) and all(isinstance(node, (ast.Assign, ast.If)) for node in rest)


def shown(cell: nbformat.NotebookNode, late: bool = False) -> list[nbformat.NotebookNode]:
    "A cell as the site shows it; a worked answer is folded. `late`: of a chapter's second half."
    markdown = nbformat.v4.new_markdown_cell
    if cell.cell_type != "code": return [markdown(prose(cell.source))] if cell.cell_type == "markdown" else []
    if cell.source.startswith(HIDDEN): return []
    tags = cell.metadata.get("tags", [])
    view = next((tag[5:] for tag in tags if tag.startswith("live:")), None)  # a figure that live.js brings to life
    if view: return [markdown(f'<div class="live" data-view="{view}">'), prepared(cell), markdown("</div>")]
    if "solution" not in tags: return [prepared(cell, late)]
    name = next((f": {t[7:]}" for t in tags if t.startswith("answer:")), "")
    return [markdown(f"<details><summary>Answer{name}</summary>"), prepared(cell), markdown("</details>")]


PAPER = "https://arxiv.org/abs/2005.12872"
SECTIONS = {  # where the paper speaks of what a chapter is about
    "01_boxes": "3.1", "02_napkin": "3", "10_backbone": "3.2", "11_position": "A.4", "12_transformer": "3.2",
    "13_matcher": "3.1", "14_losses": "3.1", "15_detector": "3.2", "20_mask_losses": "4.4", "21_mask_head": "4.4",
    "22_panoptic": "4.4", "30_transforms": "4", "33_evaluation": "4.1", "40_pretraining": "4", "41_training": "A.4",
    "43_scaling": "A.4", "50_explore": "4.3", "51_speed": "4.1",
}
WORDS = {  # what users type into the search field, and the page that should come first
    "42_own_data": ["fine-tune", "fine-tuning", "finetune", "custom dataset", "own dataset", "train on my own images"],
    "96_datasets": ["YOLO", "VOC", "Pascal VOC", "CSV", "convert dataset"],
    "43_scaling": [
        "GPU", "multi-GPU", "multiple GPUs", "DDP", "distributed training", "SLURM", "gradient accumulation",
    ],
    "51_speed": ["export", "ONNX", "OpenVINO", "int8", "quantization", "torch.compile", "bf16"],
    "33_evaluation": ["AP", "mAP", "average precision", "panoptic quality", "PQ"],
    "index": ["Colab", "install", "citation", "BibTeX"],
    "12_transformer": ["attention", "encoder", "decoder", "object queries"],
    "13_matcher": ["Hungarian", "Hungarian matching", "bipartite matching"],
    "01_boxes": ["IoU", "GIoU", "bounding box"],
    "31_post_processing": ["threshold", "NMS"],
    "41_training": ["learning rate", "loss curve", "resume"],
    "95_checkpoints": ["pretrained weights", "checkpoint"],
    "from_transformers": ["transformers", "Hugging Face"],
    "course": ["nbgrader", "JupyterHub", "teaching", "grading"],
    "plan": ["syllabus", "slides", "exam"],
}
CARD = "card.png"  # what a link to the site looks like elsewhere


def links_of(path: Path, part: list[Path], address: Address | None) -> str:
    "The line under a chapter's title: minutes, Colab, download, source, the paper, and its neighbours in its part."
    notebook = nbformat.read(path, as_version=4)
    opening = next(cell.source for cell in notebook.cells if "You will be able to" in cell.source)
    items = [f"{minutes_of(opening)} minutes"]
    if address and address.colab(path.stem): items.append(f"[Open in Colab]({address.colab(path.stem)})")
    items.append(f'<a href="notebooks/{path.name}" download>Download notebook</a>')
    if address: items.append(f"[View source]({address.source(f'nbs/{path.name}')})")
    headings = {cell.source.splitlines()[0] for cell in notebook.cells if cell.source.startswith("## ")}
    items += [f"[{name}](#{name.lower()})" for name in ("Exercises", "Answers") if f"## {name}" in headings]
    section = f", section {SECTIONS[path.stem]}" if path.stem in SECTIONS else ""
    items.append(f"[The paper{section}]({PAPER})")
    here = part.index(path)
    if here: items.append(f"← [{named(part[here - 1])}]({part[here - 1].name})")
    if path != part[-1]: items.append(f"[{named(part[here + 1])}]({part[here + 1].name}) →")
    return '<div class="page-links">\n\n' + " · ".join(items) + "\n\n</div>"


def about(title: str, text: str, address: Address | None) -> str:
    "What a page says of itself to search engines, and to others who show a link to it."
    words = " ".join(re.sub(r"\[([^]]*)\]\([^)]*\)|[>*`_]", r"\1", text).split())
    lines = [f":description: {words}", f":property=og:title: {title}", f":property=og:description: {words}"]
    if address:
        card = f"{address.site}/{CARD}"
        lines += [f":property=og:image: {card}", ":twitter:card: summary_large_image"]
    return "\n".join(["```{eval-rst}", ".. meta::", *(f"   {line}" for line in lines), "```"])


def entries(stem: str) -> str:
    "The words that lead to a page in the site's search."
    if stem not in WORDS: return ""
    return "\n".join(["```{eval-rst}", ".. index::", *(f"   ! single: {word}" for word in WORDS[stem]), "```"])


def notebook_page(path: Path) -> nbformat.NotebookNode:
    "A notebook as the site shows it."
    notebook = nbformat.read(path, as_version=4)
    cells, late = [], False
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    past = next((name for name in ("Try it", "Exercises", "Where to go") if f"\n## {name}\n" in f"\n{text}\n"), "")
    for i, cell in enumerate(notebook.cells):
        late |= cell.cell_type == "markdown" and "## In the library" in cell.source
        try:
            cells += shown(cell, late)
        except ValueError as error:
            raise ValueError(f"{path}, cell {i}: {error}") from error
    for cell in cells:
        if cell.cell_type != "markdown": continue
        chapter = path.stem[0].isdigit()
        if chapter: cell.source = skippable(cell.source, past)
        cell.source = with_reference(cell.source, path.stem) if chapter else filled(cell.source, tests=False)
    return nbformat.v4.new_notebook(cells=cells, metadata=notebook.metadata)


def skippable(text: str, past: str) -> str:
    "A chapter's second half begins with a way past it, to the heading that follows."
    if not past: return text
    return re.sub(r"(?m)^(## In the library.*)$", rf"\1\n\n[Skip to *{past}*](#{past.lower().replace(' ', '-')})", text)


PARTS = {  # by the tens of the chapters' numbers
    "0": "0 See it",
    "1": "1 The detector",
    "2": "2 Masks",
    "3": "3 In, out, how good",
    "4": "4 Teach it",
    "5": "5 Use it",
    "9": "W Workshop",
}


def slug(part: str) -> str:
    "The name of a file for a part."
    return re.sub(r"\W+", "_", part.lower()).strip("_")


def contents(caption: str, pages: list[str]) -> str:
    "A list of contents under its caption; none where it has no page."
    return "\n".join(["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```", ""]) if pages else ""


def opened(page: nbformat.NotebookNode, path: Path, part: list[Path], address: Address | None) -> nbformat.NotebookNode:
    "A page with its links and words, after its title."
    title, _, rest = page.cells[0].source.partition("\n")
    name = title.removeprefix("# ")
    markdown = nbformat.v4.new_markdown_cell
    added = [links_of(path, part, address)] if part else []
    added += [about(name, rest, address), entries(path.stem)]
    page.cells[1:1] = [markdown(text) for text in added if text]
    return page


def with_words(text: str, name: str, address: Address | None) -> str:
    "A page that is no notebook, with what it says of itself and the words that lead to it, after its title."
    title, _, rest = text.partition("\n")
    first = next(part for part in rest.split("\n\n") if part.strip()[:1].isalnum())
    return "\n\n".join([title, about(title.removeprefix("# "), first, address), entries(name), rest])


def sources(address: Address | None) -> dict[str, str]:
    "Every page of the site, by the name of its file."
    chapters = sorted((ROOT / "nbs").glob("[0-9][0-9]_*.ipynb"))
    modules = sorted((p for p in (ROOT / "detr_nb").glob("*.py") if not p.name.startswith("_")), key=chapter_of)
    guides = {p.stem: p for p in sorted((ROOT / "docs").glob("*.md"))}
    course = ROOT / "course"
    guides |= {"course": course / "README.md", "plan": course / "plan.md"}
    guides |= {"exam": course / "exam" / "questions.md", "capstone": course / "capstone" / "README.md"}
    parts = {ten: [p for p in chapters if p.stem[0] == ten] for ten in PARTS} | {"i": []}
    notebooks = {
        p.name: opened(notebook_page(p), p, parts[p.stem[0]], address)
        for p in (ROOT / "nbs" / "index.ipynb", *chapters)
    }
    lists = {
        part: [f"{named(p)} <{p.stem}>" for p in parts[ten]] for ten, part in PARTS.items()
    }
    lists |= {"Guides": list(guides), "Reference": ["command_line", "api"]}
    text = "".join(contents(caption, names) for caption, names in lists.items())
    notebooks["index.ipynb"].cells.append(nbformat.v4.new_markdown_cell(text))
    pages = {name: nbformat.writes(notebook) for name, notebook in notebooks.items()}
    texts = {name: prose(p.read_text(encoding="utf-8")) for name, p in guides.items()}
    decks = [f'<li><a href="slides/{slug(part)}.html">{part}</a></li>' for part in PARTS.values()]
    texts["plan"] += "\n".join(["", "## The slides", "", "<ul>", *decks, "</ul>", ""])
    texts |= {f"api/{p.stem}": module_page(p) for p in modules}
    texts |= {"api": api_page(ROOT / "detr_nb", modules), "command_line": command_page()}
    return pages | {f"{name}.md": with_words(text, name, address) for name, text in texts.items()}


def draw_card(figure: Path, path: Path) -> None:
    "A figure on white, in the shape that other sites show beside a link: 1200 × 630 pixels."
    card = Image.new("RGB", (1200, 630), "white")
    shown = ImageOps.contain(Image.open(figure).convert("RGB"), (1140, 570), Image.Resampling.LANCZOS)
    card.paste(shown, ((1200 - shown.width) // 2, (630 - shown.height) // 2))
    card.quantize(128).save(path, "png", optimize=True)


def main() -> int:
    from live import write_live_data
    from make_slides import write_slides  # which needs this module
    shutil.rmtree(BUILD, ignore_errors=True)
    for name, text in sources(published()).items():
        path = BUILD / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    if (ROOT / "nbs" / "figures").exists(): shutil.copytree(ROOT / "nbs" / "figures", BUILD / "source" / "figures")
    (BUILD / "extra" / "notebooks").mkdir(parents=True)  # to download
    for path in (ROOT / "nbs").glob("*.ipynb"): shutil.copy(path, BUILD / "extra" / "notebooks")
    write_slides(BUILD / "extra" / "slides")
    write_live_data(BUILD / "extra" / "live_data.js")
    draw_card(ROOT / "nbs" / "figures" / "index_1.png", BUILD / "extra" / CARD)
    folders = [str(BUILD / "source"), str(BUILD / "site")]
    return build_main(
        [
            "-q", "-W", "--keep-going", "-b", "html", "-c", str(ROOT / "tools" / "site"), "-d",
            str(BUILD / "doctrees"), *folders,
        ]
    )


if __name__ == "__main__":
    raise SystemExit(main())
