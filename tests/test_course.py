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


def test_enough_exercises():
    chapters = {exercise.chapter for exercise in EXERCISES}
    assert len(EXERCISES) >= 45 and len(chapters) == 22
    assert min(sum(e.chapter == chapter for e in EXERCISES) for chapter in chapters) >= 2
    assert {e.answer for e in EXERCISES} == {name for chapter in MISTAKES.values() for name in chapter}
    assert sum(len(e["mistakes"]) for chapter in MISTAKES.values() for e in chapter.values()) >= 120


@pytest.mark.timeout(60)
@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: f"{e.chapter[:2]}-{e.name}")
def test_mistakes_are_seen(exercise):
    plan, start = MISTAKES[exercise.chapter][exercise.answer], namespace(exercise)
    assert len(plan["mistakes"]) >= 3

    def answer(code):
        names = dict(start)
        run(code, names)
        torch.manual_seed(0)
        return names, describe(eval(compile(ast.parse(plan["probe"], mode="eval"), "probe", "eval"), names))

    names, wanted = answer(exercise.solution)
    run(exercise.check, names)
    for old, new in plan["mistakes"]:
        assert exercise.solution.count(old) == 1, f"{old!r} stands {exercise.solution.count(old)} times in the answer"
        names, found = answer(exercise.solution.replace(old, new))
        assert found == wanted, f"{new!r} gives {found}, the answer {wanted}: nobody would need a check to see that"
        assert not passes(exercise.check, names), f"the check does not see {old!r} → {new!r}"


@pytest.mark.parametrize("path", course.chapters(), ids=lambda p: p.stem)
def test_course_is_what_the_chapters_say(path):
    "The committed sources are those that the tool makes, and the release is the source without its answers."
    stored, released = (nbformat.read(ROOT / "course" / part / path.stem / path.name, as_version=4) for part in ("source", "release"))
    made = course.source_notebook(path)
    assert [c.source for c in stored.cells] == [c.source for c in made.cells]
    assert [c.metadata.get("nbgrader") for c in stored.cells] == [c.metadata.get("nbgrader") for c in made.cells]
    for cell, source in zip(released.cells, made.cells, strict=True):
        role = source.metadata.get("nbgrader", {})
        if not role.get("solution"):
            assert cell.source == source.source
        elif source.cell_type == "markdown":
            assert cell.source == "YOUR ANSWER HERE"
        else:
            before, rest = source.source.split(course.BEGIN)
            assert cell.source == before + "# YOUR CODE HERE\n" + " " * (len(before) - len(before.rstrip(" "))) + "raise NotImplementedError()" + rest.split(course.END)[1]
