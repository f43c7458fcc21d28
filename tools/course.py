"""The chapters' exercises as a course for nbgrader: `python tools/course.py COMMAND`.

    generate                  writes `course/source` and `course/release`
    generate --hidden [SEED]  a private course, whose checks have a second, hidden set with other numbers
    variant SEED [--hidden]   a private course, whose own checks have other numbers
    check                     does what a teacher and four made-up students would do, and prints the marks

Card, answer and check are those of the chapter, the answer's body taken out. Private courses are written to
`course/private/NAME`, which git leaves alone.
"""
import argparse
import ast
import copy
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).parent.parent
COURSE = ROOT / "course"
SECONDS = 300  # a cell of a student's may take, or a kernel to start: the first import of torch is slow on a cold disk
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
ANSWER_HERE = "*Write your answer in this cell.*"


@dataclass
class Exercise:
    "One card of a chapter with all that belongs to it."
    chapter: str      # 01_boxes
    card: str         # markdown
    answer: str       # name of a function or a class, or Class.method: what the student writes
    given: list[str]  # names of the chapter's definitions that the student gets
    solution: str     # code of the answer
    check: str        # code that passes with the right answer, and with no wrong one
    stub: str         # what the chapter gives to begin with

    @property
    def name(self) -> str:
        return self.answer.split(".")[0]

    @property
    def test(self) -> str:
        "The check as code that fails where nothing is written, too."
        return f"{self.check}\n\ncheck_{self.name}({self.name})"

    @property
    def points(self) -> int:
        return self.card.split("difficulty ")[1].split(" ")[0].count("●")


def code_of(notebook) -> list[str]:
    "The chapter's code cells, the exercises' own apart."
    cells = [
        c
        for c in notebook.cells
        if c.cell_type == "code" and not {"solution", "check", "stub"} & set(c.metadata.get("tags", []))
    ]
    return [cell.source for cell in cells]


def imports_of(codes: list[str]) -> dict[str, str]:
    "Every name that the chapter imports, and the statement for it."
    result = {}
    for statement in (
        s for code in codes for s in ast.parse(code).body if isinstance(s, (ast.Import, ast.ImportFrom))
    ):
        for alias in statement.names:
            one = copy.copy(statement)
            one.names = [alias]
            result[(alias.asname or alias.name).split(".")[0]] = ast.unparse(one)
    return result


def definition(name: str, codes: list[str], chapter: str) -> str:
    "The source of a function, class or constant of the chapter."
    for code in codes:
        for node in ast.parse(code).body:
            names = (
                [node.name]
                if hasattr(node, "name")
                else [t.id for t in getattr(node, "targets", []) if isinstance(t, ast.Name)]
            )
            if name in names:
                first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
                return "\n".join(code.splitlines()[first - 1 : node.end_lineno])
    raise ValueError(f"{chapter}: no definition of {name!r}, which an exercise names")


def gives_away(code: str, solution: str) -> bool:
    "Whether code that students get has a long statement of the answer in it."
    statements = lambda text: {
        ast.dump(node) for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.stmt) and not isinstance(node, (ast.FunctionDef, ast.ClassDef))
    }
    return any(len(s) > 300 for s in statements(code) & statements(solution))


def read_chapter(path: Path) -> tuple[list[Exercise], list[str], dict[str, str]]:
    "A chapter's exercises, its open questions, and the definitions that are given to students."
    notebook = nbformat.read(path, as_version=4)
    codes, exercises, questions, given = code_of(notebook), [], [], {}
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        names = [t[7:] for t in tags if t.startswith("answer:")]
        if "exercise" in tags:
            card, stub, (answer,) = cell.source, "", names
            needs = [t[6:] for t in tags if t.startswith("given:")]
            given |= {name: definition(name, codes, path.stem) for name in needs}
        elif "stub" in tags:
            stub = cell.source
        elif "solution" in tags:  # at the end of the chapter; its last line runs the check
            next(e for e in exercises if e.answer == names[0]).solution = cell.source.rpartition("\n\ncheck_")[0]
        elif "check" in tags:
            if not stub: raise ValueError(f"{path.stem}: no cell to write in for the exercise {answer}")
            exercises.append(Exercise(path.stem, card, answer, needs, "", cell.source, stub))
        elif "question" in tags:
            questions.append(cell.source)
    for exercise in exercises:
        if not exercise.solution: raise ValueError(f"{path.stem}: no answer to the exercise {exercise.answer}")
        for name, code in given.items():
            if name != exercise.name and gives_away(code, exercise.solution):
                raise ValueError(f"{path.stem}: {name!r} is given to students and holds the answer {exercise.answer}")
    return exercises, questions, given


def without_body(exercise: Exercise) -> str:
    "The answer with its body marked, so that nbgrader takes it out: signature and docstring stay."
    lines, method = exercise.solution.splitlines(), exercise.answer.split(".")[1:]
    node = next(n for n in ast.parse(exercise.solution).body if getattr(n, "name", None) == exercise.name)
    for name in method:
        node = next(n for n in node.body if getattr(n, "name", None) == name)
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    first, last, indent = body[0].lineno, body[-1].end_lineno, " " * body[0].col_offset
    return "\n".join([*lines[: first - 1], indent + BEGIN, *lines[first - 1 : last], indent + END, *lines[last:]])


def setup_code(path: Path) -> str:
    "The imports and definitions that a chapter's exercises need."
    exercises, _, given = read_chapter(path)
    codes = code_of(nbformat.read(path, as_version=4))
    text = "\n".join([*given.values(), *(e.solution + "\n" + e.check for e in exercises)])
    used = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
    lines = [line for name, line in imports_of(codes).items() if name in used]
    return "\n".join(
        ["from __future__ import annotations\n", *sorted(set(lines)), *("\n" + code for code in given.values())]
    )


def class_check(exercise: Exercise, imports: dict[str, str], hidden: str = "") -> str:
    """A check in class: the answer is the student's own, and passes. What it needs is imported once
    more, for a student's cell may have given a name another meaning. It ends without a value, for
    nbgrader takes a number there as the marks. nbgrader takes the hidden part out of the release
    and puts it back when it grades."""
    used = {node.id for node in ast.walk(ast.parse(exercise.check)) if isinstance(node, ast.Name)}
    again = sorted({line for name, line in imports.items() if name in used})
    kind = "type" if re.search(rf"^class {exercise.name}\b", exercise.solution, re.MULTILINE) else "function"
    own = (
        'assert check.__module__ == "detr_nb.files", "check was replaced: restart the kernel, and leave it alone"\n'
        f'assert {exercise.name}.__module__ == "__main__", "{exercise.name} was imported: write it yourself"\n'
        f'assert type({exercise.name}).__name__ == "{kind}", "{exercise.name} is no {kind}: write it as it began"'
    )
    more = ["### BEGIN HIDDEN TESTS", hidden, f"check_{exercise.name}({exercise.name})", "### END HIDDEN TESTS"]
    return "\n".join([*again, "", own, "", exercise.test, *(more if hidden else [])])


@dataclass
class Private:
    "What is other in a private course: checks with other numbers, from seeds that students do not know."
    shown: str | None = None   # seed of the checks that students see; None: the chapter's own
    hidden: str | None = None  # seed of those that they do not see

    def checks(self, exercises: list[Exercise], path: Path) -> tuple[list[Exercise], dict[str, str]]:
        "The exercises with the checks that students see; the hidden ones, by the answer's name."
        from variants import changed_check, run
        start = run(setup_code(path), {"__name__": "__main__"})
        other = lambda seed, e: changed_check(e, seed, start) if seed else None
        shown = [replace(e, check=other(self.shown, e) or e.check) for e in exercises]
        hidden = {e.name: check for e in exercises if (check := other(self.hidden, e))}
        same = [e.name for e, s in zip(exercises, shown) if self.shown and e.check == s.check]
        same += [e.name for e in exercises if self.hidden and e.name not in hidden]
        if same: print(f"{path.stem}: no numbers to change in the check of {', '.join(sorted(set(same)))}", flush=True)
        return shown, hidden


def source_notebook(path: Path, private: Private | None = None):
    """The teacher's notebook of a chapter: setup, then card, answer and locked check of each
    exercise, then the open questions."""
    exercises, questions, _ = read_chapter(path)
    exercises, hidden = private.checks(exercises, path) if private else (exercises, {})
    title = path.stem.split("_", 1)[1].replace("_", " ").capitalize()
    text = (
        f"The chapter `nbs/{path.name}` explains what is asked here. Run the cells from top to bottom; "
        "a check that raises no error is passed."
    )
    cells = [new_markdown_cell(f"# {title}: exercises\n\n{text}")]
    cells.append(graded(new_code_cell(setup_code(path)), "setup"))
    imports = imports_of(code_of(nbformat.read(path, as_version=4)))
    for exercise in exercises:
        cells.append(new_markdown_cell(exercise.card))
        cells.append(graded(new_code_cell(without_body(exercise)), exercise.name, solution=True))
        check = new_code_cell(class_check(exercise, imports, hidden.get(exercise.name, "")))
        cells.append(graded(check, f"{exercise.name}_check", points=exercise.points))
    for k, question in enumerate(questions):
        text, scheme = question.split("<details><summary>Mark scheme</summary>")
        scheme = scheme.replace("</details>", "").strip()
        task = f"{text.strip()}\n\n### BEGIN MARK SCHEME\n{scheme}\n### END MARK SCHEME"
        cells.append(graded(new_markdown_cell(task), f"question_{k + 1}", points=3, task=True))
        cells.append(new_markdown_cell(ANSWER_HERE))
    for k, cell in enumerate(cells):
        cell["id"] = f"cell{k:02d}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel})


def graded(cell, grade_id: str, solution: bool = False, points: int | None = None, task: bool = False):
    "The cell with what nbgrader wants to know of it. What is not the student's is locked. A person grades a task."
    cell.metadata["nbgrader"] = {
        "grade": points is not None and not task, "grade_id": grade_id, "locked": not solution, "schema_version": 3,
        "solution": solution, "task": task,
    } | ({} if points is None else {"points": points})
    return cell


def chapters() -> list[Path]:
    "Those with exercises."
    paths = sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))
    return [
        path
        for path in paths
        if any("exercise" in c.metadata.get("tags", []) for c in nbformat.read(path, as_version=4).cells)
    ]


def grader(folder: Path):
    """nbgrader on a course folder, with the settings that ours has. It calls a program that lies
    beside this Python."""
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    from nbgrader.apps import NbGraderAPI
    from traitlets.config import Config
    config = Config()
    config.CourseDirectory.root = str(folder)
    config.CourseDirectory.course_id = "detr"
    config.OverwriteCells.add_missing_cells = True
    config.ExecutePreprocessor.timeout = config.ExecutePreprocessor.startup_timeout = SECONDS
    return NbGraderAPI(config=config)


def answered(result: dict, what: str) -> None:
    "`RuntimeError` with nbgrader's own words where a step of it failed."
    if not result["success"]:
        raise RuntimeError(f"{what}: nbgrader failed\n{result.get('error', '')}\n{result.get('log', '')}")


def generate(target: Path = COURSE, private: Private | None = None, paths: list[Path] | None = None) -> None:
    """Write the chapters' assignments in `source` and `release` of a folder; others that lie there
    are left alone."""
    from tqdm.auto import tqdm
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        api = grader(folder)
        for path in tqdm(paths or chapters(), desc="release", leave=False):
            (folder / "source" / path.stem).mkdir(parents=True)
            nbformat.write(source_notebook(path, private), folder / "source" / path.stem / path.name)
            answered(api.generate_assignment(path.stem, force=True), f"release of {path.stem}")
        for part in ("source", "release"):
            shutil.copytree(folder / part, target / part, dirs_exist_ok=True)
    if target != COURSE: shutil.copy(COURSE / "nbgrader_config.py", target)


def submit(path: Path, student: str, folder: Path) -> None:
    """A made-up student's notebook: `correct` has every answer, but deleted the first check, `blank` none,
    `importer` takes them from detr_nb, `wrapper` hides that."""
    exercises, _, _ = read_chapter(path)
    answers = {e.name: e for e in exercises}
    module = "detr_nb." + path.stem.split("_", 1)[1]
    notebook = nbformat.read(COURSE / "release" / path.stem / path.name, as_version=4)
    for cell in notebook.cells:
        name = cell.metadata.get("nbgrader", {}).get("grade_id")
        if name not in answers or student == "blank":
            continue
        if student == "correct":
            cell.source = answers[name].solution
        elif student == "importer":
            cell.source = f"from {module} import {name}"
        else:
            cell.source = (
                f"import {module} as m\n\n\ndef {name}(*values, **named):\n    return m.{name}(*values, **named)"
            )
    if student == "correct":
        ids = [cell.metadata.get("nbgrader", {}).get("grade_id") for cell in notebook.cells]
        del notebook.cells[ids.index(f"{exercises[0].name}_check")]
    target = folder / "submitted" / student / path.stem
    target.mkdir(parents=True)
    nbformat.write(notebook, target / path.name)


def validated(path: Path) -> str:
    """What `nbgrader validate` prints of a notebook, or its complaints where it prints nothing. Its
    exit code is 0 even where a check fails."""
    limits = [f"--ExecutePreprocessor.{name}={SECONDS}" for name in ("timeout", "startup_timeout")]
    command = [sys.executable, "-m", "nbgrader", "validate", *limits, str(path)]
    result = subprocess.run(command, cwd=COURSE, capture_output=True, text=True, check=False)
    about_ports = "IPKernelApp"  # Jupyter's own warning, which is not about the notebook
    warned = [line for line in result.stderr.splitlines() if "WARN" in line and about_ports not in line]
    return "\n".join([result.stdout or result.stderr, *warned])


def marks(folder: Path, student: str, name: str) -> tuple[float, float]:
    "Marks of the machine-graded cells, and how many there are to have."
    from nbgrader.api import Gradebook
    with Gradebook(f"sqlite:///{folder / 'gradebook.db'}") as gradebook:
        grades = [g for g in gradebook.find_submission(name, student).notebooks[0].grades if g.cell_type == "code"]
        return sum(g.auto_score or 0 for g in grades), sum(g.max_score for g in grades)


STUDENTS = "correct", "blank", "importer", "wrapper"


def check_assignment(path: Path, folder: Path) -> dict[str, tuple[float, float]]:
    """Everything that a teacher does with one assignment, in a course of its own; each student's
    marks."""
    count = len(read_chapter(path)[0])
    said = validated(COURSE / "source" / path.stem / path.name)
    if not said.startswith("Success") or "WARN" in said:
        raise RuntimeError(f"course/source/{path.name}: nbgrader validate does not say Success:\n{said}")
    said = validated(COURSE / "release" / path.stem / path.name)
    if not said.startswith(f"VALIDATION FAILED ON {count} CELL(S)"):
        raise RuntimeError(
            f"course/release/{path.name}: all {count} exercises should fail, nbgrader says:\n{said}"
        )
    shutil.copytree(COURSE / "source" / path.stem, folder / "source" / path.stem)
    api = grader(folder)
    answered(api.generate_assignment(path.stem, force=True), f"release of {path.stem}")
    for student in STUDENTS:
        submit(path, student, folder)
        answered(api.autograde(path.stem, student), f"grading of {student}'s {path.stem}")
    answered(api.generate_feedback(path.stem, "correct"), f"feedback on {path.stem}")
    graded = (folder / "autograded" / "correct" / path.stem / path.name).read_text(encoding="utf-8")
    feedback = (folder / "feedback" / "correct" / path.stem / f"{path.stem}.html").read_text(encoding="utf-8")
    for question in read_chapter(path)[1]:  # what the person who grades sees, and the student afterwards
        words = " ".join(re.findall(r"[A-Za-z]+", question.split("</summary>")[1])[:4])
        for place, text in (("the graded notebook", graded), ("the feedback", feedback)):
            plain = " ".join(re.findall(r"[A-Za-z]+", re.sub(r"\\n|<[^>]*>", " ", text)))
            if words not in plain: raise RuntimeError(f"{path.stem}: {place} does not show the mark scheme ({words} …)")
    return {student: marks(folder, student, path.stem) for student in STUDENTS}


def quiet() -> None:
    "Kernels and nbgrader talk much on stderr; what fails is raised."
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def check(paths: list[Path]) -> int:
    """Validate, release, grade and give feedback for assignments; print the marks. 1 if a made-up
    student has the wrong ones."""
    from concurrent.futures import ProcessPoolExecutor

    from tqdm.auto import tqdm
    wrong = 0
    with tempfile.TemporaryDirectory() as temporary, ProcessPoolExecutor(3, initializer=quiet) as pool:
        folders = [Path(temporary) / path.stem for path in paths]
        for folder in folders:
            folder.mkdir()
        results = pool.map(check_assignment, paths, folders)
        print(f"{'':20s}" + "".join(f"{student:>12s}" for student in STUDENTS))
        for path, result in zip(
            paths, tqdm(results, total=len(folders), desc="assignments", leave=False), strict=True
        ):
            wanted = [result["correct"][1], 0, 0, 0]
            wrong += [score for score, _ in result.values()] != wanted
            print(
                f"{path.stem:20s}" + "".join(f"{score:6g} of {most:<2g}" for score, most in result.values()),
                flush=True,
            )
    return int(wrong > 0)


def main() -> int:
    "One of the commands."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    hidden = dict(nargs="?", const=None, default="", metavar="SEED", help="without a seed, one is drawn and printed")
    generating, varying = commands.add_parser("generate"), commands.add_parser("variant")
    varying.add_argument("seed")
    for command in (generating, varying): command.add_argument("--hidden", **hidden)
    for command in (generating, varying, commands.add_parser("check")):
        command.add_argument("--only", nargs="+", metavar="CHAPTER", help="13_matcher …; without it, all")
    asked = parser.parse_args()
    known = {path.stem: path for path in chapters()}
    if unknown := set(asked.only or []) - set(known):
        parser.error(f"no exercises in {', '.join(sorted(unknown))}: want some of {', '.join(known)}")
    paths = [known[stem] for stem in asked.only or known]
    if asked.command == "check": return check(paths)
    seed = secrets.token_hex(4) if asked.hidden is None else asked.hidden
    if asked.command == "generate" and not seed:
        generate(paths=paths)
        return 0
    private = Private(shown=getattr(asked, "seed", None), hidden=seed or None)
    target = COURSE / "private" / f"variant_{private.shown}" if private.shown else COURSE / "private" / f"hidden_{seed}"
    if target.exists(): raise SystemExit(f"{target} is there already: want another seed, or move it away")
    generate(target, private, paths)
    print(f"a course with private checks is in {target}" + f"; the hidden ones come from the seed {seed}" * bool(seed))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
