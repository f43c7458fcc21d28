"""Every chapter runs from top to bottom in a real kernel, without a warning on stderr that a reader would stumble over,
and says what it said when its outputs were kept."""
import os
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import run_chapters  # noqa: E402

CHAPTERS = sorted((ROOT / "nbs").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_chapter_says_what_was_kept(path):
    notebook = run_chapters.run(path)
    assert any(cell.outputs for cell in notebook.cells if cell.cell_type == "code")
    faults = run_chapters.compare_outputs(nbformat.read(path, as_version=4), notebook, path.stem)
    assert not faults, "\n".join(["not the outputs that were kept (make chapters):", *faults])


HALVES = [path for path in CHAPTERS if "# In the library" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", HALVES, ids=lambda p: p.stem)
def test_library_half_begins_with_its_use(path):
    "A reader sees a call or a table of calls before the code that makes it."
    cells = nbformat.read(path, as_version=4).cells
    start = next(i for i, cell in enumerate(cells) if "# In the library" in cell.source)
    intro = cells[start].source.split("# In the library")[1].split("\n#")[0]
    first = next(cell for cell in cells[start:] if cell.cell_type == "code")
    assert "```" in intro or "\n| " in intro or not first.source.startswith("#| export"), first.source[:200]


@pytest.mark.parametrize("table", ["00_start", "index"])
def test_every_chapter_is_in_the_tables(table):
    text = (ROOT / "nbs" / f"{table}.ipynb").read_text(encoding="utf-8")
    assert not [path.name for path in CHAPTERS if path.stem != "index" and f"({path.name})" not in text]


def test_there_are_chapters():
    assert len(CHAPTERS) >= 18


def chapter(*texts, tags=(), source="1", kind="execute_result"):
    "A notebook with a code cell for each text; no output for None."
    cells = []
    for i, text in enumerate(texts):
        cell = nbformat.v4.new_code_cell(source, id=f"cell{i}", metadata={"tags": list(tags)})
        if text is not None: cell.outputs = [nbformat.v4.new_output(kind, data={"text/plain": text})]
        cells.append(cell)
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A chapter"), *cells])


def faults(kept, fresh, **options):
    "What is wrong with a chapter of one cell."
    return run_chapters.compare_outputs(chapter(kept, **options), chapter(fresh, **options), "13_matcher")


@pytest.mark.parametrize("kept, fresh", [
    ("9 of 25 match", "9 of 25 match"),
    ("loss 20.3148", "loss 20.3310"),               # relative: 8e-4
    ("AP 0.64, AR 0.70", "AP 0.65, AR 0.69"),       # a unit in the last digit
    ("6.2e-07", "4.8e-07"),                         # noise
    ("-0.0000", "0.0000"),
    ("0.31M parameters in 2.0x", "0.32M parameters in 2.1x"),
    ("tensor([ 0.5000, -0.25])", "tensor([0.5001,\n        -0.25])"),
    ("tensor([1., 2.])", "tensor([1.0001, 2.0000])"),
    ("−0.50 on resnet18", "−0.51 on resnet18"),
    ("<Figure size 900x95 with 1 Axes>", "<Figure size 900x95 with 1 Axes>"),
])
def test_equal_within_the_tolerance(kept, fresh):
    assert faults(kept, fresh) == faults(fresh, kept) == []


@pytest.mark.parametrize("kept, fresh", [
    ("loss 20.31480", "loss 20.3400"),              # relative: 1.2e-3
    ("AP 0.64", "AP 0.66"),
    ("9 of 25 match", "10 of 25 match"),            # a count
    ("tensor([1., 2.])", "tensor([1., 3.])"),
    ("41,524,768 parameters", "41,524,769 parameters"),
    ("9e-07", "3e-06"),
    ("0.5", "-0.5"),
    ("7 of 1.5 GB", "8 of 1.5 GB"),
    ("resnet18", "resnet50"),                       # so are the digits of a name
    ("a cross at 0.5", "a ball at 0.5"),
    ("0.5", "0.5 0.5"),
    ("0.5", "nan"),
    ("<Figure size 900x95 with 1 Axes>", "<Figure size 900x96 with 1 Axes>"),
])
def test_difference_is_named(kept, fresh):
    "With the chapter, the cell and both texts."
    for old, new in ((kept, fresh), (fresh, kept)):
        assert faults(old, new) == [f"13_matcher, cell cell0: another text\nkept: {old}\nnow:  {new}"]


def test_printed_text_is_compared_and_images_are_not():
    kept, fresh = chapter(None), chapter(None)
    for notebook, word, image in ((kept, "ball", "AAAA"), (fresh, "ring", "BBBB")):
        figure = nbformat.v4.new_output("display_data", data={"text/plain": "<Figure>", "image/png": image})
        notebook.cells[1].outputs = [nbformat.v4.new_output("stream", name="stdout", text=f"a {word}\n"), figure]
    found = run_chapters.compare_outputs(kept, fresh)
    assert len(found) == 1 and "a ball" in found[0] and "a ring" in found[0]


@pytest.mark.parametrize("tags", [(), ("trained",), ("varies",)])
def test_missing_output_is_named(tags):
    "Whatever the tags."
    for kept, fresh in (("1", None), (None, "1")):
        found = faults(kept, fresh, tags=tags, source="assert True")
        assert len(found) == 1 and found[0].startswith("13_matcher, cell cell0: kept the outputs")


def test_trained_needs_an_assert():
    assert faults("AP 0.2", "AP 0.9", tags=["trained"], source="assert ap > 0.1\nap") == []
    for source in ("ap", "# one could assert ap > 0.1\nap", "assertion = ap"):
        found = faults("AP 0.2", "AP 0.2", tags=["trained"], source=source)
        assert len(found) == 1 and "trained and has no assert" in found[0]


def test_three_cells_may_vary():
    several = lambda count, word: chapter(*[f"{word} {i}" for i in range(count)], tags=["varies"])
    assert run_chapters.compare_outputs(several(3, "a"), several(3, "b")) == []
    assert run_chapters.compare_outputs(several(4, "a"), several(4, "a"), "13_matcher") == [
        "13_matcher: cells cell0, cell1, cell2, cell3 are tagged varies: want at most 3"
    ]


def test_kernel_has_one_thread(tmp_path, monkeypatch):
    "Whatever the caller's environment says."
    for name in run_chapters.ONE_THREAD: monkeypatch.setenv(name, "7")
    source = f"import os\n[os.environ[name] for name in {list(run_chapters.ONE_THREAD)}]"
    path = tmp_path / "threads.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), path)
    assert run_chapters.run(path).cells[0].outputs[0].data["text/plain"] == "['1', '1', '1']"
    assert os.environ["OMP_NUM_THREADS"] == "7"
