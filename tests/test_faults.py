"""What other people's files and habits do: each fault that was reported once has a test here, with the right value or
with the entry, field and value that its message must name."""
import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from pycocotools.coco import COCO

from detr_nb import (
    CocoDetection, CocoEvaluator, DetrConfig, DetrForObjectDetection, DetrImageProcessor, PanopticEvaluator,
    SceneDetection, make_scenes, train,
)
from detr_nb.checkpoints import load_checkpoint, read_weights, save_checkpoint, strip_wrappers
from detr_nb.datasets import check_split, find_split, open_split, read_table, write_coco
from detr_nb.data import annotation_mask, detection_target, read_counts
from detr_nb.files import atomic, read_image, write_json
from detr_nb.matcher import check_targets
from detr_nb.own_data import start_training
from detr_nb.runs import describe_run
from detr_nb.training import RECIPES, Recipe, TrainState, average_weights

TINY = dict(
    use_pretrained_backbone=False, backbone="resnet18", d_model=32, encoder_layers=1, decoder_layers=1,
    encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=32, decoder_ffn_dim=32, num_queries=5,
)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    make_scenes(folder, train=6, val=4, seed=1)
    return folder


@pytest.fixture
def coco_file(scenes, tmp_path):
    "A function that changes the val split's file and returns what opens it."
    def changed(change=lambda data: None, **options):
        data = json.loads((scenes / "annotations" / "instances_val.json").read_text())
        change(data)
        (tmp_path / "truth.json").write_text(json.dumps(data))
        return CocoDetection(scenes / "val", tmp_path / "truth.json", **options)
    return changed


def run(*arguments, cwd=None, **environment):
    command = [str(Path(sys.executable).parent / "detr-nb"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=os.environ | environment)


# 1. Wrong numbers or lost data, without a word

@pytest.mark.parametrize("first", [0, 1, 7])
def test_row_1_perfect_predictions_are_perfect_whatever_the_ids(first):
    truth = COCO()
    truth.dataset = {
        "images": [{"id": i, "width": 100, "height": 100} for i in (1, 2)],
        "annotations": [
            {"id": first + k, "image_id": 1 + k % 2, "category_id": 1, "bbox": [10 * k, 5, 8, 9], "area": 72, "iscrowd": 0}
            for k in range(4)
        ],
        "categories": [{"id": 1, "name": "a"}],
    }
    truth.createIndex()
    evaluator = CocoEvaluator(truth)
    for image in (1, 2):
        boxes = torch.tensor([[10 * k, 5, 10 * k + 8, 14] for k in range(4) if 1 + k % 2 == image], dtype=torch.float32)
        evaluator.update({image: {"scores": torch.full((2,), 0.9), "labels": torch.ones(2, dtype=torch.int64), "boxes": boxes}})
    evaluator.accumulate()
    assert evaluator.summarize(verbose=False)["AP"] == 1.0
    assert [a["id"] for a in truth.dataset["annotations"]] == [first + k for k in range(4)]  # the user's own is as it was


def test_row_2_a_short_training_forgets_its_start():
    "After 400 steps a constant decay of 0.998 keeps 45 % of the start, a warmed-up one under 1 %."
    for warmup, most, least in ((False, 0.46, 0.44), (True, 0.01, 0.0)):
        average, weights = [torch.ones(1)], [torch.zeros(1)]  # what is left of the start is the average itself
        for count in range(1, 400): average_weights(Recipe(ema=0.998, ema_warmup=warmup), average, weights, count)
        assert least <= average[0].item() <= most
    assert not RECIPES["scenes"].ema_warmup and not RECIPES["scenes masks"].ema_warmup and Recipe().ema_warmup


def test_row_4_other_names_are_refused(scenes, tmp_path):
    data = json.loads((scenes / "annotations" / "instances_val.json").read_text())
    data["categories"] = [c | {"name": f"cell {c['id']}"} for c in data["categories"]]
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val").symlink_to(scenes / "val")
    (tmp_path / "annotations" / "instances_val.json").write_text(json.dumps(data))
    named = run("eval", "--data", tmp_path, "--model", "scenes")
    assert named.returncode == 2 and "12 of 12 categories have other names: 1: 'ball' in the model, 'cell 1' in the data" in named.stderr
    silent = run("eval", "--data", tmp_path)
    assert silent.returncode == 2 and "--model" in silent.stderr
    assert run("eval", "--data", tmp_path, "--model", "scenes", "--allow-other-names").returncode == 0


@pytest.mark.parametrize("boxes, words", [
    ([[64.0, 50, 20, 10]], "labels\\[0\\].*boxes\\[0\\] = \\[64.*look like pixels"),
    ([[0.6, 0.6, 0.9, 0.95], [0.5, 0.5, 0.8, 0.9]], "boxes\\[0\\].*look like corners"),
])
def test_row_6_pixels_and_corners_are_refused_by_image_and_box(boxes, words):
    target = {"class_labels": torch.ones(len(boxes), dtype=torch.int64), "boxes": torch.tensor(boxes), "image_id": torch.tensor([7])}
    with pytest.raises(ValueError, match=words) as caught: check_targets([target], 3, 10)
    assert "image_id [7]" in str(caught.value)


def test_row_6_good_boxes_pass():
    boxes = torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.1, 0.2, 0.2, 0.4], [1.0, 1.0, 0.0, 0.0], [0.9, 0.95, 0.2, 0.1]])
    check_targets([{"class_labels": torch.ones(4, dtype=torch.int64), "boxes": boxes}], 3, 10)


def test_row_6_masks_of_255_are_refused():
    from detr_nb.mask_losses import stack_masks
    with pytest.raises(ValueError, match="image 1 hold 0 … 255: want 0 and 1"):
        stack_masks([torch.ones(1, 4, 4, dtype=torch.bool), torch.tensor([[[0, 255], [0, 0]]], dtype=torch.uint8)])


@pytest.mark.parametrize("change, looks", [
    (lambda x, y, w, h: [x, y, x + w, y + h], "corners x0, y0, x1, y1"),
    (lambda x, y, w, h: [x + w / 2, y + h / 2, w, h], "centre x, y, width, height"),
    (lambda x, y, w, h: [x / 128, y / 128, w / 128, h / 128], "shares of the image, 0…1"),
])
def test_row_7_another_format_is_one_warning(coco_file, change, looks):
    def spoil(data):
        for annotation in data["annotations"]: annotation["bbox"] = change(*annotation["bbox"])
    with pytest.warns(UserWarning) as caught: coco_file(spoil)
    assert [looks in str(w.message) for w in caught].count(True) == 1


@pytest.mark.parametrize("name", ["blood_cells", "coco_free", "coco_sample"])
def test_row_7_real_data_gives_no_such_warning(name):
    root = os.environ.get("DETR_NB_DATA")
    if not root: pytest.skip("DETR_NB_DATA is not set: the real datasets are not here")
    for split in ("train", "val"):
        try: find_split(Path(root) / name, split, "instances")
        except FileNotFoundError: continue
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert len(open_split(Path(root) / name, split)) > 0
        assert not [w for w in caught if "look like" in str(w.message)]


@pytest.mark.parametrize("field, value", [
    ("iscrowd", "0"), ("iscrowd", 2), ("iscrowd", None), ("bbox", [1, 2, 3]), ("bbox", [1, 2, float("nan"), 4]),
    ("bbox", [1, 2, -3, 4]), ("bbox", "1 2 3 4"), ("bbox", [1, 2, 1e9, 4]), ("category_id", "1"), ("category_id", 10**7),
    ("category_id", True), ("area", -1), ("area", "9"), ("id", 2**53), ("id", 1.5),
])
def test_row_8_16_17_18_every_field_is_refused_by_annotation(coco_file, field, value):
    def spoil(data): data["annotations"][2][field] = value
    with pytest.raises(ValueError) as caught: coco_file(spoil)
    said = str(caught.value)
    name = "annotations[2]" if field == "id" else "annotation 3 (image 1)"
    assert f"{name} has {field}=" in said and "want" in said and "truth.json" in said


def test_row_8_things_are_0_or_1(scenes, tmp_path):
    data = json.loads((scenes / "annotations" / "panoptic_val.json").read_text())
    data["categories"][0]["isthing"] = "0"
    (tmp_path / "panoptic.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="category 1 has isthing='0': want 0 or 1"):
        PanopticEvaluator(tmp_path / "panoptic.json", scenes / "panoptic_val", tmp_path / "out")


@pytest.mark.parametrize("shape, words", [
    ({"size": [4, 5], "counts": [3, 4]}, "whose sum is 20"), ({"size": [4, 5], "counts": "04"}, "whose sum is 20"),
    ({"size": [5, 4], "counts": [20]}, "size \\[4, 5\\]"), ({"size": [4, 5], "counts": "P"}, "an end in the middle"),
    ({"size": [4, 5], "counts": [-1, 21]}, "counts"), ([[float("nan"), 1, 2, 3, 4, 5]], "finite numbers"),
    ([[0, 0, 3, 0, float("inf"), 3]], "finite numbers"), ([[0, 0, None, 0, 3, 3]], "finite numbers"), ([1, 2, 3, 4, 5, 6], "brackets"),
    ("abc", "polygons or run lengths"),
])
def test_row_9_and_16_masks_that_cannot_be(shape, words):
    with pytest.raises(ValueError, match=f"image 3: annotation 8 has segmentation=.*{words}"):
        annotation_mask({"id": 8, "segmentation": shape}, 4, 5, 3)


def test_row_9_run_lengths_agree_with_pycocotools():
    from pycocotools import mask as coco_mask
    rng = np.random.default_rng(0)
    for _ in range(50):
        height, width = rng.integers(1, 70, 2)
        mask = np.asfortranarray(rng.random((height, width)) < rng.random(), dtype=np.uint8)
        rle = coco_mask.encode(mask)
        flat, runs = mask.ravel(order="F"), []
        edges = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist() + [flat.size]
        for start, end in zip([0, *edges], edges): runs.append(end - start)
        assert read_counts(rle["counts"]) == runs
        drawn = annotation_mask({"id": 1, "segmentation": {"size": [int(height), int(width)], "counts": rle["counts"]}}, int(height), int(width), 1)
        assert np.array_equal(drawn.numpy(), mask.astype(bool))


def test_row_9_evaluation_reads_with_the_same_checks(scenes):
    truth = SceneDetection(2, seed=0, split="val", masks=True).coco
    truth.dataset["annotations"][0]["segmentation"] = {"size": [128, 128], "counts": [5]}
    truth.createIndex()
    with pytest.raises(ValueError, match=r"annotation 1 \(image 1\) has segmentation=.*whose sum is 16384"): CocoEvaluator(truth, "segm")


@pytest.mark.parametrize("field, value", [
    ("lr", float("nan")), ("lr", -1.0), ("lr", float("inf")), ("epochs", 0), ("batch_size", 0), ("batch_size", 2.5),
    ("steps", 0), ("ema", 1.0), ("schedule", "linear"), ("evaluations", 0), ("clip", 0), ("drop", 2), ("augment", "yes"),
])
def test_row_10_recipes_that_cannot_be(field, value):
    with pytest.raises(ValueError, match=f"{field}=.*: want"): Recipe(**{field: value})


def test_row_10_weights_that_are_not_finite_are_not_saved(tmp_path):
    model = DetrForObjectDetection(DetrConfig(**TINY))
    with torch.no_grad(): model.bbox_predictor.layers[0].bias[3] = float("nan")
    with pytest.raises(ValueError, match=r"1 tensors are not finite and are not saved, the first is bbox_predictor"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_row_11_nothing_of_others_is_overwritten(scenes, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.open(scenes / "val" / "000001.png").save(photos / "a.jpg")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").write_bytes(b"mine")
    refused = run("detect", photos / "a.jpg", "--model", "scenes", "--out", tmp_path / "out")
    assert refused.returncode == 2 and "a.png exists, and detr-nb did not write it" in refused.stderr
    assert (tmp_path / "out" / "a.png").read_bytes() == b"mine"
    for _ in range(2): assert run("detect", photos / "a.jpg", "--model", "scenes", "--out", tmp_path / "new").returncode == 0
    truth = scenes / "annotations" / "instances_val.json"
    before = truth.read_bytes()
    assert run("eval", "--data", scenes, "--json", truth).returncode == 2 and truth.read_bytes() == before
    with pytest.raises(ValueError, match="holds the PNGs of the truth"):
        PanopticEvaluator(scenes / "annotations" / "panoptic_val.json", scenes / "panoptic_val", scenes / "panoptic_val")


def test_row_13_a_resume_notices_other_boxes(scenes, tmp_path):
    model, processor = DetrForObjectDetection(DetrConfig(**TINY)), DetrImageProcessor()
    data = json.loads((scenes / "annotations" / "instances_val.json").read_text())
    data["annotations"][0]["bbox"][2] -= 1
    (tmp_path / "truth.json").write_text(json.dumps(data))
    one, other = (
        describe_run(model, CocoDetection(scenes / "val", path), processor)
        for path in (scenes / "annotations" / "instances_val.json", tmp_path / "truth.json")
    )
    assert {name for name in one if one[name] != other[name]} == {"annotations"}


def test_row_11_a_folder_of_others_gets_no_segments(scenes, tmp_path):
    (tmp_path / "000001.png").write_bytes(b"mine")
    refused = run("eval", "--data", scenes, "--task", "panoptic", "--out", tmp_path)
    assert refused.returncode == 2 and "holds files that no such command wrote" in refused.stderr
    assert (tmp_path / "000001.png").read_bytes() == b"mine"
    (tmp_path / ".detr_nb_files").write_text("predictions.json\n")  # a command has written there before
    refused = run("eval", "--data", scenes, "--task", "panoptic", "--out", tmp_path)
    assert refused.returncode == 2 and "000001.png exists, and detr-nb did not write it (such files: 1)" in refused.stderr
    assert (tmp_path / "000001.png").read_bytes() == b"mine"


@pytest.mark.parametrize("there", ["model", "log.csv", "checkpoint.pt"])
def test_row_11_a_training_takes_no_folder_of_another(tmp_path, there):
    (tmp_path / there).write_text("mine")
    with pytest.raises(FileExistsError, match=there):
        train(DetrForObjectDetection(DetrConfig(**TINY)), SceneDetection(2, seed=0), tmp_path, Recipe(steps=1, batch_size=1))
    assert (tmp_path / there).read_text() == "mine"


def test_row_11_an_interrupted_start_begins_again(tmp_path):
    from detr_nb.runs import find_checkpoint
    (tmp_path / "log.csv").write_text("step,pictures,lr\n1,2,0.1\n")
    (tmp_path / ".lock").touch()
    assert find_checkpoint(tmp_path, resume=False) == tmp_path / "checkpoint.pt"
    with pytest.raises(FileNotFoundError, match="ended before its first; start it again without resume"): find_checkpoint(tmp_path, resume=True)


def test_row_11_a_link_of_the_temporary_name_leads_nowhere(tmp_path):
    (tmp_path / "victim").write_text("mine")
    with atomic(tmp_path / "a.json") as part:
        part.write_text("{}")
        name = part.name
    (tmp_path / name).symlink_to(tmp_path / "victim")
    write_json({"a": 1}, tmp_path / "a.json")
    assert (tmp_path / "victim").read_text() == "mine" and json.loads((tmp_path / "a.json").read_text()) == {"a": 1}


def test_row_12_a_folder_belongs_to_one_training(tmp_path):
    model = DetrForObjectDetection(DetrConfig(**TINY, id2label={0: "N/A"} | SceneDetection.id2label))
    with FileLock(tmp_path / ".lock"):
        with pytest.raises(ValueError, match="another training is writing there"):
            train(model, SceneDetection(2, seed=0), tmp_path, Recipe(steps=1, batch_size=1, augment=False))
    assert not (tmp_path / "checkpoint.pt").exists()


def test_row_13_a_resume_names_what_differs(tmp_path):
    def state(recipe=None, queries=5, images=4, seed=0, size=800):
        recipe = recipe or Recipe(steps=10, batch_size=2)
        model = DetrForObjectDetection(DetrConfig(**TINY | {"num_queries": queries}, id2label={0: "N/A"} | SceneDetection.id2label))
        result = TrainState(model, recipe, 10)
        result.run = describe_run(model, SceneDetection(images, seed=seed), DetrImageProcessor(size=size))
        return result
    state().save(tmp_path / "checkpoint.pt")
    state().load(tmp_path / "checkpoint.pt")
    for other, words in (
        (state(Recipe(steps=20, batch_size=2)), "steps was 10, now 20.*train longer.*--model"),
        (state(images=3), "images was 4, now 3"), (state(queries=6), "config.num_queries was 5, now 6"),
        (state(seed=1), "seed of the scenes was 0, now 1"), (state(size=640), "processor.size was .*800.*now .*640"),
    ):
        with pytest.raises(ValueError, match=words): other.load(tmp_path / "checkpoint.pt")


@pytest.mark.parametrize("nested, words", [
    ({"hidden_act": "gelu"}, "hidden_act='gelu': want 'relu'"), ({"hidden_sizes": [64, 128, 256, 512]}, "hidden_sizes"),
    ({"embedding_size": 32}, "embedding_size=32"), ({"depths": 3}, "backbone_config"),
])
def test_row_14_a_native_backbone_of_another_kind(nested, words):
    with pytest.raises(ValueError, match=words): DetrConfig(backbone_config={"model_type": "resnet"} | nested)


def outputs(**changes):
    from detr_nb.detector import DetrForObjectDetection as Model
    torch.manual_seed(0)
    found = Model(DetrConfig(**TINY)).eval()(torch.zeros(2, 3, 64, 64))
    for name, value in changes.items():
        part = getattr(found, name).detach().clone()
        part[1, 0, 0] = value
        setattr(found, name, part)
    return found


@pytest.mark.parametrize("changes, arguments, words", [
    ({"logits": float("nan")}, {}, "outputs.logits of image 1"), ({"pred_boxes": float("inf")}, {}, "outputs.pred_boxes of image 1"),
    ({}, {"threshold": float("nan")}, "threshold=nan"), ({}, {"threshold": "0.5"}, "threshold='0.5'"),
    ({}, {"target_sizes": [(10, -3), (4, 4)]}, "target_sizes"), ({}, {"target_sizes": [(10, float("nan")), (4, 4)]}, "target_sizes"),
])
def test_row_15_no_numbers_no_result(changes, arguments, words):
    with pytest.raises(ValueError, match=words): DetrImageProcessor().post_process_object_detection(outputs(**changes), **arguments)


# 2. Crashes, hangs, memory

def test_row_19_a_broken_image_is_named_and_the_others_go_on(scenes, tmp_path):
    good = (scenes / "val" / "000001.png").read_bytes()
    for name, data in (("a.png", good), ("b.png", good[:200]), ("c.png", b"no image"), ("d.png", good)): (tmp_path / name).write_bytes(data)
    image = Image.open(scenes / "val" / "000001.png").convert("RGB")
    image.save(tmp_path / "e.jpg", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff" + b"\x99" * 9)
    found = run("detect", tmp_path, "--model", "scenes", "--json")
    assert found.returncode == 1 and "b.png: not an image" in found.stderr and "c.png: not an image" in found.stderr
    files = {Path(json.loads(line)["file"]).name for line in found.stdout.splitlines()}
    assert {"a.png", "d.png"} <= files


def test_row_19_a_decompression_bomb_has_a_name(tmp_path, monkeypatch):
    Image.new("L", (300, 300)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(OSError, match="bomb.png"): read_image(tmp_path / "bomb.png")


def test_row_20_a_full_disk_leaves_the_earlier_file_whole(tmp_path):
    "A limit on the size of files stands for the disk: writing ends in the same way."
    code = """
import resource, signal, sys, torch
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from detr_nb.checkpoints import save_checkpoint
from detr_nb.files import write_json
save_checkpoint({"step": 1}, sys.argv[1] + "/checkpoint.pt"); write_json({"a": 1}, sys.argv[1] + "/a.json")
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
for write in (lambda: save_checkpoint({"x": torch.zeros(100_000)}, sys.argv[1] + "/checkpoint.pt"), lambda: write_json({"a": "b" * 90_000}, sys.argv[1] + "/a.json")):
    try: write()
    except OSError as error: print("OSError", str(error).count(chr(10)), sys.argv[1] in str(error))
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["OSError 0 True"] * 2, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "checkpoint.pt"]
    assert load_checkpoint(tmp_path / "checkpoint.pt") == {"step": 1} and json.loads((tmp_path / "a.json").read_text()) == {"a": 1}


@pytest.mark.parametrize("spoil", [
    lambda data: data[: len(data) // 2], lambda data: b"PK" + data[2:50], lambda data: b"", lambda data: b"text",
    lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 255]) + data[len(data) // 2 + 1 :],
])
def test_row_21_a_damaged_checkpoint_is_named(tmp_path, spoil):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint({"step": 3, "x": torch.arange(5000.0)}, path)
    assert load_checkpoint(path)["step"] == 3
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match="checkpoint.pt: not a whole checkpoint") as caught: load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_row_21_a_checkpoint_of_something_else(tmp_path):
    save_checkpoint({"weights": torch.zeros(3)}, tmp_path / "checkpoint.pt")
    state = TrainState(DetrForObjectDetection(DetrConfig(**TINY)), Recipe(steps=2), 2)
    with pytest.raises(ValueError, match="has no 'model'"): state.load(tmp_path / "checkpoint.pt")


# 3. Security

@pytest.mark.parametrize("key", ["checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"])
def test_row_24_a_config_opens_no_file(key):
    with pytest.raises(ValueError, match=f"backbone_kwargs=.*{key}"): DetrConfig(backbone_kwargs={key: "/tmp/evil"})


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/../../b.png", "C:\\secret.png", "..\\b.png", "", "a\0b"])
def test_row_25_names_that_lead_out_of_the_folder(coco_file, name):
    def spoil(data): data["images"][1]["file_name"] = name
    with pytest.raises(ValueError, match="image 2 has file_name="): coco_file(spoil)


def test_row_25_unless_they_are_allowed(coco_file, scenes):
    def lead(data): data["images"][1]["file_name"] = "../val/000002.png"
    assert len(coco_file(lead, allow_outside=True)) == 4


@pytest.mark.parametrize("shard", ["../other.safetensors", "/tmp/other.safetensors"])
def test_row_25_shards_stay_in_their_folder(tmp_path, shard):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(ValueError, match="weight_map names"): read_weights(tmp_path / "model.safetensors.index.json")


# 4. Refused or missing although users have it

@pytest.mark.parametrize("box", [
    np.array([1, 2, 3, 4]), np.float32([1, 2, 3, 4]), (1, 2, 3, 4), [np.int64(1), np.float64(2), 3, 4], torch.tensor([1.0, 2, 3, 4]),
])
def test_row_26_numbers_of_numpy_are_numbers(box):
    target = detection_target({"image_id": np.int64(3), "annotations": [{"bbox": box, "category_id": np.int32(1)}]}, 10, 10)
    assert target["boxes"].tolist() == [[1, 2, 4, 6]] and target["class_labels"].tolist() == [1]


def test_row_29_batches_move_as_torch_moves():
    def make(): return DetrImageProcessor(size=32)(np.zeros((40, 50, 3), np.uint8), return_tensors="pt")
    half = torch.float16
    for moved in (make().to("cpu", half), make().to(dtype=half), make().to(half), make().to("cpu", half, non_blocking=True)):
        assert moved.pixel_values.dtype == half and moved.pixel_mask.dtype == torch.int64
    assert make().to(device="cpu").pixel_values.dtype == torch.float32


def test_row_29_old_arguments_of_the_processor():
    image = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    plain = DetrImageProcessor(size=32, image_mean=0.5, image_std=(0.25,) * 3)
    assert plain.image_mean == (0.5, 0.5, 0.5)
    batch = plain(image, return_tensors="pt", use_fast=True, device="cpu", pad_and_return_pixel_mask=True)
    assert torch.equal(batch.pixel_values, plain(image, return_tensors="pt").pixel_values)
    with pytest.raises(TypeError, match="no_such"): plain(image, no_such=1)


@pytest.mark.parametrize("layout", ["roboflow", "own name", "bom"])
def test_row_30_other_layouts_open(scenes, tmp_path, layout):
    truth = (scenes / "annotations" / "instances_val.json").read_bytes()
    if layout == "roboflow":
        (tmp_path / "valid").mkdir()
        for path in (scenes / "val").iterdir(): (tmp_path / "valid" / path.name).write_bytes(path.read_bytes())
        (tmp_path / "valid" / "_annotations.coco.json").write_bytes(truth)
        assert len(open_split(tmp_path, "val")) == 4
    else:
        (tmp_path / "annotations").mkdir()
        (tmp_path / "images").symlink_to(scenes / "val")
        (tmp_path / "annotations" / "instances_custom.json").write_bytes((b"\xef\xbb\xbf" if layout == "bom" else b"") + truth)
        assert len(open_split(tmp_path / "annotations" / "instances_custom.json", "val")) == 4
        with pytest.raises(FileNotFoundError, match="Looked for .*instances_val.json.*there is annotations/instances_custom.json"):
            open_split(tmp_path, "val")


def test_row_32_missing_images_are_counted(coco_file):
    def lose(data):
        for image in data["images"][:3]: image["file_name"] = f"gone_{image['id']}.png"
    with pytest.raises(FileNotFoundError, match="3 of 4 images have no such file: image 1: .*gone_1.*; image 2.*skip_missing"): coco_file(lose)
    with pytest.warns(UserWarning, match="3 of 4 images have no such file"): rest = coco_file(lose, skip_missing=True)
    assert len(rest) == 1 and {a["image_id"] for a in rest.coco.anns.values()} == {4}


def test_row_32_a_table_is_reported_whole(tmp_path):
    (tmp_path / "train").mkdir()
    Image.new("RGB", (20, 10)).save(tmp_path / "train" / "a.png")
    table = {"a.png": [("x", 0, 0, 5, 5), ("y", 0, 0, 5, 5), ("x", 0, 0, 50, 5)], "b.png": []}
    with pytest.raises(FileNotFoundError, match="1 of 2 images are not there.*b.png"): write_coco(tmp_path, "train", table, ["x"])
    with pytest.warns(UserWarning, match="left out"), pytest.raises(ValueError, match="2 faults") as caught:
        write_coco(tmp_path, "train", table, ["x"], skip_missing=True)
    assert "label 'y'" in str(caught.value) and "(0, 0, 50, 5)" in str(caught.value)
    assert not (tmp_path / "annotations").exists()


def test_row_33_more_objects_than_queries_is_one_warning(scenes, tmp_path):
    model = DetrForObjectDetection(DetrConfig(**TINY, id2label={0: "N/A"} | SceneDetection.id2label))
    with pytest.warns(UserWarning) as caught:
        train(
            model, open_split(scenes, "train"), tmp_path / "run", Recipe(steps=2, batch_size=2, augment=False, evaluations=1),
            DetrImageProcessor(size=64),
        )
    said = [str(w.message) for w in caught if "queries" in str(w.message)]
    assert len(said) == 1 and "6 of 6 images" in said[0] and "image 1 has" in said[0] and "--queries" in said[0]


def test_row_33_ap_is_shown_and_patience_ends(scenes, tmp_path, capsys, monkeypatch):
    import detr_nb.training as training
    values = iter([0.3, 0.2, 0.1, 0.4, 0.5, 0.6])
    monkeypatch.setattr(training, "metrics", lambda *a: {"AP": next(values)})
    model = DetrForObjectDetection(DetrConfig(**TINY | {"num_queries": 20}, id2label={0: "N/A"} | SceneDetection.id2label))
    train(
        model, open_split(scenes, "train"), tmp_path / "run", Recipe(steps=6, batch_size=2, augment=False, evaluations=6, patience=2),
        DetrImageProcessor(size=64), open_split(scenes, "val"),
    )
    said = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if line.startswith("step ")]
    assert [line.split(" · ")[-1] for line in said] == ["AP 0.300", "AP 0.200", "AP 0.100"]
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt")["step"] == 3


def test_row_33_size_and_queries_are_stored(scenes, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, processor = start_training(open_split(scenes, "train"), "scenes", "scenes", queries=40, image_size=96)
    old = DetrForObjectDetection.from_pretrained("scenes").model.query_position_embeddings.weight
    new = model.model.query_position_embeddings.weight
    assert new.shape == (40, 128) and torch.equal(new[:25], old) and 0 < (new[25:] - old[:15]).abs().max() < 0.6 * old.std()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert DetrImageProcessor.from_pretrained(tmp_path).size == {"shortest_edge": 96, "longest_edge": 192}
    assert DetrForObjectDetection.from_pretrained(tmp_path).config.num_queries == 40


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "net."])
def test_row_34_wrapped_names_open(tmp_path, prefix):
    model = DetrForObjectDetection(DetrConfig(**TINY)).eval()
    state = {prefix + name: value for name, value in model.state_dict().items()}
    torch.save({"state_dict": state, "epoch": torch.tensor(3)} if prefix == "net." else state, tmp_path / "weights.pth")
    again = DetrForObjectDetection.from_pretrained(tmp_path / "weights.pth", config=model.config)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values()))
    assert strip_wrappers(model.state_dict()).keys() == model.state_dict().keys()


@pytest.mark.parametrize("array, words", [
    (np.zeros((1, 9, 3), np.uint8), "say which"), (np.zeros((3, 9, 3), np.uint8), "say which"), (np.zeros((9, 9, 3), bool), "array of bool"),
    (np.full((9, 9, 3), 4000, np.int32), "whole numbers from 4000 to 4000"), (np.full((9, 9, 3), np.nan), "NaN"),
])
def test_row_35_arrays_that_may_be_anything(array, words):
    with pytest.raises((ValueError, TypeError), match=words): DetrImageProcessor()(array)


def test_row_35_sixteen_bits_are_scaled():
    processor = DetrImageProcessor(do_resize=False)
    eight = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    assert torch.equal(
        processor(eight.astype(np.uint16) * 257, return_tensors="pt").pixel_values, processor(eight, return_tensors="pt").pixel_values
    )


def test_row_35_a_model_of_one_channel_says_so():
    model = DetrForObjectDetection(DetrConfig(**TINY, num_channels=1))
    with pytest.raises(ValueError, match=r"want \(B, 1, H, W\)"): model(torch.zeros(1, 3, 64, 64))


# 5. Errors that name nothing

@pytest.mark.parametrize("call, words", [
    (lambda: DetrImageProcessor()(np.zeros((9, 9, 3), np.uint8), {"image_id": "a", "annotations": []}), "annotations\\[0\\] has image_id='a'"),
    (lambda: DetrConfig(id2label=True), "id2label=True"), (lambda: DetrConfig(backbone_kwargs="x"), "backbone_kwargs='x'"),
    (lambda: CocoEvaluator(SceneDetection(1, seed=0).coco).accumulate(), "no image was evaluated"),
])
def test_section_5_names(call, words):
    with pytest.raises((ValueError, TypeError), match=words): call()


def test_section_5_a_file_without_categories(coco_file):
    def spoil(data): data.update(categories=[], annotations=[])
    with pytest.raises(ValueError, match="categories is empty"): coco_file(spoil)


@pytest.mark.parametrize("segments", [5, "x", None, {"id": 1}, [5], [{"id": "1", "category_id": 1}], [{"id": 1}]])
def test_section_5_segments_of_a_wrong_type(scenes, tmp_path, segments):
    data = json.loads((scenes / "annotations" / "panoptic_val.json").read_text())
    data["annotations"][1]["segments_info"] = segments
    (tmp_path / "panoptic.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="panoptic.json.*(segments_info|segments\\[0\\]|segment 1)"):
        PanopticEvaluator(tmp_path / "panoptic.json", scenes / "panoptic_val", tmp_path / "out")


def test_section_5_tables_of_other_encodings(tmp_path):
    text = "file,label,x0,y0,x1,y1\nä.png,münze,1,2,3,4\n"
    (tmp_path / "bom.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_table(tmp_path / "bom.csv") == {"ä.png": [("münze", 1, 2, 3, 4)]}
    (tmp_path / "latin.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="latin.csv: not UTF-8"): read_table(tmp_path / "latin.csv")


def test_section_5_masks_are_checked_before_the_first_step(scenes, tmp_path):
    from detr_nb import DetrForSegmentation
    data = json.loads((scenes / "annotations" / "instances_train.json").read_text())
    data["annotations"][-1]["segmentation"] = []
    (tmp_path / "truth.json").write_text(json.dumps(data))
    model = DetrForSegmentation(DetrConfig(**TINY | {"d_model": 64, "encoder_attention_heads": 8, "decoder_attention_heads": 8}, id2label={0: "N/A"} | SceneDetection.id2label))
    with pytest.raises(ValueError, match="truth.json: annotation .* has segmentation=\\[\\]"):
        train(model, CocoDetection(scenes / "train", tmp_path / "truth.json"), tmp_path / "run", replace(Recipe(), steps=1))
    assert not (tmp_path / "run").exists()


# What checks a folder

def test_check_finds_what_was_put_there(scenes, tmp_path):
    import shutil
    shutil.copytree(scenes, tmp_path / "data")
    data = tmp_path / "data"
    good = run("data", "check", data, "--queries", 40, "--json", tmp_path / "good.json", "--figure", tmp_path / "figure.png")
    assert good.returncode == 0 and (tmp_path / "figure.png").stat().st_size > 1000, good.stderr
    report = json.loads((tmp_path / "good.json").read_text())["splits"][0]
    assert report["images"] == 6 and sum(report["classes"].values()) == report["objects"] == sum(report["by size"].values())
    (data / "val" / "000001.png").write_bytes((data / "train" / "000001.png").read_bytes())
    (data / "val" / "000002.png").write_bytes(b"no image")
    (data / "val" / "000003.png").unlink()
    Image.new("RGB", (64, 64)).save(data / "val" / "000004.png")
    found = run("data", "check", data, "--queries", 2)
    assert found.returncode == 1
    for kind in ("missing (1)", "broken (1)", "size (1)", "queries (1)", "in both splits (1)"):
        assert f"FAULT {kind}" in found.stdout, found.stdout


def test_check_says_what_is_wrong_with_a_file(coco_file, tmp_path):
    try: coco_file(lambda data: data["annotations"][0].update(bbox=[1]))
    except ValueError: pass
    report = check_split(tmp_path / "truth.json", "val", progress=False)
    assert "annotation 1 (image 1) has bbox=[1]" in report["faults"]["file"][0]


@pytest.mark.parametrize("same", [True, False])
def test_copy_with_other_boxes_is_a_fault_and_one_with_the_same_is_not(tmp_path, same):
    (tmp_path / "val").mkdir()
    for name in "ab": Image.new("RGB", (64, 64), (9, 9, 9)).save(tmp_path / "val" / f"{name}.png")
    boxes = [("coin", 1, 2, 9, 9), ("coin", 20, 20, 40, 40)]
    write_coco(tmp_path, "val", {"a.png": boxes, "b.png": boxes[::-1] if same else boxes[:1]}, ["coin"])
    report = check_split(tmp_path, "val", progress=False)
    assert set(report["faults"]) == (set() if same else {"twice"})
    found = report["notes"] if same else report["faults"]["twice"]
    assert len(found) == 1 and "a.png" in found[0] and "b.png" in found[0]


@pytest.mark.parametrize("format", ["voc", "yolo"])
def test_convert_gives_the_boxes_back(tmp_path, format):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    Image.new("RGB", (80, 40), (9, 9, 9)).save(tmp_path / "images" / "a.png")
    if format == "yolo":
        (tmp_path / "labels" / "a.txt").write_text("1 0.5 0.5 0.25 0.5\n")
        (tmp_path / "data.yaml").write_text("names: [cat, dog]\nnc: 2\n")
        more = ["--names", tmp_path / "data.yaml"]
    else:
        (tmp_path / "labels" / "a.xml").write_text(
            "<annotation><filename>a.png</filename><size><width>80</width><height>40</height><depth>3</depth></size><object><name>dog"
            "</name><bndbox><xmin>31</xmin><ymin>11</ymin><xmax>51</xmax><ymax>31</ymax></bndbox></object></annotation>"
        )
        more = []
    done = run("data", "convert", tmp_path / "coco", "--format", format, "--images", tmp_path / "images", "--labels", tmp_path / "labels", "--split", "val", *more)
    assert done.returncode == 0, done.stderr
    dataset = open_split(tmp_path / "coco", "val")
    _, target = dataset[0]
    assert [round(v) for v in target["annotations"][0]["bbox"]] == ([30, 10, 20, 20] if format == "yolo" else [30, 10, 21, 21])  # VOC counts the last pixel
    assert dataset.id2label[target["annotations"][0]["category_id"]] == "dog" and min(dataset.id2label) == 1
    assert (tmp_path / "coco" / "val" / "a.png").read_bytes() == (tmp_path / "images" / "a.png").read_bytes()


def test_from_table_keeps_the_numbers_of_the_classes(tmp_path):
    for split, rows in (("train", "a.png,dog,1,1,5,5\na.png,cat,2,2,6,6\n"), ("val", "a.png,dog,1,1,5,5\n")):
        (tmp_path / split).mkdir()
        Image.new("RGB", (20, 10)).save(tmp_path / split / "a.png")
        (tmp_path / f"{split}.csv").write_text("file,label,x0,y0,x1,y1\n" + rows)
        done = run("data", "from-table", tmp_path / f"{split}.csv", "--data", tmp_path, "--split", split)
        assert done.returncode == 0, done.stderr
    assert open_split(tmp_path, "train").id2label == open_split(tmp_path, "val").id2label == {1: "cat", 2: "dog"}


def test_row_29_saving_as_training_tools_do(tmp_path):
    model = DetrForObjectDetection(DetrConfig(**TINY)).eval()
    assert model.main_input_name == "pixel_values"
    model.save_pretrained(tmp_path / "other", is_main_process=False)
    assert not (tmp_path / "other").exists()
    model.save_pretrained(tmp_path / "main", is_main_process=True, save_function=torch.save, state_dict=None)
    (tmp_path / "main" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="weights and no config.json.*pass config"): DetrForObjectDetection.from_pretrained(tmp_path / "main")
    again = DetrForObjectDetection.from_pretrained(tmp_path / "main", config=model.config)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values()))
    for arguments in ({"push_to_hub": True}, {"safe_serialization": False}):
        with pytest.raises(ValueError, match=next(iter(arguments))): model.save_pretrained(tmp_path / "x", **arguments)
    with pytest.raises(TypeError, match="no_such"): model.save_pretrained(tmp_path / "x", no_such=1)


def test_convert_names_images_that_cannot_be_read(tmp_path):
    from detr_nb.datasets import convert_dataset
    for kind in ("images", "labels"): (tmp_path / kind).mkdir()
    for name in ("a.png", "b.png"): Image.new("RGB", (32, 32), "teal").save(tmp_path / "images" / name)
    (tmp_path / "images" / "b.png").write_bytes((tmp_path / "images" / "b.png").read_bytes()[:60])
    (tmp_path / "images" / "notes.txt").write_text("no image")
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "data.yaml").write_text("names: [pot]\n")
    with pytest.raises(ValueError, match=r"nothing is written: .*b.png: not a whole image"):
        convert_dataset(tmp_path / "images", tmp_path / "labels", tmp_path / "out", "train", "yolo", tmp_path / "data.yaml")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_minute_of_training_on_real_photographs(tmp_path):
    """292 photographs of blood cells, from the embedded model, by one command: 100 steps, about a minute on one core,
    find something on 72 others. (0.12 here; the floor allows for other processors, whose roundings go other ways.)"""
    root = os.environ.get("DETR_NB_DATA")
    if not root: pytest.skip("DETR_NB_DATA is not set: the real datasets are not here")
    command = [
        sys.executable, "-c", "from detr_nb.cli import main; main()", "train", "--data", str(Path(root) / "blood_cells"),
        "--out", str(tmp_path / "run"), "--preset", "scenes", "--model", "scenes", "--steps", "100", "--image-size", "128",
        "--evaluations", "1", "--ema", "0", "--workers", "0",
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=800, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr[-2000:]
    line = next(line for line in result.stderr.splitlines() if "step 100:" in line)
    assert float(line.split("AP50 ")[1].split()[0]) > 0.05, line
    assert "2 of 292 images have more objects than the model has queries (25)" in result.stderr
