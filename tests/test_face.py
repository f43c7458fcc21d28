"What an editor and a type checker see of the package, and that the order and density of the chapters' code hold."
import json
import subprocess
import sys
from pathlib import Path

import pytest

import detr_nb

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def checker(tmp_path_factory):
    "basedpyright's findings in some lines of a user's and in the package: mapping from file name to findings."
    folder = tmp_path_factory.mktemp("user")
    (folder / "user.py").write_text(
        "from detr_nb import DetrConfig, DetrForObjectDetection, DetrImageProcessor\n"
        "class Mine(DetrForObjectDetection): pass\n"
        'reveal_type(DetrForObjectDetection.from_pretrained("scenes"))\n'
        'reveal_type(Mine.from_pretrained("scenes"))\n'
        'reveal_type(DetrImageProcessor.from_pretrained("scenes"))\n'
        'reveal_type(DetrConfig.from_pretrained("scenes").num_queries)\n'
    )
    settings = {"include": [str(ROOT / "detr_nb"), str(folder / "user.py")], "exclude": ["**/_modidx.py"]}
    settings |= {"typeCheckingMode": "basic", "pythonVersion": "3.10", "extraPaths": [str(ROOT)]}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "basedpyright", "-p", str(folder), "--pythonpath", sys.executable, "--outputjson"]
    found: dict[str, list[dict]] = {}
    output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    for finding in json.loads(output)["generalDiagnostics"]:
        found.setdefault("user" if finding["file"].endswith("user.py") else "package", []).append(finding)
    return found


def test_types_of_a_users_lines(checker):
    "Names resolve, and `from_pretrained` gives the class that it is called on."
    assert not [f for f in checker["user"] if f["severity"] == "error"]
    revealed = [f["message"].rsplit(' is "', 1)[1].rstrip('"') for f in checker["user"] if f["message"].startswith("Type of")]
    assert revealed == ["DetrForObjectDetection", "Mine", "DetrImageProcessor", "int"]


def test_few_complaints(checker):
    "Every complaint over the package is known: modules that torch and timm type as something else."
    complaints = [f for f in checker["package"] if f["severity"] == "error"]
    assert len(complaints) < 40, "\n".join(f"{f['file']}: {f['message']}" for f in complaints)


def test_editor_completes():
    import jedi
    code = "import detr_nb\ndetr_nb.Detr"
    names = [c.name for c in jedi.Script(code, project=jedi.Project(str(ROOT))).complete(2, len("detr_nb.Detr"))]
    assert {"DetrConfig", "DetrForObjectDetection", "DetrImageProcessor", "DetrForSegmentation"} <= set(names)


def test_lists_of_public_names_agree():
    "The literal `__all__`, what type checkers import, and what is imported when a name is used."
    import ast
    tree = ast.parse((ROOT / "detr_nb" / "__init__.py").read_text())
    block = next(n for n in tree.body if isinstance(n, ast.If))
    imported = {n.module: {a.name for a in n.names} for n in block.body if isinstance(n, ast.ImportFrom)}
    modules = imported.pop(None)
    assert {m: set(names.split()) for m, names in detr_nb._HOMES.items() if names} == imported
    assert set(detr_nb._HOMES) == modules == {p.stem for p in (ROOT / "detr_nb").glob("[a-z]*.py")} - {"cli"}
    assert set(detr_nb.__all__) == set(detr_nb._HOME) and len(set(detr_nb.__all__)) == len(detr_nb.__all__)


@pytest.mark.parametrize(("chapter", "home", "allowed"), [
    ("12_transformer", "11_position", True), ("12_transformer", "13_matcher", False), ("12_transformer", "94_config", True),
    ("93_data", "92_scenes", True), ("93_data", "01_boxes", True), ("93_data", "94_config", False),
    ("93_data", "10_backbone", False), ("14_losses", "20_mask_losses", False),
])
def test_order_of_chapters(chapter, home, allowed):
    sys.path.insert(0, str(ROOT / "tools"))
    import check_package
    assert check_package.may_import(chapter, home) is allowed
    assert check_package.EXCEPTIONS == {("14_losses", "mask_losses"), ("98_bench", "")}


def test_metrics_see_what_they_count():
    sys.path.insert(0, str(ROOT / "tools"))
    import ast

    import metrics
    tree = ast.parse('"Doc."\ndef f(x):\n    "Doc."\n    if x: return 1\n    for i in x: print(i)\n    a, b = 1, f(2)\n    return a\n')
    assert metrics.count_statements(tree) == 7
    assert metrics.shared_lines(tree) == [5] and metrics.unrelated_assignments(tree) == [6]


def test_mutations_are_up_to_date():
    "Each row of the table names text that stands in the library once, and a test that exists."
    sys.path.insert(0, str(ROOT / "tools"))
    import mutations
    mutations.check_rows()
    assert len({row[0] for row in mutations.FAULTS}) == len(mutations.FAULTS)
