"""How fast it is here, side by side: `python tools/bench.py [CASE …] [--threads 1] [--rounds 5] [--json FILE]
[--figure FILE] [--check]`. What is compared takes turns in one process; medians and the range are printed. With
`--check` the exit code is 1 where a ratio is below its floor. `--help` lists the cases."""

import argparse
import platform
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from detr_nb import CocoEvaluator, DetrForObjectDetection, DetrForSegmentation, DetrImageProcessor, DetrLoss
from detr_nb.data import coco_index
from detr_nb.detector import image_tokens, transform
from detr_nb.files import write_json
from detr_nb.mask_head import draw_masks
from detr_nb.matcher import HungarianMatcher
from detr_nb.speed import take_turns

warnings.simplefilter("ignore")
SIZE = 800, 1066


class Comparison(NamedTuple):
    "Things that do the same work; the first is what the others are compared with."

    name: str
    run: dict[str, Callable[[], Any]]
    floors: dict[str, float]  # how many times as fast as the first the others should be
    same: float | str = ""  # how far their results are apart
    rounds: int | None = None  # fewer for what takes long


def transformers() -> Any:
    import transformers

    transformers.logging.set_verbosity_error()
    return transformers


@cache
def published(kind: str, classes: int) -> tuple[Any, Any]:
    "The paper's network with random weights: theirs and ours."
    torch.manual_seed(0)
    library = transformers()
    theirs = getattr(library, kind)(library.DetrConfig(use_pretrained_backbone=False, num_labels=classes)).eval()
    folder = tempfile.mkdtemp()
    theirs.save_pretrained(folder)
    ours = {"DetrForObjectDetection": DetrForObjectDetection, "DetrForSegmentation": DetrForSegmentation}[kind]
    return theirs, ours.from_pretrained(folder).eval()


def detection(compiled: bool = False) -> Iterator[Comparison]:
    "Boxes of one image of 800 × 1066."
    theirs, ours = published("DetrForObjectDetection", 91)
    image, mask, two = torch.randn(1, 3, *SIZE), torch.ones(1, *SIZE, dtype=torch.int64), torch.get_num_threads() > 1
    run = {"transformers": lambda: theirs(pixel_values=image, pixel_mask=mask)}
    if compiled:
        fast, quick = torch.compile(theirs), ours.optimize(compile=True)
        run |= {"transformers compiled": lambda: fast(pixel_values=image, pixel_mask=mask)}
        run |= {"optimize(compile=True)": lambda: quick(image, mask)}
        floors = {"optimize(compile=True)": 1.9 if two else 1.6}
    else:
        folded, half = ours.optimize(), ours.optimize(torch.bfloat16)
        run |= {"optimize()": lambda: folded(image, mask), "optimize(torch.bfloat16)": lambda: half(image, mask)}
        floors = {"optimize()": 1.5 if two else 1.3, "optimize(torch.bfloat16)": 2.8}
    wanted = run["transformers"]().pred_boxes
    apart = max(float((case().pred_boxes - wanted).abs().max()) for case in run.values())
    yield Comparison("detection, 800 × 1066", run, floors, apart)


def masks() -> Iterator[Comparison]:
    "The mask head alone: attention maps, pyramid, masks of one image of 800 × 1066."
    theirs, ours = published("DetrForSegmentation", 250)
    with torch.inference_mode():
        features, tokens = image_tokens(ours.detr.model, torch.randn(1, 3, *SIZE), torch.ones(1, *SIZE))
        hidden = transform(ours.detr.model, tokens)
    memory, states = hidden.encoder_last_hidden_state, hidden.last_hidden_state
    grid = lambda x: x.transpose(1, 2).unflatten(2, features[-1][0].shape[-2:])
    pyramid = [f for f, _ in features[-2:-5:-1]]

    def of_theirs():
        maps = theirs.bbox_attention(states, grid(memory), attention_mask=None)
        return theirs.mask_head(features=grid(tokens.features), attention_masks=maps, fpn_features=pyramid)[:, 0]

    run = {
        "transformers, 100": of_theirs,
        "100 queries": lambda: draw_masks(ours, features, tokens, memory, list(states))[0],
        "20 queries": lambda: draw_masks(ours, features, tokens, memory, list(states[:, :20]))[0],
    }
    wanted = of_theirs()
    apart = float((run["100 queries"]() - wanted).abs().max() / wanted.abs().max())
    yield Comparison("mask head, 800 × 1066", run, {"100 queries": 5, "20 queries": 30}, apart, rounds=2)


def panoptic() -> Iterator[Comparison]:
    "From pixels to segments, about twenty queries kept."
    theirs, ours = published("DetrForSegmentation", 250)
    ours, processor, their_processor = ours.optimize(), DetrImageProcessor(), transformers().DetrImageProcessor()
    image = torch.randn(1, 3, *SIZE)
    best = ours.detr(image).logits.softmax(-1)[0, :, :-1].amax(-1).sort(descending=True).values
    threshold = float(best[20])

    def of_ours():
        outputs = ours.predict(image, threshold=threshold)
        return processor.post_process_panoptic_segmentation(outputs, threshold, target_sizes=[SIZE])

    def of_theirs():
        outputs = theirs(pixel_values=image)
        return their_processor.post_process_panoptic_segmentation(outputs, threshold, target_sizes=[SIZE])

    run = {"transformers": of_theirs, "ours": of_ours}
    yield Comparison("image → segments, 800 × 1066", run, {"ours": 10}, rounds=2)


def loss() -> Iterator[Comparison]:
    "Matching and loss, forward and backward: 8 images of 10 objects, 100 queries, 6 layers."
    from transformers.loss.loss_for_object_detection import HungarianMatcher as TheirMatcher
    from transformers.loss.loss_for_object_detection import ImageLoss

    generator = torch.Generator().manual_seed(0)
    random = lambda *shape: torch.rand(*shape, generator=generator)
    layers = [
        {
            "logits": torch.randn(8, 100, 92, generator=generator, requires_grad=True),
            "pred_boxes": (random(8, 100, 4) * 0.5 + 0.1).requires_grad_(),
        }
        for _ in range(6)
    ]
    outputs = layers[-1] | {"auxiliary_outputs": layers[:-1]}
    labels = [
        {"class_labels": torch.randint(0, 91, (10,), generator=generator), "boxes": random(10, 4) * 0.4 + 0.2}
        for _ in range(8)
    ]
    parts = ["labels", "boxes", "cardinality"]
    mine = DetrLoss(HungarianMatcher(1, 5, 2), 91, 0.1, parts)
    theirs = ImageLoss(TheirMatcher(1, 5, 2), 91, 0.1, parts)

    def run(criterion):
        with torch.enable_grad():
            total = sum(v for k, v in criterion(outputs, labels).items() if "cardinality" not in k)
            total.backward()
        return total.item()

    apart = abs(run(mine) / run(theirs) - 1)
    run_both = {"transformers": lambda: run(theirs), "ours": lambda: run(mine)}
    yield Comparison("loss + matching", run_both, {"ours": 3.5}, apart, rounds=30)


def processor() -> Iterator[Comparison]:
    "Images of 640 × 427, and of eight sizes, to a batch."
    rng = np.random.default_rng(0)

    def image(height, width):
        small = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3))
        return Image.fromarray(np.kron(small, np.ones((16, 16, 1)))[:height, :width].astype(np.uint8))

    sizes = (427, 640), (480, 640), (640, 480), (375, 500), (333, 500), (640, 427), (500, 333), (612, 612)
    mine, theirs = DetrImageProcessor(), transformers().DetrImageProcessor()
    for name, images, floor in (
        ("one image", [image(427, 640)], 1.2), ("eight of one size", [image(427, 640) for _ in range(8)], 1.2),
        ("eight sizes", [image(*size) for size in sizes], 1.6),
    ):
        run = {
            "transformers": lambda images=images: theirs(images=images, return_tensors="pt"),
            "ours": lambda images=images: mine(images=images, return_tensors="pt"),
        }
        apart = float((run["ours"]()["pixel_values"] - run["transformers"]()["pixel_values"]).abs().max())
        yield Comparison(f"processor, {name}", run, {"ours": floor}, apart, rounds=9)


def post() -> Iterator[Comparison]:
    "Post-processing of 100 queries of which 20 are kept, to 480 × 640 pixels."
    generator = torch.Generator().manual_seed(0)
    logits = torch.zeros(1, 100, 251)
    logits[0, :, -1] = 8
    logits[0, :20, -1], logits[0, range(20), torch.randint(0, 250, (20,), generator=generator)] = 0, 8
    noise = torch.randn(1, 100, 6, 8, generator=generator) * 6
    blobs = torch.nn.functional.interpolate(noise, (120, 160), mode="bicubic")
    outputs = SimpleNamespace(logits=logits, pred_masks=blobs, pred_boxes=torch.rand(1, 100, 4))
    mine, theirs = DetrImageProcessor(), transformers().DetrImageProcessor()
    sizes, fuse = [(480, 640)], set(range(91, 250))
    segments = lambda p, **more: p.post_process_panoptic_segmentation(
        outputs, label_ids_to_fuse=fuse, target_sizes=sizes, **more
    )[0]["segmentation"]
    classes = lambda p: p.post_process_semantic_segmentation(outputs, sizes)[0]
    same = str(torch.equal(segments(mine, compat="transformers"), segments(theirs)))
    run = {"transformers": lambda: segments(theirs), "ours": lambda: segments(mine)}
    yield Comparison("panoptic post-processing", run, {"ours": 4}, f"equal under compat: {same}", rounds=15)
    same = str(torch.equal(classes(mine), classes(theirs)))
    run = {"transformers": lambda: classes(theirs), "ours": lambda: classes(mine)}
    yield Comparison("semantic post-processing", run, {"ours": 10}, f"equal: {same}", rounds=5)


def evaluation() -> Iterator[Comparison]:
    "COCO's numbers for 2,000 images of about 90 boxes."
    rng = np.random.default_rng(0)

    def boxes(count):
        low = rng.random((count, 2)) * 400
        return np.concatenate([low, low + rng.random((count, 2)) * 200 + 2], 1)

    annotations, found = [], {}
    for image in range(2000):
        for x0, y0, x1, y1 in boxes(int(rng.integers(0, 12))).tolist():
            annotations.append({
                "id": len(annotations) + 1, "image_id": image, "category_id": int(rng.integers(1, 81)), "iscrowd": 0,
                "bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0),
            })
        count = int(rng.integers(60, 121))
        found[image] = {
            "scores": torch.from_numpy(rng.random(count)).float(), "boxes": torch.from_numpy(boxes(count)).float(),
            "labels": torch.from_numpy(rng.integers(1, 81, count)),
        }
    truth = coco_index({
        "images": [{"id": i} for i in range(2000)], "annotations": annotations,
        "categories": [{"id": i, "name": str(i)} for i in range(1, 81)],
    })
    evaluators = {engine: CocoEvaluator(truth, engine=engine) for engine in ("pycocotools", "hotcoco")}
    for evaluator in evaluators.values():
        evaluator.update(found)
        evaluator.accumulate()
    tables = [evaluator.summarize(verbose=False) for evaluator in evaluators.values()]
    run = {engine: evaluator.accumulate for engine, evaluator in evaluators.items()}
    yield Comparison("evaluation, 2,000 × 90", run, {"hotcoco": 60}, f"equal: {tables[0] == tables[1]}", rounds=1)


MEMORY = """
import resource, sys, torch
torch.set_num_threads(1)
folder, whose = sys.argv[1:]
if whose == "ours":
    from detr_nb import DetrForSegmentation, DetrImageProcessor
else:
    from transformers import DetrForSegmentation, DetrImageProcessor
model, processor = DetrForSegmentation.from_pretrained(folder).eval(), DetrImageProcessor()
if whose == "ours": model = model.optimize()
image, before = torch.randn(1, 3, 800, 1066), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with torch.no_grad():
    outputs = model.predict(image, threshold=1e-30) if whose == "ours" else model(pixel_values=image)
    processor.post_process_panoptic_segmentation(outputs, 0.0, target_sizes=[(800, 1066)])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6)
"""


def memory() -> list[dict]:
    "What segments of one image of 800 × 1066 take beyond the model, at most, in GB: all 100 queries drawn by both."
    theirs, _ = published("DetrForSegmentation", 250)
    folder = tempfile.mkdtemp()
    theirs.save_pretrained(folder)
    used = {}
    for whose in ("transformers", "ours"):
        run = subprocess.run([sys.executable, "-c", MEMORY, folder, whose], capture_output=True, text=True, check=True)
        used[whose] = float(run.stdout.split()[-1])
    return [row("peak memory of segments, GB", name, [gb], used["transformers"] / gb, 3) for name, gb in used.items()]


def imports() -> list[dict]:
    "Seconds that an import takes beyond `import torch`."

    def seconds(statement: str) -> list[float]:
        code = f"import torch, time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
        command = [sys.executable, "-c", code]
        return [float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(3)]

    names = "DetrForObjectDetection, DetrImageProcessor"
    found = {
        "transformers": seconds(f"from transformers import {names}"), "ours": seconds(f"from detr_nb import {names}"),
        "ours, the package alone": seconds("import detr_nb"),
    }
    base = median(found["transformers"])
    return [row("import beyond torch, s", name, own, base / median(own), 1.0) for name, own in found.items()]


def scenes() -> list[dict]:
    "Milliseconds to draw a scene, and to draw and write it."
    from detr_nb.scenes import draw_scene, make_scenes

    def write() -> None:
        with tempfile.TemporaryDirectory() as folder: make_scenes(Path(folder) / "scenes", train=50)

    found = take_turns({"draw": lambda: [draw_scene(0, i) for i in range(50)], "draw and write": write}, 3)
    return [row("50 scenes, s", name, own, None, None) for name, own in found.items()]


def row(case: str, name: str, numbers: list[float], ratio: float | None, floor: float | None, same: Any = "") -> dict:
    "One line of the table."
    return {
        "case": case, "what": name, "median": median(numbers), "least": min(numbers), "most": max(numbers),
        "times": ratio, "floor": floor, "apart": same,
    }


def measure(comparison: Comparison, rounds: int) -> list[dict]:
    "The lines of one comparison."
    with torch.no_grad():
        seconds = take_turns(comparison.run, min(rounds, comparison.rounds) if comparison.rounds else rounds)
    first = median(next(iter(seconds.values())))
    return [
        row(comparison.name, name, own, first / median(own), comparison.floors.get(name), comparison.same)
        for name, own in seconds.items()
    ]


CASES: dict[str, Callable[[], Any]] = {
    "detection": detection, "compiled": lambda: detection(compiled=True), "masks": masks, "panoptic": panoptic,
    "loss": loss, "processor": processor, "post": post, "evaluation": evaluation,
    "memory": memory, "import": imports, "scenes": scenes,
}


def draw(rows: list[dict], machine: str, path: Path) -> None:
    "A bar for each ratio, and its floor."
    from matplotlib.figure import Figure

    shown = [r for r in rows if r["times"] and r["times"] != 1]
    figure = Figure(figsize=(8, 0.8 + 0.28 * len(shown)), layout="constrained")
    ax = figure.subplots()
    ax.barh(range(len(shown)), [r["times"] for r in shown], color="#0072B2")
    for i, r in enumerate(shown):
        if r["floor"]: ax.plot([r["floor"]] * 2, [i - 0.4, i + 0.4], color="#D55E00", lw=2)
    ax.set(
        yticks=range(len(shown)), yticklabels=[f"{r['case']}: {r['what']}" for r in shown], xscale="log",
        ylim=(len(shown) - 0.4, -0.6), xlabel="times as fast as the first of its case (orange: what is asked)",
        title=machine,
    )
    figure.savefig(path, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.cases) - set(CASES)): parser.error(f"{unknown[0]!r}: want {', '.join(CASES)}")
    torch.set_num_threads(arguments.threads)
    machine = f"{platform.machine()}, {arguments.threads} threads, torch {torch.__version__}"
    try: machine += f", transformers {transformers().__version__}"
    except ImportError: print("transformers is not installed: most cases want it", file=sys.stderr)
    print(machine)
    rows: list[dict] = []
    for name in arguments.cases or CASES:
        with torch.no_grad(): found = list(CASES[name]())
        for item in found:
            for line in measure(item, arguments.rounds) if isinstance(item, Comparison) else [item]:
                rows.append(line)
                times = "" if line["times"] is None else f"{line['times']:7.2f} ×"
                asked = "" if line["floor"] is None else f"(want {line['floor']:g})"
                spread = f"{line['median']:9.4f} ({line['least']:.4f} … {line['most']:.4f})"
                print(f"{line['case']:<30} {line['what']:<36} {spread:<34}{times} {asked} {line['apart']}", flush=True)
    if arguments.json: write_json({"machine": machine, "rows": rows}, arguments.json, pretty=True)
    if arguments.figure: draw(rows, machine, arguments.figure)
    low = [f"{r['case']}: {r['what']}" for r in rows if r["floor"] and r["times"] < r["floor"] and r["times"] != 1]
    if arguments.check and low: print("below the floor:", "; ".join(low), file=sys.stderr)
    return int(arguments.check and bool(low))


if __name__ == "__main__":
    raise SystemExit(main())
