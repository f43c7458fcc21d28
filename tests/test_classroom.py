"The teacher's page: its patterns for archives of learning platforms, its traps, its plan; and private courses."
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import course  # noqa: E402
import variants  # noqa: E402

PAGE = (ROOT / "course" / "README.md").read_text(encoding="utf-8")
ROSTER = "Ada Lovelace,Ada,Lovelace,\nAlan Mathison Turing,Alan,Turing,\n"
PATTERNS = re.findall(r"^c\.FileNameCollectorPlugin\.named_regexp = .+$", PAGE, re.MULTILINE)
NAME = "01_boxes"


def nbgrader(folder: Path, *words: str) -> str:
    "What a command of nbgrader says."
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # it calls a program of this environment
    run = subprocess.run(
        [sys.executable, "-m", "nbgrader", *words], cwd=folder, capture_output=True, text=True, timeout=300,
        env=os.environ | {"PATH": beside},
    )
    return run.stdout + run.stderr


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    "A teacher's folder with two students and one assignment."
    tmp_path = tmp_path_factory.mktemp("class")
    (tmp_path / "nbgrader_config.py").write_text((ROOT / "course" / "nbgrader_config.py").read_text(encoding="utf-8"))
    source = tmp_path / "source" / NAME
    source.mkdir(parents=True)
    (source / f"{NAME}.ipynb").write_bytes((ROOT / "course" / "source" / NAME / f"{NAME}.ipynb").read_bytes())
    (tmp_path / "roster.csv").write_text("id,first_name,last_name,email\n48151,Ada,Lovelace,a@example.org\n62342,Alan,Turing,t@example.org\n" + ROSTER)
    assert "48151" in nbgrader(tmp_path, "db", "student", "import", "roster.csv")
    nbgrader(tmp_path, "generate_assignment", NAME, "--force")
    assert (tmp_path / "release" / NAME / f"{NAME}.ipynb").is_file()
    return tmp_path


@pytest.fixture()
def classroom(prepared, tmp_path) -> Path:
    "A copy of it."
    return Path(shutil.copytree(prepared, tmp_path / "class"))


MOODLE = "Ada Lovelace", "Alan Mathison Turing"


@pytest.mark.parametrize("pattern,names,students", [
    (PATTERNS[0], [f"{name}_48151_assignsubmission_file_/01_boxes.ipynb" for name in MOODLE], MOODLE),
    (PATTERNS[0], [f"{name}_48151_assignsubmission_file/01_boxes.ipynb" for name in MOODLE], MOODLE),
    (PATTERNS[0], [f"{name}_48151_assignsubmission_file_01_boxes.ipynb" for name in MOODLE], MOODLE),
    (PATTERNS[1], ["lovelaceada_48151_998_01_boxes.ipynb", "turingalan_LATE_62342_1001_01_boxes-2.ipynb"], ("48151", "62342")),
], ids=["moodle in folders", "moodle in folders of another kind", "moodle", "canvas"])
def test_archives_are_collected(classroom, pattern, names, students):
    archive = classroom / "downloaded" / NAME / "archive"
    archive.mkdir(parents=True)
    with zipfile.ZipFile(archive / "all.zip", "w") as file:
        for name in names: file.write(classroom / "release" / NAME / f"{NAME}.ipynb", name)
    with open(classroom / "nbgrader_config.py", "a") as file: file.write(f"\n{pattern}\n")
    said = nbgrader(classroom, "zip_collect", NAME)
    found = sorted(p.relative_to(classroom).as_posix() for p in (classroom / "submitted").rglob("*.ipynb"))
    assert found == [f"submitted/{student}/{NAME}/{NAME}.ipynb" for student in students], said
    nbgrader(classroom, "autograde", NAME, "--student", students[0])
    assert (classroom / "autograded" / students[0] / NAME / f"{NAME}.ipynb").is_file()


def test_traps_are_told_as_the_page_says(classroom):
    "A copied cell and a renamed notebook; what nbgrader says of them stands on the page."
    release = nbformat.read(classroom / "release" / NAME / f"{NAME}.ipynb", as_version=4)
    folders = {student: classroom / "submitted" / student / NAME for student in ("48151", "62342")}
    for folder in folders.values(): folder.mkdir(parents=True)
    copied = nbformat.from_dict(release)
    twice = nbformat.from_dict(next(c for c in release.cells if c.metadata.get("nbgrader", {}).get("solution")))
    copied.cells.insert(0, nbformat.from_dict(dict(twice) | {"id": "copy"}))
    nbformat.write(copied, folders["48151"] / f"{NAME}.ipynb")
    nbformat.write(release, folders["62342"] / "boxes of mine.ipynb")
    said = nbgrader(classroom, "autograde", NAME)
    assert re.search(r"Cell with id '\w+' exists multiple times!", said) and "exists multiple times!" in PAGE
    assert "Invalid submission notebook name" in PAGE
    graded = classroom / "autograded"
    assert not (graded / "48151" / NAME / f"{NAME}.ipynb").exists() and not (graded / "62342" / NAME / f"{NAME}.ipynb").exists()


def test_a_deleted_check_comes_back(classroom):
    "Right answers, and the check of one of them is gone: full marks, once it is back."
    path = ROOT / "nbs" / f"{NAME}.ipynb"
    answers = {e.name: e.solution for e in course.read_chapter(path)[0]}
    notebook = nbformat.read(classroom / "release" / NAME / f"{NAME}.ipynb", as_version=4)
    name = lambda cell: cell.metadata.get("nbgrader", {}).get("grade_id")
    for cell in notebook.cells: cell.source = answers.get(name(cell), cell.source)
    notebook.cells = [cell for cell in notebook.cells if name(cell) != f"{next(iter(answers))}_check"]
    place = classroom / "submitted" / "48151" / NAME
    place.mkdir(parents=True)
    nbformat.write(notebook, place / f"{NAME}.ipynb")
    said = nbgrader(classroom, "autograde", NAME)
    marks, wanted = course.marks(classroom, "48151", NAME)
    assert marks == wanted > 0, said


def test_plan_has_the_minutes_and_points_of_the_chapters():
    from make_readme import minutes_of, named
    plan = (ROOT / "course" / "plan.md").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    for path in sorted((ROOT / "nbs").glob("[0-9]*.ipynb")):
        opening = next(c.source for c in nbformat.read(path, as_version=4).cells if "You will be able to" in c.source)
        exercises, questions, _ = course.read_chapter(path)
        minutes = sum(int(re.search(r"(\d+) minutes", e.card)[1]) for e in exercises)
        points = sum(e.points for e in exercises) + 3 * len(questions)
        row = f"| [{named(path)}](../nbs/{path.name}) | {minutes_of(opening)} | {minutes or ''} | {points or ''} |"
        assert row in plan, f"course/plan.md: want {row}"
        line = next(line for line in readme if f"(nbs/{path.name}) | " in line)
        assert line.endswith(f" | {minutes_of(opening)} |"), f"nbs/index.ipynb says of {path.name}: {line}"
    rows = re.findall(r"^\| \[(\d\d) .*\| (\d+) \| (\d*) \| (\d*) \|$", plan, re.MULTILINE)
    table = {number: (int(read), int(minutes or 0), int(points or 0)) for number, read, minutes, points in rows}
    for weeks in plan.partition("## Twelve weeks")[2].partition("## What can be skipped")[0].split("## Six weeks"):
        total = 0
        for read, hand_in, hours in re.findall(r"^\| \d+ \|[^|]*\|([^|]*)\|([^|]*)\| ([\d.]+) \|$", weeks, re.MULTILINE):
            handed = [number for number in re.findall(r"\b\d\d\b", hand_in) if number in table]
            minutes = sum(table[n][0] for n in re.findall(r"\b\d\d\b", read)) + sum(table[n][1] for n in handed)
            assert abs(minutes / 60 - float(hours)) <= 0.0501, (read, hand_in, hours, minutes / 60)
            total += sum(table[number][2] for number in handed)
        assert f"The exercises handed in have {total} points." in weeks


def test_exam_has_a_key_and_no_release_has_it():
    numbered = lambda path: re.findall(r"^(\d+)\. ", (ROOT / "course" / path).read_text(encoding="utf-8"), re.MULTILINE)
    assert numbered("exam/questions.md") == numbered("teachers/exam_key.md") == [str(k) for k in range(1, 21)]
    assert not [p for p in (ROOT / "course" / "release").rglob("*") if "exam" in p.name or "key" in p.name]


NO_NUMBERS = {"counterexample", "find_fault", "costs_that_fool_greedy"}
EXERCISES = [exercise for path in course.chapters() for exercise in course.read_chapter(path)[0]][::5]


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: f"{e.chapter[:2]}-{e.name}")
def test_checks_with_other_numbers_bite(exercise):
    "The same seed gives the same check; the right answer passes, planted mistakes fail, what the card says stays."
    path = ROOT / "nbs" / f"{exercise.chapter}.ipynb"
    start = variants.run(course.setup_code(path), {"__name__": "__main__"})
    check = variants.changed_check(exercise, "a seed", start)
    if exercise.answer in NO_NUMBERS:
        assert check is None and "A few exercises have no numbers" in PAGE
        return
    assert check is not None and check != exercise.check
    assert variants.passes(check, exercise.name, exercise.solution, start)
    assert not any(variants.passes(check, exercise.name, answer, start) for answer in variants.mistakes_of(exercise))


def test_numbers_that_the_card_names_stay():
    card = "### A\n\ndifficulty ●●●○○ · importance ●●●○○ · 15 minutes\n\nThree boxes of 64 pixels, 0.5 apart."
    assert variants.promised(card) == {3, 64, 0.5}
    found = variants.numbers("assert f(64, [7, 0.001], x[3]) == 9 and g(2.5, dim=-1)")
    assert [n.value for n in found] == [2.5, 7, 64]


def test_a_private_course_hides_its_checks(tmp_path):
    "An answer that knows the public numbers passes the visible check and fails the hidden one, which no release contains."
    path = ROOT / "nbs" / f"{NAME}.ipynb"
    target = tmp_path / "private"
    course.generate(target, course.Private(hidden="a seed"), [path])
    source, release = ((target / part / NAME / f"{NAME}.ipynb").read_text(encoding="utf-8") for part in ("source", "release"))
    assert source.count("BEGIN HIDDEN TESTS") == 2 and "HIDDEN" not in release  # one of three has no numbers to change
    assert (target / "nbgrader_config.py").is_file()
    exercise = course.read_chapter(path)[0][0]
    start = variants.run(course.setup_code(path), {"__name__": "__main__"})
    other = variants.changed_check(exercise, "a seed", start)
    public = "def sliding_giou(shift, width):\n    return (width - shift) / (width + shift) if len(shift) == 41 else shift"
    assert variants.passes(exercise.check, exercise.name, public, start)
    assert not variants.passes(other, exercise.name, public, start)
    submitted = target / "submitted" / "ada" / NAME
    shutil.copytree(target / "release" / NAME, submitted)
    notebook = nbformat.read(submitted / f"{NAME}.ipynb", as_version=4)
    notebook.cells[0].source += "\n\n### BEGIN HIDDEN TESTS"  # which must not stop the feedback
    notebook.cells.append(nbformat.v4.new_markdown_cell("### BEGIN HIDDEN TESTS"))
    nbformat.write(notebook, submitted / f"{NAME}.ipynb")
    (target / "roster.csv").write_text("id\nada\n")
    for words in (("generate_assignment", NAME, "--force"), ("db", "student", "import", "roster.csv"), ("autograde", NAME), ("generate_feedback", NAME)):
        said = nbgrader(target, *words)
    graded = (target / "autograded" / "ada" / NAME / f"{NAME}.ipynb").read_text(encoding="utf-8")
    feedback = (target / "feedback" / "ada" / NAME / f"{NAME}.html").read_text(encoding="utf-8")
    assert "BEGIN HIDDEN TESTS" in graded and "END HIDDEN" not in feedback and "check, perhaps in a hidden one" in feedback, said
