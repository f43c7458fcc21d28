"How a notebook becomes a page: what is folded, stripped, described, linked, and what is refused."
import base64
import json
import re
import sys

import nbformat
import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import make_docs
from address import PLACEHOLDER, SETTINGS, Address, install_cell, published
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
    assert [c.source for c in cells] == ["def f(): pass", "pass"] and cells[1].metadata.tags == ["remove-input"]


def test_imports_are_folded_and_other_code_is_not(tmp_path):
    imports = "import os\nimport sys\nfrom pathlib import Path\n"
    drawing = code("#| fig-alt: A drawing of DETR\n" + imports + 'architecture("loss")', PICTURE)
    cells = page(tmp_path, drawing, code(imports + "print(1)"), code("import os"))
    assert [c.metadata.tags for c in cells] == [["hide-input"], [], []]


def test_long_code_is_folded_where_the_idea_is_not(tmp_path):
    "In a chapter's second half long library code, unless it is what the chapter is about; anywhere the code of a figure."
    long = "\n".join(["def read(x):", *["    x = x + 1"] * 40, "    return x"])
    library = {"cell_type": "markdown", "metadata": {}, "source": ["## In the library"]}
    drawing = code("#| fig-alt: A star\n" + "plot(1)\n" * 21, PICTURE)
    cells = page(
        tmp_path, code(f"#| export\n{long}"), drawing, library, code(f"#| export\n{long}"), code(f"#| export\n{long}", tags=("open",)), code(long),
    )
    cells = [c for c in cells if c.cell_type == "code"]
    assert [c.metadata.tags for c in cells] == [[], ["hide-input"], ["hide-input"], [], []]
    prompts = [c.metadata.mystnb["code_prompt_show"] for c in cells[1:3]]
    assert prompts == ["Code of the figure: 21 lines", "Code of read: 42 lines"]


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


SOMEWHERE = Address("https://github.com/somebody/detr_nb", "main", "https://somebody.github.io/detr_nb")


@pytest.fixture(scope="module")
def chapters() -> list[str]:
    return sorted(path.stem for path in (ROOT / "nbs").glob("[0-9]*.ipynb"))


def test_every_chapter_can_be_opened_elsewhere(chapters):
    "With an address: Colab, download, source and the paper on each chapter's page; a card for links to it."
    pages = make_docs.sources(SOMEWHERE)
    for stem in chapters:
        text = pages[f"{stem}.ipynb"]
        for wanted in (
            f"[Open in Colab](https://colab.research.google.com/github/somebody/detr_nb/blob/main/nbs/{stem}.ipynb)",
            f"notebooks/{stem}.ipynb", f"[View source](https://github.com/somebody/detr_nb/blob/main/nbs/{stem}.ipynb)",
            "https://arxiv.org/abs/2005.12872", " minutes · ", "https://somebody.github.io/detr_nb/card.png",
        ): assert wanted in text, f"{stem}: no {wanted}"
    neighbours = pages["13_matcher.ipynb"]
    assert "← [12 · Transformer](12_transformer.ipynb)" in neighbours and "[14 · Losses](14_losses.ipynb) →" in neighbours
    assert "← [" not in pages["10_backbone.ipynb"]  # the first of its part
    assert "](16" not in pages["15_detector.ipynb"] and "[20 · Mask losses](20_mask_losses.ipynb) →" not in pages["15_detector.ipynb"]


def test_a_placeholder_is_no_address(chapters):
    pages = make_docs.sources(None)
    for name, text in pages.items():
        assert PLACEHOLDER not in text and "colab.research" not in text and "[View source]" not in text, name
    for stem in chapters: assert f"notebooks/{stem}.ipynb" in pages[f"{stem}.ipynb"]


def test_every_page_says_what_it_is_about():
    for name, text in make_docs.sources(None).items(): assert ":description: " in text, name


def test_the_address_stands_once(tmp_path):
    "Another account in settings.ini is another address everywhere; elsewhere than on GitHub there is no Colab."
    other = tmp_path / "settings.ini"
    text = SETTINGS.read_text(encoding="utf-8")
    other.write_text(text.replace(f"user = {PLACEHOLDER}", "user = somebody"), encoding="utf-8")
    assert published(other) == SOMEWHERE
    names: dict = {"get_ipython": lambda: pytest.fail("the package is there: nothing is installed")}
    code = install_cell(other)
    exec(code, names)
    assert "git+https://github.com/somebody/detr_nb@main" in code and "jupyterlab" not in code and len(max(code.splitlines(), key=len)) <= 120
    asked = []
    names = {"get_ipython": lambda: type("Shell", (), {"run_line_magic": lambda self, *words: asked.append(words)})()}
    exec(code.replace('"detr_nb"):', '"no_such_package"):'), names)
    (magic, words), = asked
    assert magic == "pip" and words.startswith("install --quiet 'detr_nb @ git+https://") and "'fastcore" in words
    assert Address("https://git.example.org/a/b", "main", "https://example.org").colab("01_boxes") is None


def test_without_an_address_the_first_cell_says_what_to_do(tmp_path):
    other = tmp_path / "settings.ini"
    text = SETTINGS.read_text(encoding="utf-8")
    other.write_text(text.replace(f"user = {published().repository.split('/')[-2]}", f"user = {PLACEHOLDER}") if published() else text)
    code = install_cell(other)
    exec(code, {})
    with pytest.raises(ModuleNotFoundError, match="pip install"): exec(code.replace('"detr_nb"):', '"no_such_package"):'), {})


def test_slides_hold_everything(tmp_path):
    "One file a part that asks for nothing else; a slide for each figure before the exercises, and for what to remember."
    from make_slides import chapter_slides, write_slides
    files = write_slides(tmp_path)
    assert [f.name for f in files][:2] == ["0_see_it.html", "1_the_detector.html"] and len(files) == len(make_docs.PARTS)
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert not re.findall(r"(?:src|href)=.(?!data:)", text) and "$" not in re.sub(r"base64,[^\"]*|<script>.*?</script>", "", text, flags=re.DOTALL), file
        assert file.stat().st_size < 4e6
    slides = [slide.body for slide in chapter_slides(ROOT / "nbs" / "13_matcher.ipynb")]
    cells = nbformat.read(ROOT / "nbs" / "13_matcher.ipynb", as_version=4).cells
    figures = sum("image/png" in output.get("data", {}) for cell in cells for output in cell.get("outputs", ()))
    assert "<h1>Matcher</h1>" in slides[0] and sum("<img" in body for body in slides) == figures > 5
    assert any("What to remember" in body and body.count("<li>") >= 3 for body in slides)
