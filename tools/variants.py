"""Checks and exercises with other numbers, for teachers: used by `tools/course.py hidden` and `variant`.

The chapters are public, and so are their checks and answers. Two things can be private. A *hidden check* is a check in
which numbers were changed: seeds, sizes, inputs. A *variant* changes a number of the exercise itself, in its card, its
stub, its answer and its check, so that the public answer is wrong.

Nobody says which numbers may be changed. They are tried: a change is kept if the right answer still passes, and a whole
check only if it still sees every planted mistake of `course/mistakes.json`.
"""
import ast
import contextlib
import io
import json
import random
import re
import signal
from dataclasses import replace
from pathlib import Path

import course

ROOT = Path(__file__).parent.parent
SECONDS = 20  # for a check that runs with other numbers
SMALLEST = 0.01  # numbers below are tolerances


class TooLong(Exception):
    "A check that did not end."


@contextlib.contextmanager
def limited(seconds: float):
    "`TooLong` after so many seconds."
    def stop(*_): raise TooLong(f"longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try: yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(code: str, names: dict) -> dict:
    "Code in a student's notebook, with nothing on the screen."
    import matplotlib
    matplotlib.use("Agg")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        exec(compile(code, "cell", "exec"), names)
    return names


def passes(check: str, name: str, answer: str, start: dict) -> bool:
    "Whether a check takes an answer."
    try:
        with limited(SECONDS):
            names = run(answer, dict(start))
            run(f"{check}\n\ncheck_{name}({name})", names)
    except (Exception, SystemExit): return False
    return True


def planted(solution: str, mistake: list[str] | str) -> str:
    "The answer with a mistake: a place that reads otherwise, or an answer that somebody else would write."
    return mistake if isinstance(mistake, str) else solution.replace(*mistake)


def mistakes_of(exercise: course.Exercise) -> list[str]:
    "Wrong answers to an exercise that run and return the right shape."
    plan = json.loads((ROOT / "course" / "mistakes.json").read_text(encoding="utf-8"))
    return [planted(exercise.solution, m) for m in plan[exercise.chapter][exercise.answer]["mistakes"]]


def numbers(code: str) -> list[ast.Constant]:
    "The numbers of a check that may be changed, from the last to the first: no tolerances, limits, axes or indices."
    tree, kept = ast.parse(code), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare): kept |= {id(n) for c in node.comparators for n in ast.walk(c)}
        if isinstance(node, ast.keyword) and node.arg in ("atol", "rtol", "dim", "axis", "abs", "rel"):
            kept |= {id(n) for n in ast.walk(node.value)}
        if isinstance(node, ast.Subscript): kept |= {id(n) for n in ast.walk(node.slice)}
    found = [
        node for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and type(node.value) in (int, float) and id(node) not in kept
        and (node.value == 0 or abs(node.value) >= SMALLEST)
    ]
    return sorted(found, key=lambda n: (n.lineno, n.col_offset), reverse=True)


def another(value: float, rng: random.Random) -> float:
    "A number of the same kind, not far away."
    if isinstance(value, int):
        if value < 100: return value + rng.choice([1, 2, 3] if value < 4 else [-2, -1, 1, 2, 3])
        return value + rng.randint(1, max(1, value // 4))
    if 0 < value < 1: return round(min(0.95, max(0.05, value * rng.uniform(0.7, 1.3))), 2)
    return round(value * rng.uniform(0.7, 1.3), 1)


def with_number(code: str, node: ast.Constant, value: float) -> str:
    "Code in which one number is another."
    lines = code.splitlines()
    line = lines[node.lineno - 1].encode()
    lines[node.lineno - 1] = (line[: node.col_offset] + repr(value).encode() + line[node.end_col_offset :]).decode()
    return "\n".join(lines)


def hidden_check(exercise: course.Exercise, seed: int, start: dict, tries: int = 4) -> str | None:
    """The check of an exercise with other numbers; None where none can be changed. The right answer
    passes, and every planted mistake is seen."""
    rng = random.Random(f"{seed} {exercise.chapter} {exercise.answer}")
    wrong = mistakes_of(exercise)
    for _ in range(tries):
        code, changed = exercise.check, 0
        for node in numbers(code):
            new = with_number(code, node, another(node.value, rng))
            if passes(new, exercise.name, exercise.solution, start): code, changed = new, changed + 1
        if not changed: continue
        if not any(passes(code, exercise.name, answer, start) for answer in wrong): return code
    return None
