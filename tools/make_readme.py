"""README.md from nbs/index.ipynb: prose, code, and its figures as files beside the notebooks; a
small image of every chapter."""
import base64
import io
import re
from pathlib import Path

import nbformat
from PIL import Image

ROOT = Path(__file__).parent.parent
FIG_ALT = re.compile(r"^#\| fig-alt:(.+)\n?", re.MULTILINE)
FIGURES = {  # chapter → which of its figures stands for it in the table
    "00_start": 3, "01_boxes": 1, "02_napkin": 2, "10_backbone": 0, "11_position": 1, "12_transformer": 0,
    "13_matcher": 2, "14_losses": 0, "15_detector": 0, "20_mask_losses": 1, "21_mask_head": 0, "22_panoptic": 1,
    "30_transforms": 0, "31_post_processing": 5, "32_processor": 0, "33_evaluation": 0, "40_pretraining": 1,
    "41_training": 3, "42_own_data": 3, "43_scaling": 0, "50_explore": 1, "51_speed": 3, "52_cli": 0,
    "90_visualization": 1, "91_files": 0, "92_scenes": 3, "93_data": 2, "94_config": 0, "95_checkpoints": 0,
    "96_datasets": 0, "97_integrations": 0, "98_bench": 0,
}


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


def readme() -> tuple[str, dict[str, bytes]]:
    "The text of the README and the images it shows, by path."
    parts, figures = [], {}
    for cell in nbformat.read(ROOT / "nbs" / "index.ipynb", as_version=4).cells:
        source, words = FIG_ALT.sub("", cell.source).strip(), FIG_ALT.search(cell.source)
        if cell.cell_type == "markdown":
            source = re.sub(r"\]\((?=[0-9]|figures/)", "](nbs/", source)
            parts.append(source.replace("](../", "]("))
            continue
        if not source.startswith("#|"):
            parts.append(f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                path = f"nbs/figures/index_{len(figures) + 1}.png"
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
