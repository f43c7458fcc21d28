"""Checks of the repository as a whole: `python tools/check_package.py imports | exported | order |
wheel`."""
import ast
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from email import message_from_string
from pathlib import Path

ROOT = Path(__file__).parent.parent


def imports():
    "Every module of the library imports with the runtime dependencies alone."
    modules = sorted(p.stem for p in (ROOT / "detr_nb").glob("[a-z]*.py"))
    extra = [
        "nbdev", "execnb", "ghapi", "fastcore", "transformers", "pytest", "xdist", "supervision", "tensorboard",
        "nbclient", "nbformat", "jupyterlab",
    ]
    code = f"""
import importlib, sys

class Block:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in {extra!r}: raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Block)
for module in {modules!r}: importlib.import_module("detr_nb." + module)
import detr_nb
for name in detr_nb.__all__: getattr(detr_nb, name)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    print(f"{len(modules)} modules import without {', '.join(extra)}")


def exported():
    "Exporting and cleaning a copy of the repository changes nothing."
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(
            ROOT, copy, ignore=shutil.ignore_patterns(".venv", ".git", "build", "runs", "demo", "*.egg-info")
        )
        for module in (copy / "detr_nb").glob("[a-z]*.py"):
            module.unlink()
        subprocess.run([sys.executable, "tools/export.py"], cwd=copy, check=True)
        different = []
        for pattern in ("detr_nb/*.py", "README.md", "nbs/*.ipynb", "nbs/figures/*"):
            ours, theirs = ({p.relative_to(base) for p in base.glob(pattern)} for base in (ROOT, copy))
            different += [str(p) for p in ours ^ theirs]
            different += [str(p) for p in ours & theirs if (ROOT / p).read_bytes() != (copy / p).read_bytes()]
    if different:
        raise SystemExit(f"not what the notebooks export, or not clean (make export): {sorted(different)}")
    for path in sorted((ROOT / "nbs").glob("*.ipynb")):
        check_clean(path)
    print("library, README and chapters are what the notebooks export")


def check_clean(path):
    "Outputs are kept; counts, errors, addresses, warnings and widget state are not."
    notebook = json.loads(path.read_text())
    code = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    outputs = [o for c in code for o in c["outputs"]]
    faults = []
    if any(c.get("execution_count") is not None for c in code):
        faults.append("execution counts")
    if "widgets" in notebook["metadata"]:
        faults.append("metadata.widgets")
    if not outputs or not any("image/png" in o.get("data", {}) for o in outputs):
        faults.append("no figure kept")
    if any(o["output_type"] == "error" or o.get("name") == "stderr" for o in outputs):
        faults.append("errors or warnings kept")
    texts = ["".join(o.get("text", "")) + "".join(o.get("data", {}).get("text/plain", "")) for o in outputs]
    places = "|".join(re.escape(place) for place in {str(ROOT), str(Path.home()), tempfile.gettempdir()})
    if any(re.search(rf"at 0x[0-9a-f]{{6}}|{places}", text) for text in texts):
        faults.append("an address or a path of this machine")
    if faults:
        raise SystemExit(f"{path.name}: {', '.join(faults)}")


EXCEPTIONS = {
    ("14_losses", "mask_losses"),  # one public class: `DetrLoss(losses=[..., "masks"])`
    ("98_bench", ""),              # measures the finished library from outside
}
WORKSHOP = 90  # from this number on


def may_import(chapter: str, home: str) -> bool:
    """Whether an exported cell of a chapter may import from a module, by the stem of the chapter
    that the module comes from."""
    number, other = int(chapter[:2]), int(home[:2])
    if number >= WORKSHOP: return other == 1 or WORKSHOP <= other < number
    return other < number or other >= WORKSHOP


def imports_of(source: str) -> list[tuple[str, list[str]]]:
    "The modules of the library that a cell imports from, and the names."
    found, tree = [], ast.parse(source)
    blocks = (n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    for_checkers = {node for block in blocks for node in ast.walk(block)}  # never imported when the program runs
    for node in ast.walk(tree):
        if node in for_checkers: continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "detr_nb":
            names = [alias.name for alias in node.names]
            if node.module == "detr_nb" and source.startswith("#| export"): found += [(name, []) for name in names]
            else: found.append((node.module.partition(".")[2], names))
        if isinstance(node, ast.Import):
            found += [(a.name.partition(".")[2], []) for a in node.names if a.name.split(".")[0] == "detr_nb"]
    return found


def public_names(module: str) -> set[str]:
    "The names that a module of the library offers."
    tree = ast.parse((ROOT / "detr_nb" / f"{module or '__init__'}.py").read_text())
    lists = [n.value for n in tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__"]
    return set(ast.literal_eval(lists[0]))


def order():
    """Exported cells of a story chapter import from earlier story chapters and from the workshop;
    those of a workshop chapter from earlier ones of the workshop and from Boxes. Every other
    cell may borrow the finished library by its public names."""
    chapters = sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))
    home = {path.stem.split("_", 1)[1]: path.stem for path in chapters}
    home[""] = "51"  # the package as a whole: for the command line, which ends the story
    checked = 0
    for path in chapters:
        for cell in json.loads(path.read_text())["cells"]:
            if cell["cell_type"] != "code": continue
            source = "".join(cell["source"])
            for module, names in imports_of(source):
                checked += 1
                if not source.startswith("#| export"):
                    hidden = [
                        n
                        for n in names
                        if n not in public_names(module) and not (n.startswith("_") and home.get(module) == path.stem)
                    ]
                    if hidden:
                        raise SystemExit(
                            f"{path.name}: imports {hidden} from {module or 'detr_nb'}: want public names"
                        )
                elif not may_import(path.stem, home[module]) and (path.stem, module) not in EXCEPTIONS:
                    raise SystemExit(f"{path.name}: an exported cell imports {module}, which comes later")
    print(f"{checked} imports: exported cells look back or into the workshop, the others borrow public names")


ASSETS = [
    "config.json", "model.safetensors", "preprocessor_config.json", "backbone.safetensors",
    "log.csv", "record.npz", "backbone.csv", "masks.csv",
]
URLS = {"Source", "Documentation", "Changelog", "Issues"}
CLASSIFIERS = {"Topic :: Scientific/Engineering :: Artificial Intelligence", "Typing :: Typed"}


def lacking(names: list[str], scripts: str, metadata: str) -> list[str]:
    "What a wheel should hold and does not, by the names of its files, its entry points and its metadata."
    fields = message_from_string(metadata)
    urls = dict(line.split(", ", 1) for line in fields.get_all("Project-URL", []))
    wanted = [f"detr_nb/assets/scenes/{name}" for name in ASSETS] + ["detr_nb/py.typed"]
    missing = [name for name in wanted if name not in names]
    if "detr-nb = detr_nb.cli:main" not in scripts:
        missing.append("the command detr-nb")
    missing += [f"the URL {name}" for name in sorted(URLS) if not urls.get(name, "").startswith("https://")]
    missing += [f"the classifier {name!r}" for name in sorted(CLASSIFIERS - set(fields.get_all("Classifier", [])))]
    return missing


def wheel():
    "The wheel holds the embedded model, the command, the mark of typed packages, the project's URLs and classifiers."
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "build", "--wheel", "--outdir", folder, str(ROOT)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        path = next(Path(folder).glob("*.whl"))
        with zipfile.ZipFile(path) as file:
            names = file.namelist()
            texts = [
                file.read(next(name for name in names if name.endswith(f".dist-info/{part}"))).decode()
                for part in ("entry_points.txt", "METADATA")
            ]
        size = path.stat().st_size
    missing = lacking(names, *texts)
    if missing:
        raise SystemExit(f"the wheel lacks {', '.join(missing)}")
    if any(n.startswith(("tests/", "tools/", "nbs/")) for n in names):
        raise SystemExit("the wheel holds more than the library")
    print(f"{path.name}: {size / 1e6:.1f} MB, assets, command, types, URLs and classifiers are there")


if __name__ == "__main__":
    {"imports": imports, "exported": exported, "order": order, "wheel": wheel}[sys.argv[1]]()
