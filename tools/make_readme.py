"README.md from nbs/index.ipynb: prose, code, and its figures as files beside the notebooks."
import base64
from pathlib import Path

import nbformat

ROOT = Path(__file__).parent.parent


def readme() -> tuple[str, dict[str, bytes]]:
    "The text of the README and the pictures it shows, by path."
    parts, figures = [], {}
    for cell in nbformat.read(ROOT / "nbs" / "index.ipynb", as_version=4).cells:
        source = cell.source.strip()
        if cell.cell_type == "markdown":
            parts.append(source.replace("](0", "](nbs/0").replace("](1", "](nbs/1").replace("](2", "](nbs/2"))
            continue
        if not source.startswith("#|"):
            parts.append(f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                path = f"nbs/figures/index_{len(figures) + 1}.png"
                figures[path] = base64.b64decode(data["image/png"])
                parts.append(f"![The figure that this code draws]({path})")
            elif "text/plain" in data or "text" in output:
                text = data.get("text/plain", output.get("text", "")).strip()
                parts.append("\n".join("    " + line for line in text.splitlines()))
    header = "<!-- made from nbs/index.ipynb by `make export`; edit that -->"
    return "\n\n".join([header, *parts]) + "\n", figures


if __name__ == "__main__":
    text, figures = readme()
    (ROOT / "README.md").write_text(text, encoding="utf-8")
    for path, data in figures.items():
        (ROOT / path).parent.mkdir(exist_ok=True)
        (ROOT / path).write_bytes(data)
