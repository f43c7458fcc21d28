"""README.md from nbs/index.ipynb: prose, code, and its figures as files beside the notebooks; a
small image of every chapter."""
import base64
import io
import re
from pathlib import Path

import nbformat
from PIL import Image

from address import published, read_settings

ROOT = Path(__file__).parent.parent
FIG_ALT = re.compile(r"^#\| fig-alt:(.+)\n?", re.MULTILINE)
FIGURES = {  # chapter → which of its figures stands for it in the table
    "00_start": 0, "01_boxes": 1, "02_napkin": 3, "10_backbone": 0, "11_position": 2, "12_transformer": 0,
    "13_matcher": 4, "14_losses": 4, "15_detector": 0, "20_mask_losses": 0, "21_mask_head": 0, "22_panoptic": 1,
    "30_transforms": 0, "31_post_processing": 5, "32_processor": 0, "33_evaluation": 1, "40_pretraining": 0,
    "41_training": 3, "42_own_data": 3, "43_scaling": 1, "50_explore": 0, "51_speed": 0, "52_cli": 0,
    "90_visualization": 1, "91_files": 0, "92_scenes": 3, "93_data": 1, "94_config": 0, "95_checkpoints": 0,
    "96_datasets": 0, "97_integrations": 0, "98_bench": 0, "99_runs": 0,
}


def named(path: Path) -> str:
    "A chapter in a list: its number and its title."
    cells = nbformat.read(path, as_version=4).cells
    title = next(cell.source for cell in cells if cell.source.startswith("# ")).splitlines()[0]
    return f"{path.stem[:2]} · {title.removeprefix('# ')}"


def minutes_of(text: str) -> str:
    "How long a chapter says that it takes to read."
    return re.search(r"(\d+) minutes", text)[1]


def figures_of(notebook) -> list[bytes]:
    "A notebook's figures as PNG files."
    outputs = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    return [base64.b64decode(data["image/png"]) for data in outputs if "image/png" in data]


def thumbnails() -> dict[str, bytes]:
    "A small image of every chapter, by path. `ValueError` for a chapter that has none."
    result = {}
    for path in sorted((ROOT / "nbs").glob("[0-9]*.ipynb")):
        if path.stem not in FIGURES: raise ValueError(f"{path.name}: no figure named for it in FIGURES")
        image = Image.open(io.BytesIO(figures_of(nbformat.read(path, as_version=4))[FIGURES[path.stem]])).convert(
            "RGB"
        )
        image.thumbnail((280, 90))
        file = io.BytesIO()
        image.quantize(64).save(file, "png", optimize=True)
        result[f"nbs/figures/{path.stem}.png"] = file.getvalue()
    return result


def badge(left: str, right: str) -> bytes:
    "Two words in two boxes, as SVG."
    widths = [7 * len(word) + 12 for word in (left, right)]
    boxes = [(0, widths[0], "#555", left), (widths[0], widths[1], "#0072b2", right)]
    parts = [
        f'<rect x="{x}" width="{w}" height="20" fill="{colour}"/>'
        f'<text x="{x + w / 2}" y="14" fill="#fff" text-anchor="middle">{word}</text>'
        for x, w, colour, word in boxes
    ]
    start = f'<svg xmlns="http://www.w3.org/2000/svg" width="{sum(widths)}" height="20"'
    return f'{start} font-family="Verdana,sans-serif" font-size="11">{"".join(parts)}</svg>\n'.encode()


def badges() -> dict[str, tuple[str, bytes]]:
    "The badges: name of the file → what it says in words, the file."
    settings = read_settings()
    chapters = [nbformat.read(path, as_version=4) for path in sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))]
    exercises = sum("exercise" in cell.metadata.get("tags", []) for c in chapters for cell in c.cells)
    facts = {
        "python": f"{settings['min_python']} or newer", "licence": "Apache 2.0", "version": settings["version"],
        "chapters": str(len(chapters)), "exercises": str(exercises),
    }
    return {f"badge_{name}.svg": (f"a badge: {name} {fact}", badge(name, fact)) for name, fact in facts.items()}


def filled(text: str, tests: bool = True) -> str:
    "Text with the badges, and with the repository's address where settings.ini has one."
    shown, address = " ".join(f"![{words}](figures/{name})" for name, (words, _) in badges().items()), published()
    if address and tests:
        runs = f"{address.repository}/actions/workflows/test.yml"
        shown += f" [![tests]({runs}/badge.svg)]({runs})"
    text = text.replace("<!-- badges -->", shown)
    return text.replace("REPOSITORY", address.repository) if address else text


def readme() -> tuple[str, dict[str, bytes]]:
    "The text of the README and the images it shows, by path."
    parts, figures = [], {f"nbs/figures/{name}": data for name, (_, data) in badges().items()}
    for cell in nbformat.read(ROOT / "nbs" / "index.ipynb", as_version=4).cells:
        source, words = FIG_ALT.sub("", cell.source).strip(), FIG_ALT.search(cell.source)
        if cell.cell_type == "markdown":
            source = re.sub(r"\]\((?=[0-9]|figures/)", "](nbs/", filled(source))
            parts.append(source.replace("](../", "]("))
            continue
        if not source.startswith("#|"):
            parts.append(f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                path = f"nbs/figures/index_{sum(name.endswith('.png') for name in figures) + 1}.png"
                figures[path] = base64.b64decode(data["image/png"])
                if not words:
                    raise ValueError(
                        "index.ipynb has a figure without words: want a line `#| fig-alt: …` in its cell"
                    )
                parts.append(f"![{words[1].strip()}]({path})")
            elif "text/plain" in data or "text" in output:
                text = data.get("text/plain", output.get("text", "")).strip()
                parts.append("\n".join("    " + line for line in text.splitlines()))
    header = "<!-- made from nbs/index.ipynb by `make export`; edit that -->"
    return "\n\n".join([header, *parts]) + "\n", figures


if __name__ == "__main__":
    text, figures = readme()
    (ROOT / "README.md").write_text(text, encoding="utf-8")
    for path, data in (figures | thumbnails()).items():
        (ROOT / path).parent.mkdir(exist_ok=True)
        (ROOT / path).write_bytes(data)
