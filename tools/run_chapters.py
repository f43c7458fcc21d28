"""Run chapters in a real kernel and keep their outputs: `python tools/run_chapters.py [--check] [NAME …]`.

With --check nothing is written; a chapter that fails makes the exit code 1.
"""
import argparse
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NBS = Path(__file__).parent.parent / "nbs"
WIDGET = "application/vnd.jupyter.widget-view+json"


def run(path: Path, cell_seconds: int = 300) -> nbformat.NotebookNode:
    "The chapter with fresh outputs: no execution counts, no progress bars, nothing that changes from run to run."
    notebook = nbformat.read(path, as_version=4)
    options = dict(timeout=cell_seconds, kernel_name="python3", coalesce_streams=True)
    NotebookClient(notebook, resources={"metadata": {"path": str(path.parent)}}, **options).execute()
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr" and "Warning" in output["text"]:
                raise RuntimeError(f"{path.name}: a warning that a reader would see: {output['text']}")
    notebook.metadata = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        cell.execution_count = None
        cell.outputs = [o for o in cell.outputs if WIDGET not in o.get("data", {}) and o.get("name") != "stderr"]
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = None
    return notebook


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    paths, failed = {path.stem: path for path in sorted(NBS.glob("*.ipynb"))}, 0
    if unknown := set(arguments.names) - set(paths):
        parser.error(f"no chapter {', '.join(sorted(unknown))}: want one of {', '.join(paths)}")
    for path in [path for name, path in paths.items() if not arguments.names or name in arguments.names]:
        start = time.perf_counter()
        try:
            notebook = run(path)
            if not arguments.check:
                nbformat.write(notebook, path)
            print(f"{path.name}: {time.perf_counter() - start:.0f} s, {path.stat().st_size // 1000} kB", flush=True)
        except (CellExecutionError, RuntimeError) as error:
            failed += 1
            print(f"{path.name}: failed\n{error}", file=sys.stderr, flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
