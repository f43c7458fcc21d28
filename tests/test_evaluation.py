"Average precision through the evaluator, against pycocotools used directly, and over two processes."
import contextlib
import io

import numpy as np
import pytest
import torch

from detr_nb import CocoEvaluator, DetrForObjectDetection, DetrImageProcessor, SceneDetection, evaluate
from detr_nb.boxes import box_iou
from detr_nb.data import coco_index, detection_target
from detr_nb.evaluation import METRICS, format_tables, thing_ids
from detr_nb.own_data import KINDS, review_answers


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


def test_counts_are_those_of_counting(dataset):
    "Right, wrong and missed over a score, against a loop over answers and objects that knows nothing of COCO's code."
    predictions = noisy_predictions(dataset)
    evaluator = CocoEvaluator(dataset.coco)
    evaluator.update(predictions)
    evaluator.accumulate()
    for threshold in (0.0, 0.3, 0.6, 0.95):
        right = wrong = objects = 0
        for image_id, found in predictions.items():
            truth = [a for a in dataset.coco.imgToAnns[image_id] if not a["iscrowd"]]
            objects, free = objects + len(truth), list(range(len(truth)))
            for k in found["scores"].argsort(descending=True, stable=True).tolist():
                if found["scores"][k] <= threshold: continue
                fits = {
                    i: float(box_iou(found["boxes"][k, None].double(), corners_of(truth[i]))) for i in free
                    if truth[i]["category_id"] == found["labels"][k]
                }
                best = max(fits, key=fits.get, default=None)
                hit = best is not None and fits[best] >= 0.5
                right, wrong = right + hit, wrong + (not hit)
                if hit: free.remove(best)
        assert evaluator.count(threshold) == {"right": right, "wrong": wrong, "missed": objects - right}
    assert 0 < right < objects


def corners_of(annotation):
    x, y, w, h = annotation["bbox"]
    return torch.tensor([[x, y, x + w, y + h]], dtype=torch.float64)


def test_crowds_are_not_counted():
    "Neither as an object, nor is an answer inside of one wrong."
    truth = [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10], "area": 100, "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 1, "bbox": [50, 0, 40, 40], "area": 1600, "iscrowd": 1},
    ]
    coco = coco_index({"images": [{"id": 1}], "categories": [{"id": 1, "name": "ball"}], "annotations": truth})
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [60, 5, 80, 25], [0, 50, 10, 60]])
    evaluator = CocoEvaluator(coco)
    evaluator.update({1: {"scores": torch.tensor([0.9, 0.8, 0.7, 0.6]), "labels": torch.ones(4, dtype=torch.int64), "boxes": boxes}})
    evaluator.accumulate()
    assert evaluator.count(0.5) == {"right": 1, "wrong": 2, "missed": 0}
    assert evaluator.count(0.85) == {"right": 1, "wrong": 0, "missed": 0} and evaluator.count(0.95)["missed"] == 1
    evaluator.engine = "hotcoco"
    with pytest.raises(ValueError, match="counts with engine='hotcoco': want 'pycocotools'"): evaluator.count(0.5)


def test_counts_in_a_table():
    text = format_tables({"all": dict.fromkeys(METRICS, 0.5), "over 0.5": {"right": 91, "wrong": 42, "missed": 26}})
    assert [line.split() for line in text.splitlines()[-2:]] == [["right", "wrong", "missed"], ["over", "0.5", "91", "42", "26"]]
    with pytest.raises(ValueError, match="thresholds with engine='hotcoco'"):
        evaluate(None, SceneDetection(1, seed=0), None, engine="hotcoco", thresholds=[0.5])


def test_table():
    text = format_tables({"all": dict.fromkeys(METRICS, 0.5), "things": dict.fromkeys(METRICS, -1.0)})
    assert len(text.splitlines()) == 13 and "AP75" in text and "-1.000" in text


def hard_world(seed, images, crowds, most):
    "Truth and guesses with crowds, ties, images without objects or without guesses, many guesses an image, ids from 0."
    rng = np.random.default_rng(seed)
    annotations, predictions = [], {}
    for image in range(images):
        own = []
        for _ in range(rng.integers(0, 12)):
            x, y, w, h = [*(rng.random(2) * 400), *(rng.random(2) * 200 + 2)]
            own.append({
                "id": len(annotations) + len(own), "image_id": image, "category_id": int(rng.integers(1, 6)), "bbox": [x, y, w, h],
                "area": w * h, "iscrowd": int(rng.random() < crowds), "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
            })
        boxes, labels = [], []
        for _ in range(rng.integers(0, most)):
            a = own[rng.integers(len(own))] if own and rng.random() < 0.7 else {"bbox": [*(rng.random(2) * 400), *(rng.random(2) * 99 + 1)], "category_id": 1}
            x, y, w, h = np.array(a["bbox"]) * (1 + rng.normal(0, 0.1, 4))
            boxes.append([x, y, x + abs(w), y + abs(h)])
            labels.append(a["category_id"])
        scores = rng.random(len(boxes)).round(1 if seed % 2 else 6)  # many of them equal
        predictions[image] = {
            "scores": torch.tensor(scores).float(), "labels": torch.tensor(labels).long(), "boxes": torch.tensor(np.array(boxes).reshape(-1, 4)).float(),
        }
        annotations += own
    from detr_nb.data import coco_index
    names = [{"id": i, "name": str(i)} for i in range(1, 6)]
    sizes = [{"id": i, "width": 640, "height": 640, "file_name": f"{i}.png"} for i in range(images)]
    return coco_index({"images": sizes, "categories": names, "annotations": annotations}), predictions


@pytest.mark.parametrize("seed, images, crowds, most", [(0, 40, 0, 20), (1, 40, 0.3, 20), (2, 8, 0.1, 260), (3, 8, 0.1, 260), (4, 20, 0, 1), (5, 1, 1, 30)])
def test_hotcoco_gives_the_numbers_of_pycocotools(seed, images, crowds, most):
    pytest.importorskip("hotcoco")
    coco, predictions = hard_world(seed, images, crowds, most)
    some = {k: v for k, v in predictions.items() if k % 3}  # not every image was evaluated
    for given in (predictions, some or predictions):
        both = [CocoEvaluator(coco, engine=engine) for engine in ("pycocotools", "hotcoco")]
        for evaluator in both:
            evaluator.update(given)
            evaluator.accumulate()
        for name in ("precision", "recall"):
            np.testing.assert_array_equal(*(evaluator.coco_eval["bbox"].eval[name] for evaluator in both))
        for categories in (None, [2, 3], [5]):
            assert both[0].summarize(False, categories) == both[1].summarize(False, categories)


def test_hotcoco_of_masks(dataset):
    pytest.importorskip("hotcoco")
    from detr_nb import DetrForSegmentation, DetrImageProcessor
    model, processor = DetrForSegmentation.from_pretrained("scenes"), DetrImageProcessor.from_pretrained("scenes")
    given = dict(progress=False, iou_types=("bbox", "segm"))
    scenes = SceneDetection(6, seed=4, split="val", masks=True)
    assert evaluate(model, scenes, processor, **given) == evaluate(model, scenes, processor, **given, engine="hotcoco")


def test_engine_is_named(dataset):
    with pytest.raises(ValueError, match="engine='fast': want 'pycocotools' or 'hotcoco'"):
        CocoEvaluator(dataset.coco, engine="fast")


class Crowded(SceneDetection):
    "Scenes in which every third annotation is a crowd, and one box reaches out of its image."
    def __getitem__(self, index):
        image, target = super().__getitem__(index)
        annotations = [a | {"iscrowd": int(i % 3 == 2)} for i, a in enumerate(target["annotations"])]
        x, y, width, height = annotations[0]["bbox"]
        annotations[0] = annotations[0] | {"bbox": [x - 9, y, width + 9, height]}
        return image, target | {"annotations": annotations}


@pytest.mark.parametrize("settings", [{}, {"do_pad": False}, {"pad_size": {"height": 160, "width": 192}, "box_frame": "canvas"}])
@pytest.mark.parametrize("threshold", [0.1, 0.5])
def test_sorted_answers_are_those_that_coco_counts(threshold, settings):
    "Right, wrong and missed are COCO's, with crowds, and whatever the processor does to images."
    model, scenes = DetrForObjectDetection.from_pretrained("scenes").eval(), Crowded(12, seed=31, split="val")
    processor = DetrImageProcessor.from_pretrained("scenes", **settings)
    counted = evaluate(model, scenes, processor, progress=False, thresholds=[threshold])[f"over {threshold:g}"]
    kinds, figure = review_answers(model, processor, scenes, threshold, batch_size=5)
    assert figure is None and list(kinds) == list(KINDS)
    assert {"right": kinds["right"], "missed": kinds["missed"]} == {k: counted[k] for k in ("right", "missed")}
    assert kinds["duplicate"] + kinds["wrong class"] + kinds["wrong place"] == counted["wrong"]
    assert kinds["right"] > 10 and (kinds["on a crowd"] > 0) == ("box_frame" not in settings)


def test_a_figure_of_answers_says_what_is_wrong():
    model, scenes = DetrForObjectDetection.from_pretrained("scenes").eval(), SceneDetection(5, seed=31, split="val")
    processor = DetrImageProcessor.from_pretrained("scenes")
    kinds, figure = review_answers(model, processor, scenes, 0.05, draw=9)
    words = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert sum(ax.has_data() for ax in figure.axes) == 5 and len(words) == sum(kinds.values()) - kinds["missed"]
    for kind in ("duplicate", "wrong class", "wrong place"): assert sum(word.endswith(f", {kind}") for word in words) == kinds[kind]
    with pytest.raises(ValueError, match="threshold=2: want a number from 0 to 1"): review_answers(model, processor, scenes, 2)
