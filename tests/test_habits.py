"What people do around a model: labels that are set later, batches that are moved, numbers of numpy's, threads."
import copy
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from typer.testing import CliRunner

import detr_nb
from detr_nb.checkpoints import load_checkpoint
from detr_nb.cli import app
from detr_nb.data import CocoDetection, CocoPanoptic, SceneDetection, coco_index
from detr_nb.datasets import check_split, convert_dataset, object_faults, open_split
from detr_nb.evaluation import CocoEvaluator, PanopticEvaluator, compare_segments, evaluate, evaluate_panoptic
from detr_nb.files import read_image
from detr_nb.matcher import HungarianMatcher, assign
from detr_nb.napkin import compare_runs
from detr_nb.own_data import init_class_head, review_answers, start_training
from detr_nb.pretraining import scenes_processor
from detr_nb.training import Recipe, TrainingImages, check_run, train

SMALL = dict(
    backbone="resnet18", use_pretrained_backbone=False, d_model=32, encoder_layers=1, decoder_layers=1,
    encoder_ffn_dim=32, decoder_ffn_dim=32, encoder_attention_heads=2, decoder_attention_heads=2, num_queries=5,
)


@pytest.fixture(scope="module")
def detector():
    return detr_nb.DetrForObjectDetection.from_pretrained("scenes")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("habits") / "scenes"
    detr_nb.make_scenes(place, train=4, val=6)
    return place


def small(**changes):
    torch.manual_seed(0)
    return detr_nb.DetrForObjectDetection(detr_nb.DetrConfig(**SMALL | changes)).eval()


# --- configurations and checkpoints

def test_labels_that_are_set_later_stay_together(tmp_path):
    config = detr_nb.DetrConfig(**SMALL, num_labels=5, stuff_ids=[3])
    config.id2label = {0: "cat", 1: "dog", 2: "cow"}
    assert (config.num_labels, config.label2id, config.stuff_ids) == (3, {"cat": 0, "dog": 1, "cow": 2}, None)
    config.num_labels = 3
    assert config.id2label[1] == "dog", "the number that it has changes no name"
    config.num_labels = np.int64(7)
    assert config.num_labels == 7 and type(config.num_labels) is int and len(config.id2label) == 7
    with pytest.raises(ValueError, match="num_labels=0: want"): config.num_labels = 0
    with pytest.raises(ValueError, match="id2label="): config.id2label = {-1: "cat"}
    model = detr_nb.DetrForObjectDetection(config)
    model.save_pretrained(tmp_path)
    assert detr_nb.DetrForObjectDetection.from_pretrained(tmp_path).config.id2label == model.config.id2label


def test_the_loss_follows_the_configuration():
    model, labels = small(num_labels=3), [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.4]])}]
    pixels = torch.rand(1, 3, 64, 64)
    before = model(pixels, labels=labels).loss_dict["loss_ce"]
    for name, value in {"eos_coefficient": 0.9, "class_cost": 9, "bbox_cost": 0.5, "giou_cost": 3}.items():
        setattr(model.config, name, value)
    after = model(pixels, labels=labels)
    assert after.loss_dict["loss_ce"] != before and model.criterion.matcher.class_cost == 9
    wanted = detr_nb.DetrForObjectDetection(model.config)
    wanted.load_state_dict(model.state_dict())
    torch.testing.assert_close(after.loss, wanted.eval()(pixels, labels=labels).loss)
    model.class_labels_classifier, model.config.num_labels = torch.nn.Linear(32, 11), 10
    assert model(pixels, labels=[labels[0] | {"class_labels": torch.tensor([9])}]).loss.isfinite()


def test_a_criterion_of_ones_own_stays():
    model = small(num_labels=3)
    model.criterion = detr_nb.DetrLoss(detr_nb.HungarianMatcher(), 3, eos_coef=0.5)
    mine = model.criterion
    model(torch.rand(1, 3, 64, 64), labels=[{"class_labels": torch.tensor([1]), "boxes": torch.full((1, 4), 0.3)}])
    assert model.criterion is mine


def test_other_weights_are_saved(tmp_path):
    model = small()
    zeros = {f"module.{name}": torch.zeros_like(value) for name, value in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=zeros)
    opened = detr_nb.DetrForObjectDetection.from_pretrained(tmp_path)
    assert not any(value.any() for value in opened.state_dict().values())
    with pytest.raises(ValueError, match="state_dict: 1 names differ from the model's, the first is bbox"):
        model.save_pretrained(tmp_path, state_dict=dict(list(model.state_dict().items())[:-1]))
    with pytest.raises(ValueError, match="variant: want None"): model.save_pretrained(tmp_path, variant="ema")
    with pytest.raises(ValueError, match="want a floating point one"): model.save_pretrained(tmp_path, dtype=torch.int8)
    model.model.query_position_embeddings.weight.data[0, 0] = 1e6
    with pytest.raises(ValueError, match="not finite and are not saved"): model.save_pretrained(tmp_path, torch.float16)


def test_the_stored_dtype_is_written_down(tmp_path):
    small().half().save_pretrained(tmp_path)
    assert transformers.AutoConfig.from_pretrained(tmp_path).dtype == torch.float16
    small().save_pretrained(tmp_path)
    assert "dtype" not in json.loads((tmp_path / "config.json").read_text())


def test_a_config_of_any_origin(tmp_path):
    labels = {"id2label": {1: "cat", 2: "dog"}, "label2id": {"cat": 1, "dog": 2}}
    theirs = transformers.DetrConfig(**SMALL, use_timm_backbone=True, **labels)
    transformers.DetrForObjectDetection(theirs).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Pass num_labels=2 to keep its classes, or ignore_mismatched_sizes"):
        detr_nb.DetrForObjectDetection.from_pretrained(tmp_path)  # their head has as many classes as names
    for config in (None, theirs, str(tmp_path), tmp_path / "config.json"):
        opened = detr_nb.DetrForObjectDetection.from_pretrained(tmp_path, config=config, num_labels=2)
        assert opened.class_labels_classifier.out_features == 3
    assert detr_nb.DetrConfig.from_pretrained(tmp_path / "config.json").d_model == 32
    body = transformers.DetrModel(theirs)
    torch.save(body.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    assert detr_nb.DetrModel.from_pretrained(tmp_path).query_position_embeddings.weight.equal(
        body.query_position_embeddings.weight
    )


def test_a_class_head_after_a_checkpoint_of_stuff_alone():
    old, new = small(num_labels=2, stuff_ids=[0, 1]), small(id2label={0: "coin"})
    with torch.no_grad(): init_class_head(new, old)
    assert new.class_labels_classifier.weight.isfinite().all()


# --- batches and images

def test_a_batch_is_moved_where_it_lies():
    processor, annotation = scenes_processor(), {"bbox": [1, 2, 30, 40], "category_id": 1, "area": 1200, "iscrowd": 0}
    image = Image.new("RGB", (70, 60))
    batch = processor(image, {"image_id": 1, "annotations": [annotation]}, return_tensors="pt")
    assert batch.to(torch.float16) is batch and batch["pixel_values"].dtype == torch.float16
    assert batch.labels[0].boxes.dtype == torch.float32 and batch.labels[0].to("cpu") is batch.labels[0]
    batch.to("meta")
    assert batch.pixel_mask.device.type == batch.labels[0]["boxes"].device.type == "meta"
    assert type(batch.data) is dict and batch.data.keys() == batch.keys()


def test_a_batch_of_the_processor_is_what_the_model_takes(detector):
    image, processor = SceneDetection(1, seed=0)[0][0], scenes_processor()
    with torch.no_grad(): logits = detector(**processor([image])).logits
    assert logits.shape == (1, 25, 14)
    with pytest.raises(TypeError, match="pixel_values is ndarray: want a tensor"):
        detector(processor([image], return_tensors="np")["pixel_values"])


@pytest.mark.parametrize("settings", [{"rescale_factor": 1 / 65535}, {"rescale_factor": 1 / 4095}, {"do_rescale": False}])
@pytest.mark.filterwarnings("ignore:do_rescale=False")
def test_sixteen_bits_with_a_factor_of_their_own(settings, tmp_path):
    most = round(1 / settings.get("rescale_factor", 1 / 65535))
    pixels = np.random.default_rng(0).integers(0, most, (40, 30, 3)).astype(np.uint16)
    theirs = transformers.DetrImageProcessor(do_resize=False, **settings)(pixels, return_tensors="pt").pixel_values
    ours = detr_nb.DetrImageProcessor(do_resize=False, **settings)
    for image in (pixels, torch.from_numpy(pixels).permute(2, 0, 1), pixels.astype(np.int32)):
        torch.testing.assert_close(ours(image, return_tensors="pt").pixel_values, theirs, rtol=1e-5, atol=1e-5)
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    read = ours(tmp_path / "grey.png", return_tensors="pt").pixel_values
    torch.testing.assert_close(read[:, 0], theirs[:, 0], rtol=1e-5, atol=1e-5)


def test_sixteen_bits_are_eight_for_a_factor_of_eight():
    pixels = np.random.default_rng(0).integers(0, 65536, (40, 30, 3)).astype(np.uint16)
    processor = detr_nb.DetrImageProcessor(do_resize=False)
    wanted = processor((pixels // 257).astype(np.uint8), return_tensors="pt").pixel_values
    for image in (pixels, torch.from_numpy(pixels).permute(2, 0, 1)):
        assert processor(image, return_tensors="pt").pixel_values.equal(wanted)


@pytest.mark.parametrize("resample", [2, 3])
def test_ways_of_resizing_are_theirs(resample):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3)).astype(np.uint8))
    size = {"shortest_edge": 64, "longest_edge": 100}
    theirs, ours = (c(size=size, resample=resample) for c in (transformers.DetrImageProcessor, detr_nb.DetrImageProcessor))
    torch.testing.assert_close(*(p(image, return_tensors="pt").pixel_values for p in (ours, theirs)), rtol=0, atol=1e-5)
    assert detr_nb.DetrImageProcessor.from_dict(ours.to_dict()).resample == resample


def test_settings_of_a_processor(tmp_path):
    make = detr_nb.DetrImageProcessor
    assert make(pad_and_return_pixel_mask=False).do_pad is False
    make(use_fast=True, device="cpu", do_convert_rgb=True)
    for size in (100, (100, 100), {"height": np.int64(100), "width": 100}):
        processor = make(pad_size=size, rescale_factor=np.float32(1 / 255), do_resize=np.bool_(False))
        assert processor.pad_size == {"height": 100, "width": 100}
        processor.save_pretrained(tmp_path, push_to_hub=False)
        assert processor(Image.new("RGB", (50, 40)), return_tensors="pt").pixel_values.shape == (1, 3, 100, 100)
    with pytest.raises(TypeError, match="sise: no such setting"): make(sise=3)
    with pytest.raises(ValueError, match=r"resample=1: want 2 or 3 \(bilinear or bicubic\)"): make(resample=1)
    (tmp_path / "preprocessor_config.json").write_text('{"size": {"shortest": 800}}')
    with pytest.raises(ValueError, match="preprocessor_config.json: size="): make.from_pretrained(tmp_path)
    for kind in (detr_nb.DetrConfig, make):
        with pytest.raises(ValueError, match="push_to_hub"): kind().save_pretrained(tmp_path, push_to_hub=True)


def test_threads_do_not_share_a_mask(detector):
    images, processor = [SceneDetection(4, seed=3, split="val")[i][0] for i in range(4)], scenes_processor()
    jobs = [images[0], images[1].resize((64, 128))], [images[2], images[3].resize((128, 64))]
    wanted, faults = [detr_nb.predict(job, detector, processor, threshold=0.0) for job in jobs], []

    def serve(k):
        for _ in range(12):
            found = detr_nb.predict(jobs[k], detector, processor, threshold=0.0, progress=False)
            faults.extend(1 for a, b in zip(found, wanted[k]) if (a["boxes"] - b["boxes"]).abs().max() > 0.01)

    threads = [threading.Thread(target=serve, args=(k,)) for k in (0, 1)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert not faults


def test_answers_are_ordinary_tensors(detector):
    found = detr_nb.predict(SceneDetection(1, seed=0)[0][0], detector, scenes_processor())[0]
    found["boxes"][:, 2:] -= found["boxes"][:, :2]
    (found["boxes"] * torch.ones(4, requires_grad=True)).sum().backward()
    with pytest.raises(ValueError, match="threshold=None: want a number"):
        detr_nb.predict(SceneDetection(1, seed=0)[0][0], detector, scenes_processor(), threshold=None)


def test_boxes_of_half_precision_become_corners_in_full():
    boxes = torch.rand(1, 50, 4).bfloat16()
    output = detr_nb.DetrObjectDetectionOutput(logits=torch.zeros(1, 50, 3).bfloat16(), pred_boxes=boxes)
    wanted = detr_nb.DetrObjectDetectionOutput(logits=torch.zeros(1, 50, 3), pred_boxes=boxes.float())
    processor = detr_nb.DetrImageProcessor()
    (a,), (b,) = (processor.post_process_object_detection(o, -1.0, [(800, 1333)]) for o in (output, wanted))
    assert a["boxes"].equal(b["boxes"]) and a["boxes"].dtype == torch.float32


# --- training

def test_numbers_of_numpy_in_a_recipe(detector, tmp_path):
    recipe = Recipe(lr=np.geomspace(1e-4, 1e-3, 3)[1], steps=np.int64(4), batch_size=2, augment=False, evaluations=1)
    assert type(recipe.lr) is float and type(recipe.steps) is int
    data = SceneDetection(4, seed=0)
    for resume in (False, True):
        train(copy.deepcopy(detector), data, tmp_path / "run", recipe, scenes_processor(), stop_after=2, resume=resume)


def test_random_numbers_outside_of_a_training_go_on(tmp_path):
    def draw(): return random.random(), np.random.rand(), torch.rand(1).item()
    recipe = Recipe(steps=1, batch_size=1, augment=False, evaluations=1)
    model, data = small(num_labels=13), SceneDetection(2, seed=0)
    for seed in (random.seed, np.random.seed, torch.manual_seed): seed(5)
    wanted = [draw(), draw()]
    for seed in (random.seed, np.random.seed, torch.manual_seed): seed(5)
    found = [draw()]
    train(model, data, tmp_path / "run", recipe, scenes_processor())
    assert [*found, draw()] == wanted


def test_a_callback_may_change_modes(tmp_path):
    model, modes = small(num_labels=13), []
    model.model.encoder.register_forward_hook(lambda module, *_: modes.append(module.training))
    recipe = Recipe(steps=4, batch_size=1, augment=False, evaluations=4)
    train(model, SceneDetection(2, seed=0), tmp_path / "run", recipe, scenes_processor(), callback=lambda step, m: m.eval())
    assert modes.count(True) == 4, "every step learns with dropout"


@pytest.mark.parametrize("size, most", [
    ({"max_height": 256, "max_width": 256}, 256), ({"height": 128, "width": 160}, 160),
    ({"shortest_edge": 100, "longest_edge": 200}, 200),
])
def test_images_are_trained_on_at_the_size_of_the_processor(size, most):
    data = [(Image.new("RGB", (400, 300)), {"image_id": 1, "annotations": []})]
    images = TrainingImages(data, detr_nb.DetrImageProcessor(size=size), Recipe(augment=True))
    sides = [max(images[0, draw][0].shape[1:]) for draw in range(20)]
    assert max(sides) <= most and len(set(sides)) > 1
    with pytest.raises(ValueError, match="augment=True changes sizes, do_resize=False keeps them"):
        TrainingImages(data, detr_nb.DetrImageProcessor(do_resize=False), Recipe(augment=True))


def test_what_is_wrong_with_val_is_said_at_once(tmp_path, folder):
    recipe, data = Recipe(steps=2, batch_size=1, augment=False, evaluations=1), SceneDetection(2, seed=0)
    rest = (tmp_path / "run", recipe, scenes_processor())
    with pytest.raises(ValueError, match="val is empty: want at least one image"):
        train(small(num_labels=13), data, *rest, val=SceneDetection(0, seed=0))
    with pytest.raises(TypeError, match="val is Subset: want a CocoDetection"):
        train(small(num_labels=13), data, *rest, val=torch.utils.data.Subset([data[0], data[1]], [0]))
    raw = json.loads((folder / "annotations" / "panoptic_val.json").read_text())
    for annotation in raw["annotations"]:
        for segment in annotation["segments_info"]: del segment["bbox"]
    (tmp_path / "panoptic.json").write_text(json.dumps(raw))
    val = CocoPanoptic(folder / "val", folder / "panoptic_val", tmp_path / "panoptic.json")
    with pytest.raises(ValueError, match="bbox"): train(small(num_labels=13), data, *rest, val=val)
    with pytest.raises(ValueError, match="stop_after=0: want at least 1"): train(small(), data, *rest, stop_after=0)
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_a_run_out_of_patience_stays_as_it_is(tmp_path):
    recipe = Recipe(steps=6, batch_size=1, lr=1e-9, backbone_lr=1e-9, augment=False, evaluations=6, patience=1)
    data, val = SceneDetection(2, seed=0), SceneDetection(1, seed=0, split="val")
    for resume in (False, True):
        train(small(num_labels=13), data, tmp_path / "run", recipe, scenes_processor(), val=val, resume=resume)
        log = (tmp_path / "run" / "log.csv").read_text()
        if not resume: before = log
    assert log == before and len(log.splitlines()) < 6


# --- evaluation

def test_transforms_that_move_boxes_are_not_evaluated(detector, folder):
    def half(image, target):
        boxes = [a | {"bbox": [v / 2 for v in a["bbox"]]} for a in target["annotations"]]
        return image.resize((64, 64)), target | {"annotations": boxes}

    arguments = folder / "val", folder / "annotations" / "instances_val.json"
    with pytest.raises(ValueError, match="image 1: the dataset .its transforms.. gives it another size, or boxes"):
        evaluate(detector, CocoDetection(*arguments, transforms=half), scenes_processor(), progress=False)
    tensors = CocoDetection(*arguments, transforms=lambda image, target: (torch.from_numpy(np.array(image)).permute(2, 0, 1), target))
    plain = evaluate(detector, CocoDetection(*arguments), scenes_processor(), progress=False)
    assert evaluate(detector, tensors, scenes_processor(), progress=False) == plain
    assert review_answers(detector, scenes_processor(), CocoDetection(*arguments, transforms=half))[0]["right"] > 10


@pytest.mark.parametrize("engine", ["pycocotools", "hotcoco"])
def test_masks_have_the_size_of_their_image(engine, folder):
    data = CocoDetection(folder / "val", folder / "annotations" / "instances_val.json")
    found = {"scores": torch.ones(1), "labels": torch.ones(1).long(), "masks": torch.ones(1, 20, 30)}
    with pytest.raises(ValueError, match=r"image 1: masks of the prediction have shape \(1, 20, 30\): want \(K, 128, 128\)"):
        CocoEvaluator(data.coco, "segm", engine).update({1: found})


def test_predictions_of_other_kinds():
    evaluator, data = CocoEvaluator(SceneDetection(1, seed=0).coco), SceneDetection(1, seed=0)
    first = data[0][1]["annotations"]
    x, y, w, h = np.array([a["bbox"] for a in first], dtype=float).T
    found = {"scores": [1.0] * len(x), "labels": [a["category_id"] for a in first], "boxes": np.stack([x, y, x + w, y + h], 1)}
    evaluator.update({1: found})
    with pytest.raises(ValueError, match="call accumulate first"): evaluator.summarize()
    evaluator.accumulate()
    assert evaluator.summarize(verbose=False)["AP"] == pytest.approx(1)
    for boxes, message in (
        (np.zeros((len(x), 3)), r"boxes of the prediction have shape .*: want \(K, 4\)"),
        (np.stack([x, y, w - 500, h], 1), "end before they begin"), ("boxes", "boxes of the prediction are str"),
    ):
        with pytest.raises(ValueError, match=message): evaluator.update({1: found | {"boxes": boxes}})


def test_what_cannot_be_evaluated_says_so(detector):
    data, processor = SceneDetection(2, seed=0), scenes_processor()
    subset = torch.utils.data.Subset([data[0]], [0])
    with pytest.raises(TypeError, match="dataset is Subset"): evaluate(detector, subset, processor)
    with pytest.raises(TypeError, match="dataset is Subset"): review_answers(detector, processor, subset)
    with pytest.raises(ValueError, match="a detector draws no masks"): evaluate(detector, data, processor, iou_types=("segm",))
    with pytest.raises(ValueError, match="draws none: want a DetrForSegmentation"):
        evaluate(detector, data, processor, mask_threshold=0.5)
    with pytest.raises(ValueError, match="batch_size=0: want at least 1"): evaluate(detector, data, processor, batch_size=0)


def test_panoptic_quality_without_the_images_that_are_missing(folder, tmp_path):
    model = detr_nb.DetrForSegmentation.from_pretrained("scenes")
    whole = open_split(folder, "val", panoptic=True)
    raw = json.loads(whole.ann_file.read_text())
    raw["images"], raw["annotations"] = raw["images"][1:], raw["annotations"][1:]
    (tmp_path / "five.json").write_text(json.dumps(raw))
    first = whole.image_path(whole.annotations[0])
    data = CocoPanoptic(folder / "val", folder / "panoptic_val", tmp_path / "five.json")
    wanted = evaluate_panoptic(model, data, scenes_processor(), tmp_path / "a", progress=False)
    kept = first.rename(tmp_path / first.name)
    try:
        with pytest.warns(UserWarning): data = CocoPanoptic(folder / "val", whole.masks_path, whole.ann_file, skip_missing=True)
        assert evaluate_panoptic(model, data, scenes_processor(), tmp_path / "b", progress=False) == wanted
    finally:
        kept.rename(first)


def test_segments_with_large_numbers_and_with_number_0():
    ids = np.full((10, 10), 300, dtype=np.int32)
    ids[:5] = 500
    segments = [{"id": 300, "category_id": 1}, {"id": 500, "category_id": 1}]
    assert compare_segments(ids, segments, ids, segments)[1].tp == 2
    ids = np.where(ids == 300, 0, 5)
    segments = [{"id": 0, "category_id": 1}, {"id": 5, "category_id": 1}]
    quality = compare_segments(ids, segments, ids, segments)[1]
    assert (quality.tp, quality.fp, quality.fn, quality.iou) == (2, 0, 0, 2)


def test_numbers_of_numpy_in_segments(folder, tmp_path):
    data = open_split(folder, "val", panoptic=True)
    evaluator = PanopticEvaluator(data.ann_file, data.masks_path, tmp_path / "out")
    for annotation in data.annotations:
        png = np.asarray(Image.open(data.masks_path / annotation["file_name"])).astype(np.int64)
        ids = png @ np.array([1, 256, 65536])
        segments = [{"id": np.int64(s["id"]), "category_id": np.int64(s["category_id"])} for s in annotation["segments_info"]]
        evaluator.update([{"image_id": annotation["image_id"], "segmentation": torch.from_numpy(ids), "segments_info": segments}])
    assert evaluator.summarize()["All"]["pq"] == pytest.approx(1)


# --- data and the shell

def voc(place, *names):
    "Images of one object each as VOC's XML."
    for i, name in enumerate(names):
        for kind in ("images", "labels"): (place / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng([len(names), i]).integers(0, 256, (60, 80, 3)).astype(np.uint8)).save(place / "images" / f"{i}.png")
        (place / "labels" / f"{i}.xml").write_text(
            f"<annotation><filename>{i}.png</filename><size><width>80</width><height>60</height><depth>3</depth></size>"
            f"<object><name>{name}</name><bndbox><xmin>11</xmin><ymin>11</ymin><xmax>30</xmax><ymax>40</ymax></bndbox></object></annotation>"
        )
    return place / "images", place / "labels"


def shell(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_splits_share_the_numbers_of_their_classes(tmp_path):
    convert_dataset(*voc(tmp_path / "a", "dog", "cat"), tmp_path / "coco", "train", "voc")
    convert_dataset(*voc(tmp_path / "b", "cow", "cat", "dog"), tmp_path / "coco", "val", "voc")
    train_split, val = (open_split(tmp_path / "coco", split) for split in ("train", "val"))
    assert set(train_split.id2label.values()) == {"cat", "dog"} and val.id2label == train_split.id2label | {3: "cow"}
    names = [val.id2label[val[i][1]["annotations"][0]["category_id"]] for i in range(3)]
    assert names == ["cow", "cat", "dog"]
    raw = json.loads((path := tmp_path / "coco" / "annotations" / "instances_val.json").read_text())
    for category in raw["categories"]: category["name"] = {"cat": "dog", "dog": "cat"}.get(category["name"], category["name"])
    path.write_text(json.dumps(raw))
    checked = shell("data", "check", tmp_path / "coco")
    assert checked.exit_code == 1 and "FAULT categories (2): train and val differ: 1 is" in checked.output
    trained = shell("train", "--data", tmp_path / "coco", "--out", tmp_path / "run", "--model", "scenes", "--preset", "scenes")
    assert isinstance(trained.exception, ValueError) and "train and val name categories differently" in str(trained.exception)


def test_label_files_that_cannot_be_read_are_named(tmp_path):
    images, labels = voc(tmp_path / "a", "dog", "cat")
    (labels / "1.xml").write_text("<annotation><name>A & B</name></annotation>")
    with pytest.raises(ValueError, match="nothing is written: .*1.xml: not well-formed"):
        convert_dataset(images, labels, tmp_path / "coco", "train", "voc")
    for file in labels.iterdir(): file.unlink()
    (labels / "0.txt").write_bytes(b"0 0.5 0.5 0.2 0.2 \xff\n")
    names = tmp_path / "data.yaml"
    for text, message in (
        ("names: {0: a, 2: b}", r"names have the numbers \[0, 2\]: want 0 to 1"), ("names: [a, a]", "two classes are called 'a'"),
        ("a\nb\n", "no 'names': want YOLO's data.yaml"), ("names:\t[a", "not read as YAML"),
        ("names: [a]", "0.txt: not read as UTF-8"),
    ):
        names.write_text(text)
        with pytest.raises(ValueError, match=message): convert_dataset(images, labels, tmp_path / "coco", "train", "yolo", names)
    (labels / "0.txt").write_text("\ufeff0 0.5 0.5 0.2 0.2\n", encoding="utf-8")
    (labels / "deep").mkdir()
    (labels / "deep" / "7.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    with pytest.warns(UserWarning, match="1 files belong to no image in .*7.txt"):
        convert_dataset(images, labels, tmp_path / "coco", "train", "yolo", names)


def test_data_that_cannot_be_learned_from_is_a_fault(tmp_path):
    folder = tmp_path / "coco"
    (folder / "annotations").mkdir(parents=True)
    (folder / "train").mkdir()
    Image.new("RGB", (80, 60)).save(folder / "train" / "0.png")
    image = {"id": 1, "file_name": "0.png", "width": 80, "height": 60}
    boxes = [[500, 500, 20, 20], [500, 300, 20, 20], [10, 10, 20, 20]]
    def write(boxes, names=("a",)):
        (folder / "annotations" / "instances_train.json").write_text(json.dumps({
            "images": [image], "categories": [{"id": i, "name": n} for i, n in enumerate(names, start=1)],
            "annotations": [{"id": i, "image_id": 1, "category_id": 1, "bbox": b} for i, b in enumerate(boxes, start=1)],
        }))
    write(boxes)
    assert "FAULT boxes (1): 2 of 3 have no area inside their image" in shell("data", "check", folder).output
    write([])
    assert "FAULT empty (1): no image has an object" in shell("data", "check", folder).output
    write([boxes[2], boxes[2]], ("Cell", "cell ", "cell"))
    checked = shell("data", "check", folder)
    assert checked.exit_code == 0 and "the same box twice (1): image 1, [10, 10, 20, 20]" in checked.output
    assert "names of classes that hardly differ: ['Cell', 'cell ', 'cell']" in checked.output
    single = shell("data", "check", folder / "annotations" / "instances_train.json")
    assert "val" not in single.output and single.exit_code == 0


def test_a_table_is_counted_as_it_was_written(tmp_path):
    (tmp_path / "train").mkdir()
    Image.new("RGB", (80, 60)).save(tmp_path / "train" / "a.png")
    table = tmp_path / "boxes.csv"
    table.write_text("file,label,x0,y0,x1,y1\na.png,cat,1,2,30,40\nb.png,cat,1,2,30,40\n")
    with pytest.warns(UserWarning): said = shell("data", "from-table", table, "--data", tmp_path, "--skip-missing")
    assert "1 images, 1 boxes, cat" in said.output
    assert shell("data", "from-table", table, "--data", tmp_path, "--labels", "cat,").exit_code == 2


def test_images_of_many_pages_and_of_twelve_bits(tmp_path):
    pages = [Image.fromarray(np.full((9, 9), i, dtype=np.uint8)) for i in (7, 8)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    with pytest.warns(UserWarning, match="stack.tif: 2 pages, of which the first is read"): read_image(tmp_path / "stack.tif")
    Image.fromarray(np.full((9, 9), 4095, dtype=np.uint16)).save(tmp_path / "twelve.tif")
    with pytest.warns(UserWarning, match="twelve.tif: sixteen bits .* with no number over 4095"): read_image(tmp_path / "twelve.tif")


def test_detect_says_which_image(tmp_path):
    scene = SceneDetection(1, seed=0)[0][0]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        scene.save(tmp_path / name / "x.png")
    paths = tmp_path / "a" / "x.png", tmp_path / "b" / "x.png"
    assert shell("detect", *paths, "--model", "scenes", "--task", "panoptic", "--out", tmp_path / "out").exit_code == 0
    found = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    assert [image["file_name"] for image in found["images"]] == [str(path) for path in paths]
    assert shell("detect", paths[0], "--model", "scenes", "--threshold", "50").exit_code == 2


def test_a_saved_batch_can_be_drawn(tmp_path):
    recipe = Recipe(steps=9, batch_size=2, lr=1e4, backbone_lr=1e4, augment=False, evaluations=1, clip=1e4)
    with pytest.raises(FloatingPointError, match="The batch was saved"):
        train(small(num_labels=13), SceneDetection(4, seed=0), tmp_path / "run", recipe, scenes_processor())
    batch, = (tmp_path / "run").glob("bad_batch_*.pt")
    assert shell("data", "show-batch", batch, "--out", tmp_path / "batch.png").exit_code == 0
    torch.save({"weights": torch.zeros(1)}, tmp_path / "other.pt")
    other = shell("data", "show-batch", tmp_path / "other.pt", "--out", tmp_path / "other.png")
    assert isinstance(other.exception, ValueError) and "want a batch that a training saved" in str(other.exception)


def test_ctrl_c_saves_a_training(tmp_path, folder):
    command = [
        sys.executable, "-m", "detr_nb.cli", "train", "--data", folder, "--out", tmp_path / "run", "--preset", "scenes",
        "--model", "scenes", "--steps", "1000", "--batch-size", "1", "--workers", "0", "--image-size", "64",
    ]
    process, log = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True), tmp_path / "run" / "log.csv"
    while process.poll() is None and not (log.exists() and len(log.read_text().splitlines()) > 2): time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1]
    assert process.returncode == 130 and "go on with --resume" in said and "Traceback" not in said
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt")["step"] >= 2


def test_a_third_split_keeps_all_numbers(tmp_path):
    for split, names in (("test", ("cat",)), ("train", ("cat", "dog")), ("val", ("bird", "cat"))):
        convert_dataset(*voc(tmp_path / split, *names), tmp_path / "coco", split, "voc")
    numbers = [{c["name"]: c["id"] for c in json.loads(path.read_text())["categories"]} for path in sorted((tmp_path / "coco" / "annotations").iterdir())]
    assert numbers == [{"cat": 1}, {"cat": 1, "dog": 2}, {"cat": 1, "dog": 2, "bird": 3}]


def test_a_head_of_another_size_is_not_saved(tmp_path):
    model = small(num_labels=13)
    model.config.id2label = {1: "a", 2: "b"}
    with pytest.raises(ValueError, match="num_labels=3, but class_labels_classifier.bias has 14 numbers"): model.save_pretrained(tmp_path)
    model.class_labels_classifier = torch.nn.Linear(32, 4)
    model.save_pretrained(tmp_path)
    assert detr_nb.DetrForObjectDetection.from_pretrained(tmp_path).config.id2label[2] == "b"


def test_a_loss_of_ones_own_is_not_replaced():
    class Mine(detr_nb.DetrLoss): pass
    model = small(num_labels=3)
    model.criterion = Mine(detr_nb.HungarianMatcher(), 3)
    model.config.eos_coefficient = 0.5
    model(torch.rand(1, 3, 64, 64), labels=[{"class_labels": torch.tensor([1]), "boxes": torch.full((1, 4), 0.3)}])
    assert type(model.criterion) is Mine


def test_images_of_several_sizes_take_a_dtype():
    images = [Image.new("RGB", (40, 30)), Image.new("RGB", (30, 40))]
    batch = detr_nb.DetrImageProcessor()(images, do_pad=False, do_resize=False).to(torch.float16)
    assert [image.dtype for image in batch.pixel_values] == [torch.float16] * 2


def test_numbers_of_numpy_are_saved(tmp_path):
    detr_nb.DetrImageProcessor(do_convert_annotations=np.bool_(True), resample=np.int64(2)).save_pretrained(tmp_path)
    detr_nb.DetrConfig(**SMALL, id2label={0: "a"}, label2id={"a": np.int64(0)}).save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="preprocessor_config.json: want config.json"):
        detr_nb.DetrConfig.from_pretrained(tmp_path / "preprocessor_config.json")


def test_ctrl_c_in_the_last_step_ends_the_program_too(tmp_path):
    recipe = Recipe(steps=1, batch_size=1, augment=False, evaluations=1)
    with pytest.raises(SystemExit) as ended:
        train(
            small(num_labels=13), SceneDetection(2, seed=0), tmp_path / "run", recipe, scenes_processor(),
            callback=lambda step, model: os.kill(os.getpid(), signal.SIGINT) if step else None,
        )
    assert ended.value.code == 130 and load_checkpoint(tmp_path / "run" / "checkpoint.pt")["step"] == 1


def test_a_public_dataset_that_counts_from_one_is_noted():
    "Of its 3,941 boxes none begins at 0, 493 sides begin at 1, and 442 end at the edge of their image."
    root = os.environ.get("DETR_NB_DATA")
    if not root: pytest.skip("DETR_NB_DATA is not set: the real datasets are not here")
    report = check_split(os.path.join(root, "blood_cells"), "train", progress=False)
    assert any("493 sides of boxes begin at 1, none before, and 442 end at the edge" in note for note in report["notes"]), report["notes"]
    report = check_split(os.path.join(root, "coco_free"), "val", progress=False)
    assert not any("counted from 1" in note for note in report["notes"])


@pytest.mark.parametrize(("strays", "noted"), [(0, True), (1, True), (2, False), (20, False)])
def test_a_few_boxes_do_not_hide_how_the_others_are_counted(strays, noted):
    "Twenty sides begin at 1 and end at the edge. Up to a tenth as many may begin before."
    boxes = [[1, 10, 99 - k, 20] for k in range(20)] + [[5, 10, 95, 20]] * 8 + [[0, 10, 9, 9]] * strays
    coco = coco_index({
        "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 100}], "categories": [{"id": 1, "name": "c"}],
        "annotations": [{"id": i, "image_id": 1, "category_id": 1, "bbox": box} for i, box in enumerate(boxes, start=1)],
    })
    notes = [message for kind, message in object_faults(coco, 100) if "counted from 1" in message]
    assert len(notes) == noted and all(f"20 sides of boxes begin at 1, {strays or 'none'} before" in note for note in notes)


def test_classes_of_other_names_are_noted(tmp_path):
    data, recipe = SceneDetection(4, seed=0), Recipe(steps=1, batch_size=2, lr=2e-4, augment=False)
    for names, others in (
        ({i: f"fruit {i}" for i in range(13)}, "12 of 12 categories have other names in the model"),
        ({i: f"LABEL_{i}" for i in range(13)}, None), ({i: "N/A" for i in range(13)}, None), (dict(data.id2label) | {0: "N/A"}, None),
        (dict(data.id2label) | {0: "N/A", 3: "tree"}, "1 of 12 categories have other names in the model, which keeps its own: "
         "3: 'tree' in the model, 'triangle' in the data"),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            check_run(small(id2label=names), data, recipe)
        said = [str(w.message) for w in caught if "other names" in str(w.message)]
        assert len(said) == (others is not None) and all(message.startswith(others) for message in said)


@pytest.mark.filterwarnings("ignore:begun afresh")
def test_a_new_mask_head_of_the_small_network_begins_louder(folder, tmp_path):
    "`start_training` makes it so, from a detector and from nothing, and leaves the masks of a finished model alone."
    detr_nb.DetrForObjectDetection.from_pretrained("scenes").save_pretrained(tmp_path / "detector")
    scenes_processor().save_pretrained(tmp_path / "detector")
    data, part = SceneDetection(4, seed=0, masks=True), lambda model: model.mask_head.get_parameter("lay1.weight")[:, model.config.d_model :]
    for given in (dict(model=str(tmp_path / "detector"), frozen=True), dict(pretrained=False)):
        torch.manual_seed(0)
        network, _ = start_training(data, preset="scenes", masks=True, **given)
        with torch.no_grad(): plain = network.mask_head.get_parameter("lay1.weight")[:, : network.config.d_model].std()
        assert 150 < part(network).detach().std() / plain < 400
    finished = detr_nb.DetrForSegmentation.from_pretrained("scenes")
    network, _ = start_training(data, model="scenes", preset="scenes", masks=True, frozen=True)
    assert torch.equal(part(network), part(finished))


def test_a_class_head_that_is_filled_is_not_called_new(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = CocoDetection(folder / "val", folder / "annotations" / "instances_val.json")
        data.coco.dataset["categories"] = [{"id": 1, "name": "round"}]
        network, _ = start_training(data, model="scenes", preset="scenes")
    assert network.config.id2label == {0: "N/A", 1: "round"}


def test_what_a_matcher_is_given():
    "Costs of half precision, and a batch without images."
    cost = torch.tensor([[[0.5, 2.0], [1.0, 0.25], [3.0, 3.0]]])
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        (queries, targets), = assign(cost.to(dtype), [2])
        assert queries.tolist() == [0, 1] and targets.tolist() == [0, 1]
    nothing = {"logits": torch.zeros(0, 4, 3), "pred_boxes": torch.zeros(0, 4, 4)}
    with pytest.raises(ValueError, match="a batch of 0 images: want at least one"): HungarianMatcher()(nothing, [])


def test_runs_of_the_napkin_are_named():
    with pytest.raises(ValueError, match="names=\\['no L2'\\]: want some of 'DETR', "): compare_runs(["no L2"])


def test_boxes_of_a_canvas_want_the_mask(detector):
    "With shares of the padded canvas, what is padding must be known, or the boxes shrink."
    processor = detr_nb.DetrImageProcessor(size={"height": 64, "width": 64}, box_frame="canvas")
    logits, boxes = torch.full((2, 1, 3), -9.0), torch.tensor([[[0.25, 0.5, 0.25, 0.5]]] * 2)
    logits[..., 1] = 9
    outputs = SimpleNamespace(logits=logits, pred_boxes=boxes)
    mask = torch.ones(2, 64, 64)
    mask[1, :, 32:] = 0
    with pytest.warns(UserWarning, match="without pixel_mask: boxes of images that were padded are too small"):
        shrunk = processor.post_process_object_detection(outputs, 0.5, [(100, 100)] * 2)[1]["boxes"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        right = processor.post_process_object_detection(outputs, 0.5, [(100, 100)] * 2, mask)[1]["boxes"]
        alone = SimpleNamespace(logits=logits[:1], pred_boxes=boxes[:1])
        processor.post_process_object_detection(alone, 0.5, [(100, 100)])
        detr_nb.DetrImageProcessor().post_process_object_detection(outputs, 0.5, [(100, 100)] * 2)
    assert shrunk.round().tolist() == [[12, 25, 38, 75]] and right.round().tolist() == [[25, 25, 75, 75]]

