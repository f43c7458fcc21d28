"How a notebook becomes a page: what is folded, stripped, described, linked, and what is refused."
import base64
import json
import sys

import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
from make_docs import notebook_page, prose
from reference import module_page

PICTURE = {"output_type": "display_data", "metadata": {}, "data": {"image/png": base64.b64encode(b"a picture").decode()}}


def code(text: str, *outputs: dict, tags: tuple = ()) -> dict:
    return {"cell_type": "code", "metadata": {"tags": list(tags)}, "source": [text], "outputs": list(outputs)}


def page(folder, *cells: dict) -> list:
    "The cells of a notebook as the site shows it."
    path = folder / "30_lesson.ipynb"
    path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 4}))
    return notebook_page(path).cells


def test_directives_are_no_part_of_the_code(tmp_path):
    bare = code("#| fig-alt: A blue star", PICTURE)
    cells = page(tmp_path, code("#| default_exp lesson"), code("#| export\ndef f(): pass"), bare)
    assert [c.source for c in cells] == ["def f(): pass", ""] and cells[1].metadata.tags == ["remove-input"]


def test_a_worked_answer_is_folded(tmp_path):
    texts = [c.source for c in page(tmp_path, code("answer = 42", tags=("solution",)), code("question = 6"))]
    assert texts == ["<details><summary>Answer</summary>", "answer = 42", "</details>", "question = 6"]


def test_a_folded_hint_is_markdown():
    assert prose("<details><summary>Hint</summary>\n*Look*.</details>") == "<details><summary>Hint</summary>\n\n*Look*.\n\n</details>\n"


def test_an_import_line_leads_to_the_reference(tmp_path):
    text = "`from detr_nb import train`, or a command\n\nWrite `import torch` first."
    (cell,) = page(tmp_path, {"cell_type": "markdown", "metadata": {}, "source": [text]})
    first, _, last = cell.source.partition("\n")
    assert first == "`from detr_nb import train`, or a command · [reference](api/lesson.md)"
    assert last == "\nWrite `import torch` first."


def test_a_figure_has_words(tmp_path):
    told = PICTURE | {"metadata": {"image/png": {"alt": "A red disc"}}}
    first = code("#| fig-alt: A \"star\" on grey\nshow()", PICTURE)
    drawing = {"output_type": "display_data", "metadata": {}, "data": {"image/svg+xml": "<svg/>", "text/plain": "DETR in blue"}}
    cells = page(tmp_path, first, code('architecture("boxes")', drawing), code("1", told))
    assert [c.metadata.mystnb.image.alt for c in cells] == ['A "star" on grey', "DETR in blue", "A red disc"]
    with pytest.raises(ValueError, match="30_lesson.ipynb, cell 0: a figure without words"): page(tmp_path, code("show()", PICTURE))


def test_other_outputs_are_refused(tmp_path):
    widget = {"output_type": "display_data", "metadata": {}, "data": {"application/x": ""}}
    with pytest.raises(ValueError, match="cell 0: output of the kind 'display_data' with .*want image/png, image/svg.xml or text/plain"): page(tmp_path, code("1", widget))
    both = {"output_type": "display_data", "metadata": {}, "data": {"text/html": "<b>1</b>", "text/plain": "1"}}
    assert dict(page(tmp_path, code("1", both))[0].outputs[0].data) == {"text/plain": "1"}


@pytest.mark.parametrize("link,wanted", [
    ("30_lesson.ipynb", "30_lesson.ipynb"), ("../nbs/30_lesson.ipynb#many-heads", "30_lesson.ipynb#many-heads"),
    ("../docs/from_transformers.md", "from_transformers.md"), ("../course/README.md", "course.md"),
    ("../README.md", "index.ipynb"),
    ("https://example.org/docs/30_lesson.ipynb", "https://example.org/docs/30_lesson.ipynb"),
])
def test_links_lead_to_pages(link, wanted):
    assert prose(f"[there]({link})") == f"[there]({wanted})"


def test_a_module_page_has_what_is_public(tmp_path):
    path = tmp_path / "lesson.py"
    path.write_text('''"A lesson"
# File to edit: ../nbs/30_lesson.ipynb.
__all__ = ['f', 'LIMIT', 'A']
LIMIT = 3  # at most
def f(x): "Adds."
def hidden(): pass
class A: pass
''')
    text = module_page(path)
    assert "autofunction:: detr_nb.lesson.f\n" in text and "autoclass:: detr_nb.lesson.A\n" in text
    assert "LIMIT = 3" in text and "hidden" not in text and "(../30_lesson.ipynb)" in text
