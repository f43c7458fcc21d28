"Average precision through the evaluator, against pycocotools used directly, and over two processes."
import contextlib
import io

import numpy as np
import pytest
import torch

from detr_nb import CocoEvaluator, SceneDetection, evaluate
from detr_nb.data import detection_target
from detr_nb.evaluation import METRICS, format_tables, thing_ids


def noisy_predictions(dataset, seed=0):
    "Truth with moved boxes, wrong labels, misses and inventions."
    generator = torch.Generator().manual_seed(seed)
    rand = lambda *shape: torch.rand(*shape, generator=generator)
    result = {}
    for i in range(len(dataset)):
        target = detection_target(dataset[i][1], 128, 128)
        keep = rand(len(target["boxes"])) < 0.8
        boxes = target["boxes"][keep] + (rand(int(keep.sum()), 4) - 0.5) * 8
        labels = torch.where(rand(len(boxes)) < 0.9, target["class_labels"][keep], torch.tensor(3))
        low = rand(3, 2) * 80
        boxes, labels = torch.cat([boxes, torch.cat([low, low + 10 + rand(3, 2) * 30], 1)]), torch.cat([labels, torch.randint(1, 13, (3,), generator=generator)])
        result[dataset[i][1]["image_id"]] = {"scores": rand(len(boxes)), "labels": labels, "boxes": boxes}
    return result


@pytest.fixture(scope="module")
def dataset():
    return SceneDetection(30, seed=21, split="val")


def directly(coco, predictions, categories=None):
    from pycocotools.cocoeval import COCOeval
    rows = [
        {"image_id": i, "category_id": int(c), "bbox": [x0, y0, x1 - x0, y1 - y0], "score": float(s)}
        for i, p in predictions.items() for s, c, (x0, y0, x1, y1) in zip(p["scores"], p["labels"], p["boxes"].tolist())
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(coco, coco.loadRes(rows), "bbox")
        if categories:
            evaluation.params.catIds = categories
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def test_against_pycocotools(dataset, capsys):
    coco, predictions = dataset.coco, noisy_predictions(dataset)
    evaluator = CocoEvaluator(coco, "bbox")
    for i, prediction in predictions.items():
        evaluator.update({i: prediction})
    evaluator.synchronize_between_processes()
    evaluator.accumulate()
    numbers = evaluator.summarize()
    assert "Average Precision" in capsys.readouterr().out
    np.testing.assert_allclose([numbers[m] for m in METRICS], directly(coco, predictions), atol=1e-6)
    assert 0.05 < numbers["AP"] < 0.9
    things = evaluator.summarize(verbose=False, category_ids=thing_ids(coco))
    np.testing.assert_allclose(list(things.values()), directly(coco, predictions, list(range(1, 9))), atol=1e-6)
    np.testing.assert_allclose(evaluator.coco_eval["bbox"].stats, directly(coco, predictions), atol=1e-6)  # where the original's users look


def test_only_the_images_seen_count(dataset):
    predictions = noisy_predictions(dataset)
    evaluator = CocoEvaluator(dataset.coco)
    half = dict(list(predictions.items())[:15])
    evaluator.update(half)
    evaluator.accumulate()
    assert evaluator.coco_eval["bbox"].params.imgIds == sorted(half)


def test_nothing_found(dataset):
    evaluator = CocoEvaluator(dataset.coco)
    none = {"scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}
    evaluator.update({1: none, 2: none})
    evaluator.accumulate()
    assert evaluator.summarize(verbose=False)["AP"] == 0


def test_refused(dataset):
    with pytest.raises(ValueError, match="image 999 is not in the ground truth"):
        CocoEvaluator(dataset.coco).update({999: {}})
    with pytest.raises(ValueError, match="iou_types='keypoints'"):
        CocoEvaluator(dataset.coco, "keypoints")


TWO = """
    import torch, torch.distributed as dist, warnings
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    import sys
    from pathlib import Path
    from detr_nb import CocoPanoptic, DetrForSegmentation, SceneDetection, evaluate
    from detr_nb.evaluation import evaluate_panoptic
    from detr_nb.processor import DetrImageProcessor
    folder = Path(sys.argv[1])
    model, processor = DetrForSegmentation.from_pretrained("scenes"), DetrImageProcessor.from_pretrained("scenes")
    tables = evaluate(model, SceneDetection(7, seed=21, split="val", masks=True), processor, batch_size=2, progress=False, iou_types=("bbox", "segm"))
    data = CocoPanoptic(folder / "val", folder / "panoptic_val", folder / "annotations" / "panoptic_val.json")
    quality = evaluate_panoptic(model, data, processor, folder / "found", 0.5, batch_size=2, progress=False)
    numbers = [*tables["all"].values(), *tables["all masks"].values(), *quality["All"].values()]
    (folder / f"rank{dist.get_rank()}.txt").write_text(str([round(v, 9) for v in numbers]))
"""


@pytest.mark.slow
def test_two_processes(tmp_path):
    "Seven images on two processes give every process the numbers of one: boxes, masks, panoptic quality."
    from conftest import run_processes

    from detr_nb import CocoPanoptic, DetrForSegmentation, DetrImageProcessor, make_scenes
    from detr_nb.evaluation import evaluate_panoptic
    make_scenes(tmp_path / "data", val=7, seed=21)
    run_processes(TWO, tmp_path, tmp_path / "data")
    model, processor, folder = DetrForSegmentation.from_pretrained("scenes"), DetrImageProcessor.from_pretrained("scenes"), tmp_path / "data"
    alone = evaluate(model, SceneDetection(7, seed=21, split="val", masks=True), processor, progress=False, iou_types=("bbox", "segm"))
    data = CocoPanoptic(folder / "val", folder / "panoptic_val", folder / "annotations" / "panoptic_val.json")
    quality = evaluate_panoptic(model, data, processor, tmp_path / "found", 0.5, progress=False)
    assert quality["All"]["pq"] > 0
    wanted = str([round(v, 9) for v in [*alone["all"].values(), *alone["all masks"].values(), *quality["All"].values()]])
    assert [(folder / f"rank{rank}.txt").read_text() for rank in range(2)] == [wanted, wanted]


def test_table():
    text = format_tables({"all": dict.fromkeys(METRICS, 0.5), "things": dict.fromkeys(METRICS, -1.0)})
    assert len(text.splitlines()) == 13 and "AP75" in text and "-1.000" in text
