"""Slides for teachers: `python tools/make_slides.py [FOLDER]` writes one HTML file for each part of the course.

A slide for each chapter's question, for each of its figures, and for what to remember. A file holds all that it shows
and needs no network. Arrow keys, space, a click or a swipe turn the slides; N shows the notes, what the chapter says
below the figure; printing gives one slide a page.
"""
import html
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat
from latex2mathml.converter import convert
from markdown_it import MarkdownIt

from make_docs import PARTS, slug
from make_readme import FIG_ALT

ROOT = Path(__file__).parent.parent
STYLE = """
:root { font-family: system-ui, sans-serif; background: #fff; color: #1a1a1a; }
body { margin: 0; }
section { box-sizing: border-box; height: 100vh; padding: 4vh 6vw; display: none; flex-direction: column; gap: 2vh; }
section.now { display: flex; }
h1 { font-size: 7vh; margin: auto 0 0; } h2 { font-size: 4.5vh; margin: 0; }
.question { font-size: 4vh; margin: 0 0 auto; color: #444; } .question p { margin: 0; }
.part { font-size: 3vh; color: #0072b2; margin: 0; }
img, .drawing { min-height: 0; flex: 1; object-fit: contain; max-width: 100%; margin: 0 auto; }
.drawing { display: flex; width: 100%; } .drawing svg { width: 100%; height: auto; margin: auto; }
li { font-size: 3.4vh; margin: 1.6vh 0; line-height: 1.35; } a { color: inherit; }
footer { font-size: 2vh; color: #666; display: flex; justify-content: space-between; margin-top: auto; }
aside { display: none; font-size: 2.2vh; background: #f3f3f3; padding: 1vh 2vw; max-height: 30vh; overflow: auto; }
body.notes aside { display: block; }
@media print {
  @page { size: 33cm 18.6cm; margin: 0; }
  section { display: flex; height: 18.5cm; break-after: page; }
}
"""
SCRIPT = """
const slides = [...document.querySelectorAll("section")];
let at = Math.min(Math.max(parseInt(location.hash.slice(1)) || 1, 1), slides.length) - 1, from = null;
function show(k) {
  at = Math.min(Math.max(k, 0), slides.length - 1);
  slides.forEach((slide, i) => slide.classList.toggle("now", i === at));
  history.replaceState(null, "", "#" + (at + 1));
}
const turns = { ArrowRight: 1, ArrowDown: 1, PageDown: 1, " ": 1, ArrowLeft: -1, ArrowUp: -1, PageUp: -1 };
addEventListener("keydown", event => {
  if (event.key in turns) { event.preventDefault(); show(at + turns[event.key]); }
  else if (event.key === "Home") show(0);
  else if (event.key === "End") show(slides.length - 1);
  else if (event.key.toLowerCase() === "n") document.body.classList.toggle("notes");
});
addEventListener("click", event => {
  if (!event.target.closest("aside")) show(at + (event.clientX < innerWidth / 3 ? -1 : 1));
});
addEventListener("touchstart", event => { from = event.touches[0].clientX; }, { passive: true });
addEventListener("touchend", event => {
  const moved = event.changedTouches[0].clientX - from;
  if (Math.abs(moved) > 40) show(at + (moved < 0 ? 1 : -1));
});
addEventListener("hashchange", () => show((parseInt(location.hash.slice(1)) || 1) - 1));
show(at);
"""


@dataclass
class Slide:
    "One slide: what stands on it, and what the speaker may read."
    body: str
    notes: str = ""


def plain(text: str) -> str:
    "Markdown as HTML whose links lead nowhere: a file that is passed on has no neighbours."
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)
    shown = MarkdownIt().enable("table").render(text)
    return re.sub(r"\$\$?([^$]+)\$\$?", lambda formula: convert(html.unescape(formula[1])), shown)


def figures(cell: nbformat.NotebookNode) -> list[str]:
    "The figures of a cell as HTML, with their words."
    shown = []
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        if "image/svg+xml" in data:
            words = html.escape(data["text/plain"])
            shown.append(f'<div class="drawing" role="img" aria-label="{words}">{data["image/svg+xml"]}</div>')
        elif "image/png" in data:
            told = output.metadata.get("image/png", {}).get("alt") or FIG_ALT.search(cell.source)[1].strip()
            picture = data["image/png"].replace("\n", "")
            shown.append(f'<img alt="{html.escape(told)}" src="data:image/png;base64,{picture}">')
    return shown


def chapter_slides(path: Path) -> list[Slide]:
    "A chapter: its question, its figures under their headings, what to remember."
    cells = nbformat.read(path, as_version=4).cells
    title, _, question = cells[0].source.partition("\n")
    opening = f"<p class=part>{path.stem[:2]}</p><h1>{html.escape(title[2:])}</h1>"
    slides = [Slide(f"{opening}<div class=question>{plain(question.strip().removeprefix('> '))}</div>")]
    heading = title[2:]
    for k, cell in enumerate(cells):
        if cell.cell_type == "markdown":
            found = re.findall(r"^#{2,3} (.+)$", cell.source, re.MULTILINE)
            if "What to remember" in cell.source:
                points = cell.source.partition("What to remember")[2].strip().split("\n\n")[0]
                slides.append(Slide(f"<h2>What to remember</h2>{plain(points)}"))
            if any(word in cell.source for word in ("## Exercises", "### Exercise 1")): break
            if found: heading = found[-1]
            continue
        following = next((c.source for c in cells[k + 1 :] if c.cell_type == "markdown"), "")
        notes = plain(following.split("\n#")[0].strip()) if not following.startswith("#") else ""
        slides += [Slide(f"<h2>{plain(heading)[3:-5]}</h2>{figure}", notes) for figure in figures(cell)]
    return slides


def deck(part: str, paths: list[Path]) -> str:
    "The slides of a part as one HTML file."
    keys = f"{len(paths)} chapters. Arrow keys turn the slides, N shows notes."
    slides = [Slide(f"<p class=part>DETR</p><h1>{html.escape(part[2:])}</h1><div class=question>{keys}</div>")]
    for path in paths: slides += chapter_slides(path)
    sections = [
        f"<section>{slide.body}{f'<aside>{slide.notes}</aside>' if slide.notes else ''}"
        f"<footer><span>detr_nb · {html.escape(part)}</span><span>{k} / {len(slides)}</span></footer></section>"
        for k, slide in enumerate(slides, 1)
    ]
    head = [
        '<meta charset="utf-8">', '<meta name="viewport" content="width=device-width">',
        '<link rel="icon" href="data:,">', f"<title>{html.escape(part)}</title>", f"<style>{STYLE}</style>",
    ]
    page = ["<!doctype html>", '<html lang="en"><head>', *head, "</head><body>", *sections]
    return "\n".join([*page, f"<script>{SCRIPT}</script>", "</body></html>", ""])


def write_slides(folder: Path) -> list[Path]:
    "One file for each part."
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for ten, part in PARTS.items():
        paths = sorted((ROOT / "nbs").glob(f"{ten}[0-9]_*.ipynb"))
        written.append(folder / f"{slug(part)}.html")
        written[-1].write_text(deck(part, paths), encoding="utf-8")
    return written


if __name__ == "__main__":
    for path in write_slides(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build" / "slides")):
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")
