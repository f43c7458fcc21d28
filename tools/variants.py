"""Checks with other numbers, for teachers: `tools/course.py generate --hidden` and `variant` use them.

The chapters are public, and so are their checks. From a seed that nobody else knows, a check becomes another one: with
other seeds, sizes and inputs. No list says which numbers may be changed. They are tried: a change is kept if the right
answer still passes, and a whole check only if it still sees every planted mistake of `course/mistakes.json`.
"""
import ast
import contextlib
import io
import json
import random
import re
import signal
from pathlib import Path

import course

ROOT = Path(__file__).parent.parent
SECONDS = 20  # for a check that runs with other numbers
SMALLEST, LARGEST = 0.01, 1e6  # smaller numbers are tolerances, larger ones stand for infinity


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
    if isinstance(mistake, str): return mistake
    assert solution.count(mistake[0]) == 1, f"{mistake[0]!r} stands {solution.count(mistake[0])} times in the answer"
    return solution.replace(*mistake)


def mistakes_of(exercise: course.Exercise) -> list[str]:
    "Wrong answers to an exercise that run and return the right shape."
    plan = json.loads((ROOT / "course" / "mistakes.json").read_text(encoding="utf-8"))
    return [planted(exercise.solution, m) for m in plan[exercise.chapter][exercise.answer]["mistakes"]]


WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


def promised(card: str) -> set[float]:
    "The numbers that an exercise names, in digits or words: they are part of what is asked."
    words = [k + 1 for k, word in enumerate(WORDS) if re.search(rf"\b{word}\b", card, re.IGNORECASE)]
    text = card.partition("minutes")[2]  # after difficulty, importance and time
    return {*words, *(float(n) for n in re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?![\w])", text))}


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
        and (node.value == 0 or SMALLEST <= abs(node.value) < LARGEST)
    ]
    return sorted(found, key=lambda n: (n.lineno, n.col_offset), reverse=True)


def another(value: float, rng: random.Random) -> float:
    "A number of the same kind, not far away."
    if isinstance(value, int):
        if value < 100: return value + rng.choice([1, 2, 3] if value < 4 else [-2, -1, 1, 2, 3])
        return value + rng.randint(1, max(1, value // 4))
    if 0 < value < 1: return round(min(0.95, max(0.05, value * rng.uniform(0.7, 1.3))), 2)
    return round(value * rng.uniform(0.7, 1.3), 1)


def with_number(code: str, nodes: list[ast.Constant], value: float) -> str:
    "Code in which some numbers, from the last to the first, are another."
    lines = code.splitlines()
    for node in nodes:
        line = lines[node.lineno - 1].encode()
        lines[node.lineno - 1] = (line[: node.col_offset] + repr(value).encode() + line[node.end_col_offset :]).decode()
    return "\n".join(lines)


def alike(code: str, fixed: set[float]) -> list[list[ast.Constant]]:
    """Whole numbers over 4 that stand at several places, as a size does: each with its places, from the
    last to the first."""
    constants = [n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Constant)]
    nodes = [n for n in constants if type(n.value) is int and n.value > 4 and n.value not in fixed]
    nodes.sort(key=lambda n: (n.lineno, n.col_offset), reverse=True)
    places = [[n for n in nodes if n.value == value] for value in sorted({n.value for n in nodes})]
    return [group for group in places if len(group) > 1]


def changed_check(exercise: course.Exercise, seed: str, start: dict, tries: int = 6) -> str | None:
    """The check of an exercise with other numbers; None where none can be changed. The right answer
    passes, and every planted mistake is seen. `start`: a student's notebook after its first cell."""
    rng = random.Random(f"{seed} {exercise.chapter} {exercise.answer}")
    wrong, fixed = mistakes_of(exercise), promised(exercise.card)
    for turn in range(tries):
        code = exercise.check
        for node in numbers(code):
            if node.value in fixed or rng.random() > 0.8**turn: continue  # fewer, where all of them made the check weak
            new = with_number(code, [node], another(node.value, rng))
            if passes(new, exercise.name, exercise.solution, start): code = new
        for k in range(len(alike(code, fixed))):
            group = alike(code, fixed)[k:][:1]  # a change may have made two of them one
            new = with_number(code, group[0], another(group[0][0].value, rng)) if group else code
            if passes(new, exercise.name, exercise.solution, start): code = new
        if code == exercise.check: continue
        if not any(passes(code, exercise.name, answer, start) for answer in wrong): return code
    return None
