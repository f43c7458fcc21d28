"""Run chapters in a real kernel and keep their outputs: `python tools/run_chapters.py [--check] [NAME …]`.

With --check nothing is written, and the fresh outputs are compared with the kept ones. A chapter that fails or differs
makes the exit code 1. Each kernel computes with one thread, so that numbers are summed in the same order every time.

Two tags of code cells say what is not compared. `trained`: the text depends on a training in this chapter, where small
differences grow from step to step; the cell must hold an `assert`. `varies`: the text depends on time or the machine.
"""
import argparse
import base64
import io
import os
import re
import sys
import time
from decimal import Decimal
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image

NBS = Path(__file__).parent.parent / "nbs"
WIDGET = "application/vnd.jupyter.widget-view+json"
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}

# How far a number may lie from the kept one: processors add in different orders and round differently. One unit in the
# last printed digit is allowed too, since print makes that much of the smallest difference. Whole numbers are counts,
# and must be equal.
RELATIVE = Decimal("1e-3")
ABSOLUTE = Decimal("1e-6")  # float32's rounding of sums of numbers near 1: an error that small is noise
MOST_VARYING = 3  # cells of a chapter with the tag `varies`
NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


def shrink(encoded: str) -> str:
    "A PNG, in base64, with 256 colours, which a page cannot tell from the original; itself if that is not smaller."
    data, file = base64.b64decode(encoded), io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        if image.mode == "P": return encoded
        opaque = image.mode != "RGBA" or image.getextrema()[3] == (255, 255)
        colours = image.convert("RGB" if opaque else "RGBA")
    method = Image.Quantize.MEDIANCUT if opaque else Image.Quantize.FASTOCTREE
    small = colours.quantize(256, method=method, kmeans=2, dither=Image.Dither.NONE)
    small.save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode() if len(file.getvalue()) < len(data) else encoded


def run(path: Path, cell_seconds: int = 300) -> nbformat.NotebookNode:
    """The chapter with fresh outputs: no execution counts, no progress bars, nothing that changes
    from run to run."""
    notebook = nbformat.read(path, as_version=4)
    options = dict(timeout=cell_seconds, startup_timeout=cell_seconds, kernel_name="python3", coalesce_streams=True)
    client = NotebookClient(notebook, resources={"metadata": {"path": str(path.parent)}}, **options)
    client.execute(env={**os.environ, **ONE_THREAD})
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
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = shrink(output.data["image/png"])
    return notebook


def same_number(kept: str, fresh: str) -> bool:
    "Whether two printed numbers are equal within the tolerance; whole numbers must be equal."
    old, new = (Decimal(text) for text in (kept, fresh))
    places = min(number.as_tuple().exponent for number in (old, new))  # of the last printed digit
    if places >= 0: return old == new
    return abs(old - new) <= max(RELATIVE * abs(old), ABSOLUTE, Decimal(1).scaleb(places))


def same_text(kept: str, fresh: str) -> bool:
    """Whether the words of two texts are equal, and the numbers within the tolerance. Any space is
    as good as another."""
    words = [[" ".join(part.split()) for part in NUMBER.split(text)] for text in (kept, fresh)]
    numbers = [NUMBER.findall(text) for text in (kept, fresh)]
    return words[0] == words[1] and all(same_number(old, new) for old, new in zip(*numbers, strict=True))


def output_text(output: nbformat.NotebookNode) -> str:
    "The text of an output: what was printed, or what stands for a result or a figure."
    return output.get("text", output.get("data", {}).get("text/plain", ""))


def compare_cell(kept: nbformat.NotebookNode, fresh: nbformat.NotebookNode) -> list[str]:
    "What is wrong with the fresh outputs of a code cell, measured by those that were kept."
    tags = kept.metadata.get("tags", [])
    old_kinds, new_kinds = ([output.output_type for output in cell.outputs] for cell in (kept, fresh))
    if old_kinds != new_kinds: return [f"kept the outputs {old_kinds}, now {new_kinds}"]
    if "trained" in tags and not re.search(r"^\s*assert\b", kept.source, re.MULTILINE):
        return ["is tagged trained and has no assert: its text is not compared, so want one"]
    if {"trained", "varies"} & set(tags): return []
    texts = [(output_text(old), output_text(new)) for old, new in zip(kept.outputs, fresh.outputs)]
    return [f"another text\nkept: {old}\nnow:  {new}" for old, new in texts if not same_text(old, new)]


def compare_outputs(
    kept: nbformat.NotebookNode,   # a chapter as it is stored
    fresh: nbformat.NotebookNode,  # the same chapter after a run
    chapter: str = "chapter",      # its name, for the messages
) -> list[str]:                    # empty if all is well
    """What differs between kept and fresh outputs, and what is wrong with the tags: one entry a
    fault."""
    pairs = [cells for cells in zip(kept.cells, fresh.cells, strict=True) if cells[0].cell_type == "code"]
    faults = [f"{chapter}, cell {old.id}: {fault}" for old, new in pairs for fault in compare_cell(old, new)]
    varying = [old.id for old, _ in pairs if "varies" in old.metadata.get("tags", [])]
    if len(varying) > MOST_VARYING:
        faults.append(f"{chapter}: cells {', '.join(varying)} are tagged varies: want at most {MOST_VARYING}")
    return faults


def main() -> int:
    "Run the chapters that are named, or all."
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
            elif faults := compare_outputs(nbformat.read(path, as_version=4), notebook, path.stem):
                raise RuntimeError("\n".join(faults))
            print(f"{path.name}: {time.perf_counter() - start:.0f} s, {path.stat().st_size // 1000} kB", flush=True)
        except (CellExecutionError, RuntimeError) as error:
            failed += 1
            print(f"{path.name}: failed\n{error}", file=sys.stderr, flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
