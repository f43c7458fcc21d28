"""The results of experiments that take longer than their chapter may: `python tools/make_experiments.py [NAME …]`
trains again what they compare and writes `detr_nb/assets/experiments/*.csv`."""
import csv
import os
import subprocess
import sys
import tempfile
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import torch
from PIL import Image
from skimage import data as photographs
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm

from detr_nb import (
    CocoEvaluator, DetrConfig, DetrForObjectDetection, DetrForSegmentation, DetrImageProcessor, Recipe, SceneDetection,
    evaluate, train,
)
from detr_nb.bench import Setting, describe_machine, images_of, published, run_bench
from detr_nb.boxes import box_iou
from detr_nb.data import detection_target
from detr_nb.datasets import open_split
from detr_nb.detector import image_tokens, predict_from, transform
from detr_nb.files import ASSETS, atomic, read_log
from detr_nb.losses import DetrLoss
from detr_nb.mask_head import MaskAttention, MaskHead, draw_masks, scale_attention_weights
from detr_nb.mask_losses import dice_loss, sigmoid_focal_loss
from detr_nb.napkin import (
    RUNS, Napkin, answers_of, compare_runs, make_images, napkin_loss, nearest, result, train_napkin,
)
from detr_nb.own_data import compare_coins, cut_squares, find_coins, start_training
from detr_nb.pretraining import compare_beginnings, init_scenes_detector, pretrain_backbone, scenes_processor
from detr_nb.speed import ExportedModel, export_model, take_turns
from detr_nb.training import BY_HEART, RECIPES, learn_by_heart


def write(name: str, rows: list[dict]) -> None:
    "A table, whole or not at all; numbers with four digits that count."
    path = ASSETS / "experiments" / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    print(path)


def napkin() -> None:
    "02 · Napkin: the Hungarian algorithm against the nearest object."
    scores, answers = compare_runs()
    write("napkin", scores)
    write("napkin_answers", answers)


def napkin_regions() -> None:
    "02 · Napkin: where the queries of four networks are sure of something, in 100 images."
    images, _ = make_images(100, torch.Generator().manual_seed(10**6))
    rows = []
    for run in ("DETR", "queries are blind", "every close query answers", "both"):
        answers = answers_of(train_napkin(2000, **RUNS[run])[0], images)
        rows += [
            {"run": run, "query": a["query"], "label": a["label"]} | {k: f"{a[k]:.3f}" for k in ("cx", "cy", "w", "h")}
            for a in answers if a["score"] >= 0.5
        ]
    write("napkin_regions", rows)


def napkin_scores() -> None:
    "02 · Napkin: the scores of all queries for one image while two networks learn."
    image, _ = make_images(4, torch.Generator().manual_seed(2026))
    rows: list[dict] = []

    def watch(run: str, step: int, model: Napkin) -> None:
        if step % 20: return
        with torch.no_grad(): scores = model(image[:1])[0][-1, 0].softmax(-1)[:, :-1].amax(-1)
        rows.append({"run": run, "step": step} | {f"query {q}": float(score) for q, score in enumerate(scores)})

    for run in ("DETR", "every close query answers"): train_napkin(2000, partial(watch, run), **RUNS[run])
    write("napkin_scores", rows)


def napkin_limits() -> None:
    "02 · Napkin: how close a query has to be to answer for an object that another one answers for."
    rows = []
    for limit in (0.0, -0.5, -1.0, -1.5, -2.0, -2.5):
        model, losses = train_napkin(2000, criterion=partial(napkin_loss, assign=partial(nearest, limit=limit)))
        rows.append({"limit": limit, "loss_20": losses[19]} | result(model))
    write("napkin_limits", rows)


def beginnings() -> None:
    "40 · Pretraining: a detector with a pretrained, a frozen, or a random backbone, and one whose norms learn."
    trials = [(beginning, seed) for beginning in ("pretrained", "frozen") for seed in (0, 1)]
    rows = [row for trial in (*trials, ("random", 0), ("normalised", 0)) for row in compare_beginnings(*trial)]
    for name, steps in (("normalised, longer", 6_000), ("normalised, longest", 11_000)):  # 48,000 and 88,000 scenes
        rows += [row | {"beginning": name} for row in compare_beginnings("normalised", steps=steps)]
    write("beginnings", rows)


def box_question() -> None:
    "40 · Pretraining: backbones that were asked for classes and boxes, or for classes alone, 3,000 steps each."
    rows = []
    for name, ask in {"classes and boxes": True, "classes alone": False}.items():
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder) / "backbone.safetensors"
            pretrain_backbone(weights, steps=3000, ask_boxes=ask)
            rows += [row | {"question": name} for row in compare_beginnings("pretrained", backbone=weights)]
    write("box_question", rows)


def lessons() -> None:
    "40 · Pretraining: 3,000 steps each with one thing as in the detector's training; and a random backbone's rate."
    changes = {
        "nine cells of an image": {"cells": 9}, "things count like stuff": {"thing_weight": 1.0},
        "a lower rate": {"lr": 5e-4},
    }
    rows = []
    for name, change in changes.items():
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder) / "backbone.safetensors"
            pretrain_backbone(weights, steps=3000, **change)
            rows += [row | {"lesson": name} for row in compare_beginnings("pretrained", backbone=weights)]
    rows += [row | {"lesson": "none, a higher rate"} for row in compare_beginnings("normalised", rate=4.0)]
    for name, weight in {"none, a second loss": 30.0, "none, a light second loss": 1.0}.items():
        second = compare_beginnings("normalised", rate=4.0, dense_weight=weight)
        rows += [row | {"lesson": name} for row in second]
    write("lessons", rows)


def coins() -> None:
    "42 · Your own data: how many images, what to start from, and a rule that changes."
    starts = "checkpoint", "random head", "backbone", "nothing"
    trials = [{"start": start, "seed": seed} for seed in range(3) for start in starts]
    trials += [{"count": count, "seed": seed} for seed in range(3) for count in (1, 5, 20, 80)]
    trials += [{"least": 0.1, "seed": seed} for seed in range(3)] + [{"start": "nothing", "steps": 1000}]
    rows = []
    for trial in trials:
        with tempfile.TemporaryDirectory() as folder: rows.append(compare_coins(Path(folder), **trial))
    write("coins", rows)


def coin_steps() -> None:
    "42 · Your own data: what longer training does, to AP and to second boxes."
    photo, rows = photographs.coins(), []
    coins = find_coins(photo)
    for steps in (100, 200, 400, 800):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            cut_squares(photo, coins, folder, "train", 160, seed=0)
            cut_squares(photo, coins, folder, "val", 24, seed=1000)
            train_split, val = open_split(folder, "train"), open_split(folder, "val")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                detector, processor = start_training(train_split, "scenes", preset="scenes")
            recipe = Recipe(
                steps=steps, batch_size=4, lr=5e-4, backbone_lr=3e-4, schedule="cosine", warmup=0.1, augment=False,
                query_groups=3, evaluations=1,
            )
            trained = train(detector, train_split, folder / "run", recipe, processor)
            model = DetrForObjectDetection.from_pretrained(trained)
            numbers = evaluate(model, val, processor, progress=False)["all"]
            batch = processor([val[i][0] for i in range(24)], return_tensors="pt")
            with torch.inference_mode(): outputs = model(**batch)
            found = processor.post_process_object_detection(outputs, 0.5, [(128, 128)] * 24)
            pairs = sum(int((box_iou(one["boxes"], one["boxes"]).triu(1) > 0.5).sum()) for one in found)
            boxes = sum(len(one["boxes"]) for one in found)
            rows.append({"steps": steps, "AP50": numbers["AP50"], "AP": numbers["AP"], "boxes": boxes, "pairs": pairs})
    write("coin_steps", rows)


SIZES = {  # 30 · Transforms: what the embedded model goes on learning from, and the size of its images
    "many sizes": (True, {"shortest_edge": 160, "longest_edge": 266}),  # a shorter edge of 96 to 160 pixels, and crops
    "128 pixels": (False, {"shortest_edge": 128, "longest_edge": 256}),
}


def learn_more(
    dataset: SceneDetection, processor: DetrImageProcessor, augment: bool, folder: Path, stop: int | None,
) -> tuple[DetrForObjectDetection, float]:
    "The embedded model after 3,000 steps more; and the loss of its first step."
    recipe = Recipe(
        steps=3000, stop=stop, batch_size=8, lr=2e-4, backbone_lr=1e-4, schedule="cosine", warmup=0.03, augment=augment,
        ema=0.99, evaluations=1,
    )
    trained = train(DetrForObjectDetection.from_pretrained("scenes"), dataset, folder, recipe, processor)
    return DetrForObjectDetection.from_pretrained(trained).eval(), read_log(folder / "log.csv")[0]["loss"]


def learn_sizes(name: str, folder: Path, stop: int | None = None) -> tuple[DetrForObjectDetection, float]:
    "`learn_more` on images of one size or of many."
    augment, size = SIZES[name]
    processor = DetrImageProcessor.from_pretrained("scenes", size=size)
    return learn_more(SceneDetection(4000, seed=3), processor, augment, folder, stop)


def sizes() -> None:
    "30 · Transforms: a model that has seen one size, and one that has seen many, on images of seven sizes."
    rows, val = [], SceneDetection(40, seed=0, split="val")
    for name in SIZES:
        with tempfile.TemporaryDirectory() as folder: model, loss = learn_sizes(name, Path(folder))
        for side in (64, 96, 112, 128, 144, 160, 256):
            processor = DetrImageProcessor.from_pretrained("scenes", size={"height": side, "width": side})
            table = evaluate(model, val, processor, progress=False)["all"]
            rows.append({"run": name, "loss": loss, "side": side, "AP": table["AP"]})
    write("sizes", rows)


class TurnedScenes(SceneDetection):
    "Scenes, each turned to the left by none, one, two or three quarters."

    def __getitem__(self, index: int) -> tuple[Image.Image, dict]:
        image, target = super().__getitem__(index)
        quarters = index % 4
        for annotation in target["annotations"]:
            for _ in range(quarters):
                x, y, w, h = annotation["bbox"]
                annotation["bbox"] = [y, 128 - x - w, h, w]
        return image.rotate(90 * quarters), target


def learn_turned(folder: Path, stop: int | None = None) -> tuple[DetrForObjectDetection, float]:
    "`learn_more` on scenes that lie on any side."
    return learn_more(TurnedScenes(4000, seed=3), DetrImageProcessor.from_pretrained("scenes"), False, folder, stop)


def judge_turned(model: DetrForObjectDetection, quarters: int, count: int = 40) -> tuple[float, int]:
    "AP on scenes that are turned to the left, with the boxes turned back, and how many boxes have a score over 0.7."
    processor, scenes = DetrImageProcessor.from_pretrained("scenes"), SceneDetection(count, seed=0, split="val")
    batch = processor.collate([processor.encode(scenes[i][0].rotate(90 * quarters)) for i in range(count)])
    with torch.inference_mode(): outputs = model(batch.pixel_values, batch.pixel_mask)
    found = processor.post_process_object_detection(outputs, -1.0, [(128, 128)] * count)
    for one in found:
        for _ in range(quarters):
            x0, y0, x1, y1 = one["boxes"].T
            one["boxes"] = torch.stack([128 - y1, x0, 128 - y0, x1], 1)
    evaluator = CocoEvaluator(scenes.coco, ["bbox"])
    evaluator.update(dict(enumerate(found, start=1)))
    evaluator.accumulate()
    return evaluator.summarize(verbose=False)["AP"], sum(int((one["scores"] > 0.7).sum()) for one in found)


def turned() -> None:
    "30 · Transforms: the embedded model, and one that went on with scenes that lie on any side."
    rows = []
    for name in ("as it was", "turned"):
        loss, model = float("nan"), DetrForObjectDetection.from_pretrained("scenes").eval()
        if name == "turned":
            with tempfile.TemporaryDirectory() as folder: model, loss = learn_turned(Path(folder))
        for quarters in range(4):
            ap, sure = judge_turned(model, quarters)
            rows.append({"run": name, "loss": loss, "quarters": quarters, "AP": ap, "sure": sure})
    write("turned", rows)


def by_heart() -> None:
    "41 · Training: one scene learned by heart, with wrong rates and with wrong targets."
    runs = {name: learn_by_heart(**changes)[1] for name, changes in BY_HEART.items()}
    write("by_heart", [
        {"run": name, "step": step, "loss": loss}
        for name, losses in runs.items() for step, loss in enumerate(losses, start=1)
    ])


def learn_broken(run: str, images: int, steps: int = 100) -> tuple[list[dict], list[dict]]:
    """15 · Detector: one scene or two learned by heart by a detector that is as it should be or broken in one of four
    ways. The losses of every second step, with how much the answers differ; and the boxes at the end."""
    processor, scenes = scenes_processor(), SceneDetection(16, seed=0, split="val")
    encoded = [processor.encode(image, detection_target(told, 128, 128)) for image, told in (scenes[13], scenes[12])]
    batch = processor.collate(encoded[:images])
    torch.manual_seed(0)
    network = DetrForObjectDetection(DetrConfig.from_pretrained("scenes", use_pretrained_backbone=False))
    if run == "all queries alike": network.model.query_position_embeddings.requires_grad_(False).weight.zero_()
    shown, labels = batch.pixel_values, batch.labels
    if run == "grey": shown = torch.zeros_like(shown)
    if run == "black":
        black = [(0 - mean) / std for mean, std in zip(processor.image_mean, processor.image_std)]
        shown = torch.tensor(black).view(1, 3, 1, 1).expand_as(shown)
    if run == "x and y exchanged":
        labels = [target | {"boxes": target["boxes"][:, [1, 0, 3, 2]]} for target in labels]
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=5e-4, weight_decay=1e-4)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=10)
    rows: list[dict] = []
    for step in range(steps + 1):
        said = network.train()(shown, batch.pixel_mask, labels=labels)
        if step % 2 == 0:
            boxes, memory = said.pred_boxes[0].detach(), said.encoder_last_hidden_state[0].detach()
            rows.append({
                "run": run, "images": images, "step": step, "loss": said.loss.item(),
                "apart": (boxes.amax(0) - boxes.amin(0)).max().item(),
                "nothing": said.logits[0].detach().softmax(-1)[:, -1].mean().item(),
                "tokens": (memory - memory.mean(0)).norm(dim=1).mean().item(),
            })
        if step == steps: break
        optimizer.zero_grad()
        said.loss.backward()
        optimizer.step()
        warm_up.step()
    with torch.no_grad(): said = network.eval()(shown, batch.pixel_mask)
    found = processor.post_process_object_detection(said, 0.7, [(128, 128)] * images)
    return rows, [
        {"run": run, "images": images, "scene": scene, "label": int(label), "score": float(score)}
        | dict(zip(("x0", "y0", "x1", "y1"), box.tolist()))
        for scene, one in zip((13, 12), found) for box, label, score in zip(one["boxes"], one["labels"], one["scores"])
    ]


def broken() -> None:
    "15 · Detector: which of five detectors does learning by heart find, with one image and with two?"
    runs = "as it is", "all queries alike", "grey", "black", "x and y exchanged"
    learned = [learn_broken(run, images) for images in (1, 2) for run in runs]
    write("broken", [row for rows, _ in learned for row in rows])
    write("broken_boxes", [row for _, boxes in learned for row in boxes])


def batches() -> None:
    "43 · Scaling: what a larger batch learns from the same images, or in the same number of steps."
    rows, same_images = [], ((2, 1.25e-4, 4000), (8, 5e-4, 1000), (32, 5e-4, 250), (32, 1e-3, 250), (32, 2e-3, 250))
    for batch, lr, steps in (*same_images, (32, 5e-4, 1000)):
        recipe = replace(
            RECIPES["scenes"], steps=steps, stop=None, batch_size=batch, lr=lr, backbone_lr=lr, query_groups=1, ema=0.0,
            evaluations=1,
        )
        model, processor = init_scenes_detector(seed=0), scenes_processor()
        with tempfile.TemporaryDirectory() as folder:
            train(model, SceneDetection(batch * steps, seed=0), folder, recipe, processor)
        tables = evaluate(model.eval(), SceneDetection(200, seed=0, split="val"), processor, progress=False)
        numbers = {"AP": tables["all"]["AP"], "AP50": tables["all"]["AP50"], "AP things": tables["things"]["AP"]}
        rows.append({"batch": batch, "lr": lr, "steps": steps, "images": batch * steps} | numbers)
    write("batches", rows)


def one_image(outputs: dict, i: int) -> dict:
    "What a detector says of one image of a batch."
    said = {name: outputs[name][i : i + 1] for name in ("logits", "pred_boxes")}
    return said | {"auxiliary_outputs": [one_image(layer, i) for layer in outputs.get("auxiliary_outputs") or ()]}


class OwnDivisors(DetrLoss):
    "Each image's losses divided by what belongs to it alone, as if it had a process of its own."
    def forward(self, outputs, targets, pairs=None, divisors=None):
        losses = [super(OwnDivisors, self).forward(one_image(outputs, i), [target]) for i, target in enumerate(targets)]
        return {name: torch.stack([one[name] for one in losses]).mean() for name in losses[0]}


class BoxesBySum(DetrLoss):
    "The losses of boxes divided by eight times what is right, as the sum over eight processes would be."
    def forward(self, outputs, targets, pairs=None, divisors=None):
        right = self.divisors([targets], outputs["logits"].shape[1])
        return super().forward(outputs, targets, pairs, right._replace(boxes=8 * right.boxes))


DIVISORS = {"mean of all": DetrLoss, "its own": OwnDivisors, "boxes by the sum": BoxesBySum}


def learn_with_divisor(name: str, seed: int, folder: Path, stop: int | None = None) -> tuple[dict, float]:
    "The numbers of a detector that has learned from 8,000 scenes, and the loss of its first step."
    recipe = replace(
        RECIPES["scenes"], steps=1000, stop=stop, batch_size=8, lr=5e-4, backbone_lr=5e-4, query_groups=1, ema=0.0,
        evaluations=1, seed=seed,
    )
    model, processor = init_scenes_detector(seed=seed), scenes_processor()
    model.criterion.__class__ = DIVISORS[name]
    train(model, SceneDetection(8000, seed=0), folder, recipe, processor)
    tables = {} if stop else evaluate(model.eval(), SceneDetection(200, seed=0, split="val"), processor, progress=False)
    return tables, read_log(folder / "log.csv")[0]["loss"]


def divisors() -> None:
    "43 · Scaling: trainings whose losses are divided by the right number, and by wrong ones."
    rows = []
    for seed in (0, 1):
        for name in DIVISORS:
            with tempfile.TemporaryDirectory() as folder: tables, loss = learn_with_divisor(name, seed, Path(folder))
            numbers = {"AP": tables["all"]["AP"], "AP50": tables["all"]["AP50"], "AP75": tables["all"]["AP75"]}
            rows.append({"divisor": name, "seed": seed, "loss": loss} | numbers | {"AP things": tables["things"]["AP"]})
    write("divisors", rows)


SHARE = """
import sys, time, torch
from detr_nb import SceneDetection
from detr_nb.pretraining import init_scenes_detector, scenes_processor
from detr_nb.runs import StepSampler
from detr_nb.training import RECIPES, TrainingImages, TrainState, make_accelerator, train_step
threads, batch, steps = map(int, sys.argv[1:])
torch.set_num_threads(threads)
accelerator, recipe, processor = make_accelerator(batch), RECIPES["scenes"], scenes_processor()
rank, world = accelerator.process_index, accelerator.num_processes
images = TrainingImages(SceneDetection(64, seed=1), processor, recipe)
draws = list(StepSampler(64, batch // world, 0, 0, 4, rank, world))
batches = [processor.collate([images[draw] for draw in one]) for one in draws]
state = TrainState(init_scenes_detector(), recipe, 1000)
model, optimizer = accelerator.prepare(state.learner.train(), state.optimizer)
for step in range(steps + 3):
    if step == 3: began = time.perf_counter()
    train_step(state, model, optimizer, batches[step % 4], accelerator)
if rank == 0: print("images a second", steps * batch / (time.perf_counter() - began), flush=True)
accelerator.end_training()
"""


def processes() -> None:
    "43 · Scaling: images a second with one process of two threads, and with two of one, in turns."
    cases = {"one process, one thread": (1, 1), "one process, two threads": (1, 2)}
    cases |= {"two processes, one thread each": (2, 1)}
    found: dict[str, list[float]] = {name: [] for name in cases}
    with tempfile.TemporaryDirectory() as folder:
        (file := Path(folder) / "share.py").write_text(SHARE)
        for _ in range(5):
            for name, (count, threads) in cases.items():
                launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
                command, settings = [*launcher, str(file), str(threads), "16", "20"], {"OMP_NUM_THREADS": str(threads)}
                done = subprocess.run(command, env=os.environ | settings, stdout=subprocess.PIPE, text=True, check=True)
                found[name].append(float(done.stdout.split("images a second")[1].split()[0]))
    write("processes", [
        {"what": name, "images a second": median(own), "least": min(own), "most": max(own)}
        for name, own in found.items()
    ])


def speed() -> None:
    "51 · Speed: what each step wins over transformers on one and two threads, and the embedded model's AP."
    found: dict[str, dict] = {}
    for threads, name in ((1, "one"), (2, "two")):
        torch.set_num_threads(threads)
        theirs, ours = published("DetrForObjectDetection", 91, Setting())
        image, mask = images_of(1, Setting())
        plain = sdpa_kernel(SDPBackend.MATH)  # the fast attention hides its products from the counter
        with torch.no_grad(), plain, FlopCounterMode(display=False) as counter: ours(image, mask)
        products = {f"a matrix product, {str(dtype)[6:]}": torch.randn(2, 2048, 2048).to(dtype) for dtype in (
            torch.float32, torch.bfloat16
        )}
        cases = {"transformers": lambda theirs=theirs, x=image, m=mask: theirs(pixel_values=x, pixel_mask=m)}
        cases |= {name: lambda a=a, b=b: a @ b for name, (a, b) in products.items()}
        with torch.no_grad(): seconds = take_turns(cases)
        share = counter.get_total_flops() / (2 * 2048**3)
        middle = {what: median(own) for what, own in seconds.items()}
        for what in products: found.setdefault(what, {})[name] = middle["transformers"] / middle[what] / share
        for row in run_bench(["detection", "exported"]):
            if row["against"] == "transformers":
                found.setdefault(row["what"], {})[name] = row["times"]
                found[row["what"]]["apart"] = row["apart"]
    torch.set_num_threads(1)
    model, processor = DetrForObjectDetection.from_pretrained("scenes"), DetrImageProcessor.from_pretrained("scenes")
    scenes, train = SceneDetection(200, seed=0, split="val"), SceneDetection(16, seed=0, split="train")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export_model(model, processor, folder / "float32", "openvino")
        export_model(model, processor, folder / "int8", "openvino", [train[i][0] for i in range(16)])
        models = {
            "as it is": model, "optimize()": model.optimize(),
            "optimize(torch.bfloat16)": model.optimize(torch.bfloat16), "OpenVINO": ExportedModel(folder / "float32"),
            "OpenVINO, bfloat16": ExportedModel(folder / "float32", "bfloat16"),
            "OpenVINO, int8 and bfloat16": ExportedModel(folder / "int8", "bfloat16"),
        }
        ap = {name: evaluate(model, scenes, processor)["all"]["AP"] for name, model in models.items()}
    write("speed", [
        {"what": what, "one": own["one"], "two": own["two"], "apart": own.get("apart", ""), "AP": ap.get(what, "")}
        for what, own in found.items()
    ])


def bench() -> None:
    "98 · Measuring speed: every case of `detr-nb bench` on two threads."
    torch.set_num_threads(2)
    rows = run_bench()
    write("bench", [row | {"machine": describe_machine()} for row in rows])


def known_scenes(count: int, seed: int, split: str) -> list[dict]:
    "What the finished detector knows of scenes: all that a mask head needs to draw and to learn."
    model = DetrForSegmentation.from_pretrained("scenes").eval()
    processor = DetrImageProcessor.from_pretrained("scenes")
    scenes, known = SceneDetection(count, seed=seed, split=split, masks=True), []
    for image, annotations in scenes:
        target = detection_target(annotations, 128, 128, masks=True)
        batch = processor.collate([processor.encode(image, target)])
        with torch.no_grad():
            features, tokens = image_tokens(model.detr.model, batch["pixel_values"], batch["pixel_mask"])
            hidden = transform(model.detr.model, tokens)
            predictions = predict_from(model.detr, hidden.last_hidden_state[None])
        (queries, objects), = model.criterion.matcher(predictions, batch["labels"])
        known.append({
            "features": features, "tokens": tokens, "memory": hidden.encoder_last_hidden_state,
            "queries": [hidden.last_hidden_state[0, queries]],
            "masks": batch["labels"][0]["masks"][objects].float(),
        })
    return known


def drawn_masks(model: DetrForSegmentation, scene: dict) -> Tensor:
    "Logits (T, H, W) of the masks of a scene's objects."
    (coarse,) = draw_masks(model, *(scene[name] for name in ("features", "tokens", "memory", "queries")))
    return interpolate(coarse[:, None], scene["masks"].shape[-2:], mode="bilinear", align_corners=False)[:, 0]


def judge_masks(model: DetrForSegmentation, scenes: list[dict]) -> dict[str, float]:
    "Mean IoU of the masks of all objects, of those under 300 pixels, and the share of masks that are empty."
    with torch.no_grad(): pairs = [(drawn_masks(model, scene) > 0, scene["masks"] > 0) for scene in scenes]
    found, true = (torch.cat(masks).flatten(1) for masks in zip(*pairs))
    iou, small = (found & true).sum(1) / (found | true).sum(1), true.sum(1) < 300
    return {"iou": iou.mean().item(), "small": iou[small].mean().item(), "empty": (~found.any(1)).float().mean().item()}


def cross_entropy(logits: Tensor, targets: Tensor, num_boxes: float) -> Tensor:
    "Of pixels: the mean of each mask, summed over masks."
    return binary_cross_entropy_with_logits(logits, targets, reduction="none").mean((1, 2)).sum() / num_boxes


def picture_of_ball(model: DetrForSegmentation, scene: dict) -> str:
    "The mask of the ball of scene 13, every second pixel of 28 × 28, row by row: a for 0 to k for 1."
    (ball,) = (i for i, mask in enumerate(scene["masks"]) if mask.sum() == 235)
    rows, columns = scene["masks"][ball].nonzero().T
    top, left = int(rows.float().mean()) - 13, int(columns.float().mean()) - 13
    with torch.no_grad(): shown = drawn_masks(model, scene)[ball].sigmoid()[top : top + 28 : 2, left : left + 28 : 2]
    return "".join("abcdefghijk"[round(10 * float(p))] for p in shown.flatten())


MASK_LOSSES = {
    "cross-entropy": [cross_entropy], "focal": [sigmoid_focal_loss], "dice": [dice_loss],
    "focal + dice": [sigmoid_focal_loss, dice_loss], "cross-entropy + dice": [cross_entropy, dice_loss],
}


def learn_mask_head(
    name: str, seed: int, train_scenes: list[dict], val_scenes: list[dict], steps: int = 600, every: int = 50,
    pictures: list[dict] | None = None,
) -> list[dict]:
    "A fresh mask head on the frozen detector learns from one of the losses: how good it is on scenes it has not seen."
    torch.manual_seed(seed)
    model = DetrForSegmentation.from_pretrained("scenes").eval()
    model.bbox_attention, model.mask_head = MaskAttention(128, 8), MaskHead(128, 8, (64, 32, 32))
    scale_attention_weights(model)
    learned = [*model.bbox_attention.parameters(), *model.mask_head.parameters()]
    optimizer, order = torch.optim.AdamW(learned, lr=1e-3, weight_decay=1e-4), torch.Generator().manual_seed(seed)
    rows = []
    for step in range(steps + 1):
        if step % every == 0: rows.append({"loss": name, "seed": seed, "step": step} | judge_masks(model, val_scenes))
        if pictures is not None and step in (0, 50, 100, 200, 600):
            pictures.append({"loss": name, "step": step, "mask": picture_of_ball(model, val_scenes[13])})
        chosen = [train_scenes[i] for i in torch.randint(len(train_scenes), (4,), generator=order).tolist()]
        logits = torch.cat([drawn_masks(model, scene) for scene in chosen])
        truths = torch.cat([scene["masks"] for scene in chosen])
        optimizer.zero_grad()
        sum(loss(logits, truths, len(truths)) for loss in MASK_LOSSES[name]).backward()
        torch.nn.utils.clip_grad_norm_(learned, 0.1)
        optimizer.step()
    return rows


def mask_losses() -> None:
    "20 · Mask losses: the mask head learns from each of them, three times; and what the first of them draws."
    scenes, rows, pictures = (known_scenes(200, 1, "train"), known_scenes(40, 0, "val")), [], []
    for seed in tqdm(range(3), "seeds"):
        for name in MASK_LOSSES: rows += learn_mask_head(name, seed, *scenes, pictures=None if seed else pictures)
    write("mask_losses", rows)
    write("mask_pictures", pictures)


EXPERIMENTS = {
    "speed": speed, "bench": bench, "napkin": napkin, "napkin_regions": napkin_regions,
    "napkin_scores": napkin_scores, "napkin_limits": napkin_limits,
    "beginnings": beginnings, "sizes": sizes, "box_question": box_question, "lessons": lessons, "coins": coins,
    "coin_steps": coin_steps, "by_heart": by_heart, "broken": broken, "batches": batches, "processes": processes,
    "divisors": divisors, "mask_losses": mask_losses, "turned": turned,
}


def main(names: list[str]) -> int:
    "Run the experiments that are named, or all."
    if unknown := sorted(set(names) - set(EXPERIMENTS)):
        print(f"{', '.join(unknown)}: want some of {', '.join(EXPERIMENTS)}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)  # so that numbers are added in the same order everywhere
    for name in names or EXPERIMENTS: EXPERIMENTS[name]()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
