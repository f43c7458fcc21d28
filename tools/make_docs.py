"""The website: `python tools/make_docs.py` writes pages from notebooks, guides and source, and builds them to `_docs/site`.

Notebooks are not run: their outputs are shown as they were kept. Nothing is fetched, neither here nor by a finished page.
"""
import base64
import json
import re
import shutil
from pathlib import Path

from sphinx.cmd.build import build_main

from make_readme import FIG_ALT
from reference import api_page, chapter_of, command_page, module_page

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "_docs"
HIDDEN = ("#| default_exp", "#| hide")
STRIP = re.compile(r"^strip\((?:\"(\w+)\")?", re.MULTILINE)


def page_links(text: str) -> str:
    "Links to notebooks, guides, the README and the teacher's page, wherever they lie, as links to this site's pages."
    text = re.sub(r"\]\((?:\.\./)?course/README\.md(#[^)]*)?\)", r"](course.md\1)", text)
    text = re.sub(r"\]\(\.\./README\.md(#[^)]*)?\)", r"](index.md\1)", text)
    return re.sub(r"\]\((?:\.\./)?(?:nbs/|docs/)?(\w+)\.(?:ipynb|md)(#[^)]*)?\)", r"](\1.md\2)", text)


def prose(text: str) -> str:
    "A markdown cell or page. What a `<details>` folds is markdown too, if blank lines stand around it."
    text = re.sub(r"</summary>[ \t]*\n*", "</summary>\n\n", text)
    text = re.sub(r"\n*[ \t]*</details>", "\n\n</details>\n", text)
    return page_links(text)


def alternative(code: str) -> str:
    "What a figure shows, in words: its cell's line `#| fig-alt: …`."
    words, strip = FIG_ALT.search(code), STRIP.search(code)
    if words: return words[1].strip()
    if strip: return "DETR's stages from image to loss, with the shapes known so far" + (f"; here: {strip[1]}" if strip[1] else "")
    raise ValueError("a figure without words: want a line `#| fig-alt: …` in its cell")


def block(language: str, text: str, *options: str) -> list[str]:
    return [f"`````{{code-block}} {language}", *options, "", text.rstrip("\n"), "`````", ""]


def output_lines(output: dict, image: Path, code: str) -> list[str]:
    "One kept output: an image with its text alternative, or text."
    data = output.get("data", {})
    if "image/png" in data:
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(base64.b64decode(data["image/png"]))
        words = output.get("metadata", {}).get("image/png", {}).get("alt") or alternative(code)
        return [f"```{{image}} images/{image.name}", f":alt: {json.dumps(words, ensure_ascii=False)}", "```", ""]
    text = output.get("text", data.get("text/plain"))
    if text is None: raise ValueError(f"output of the kind {output['output_type']!r} with {sorted(data)}: want image/png or text/plain")
    return block("text", "".join(text), ":class: output")


def code_lines(cell: dict, name: str, images: Path) -> list[str]:
    "A code cell with its outputs; a worked answer is folded."
    source = "".join(cell["source"])
    if source.startswith(HIDDEN): return []
    code = "\n".join(line for line in source.splitlines() if not line.startswith("#|"))
    lines = block("python", code) if code.strip() else []
    for i, output in enumerate(cell["outputs"]): lines += output_lines(output, images / f"{name}_{i}.png", source)
    if "solution" not in cell["metadata"].get("tags", []): return lines
    return ["<details><summary>Worked answer</summary>", "", *lines, "</details>", ""]


def notebook_page(path: Path, images: Path) -> str:
    "A notebook as a page of markdown."
    lines = []
    for i, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        if cell["cell_type"] == "markdown":
            lines += [prose("".join(cell["source"])), ""]
        elif cell["cell_type"] == "code":
            try:
                lines += code_lines(cell, f"{path.stem}_{i}", images)
            except ValueError as error:
                raise ValueError(f"{path}, cell {i}: {error}") from error
    return "\n".join(lines)


def contents(caption: str, pages: list[str]) -> str:
    return "\n".join(["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```", ""]) if pages else ""


def sources() -> dict[str, str]:
    "Every page of the site, by name."
    images = BUILD / "source" / "images"
    chapters = sorted((ROOT / "nbs").glob("[0-9][0-9]_*.ipynb"))
    modules = sorted((p for p in (ROOT / "detr_nb").glob("*.py") if not p.name.startswith("_")), key=chapter_of)
    guides = {p.stem: p for p in sorted((ROOT / "docs").glob("*.md"))}
    if (ROOT / "course" / "README.md").exists(): guides["course"] = ROOT / "course" / "README.md"
    pages = {p.stem: notebook_page(p, images) for p in (ROOT / "nbs" / "index.ipynb", *chapters)}
    pages |= {name: prose(p.read_text(encoding="utf-8")) for name, p in guides.items()}
    pages |= {f"api/{p.stem}": module_page(p) for p in modules}
    pages |= {"api": api_page(ROOT / "detr_nb", modules), "command_line": command_page()}
    pages["index"] += contents("Course", [p.stem for p in chapters]) + contents("Guides", list(guides)) + contents("Reference", ["command_line", "api"])
    return pages


def main() -> int:
    shutil.rmtree(BUILD, ignore_errors=True)
    for name, text in sources().items():
        path = BUILD / "source" / f"{name}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    if (ROOT / "nbs" / "figures").exists(): shutil.copytree(ROOT / "nbs" / "figures", BUILD / "source" / "figures")
    folders = [str(BUILD / "source"), str(BUILD / "site")]
    return build_main(["-q", "-W", "--keep-going", "-b", "html", "-c", str(ROOT / "tools" / "site"), "-d", str(BUILD / "doctrees"), *folders])


if __name__ == "__main__":
    raise SystemExit(main())
