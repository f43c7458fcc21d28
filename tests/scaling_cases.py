"What `test_scaling` runs on one, two and four processes: each case trains a little and writes what came out."
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import torch

from detr_nb import DetrForSegmentation, SceneDetection
from detr_nb.losses import rank_and_world
from detr_nb.pretraining import scenes_config, scenes_processor
from detr_nb.runs import StepSampler
from detr_nb.training import (
    RECIPES, TrainingImages, TrainState, make_accelerator, step_divisors, train_step,
)

# COCO's rates, and lower ones for masks: Adam divides by the size of a gradient, and where that is nearly 0 it steps by
# the rate times what rounding left; at the rates of scenes, five times as high, that is 2e-4 after twenty steps
BASE = replace(RECIPES["coco"], steps=20, batch_size=8, augment=False, evaluations=1)
SILENT = 3  # at this step the last quarter of the batch has no object: on four processes, those of one rank


class Scenes(SceneDetection):
    "Scenes of which some have lost all their objects."
    def __init__(self, *args, without=(), **kwargs):
        super().__init__(*args, **kwargs)
        self.without = set(without)

    def __getitem__(self, index):
        image, target = super().__getitem__(index)
        return image, target | {"annotations": []} if index in self.without else target


def draws(recipe, rank, world, steps):
    return list(StepSampler(64, recipe.batch_size // world // recipe.accumulate, recipe.seed, 0, steps * recipe.accumulate, rank, world))


def model_of(masks, frozen=False):
    from detr_nb import DetrForObjectDetection
    torch.manual_seed(0)
    kind = DetrForSegmentation if masks else DetrForObjectDetection
    model = kind(scenes_config(use_pretrained_backbone=True, encoder_layers=1, decoder_layers=3, auxiliary_loss=True, dropout=0.0))
    if frozen: model.freeze_detector()
    return model


CASES = {  # name → recipe, whether masks are learned, and whether they alone are
    "boxes": (BASE, False, False), "groups and average": (replace(BASE, query_groups=3, ema=0.9), False, False),
    # AdamW makes a whole step of a gradient that is only rounding: small rates, so that one such number cannot reach the limit
    "masks": (replace(BASE, batch_size=4, lr=5e-6), True, True), "masks and boxes": (replace(BASE, batch_size=4, lr=2e-5), True, False),
    "accumulated": (replace(BASE, accumulate=2), False, False),
}


def run_case(name, folder: Path) -> None:
    "Twenty steps: the first step's loss and gradients, every loss, and the weights at the end."
    recipe, masks, frozen = CASES[name]
    detector = model_of(masks, frozen)
    accelerator = make_accelerator(recipe.batch_size, recipe.accumulate, detector)
    rank, world = rank_and_world()
    without = [index for index, _ in draws(recipe, 0, 1, SILENT + 1)[SILENT * recipe.accumulate + recipe.accumulate - 1]][-(recipe.batch_size // 4) :]
    data, processor = Scenes(64, seed=6, masks=masks, without=without), scenes_processor()
    images = TrainingImages(data, processor, recipe, masks)
    state = TrainState(detector, recipe, recipe.steps)
    model, optimizer = accelerator.prepare(state.learner.train(), state.optimizer)
    own, losses, first, empty = draws(recipe, rank, world, recipe.steps), [], {}, 0
    for step in range(recipe.steps):
        parts = [processor.collate([images[draw] for draw in own[step * recipe.accumulate + part]]) for part in range(recipe.accumulate)]
        empty += all(len(target["class_labels"]) == 0 for part in parts for target in part["labels"])
        numbers = accelerator.reduce(train_step(state, model, optimizer, parts, accelerator), "mean")
        losses.append({k: float(v) for k, v in numbers.items()})
        if step == 0: first = {name: p.grad.clone() for name, p in state.learner.named_parameters() if p.grad is not None}
    kept = accelerator.gather(torch.tensor([empty])).tolist()
    if rank == 0:
        result = {"losses": losses, "gradients": first, "weights": state.eval_model.state_dict(), "empty": kept}
        torch.save(result, folder / f"{name}-{world}.pt")


def run_divisors(folder: Path) -> None:
    "The divisors of a step, which every process must compute alike."
    labels = [[{"class_labels": torch.arange(n) % 7 + 1} for n in (rank_and_world()[0] + 1, 0, 40)] for _ in range(2)]
    found = step_divisors(TrainState(model_of(False), BASE, 5), labels)
    torch.save(list(found), folder / f"divisors-{rank_and_world()[1]}-{rank_and_world()[0]}.pt")


def run_evaluation(folder: Path) -> None:
    "COCO's numbers of a model that finds something; the last batch is short, and a padding sampler repeats images."
    from detr_nb import CocoEvaluator, DetrForObjectDetection, DetrImageProcessor, evaluate
    rank, world = rank_and_world()
    model, processor = DetrForObjectDetection.from_pretrained("scenes").eval(), DetrImageProcessor.from_pretrained("scenes")
    val = SceneDetection(13, seed=21, split="val")
    tables = evaluate(model, val, processor, batch_size=3, progress=False)
    evaluator = CocoEvaluator(val.coco)
    padded = (list(range(13)) + list(range(world)))[: -(-13 // world) * world]  # as DistributedSampler pads
    for index in padded[rank::world]:
        image, target = val[index]
        with torch.inference_mode(): outputs = model(**processor(image, return_tensors="pt"))
        results = processor.post_process_object_detection(outputs, threshold=-1, target_sizes=[(128, 128)])
        evaluator.update({target["image_id"]: results[0]})
    evaluator.synchronize_between_processes()
    evaluator.accumulate()
    torch.save([tables["all"], evaluator.summarize(verbose=False)], folder / f"evaluation-{world}-{rank}.pt")


def run_all(folder: Path) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for name in CASES: run_case(name, folder)
    run_divisors(folder)
    run_evaluation(folder)


if __name__ == "__main__": run_all(Path(sys.argv[1]))
