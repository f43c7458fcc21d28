"How a notebook becomes a page: what is folded, stripped, described, linked, and what is refused."
import base64
import json
import sys

import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
from make_docs import notebook_page, prose
from reference import module_page

PICTURE = {"output_type": "display_data", "metadata": {}, "data": {"image/png": base64.b64encode(b"a image").decode()}}


def code(text: str, *outputs: dict, tags: tuple = ()) -> dict:
    return {"cell_type": "code", "metadata": {"tags": list(tags)}, "source": [text], "outputs": list(outputs)}


def page(folder, *cells: dict) -> str:
    path = folder / "30_lesson.ipynb"
    path.write_text(json.dumps({"cells": cells}))
    return notebook_page(path, folder / "images")


def test_directives_are_no_part_of_the_code(tmp_path):
    text = page(tmp_path, code("#| default_exp lesson"), code("#| export\ndef f(): pass"))
    assert "def f(): pass" in text and "#|" not in text and "lesson" not in text


def test_a_worked_answer_is_folded(tmp_path):
    text = page(tmp_path, code("answer = 42", tags=("solution",)), code("question = 6"))
    answer, rest = text.split("</details>")
    assert "<details><summary>Worked answer</summary>" in answer and "answer = 42" in answer and "question" in rest and "<details>" not in rest


def test_a_folded_hint_is_markdown():
    assert prose("<details><summary>Hint</summary>\n*Inspection*.</details>") == "<details><summary>Hint</summary>\n\n*Inspection*.\n\n</details>\n"


def test_a_figure_has_words(tmp_path):
    text = page(tmp_path, code("#| fig-alt: A \"star\" on grey\nshow()", PICTURE), code('strip("boxes");', PICTURE))
    assert r':alt: "A \"star\" on grey"' in text and "fig-alt" not in text and "; here: boxes" in text
    assert (tmp_path / "images" / "30_lesson_0_0.png").read_bytes() == b"a image"
    with pytest.raises(ValueError, match="30_lesson.ipynb, cell 0: a figure without words"): page(tmp_path, code("show()", PICTURE))


def test_other_outputs_are_refused(tmp_path):
    widget = {"output_type": "display_data", "data": {"application/x": ""}}
    with pytest.raises(ValueError, match="cell 0: output of the kind 'display_data' with .*want image/png or text/plain"): page(tmp_path, code("1", widget))


@pytest.mark.parametrize("link,wanted", [
    ("12_transformer.ipynb", "12_transformer.md"), ("../nbs/12_transformer.ipynb#many-heads", "12_transformer.md#many-heads"),
    ("../docs/from_transformers.md", "from_transformers.md"), ("../course/README.md", "course.md"), ("../README.md", "index.md"),
    ("https://example.org/12_transformer.ipynb", "https://example.org/12_transformer.ipynb"),
])
def test_links_lead_to_pages(link, wanted):
    assert prose(f"[there]({link})") == f"[there]({wanted})"


def test_docments_become_a_table(tmp_path):
    path = tmp_path / "lesson.py"
    path.write_text('''"A lesson"
# File to edit: ../nbs/30_lesson.ipynb.
__all__ = ['f', 'LIMIT']
LIMIT = 3  # at most
def f(
    x: int | None,   # how many
    *rest: str,
    y: float = 1.5,  # noqa: E501
) -> int:  # the sum
    "Adds."
def hidden(): pass
''')
    text = module_page(path)
    assert "| `x` | `int \\| None` |  | how many |" in text and "| `*rest` | `str` |  |  |" in text
    assert "| `y` | `float` | `1.5` |  |" in text and "| *returns* | `int` |  | the sum |" in text
    assert "{py:function} f(x, *rest, y=1.5)" in text and "LIMIT = 3" in text and "hidden" not in text
