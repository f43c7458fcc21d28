"Every exercise of the course: the worked answer passes its check in a student's notebook, and planted mistakes do not."
import ast
import json
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import course  # noqa: E402
from variants import planted  # noqa: E402

MISTAKES = json.loads((ROOT / "course" / "mistakes.json").read_text(encoding="utf-8"))
EXERCISES = [exercise for path in course.chapters() for exercise in course.read_chapter(path)[0]]


def describe(value):
    "Type, shape and dtype all the way down: what a wrong answer must share with the right one."
    if isinstance(value, (torch.Tensor, np.ndarray)): return type(value).__name__, tuple(value.shape), str(value.dtype)
    if isinstance(value, dict): return {key: describe(value[key]) for key in value} if all(isinstance(k, str) for k in value) else "dict"
    if isinstance(value, tuple): return "tuple", [describe(item) for item in value]
    if isinstance(value, list): return "list", {str(describe(item)) for item in value}
    return type(value).__name__


def namespace(exercise: course.Exercise) -> dict:
    "A student's notebook after its first cell."
    path = ROOT / "nbs" / f"{exercise.chapter}.ipynb"
    names = {"__name__": "__main__", "__builtins__": __builtins__}
    run(course.setup_code(path), names)
    return names


def run(code: str, names: dict) -> None:
    import matplotlib
    matplotlib.use("Agg")
    exec(compile(code, "cell", "exec"), names)
    matplotlib.pyplot.close("all") if "matplotlib.pyplot" in sys.modules else None


def passes(check: str, names: dict) -> bool:
    try: run(check, names)
    except Exception: return False
    return True


def namespace_of(code: str, start: dict) -> dict:
    names = dict(start)
    run(code, names)
    return names


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: f"{e.chapter[:2]}-{e.name}")
def test_stub_is_the_answer_without_its_body(exercise):
    "The signature and docstring to begin with are those of the answer, and the chapter does not contain the answer."
    nodes = [next(n for n in ast.parse(code).body if getattr(n, "name", None) == exercise.name) for code in (exercise.stub, exercise.solution)]
    for name in exercise.answer.split(".")[1:]: nodes = [next(n for n in node.body if getattr(n, "name", None) == name) for node in nodes]
    begun, done = nodes
    assert ast.dump(begun.args) == ast.dump(done.args) and ast.get_docstring(begun) == ast.get_docstring(done) is not None
    assert ast.unparse(begun.body[1:]) == "raise NotImplementedError"
    codes = course.code_of(nbformat.read(ROOT / "nbs" / f"{exercise.chapter}.ipynb", as_version=4))
    if "." not in exercise.answer: assert not any(f"def {exercise.name}(" in code or f"class {exercise.name}" in code for code in codes)
    assert not any(course.gives_away(code, exercise.solution) for code in codes)


def test_release_that_gives_an_answer_away_is_refused():
    answer = "def area(boxes):\n    'Area.'\n    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1]).clamp(min=0)"
    assert course.gives_away(answer.replace("area", "helper"), answer)
    assert not course.gives_away("def helper(boxes):\n    return boxes[..., 2] - boxes[..., 0]", answer)


def test_enough_exercises():
    chapters = {exercise.chapter for exercise in EXERCISES}
    assert len(EXERCISES) >= 60 and len(chapters) == 30
    assert f"{len(EXERCISES)} exercises" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert min(sum(e.chapter == chapter for e in EXERCISES) for chapter in chapters if chapter < "90") >= 2
    assert {e.answer for e in EXERCISES} == {name for chapter in MISTAKES.values() for name in chapter}
    assert sum(len(e["mistakes"]) for chapter in MISTAKES.values() for e in chapter.values()) >= 400


@pytest.mark.timeout(60)
@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: f"{e.chapter[:2]}-{e.name}")
def test_mistakes_are_seen(exercise):
    plan, start = MISTAKES[exercise.chapter][exercise.answer], namespace(exercise)
    assert len(plan["mistakes"]) >= 5

    def answer(code):
        names = dict(start)
        run(code, names)
        torch.manual_seed(0)
        return names, describe(eval(compile(ast.parse(plan["probe"], mode="eval"), "probe", "eval"), names))

    names, wanted = answer(exercise.solution)
    run(exercise.test, names)
    assert not passes(exercise.test, start | {exercise.name: namespace_of(exercise.stub, start)[exercise.name]})
    for mistake in plan["mistakes"]:
        names, found = answer(planted(exercise.solution, mistake))
        assert found == wanted, f"{mistake!r} gives {found}, the answer {wanted}: nobody would need a check to see that"
        assert not passes(exercise.test, names), f"the check does not see {mistake!r}"


@pytest.mark.parametrize("path", course.chapters(), ids=lambda p: p.stem)
def test_course_is_what_the_chapters_say(path):
    "The committed sources are those that the tool makes, and the release is the source without its answers."
    stored, released = (nbformat.read(ROOT / "course" / part / path.stem / path.name, as_version=4) for part in ("source", "release"))
    made = course.source_notebook(path)
    assert [c.source for c in stored.cells] == [c.source for c in made.cells]
    assert [c.metadata.get("nbgrader") for c in stored.cells] == [c.metadata.get("nbgrader") for c in made.cells]
    for cell, source in zip(released.cells, made.cells, strict=True):
        role = source.metadata.get("nbgrader", {})
        if role.get("task"):
            assert cell.source.rstrip() == source.source.split("### BEGIN MARK SCHEME")[0].rstrip() and "scheme" not in cell.source.lower()
        elif not role.get("solution"):
            assert cell.source == source.source
        else:
            before, rest = source.source.split(course.BEGIN)
            assert cell.source == before + "# YOUR CODE HERE\n" + " " * (len(before) - len(before.rstrip(" "))) + "raise NotImplementedError()" + rest.split(course.END)[1]


CHEATS = {  # each passed once; the names say what is wrong with them
    "spoils what the judge reads": ("causal_attention", "def causal_attention(q, k, v): return v.zero_()"),
    "another door": ("distance_iou", "def distance_iou(a, b): return torchvision.ops.boxes.distance_box_iou(a, b)"),
    "a default": ("distance_iou", "def distance_iou(a, b, f=torchvision.ops.distance_box_iou): return f(a, b)"),
    "torch.ops": ("suppress", "def suppress(b, s, l, t): return torch.ops.torchvision.nms(b + 100 * l[:, None], s, t).tolist()"),
    "equals everything": ("still_right", "def still_right(side):\n    from unittest.mock import ANY\n    return ANY"),
    "a float of its own": (
        "product_of_positions",
        "class F(float):\n    def __sub__(self, other): return 0.0\n    __rsub__ = __sub__\ndef product_of_positions(difference, half): return F(0)",
    ),
    "renames what the check calls": ("causal_attention", "assert_close = lambda *a, **k: None\ndef causal_attention(q, k, v): return v"),
    "renames a builtin": ("product_of_positions", "abs = lambda x: 0\ndef product_of_positions(difference, half): return 1.0"),
    "the oracle itself": (
        "parameters_of_encoder_layer",
        "def parameters_of_encoder_layer(d, f): return sum(p.numel() for p in EncoderLayer(d, 1, f).parameters())",
    ),
    "a class in place of a function": (
        "distance_iou",
        "class distance_iou:\n    def __new__(cls, a, b): return torchvision.ops.distance_box_iou(a, b)",
    ),
    "not the thing": ("fold", "def fold(conv, norm): return nn.Sequential(conv, norm)"),
}


@pytest.mark.parametrize("kind", CHEATS)
def test_cheats_do_not_pass(kind):
    name, code = CHEATS[kind]
    exercise = next(e for e in EXERCISES if e.name == name)
    path = ROOT / "nbs" / f"{exercise.chapter}.ipynb"
    names = namespace(exercise)
    run(code, names)
    imports = course.imports_of(course.code_of(nbformat.read(path, as_version=4)))
    assert not passes(course.class_check(exercise, imports), names)
