"Make the embedded model again from nothing: `python tools/make_weights.py [run [assets]]`."
import csv
import shutil
import sys
import warnings
from pathlib import Path

import torch

from detr_nb import RECIPES, DetrForSegmentation, SceneDetection, evaluate, train
from detr_nb.evaluation import format_tables
from detr_nb.explore import Recorder
from detr_nb.mask_head import scale_attention_weights
from detr_nb.pretraining import init_scenes_detector, pretrain_backbone, scenes_processor


def mask_start(
    detector: Path,  # folder of the trained detector
    seed: int = 0,
) -> DetrForSegmentation:
    """The embedded segmentation model before its first step: a finished, frozen detector, and a
    random mask head."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "begun afresh")  # which is what we want
        model = DetrForSegmentation.from_pretrained(detector, mask_loss_coefficient=4)
    model.freeze_detector()
    scale_attention_weights(model)
    return model


def make_weights(
    run: Path,     # folder for checkpoints, outside the package
    assets: Path,  # where the finished files go
) -> dict[str, dict[str, float]]:
    """Train the embedded model from nothing: the backbone, then the detector, then the mask head;
    go on where an earlier call was interrupted. Its tables on 500 fresh scenes."""
    run.mkdir(parents=True, exist_ok=True)
    assets.mkdir(parents=True, exist_ok=True)
    weights, recipe, processor = run / "backbone.safetensors", RECIPES["scenes"], scenes_processor()
    if not weights.exists():
        log = pretrain_backbone(run / "backbone.part")
        with open(run / "backbone.csv", "w", newline="") as file:
            csv.writer(file).writerows([("class_loss", "box_loss"), *log])
        (run / "backbone.part").replace(weights)
    recorder = Recorder(run / "record.npz", SceneDetection(16, seed=4, split="val"), processor)
    folder = train(
        init_scenes_detector(weights), SceneDetection(recipe.steps * recipe.batch_size, seed=2), run, recipe,
        processor, val=SceneDetection(500, seed=3, split="val"), resume=(run / "checkpoint.pt").exists(),
        callback=recorder,
    )
    recipe = RECIPES["scenes masks"]
    masks = train(
        mask_start(folder), SceneDetection(recipe.steps * recipe.batch_size, seed=6, masks=True), run / "masks",
        recipe, processor, val=SceneDetection(500, seed=3, split="val", masks=True),
        resume=(run / "masks" / "checkpoint.pt").exists(),
    )
    DetrForSegmentation.from_pretrained(masks).save_pretrained(assets, dtype=torch.float16)
    processor.save_pretrained(assets)
    for name in ("backbone.safetensors", "backbone.csv", "log.csv", "record.npz"):
        shutil.copy(run / name, assets / name)
    shutil.copy(run / "masks" / "log.csv", assets / "masks.csv")
    return evaluate(
        DetrForSegmentation.from_pretrained(assets), SceneDetection(500, seed=5, split="val", masks=True), processor,
        iou_types=("bbox", "segm"),
    )


if __name__ == "__main__":
    folders = [Path(argument) for argument in sys.argv[1:]]
    print(format_tables(make_weights(*folders or [Path("runs/scenes"), Path("detr_nb/assets/scenes")])))
