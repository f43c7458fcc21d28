"What deployments and long trainings do: other backbones, failed graphs, own transforms, lost files, ends by error."
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import detr_nb
from detr_nb import training
from detr_nb.checkpoints import load_checkpoint
from detr_nb.cli import MANIFEST, app, claim
from detr_nb.data import CocoDetection
from detr_nb.files import Log, read_log
from detr_nb.pretraining import init_scenes_detector, scenes_processor
from detr_nb.scenes import make_scenes
from detr_nb.speed import ExportedModel, export_model
from detr_nb.training import RECIPES, Recipe, TrainingImages, evaluation_steps, train

SMALL = dict(
    backbone="resnet18", use_pretrained_backbone=False, d_model=32, encoder_layers=1, decoder_layers=1,
    encoder_ffn_dim=32, decoder_ffn_dim=32, encoder_attention_heads=2, decoder_attention_heads=2, num_queries=10, num_labels=13,
)
SHORT = Recipe(steps=4, batch_size=2, augment=False, evaluations=2, query_groups=1)
COMMAND = ["train", "--preset", "scenes", "--batch-size", "2", "--evaluations", "1", "--workers", "0"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    "A COCO folder of eight scenes to learn, and four to find."
    folder = tmp_path_factory.mktemp("rough") / "scenes"
    make_scenes(folder, train=8, val=4)
    return folder


def dataset(folder, split="train", **options):
    return CocoDetection(folder / split, folder / "annotations" / f"instances_{split}.json", **options)


def small(**settings):
    torch.manual_seed(0)
    return detr_nb.DetrForObjectDetection(detr_nb.DetrConfig(**SMALL | settings))


# -- models


@pytest.mark.parametrize("backbone", ["convnext_atto", "pvt_v2_b0", "mobilevit_xxs"])
def test_a_backbone_whose_names_are_like_transformers_opens_again(backbone, tmp_path):
    "Their `mlp.fc1` was taken for a name of transformers 5, and what had been saved could not be opened."
    model = small(backbone=backbone)
    model.save_pretrained(tmp_path)
    again = detr_nb.DetrForObjectDetection.from_pretrained(tmp_path)
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_a_mask_of_another_size_is_refused():
    model = small().eval()
    images = torch.zeros(2, 3, 64, 64)
    for shape in ((2, 5, 64), (1, 64, 64), (2, 128, 128)):
        with pytest.raises(ValueError, match=r"pixel_mask has shape .* want that of the images, \(2, 64, 64\)"):
            model(images, torch.ones(shape))
    assert model(images, torch.ones(2, 64, 64)).logits.shape == (2, 10, 14)


def test_a_network_that_needs_a_large_image_is_optimized():
    model = small(backbone="inception_v3").eval()
    image = torch.randn(1, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(): assert (model(image).logits - model.optimize()(image).logits).abs().max() < 1e-4
    with pytest.raises(TypeError, match="dtype='bfloat16': want a floating-point type such as torch.bfloat16"):
        model.optimize("bfloat16")


def test_a_graph_that_fails_leaves_no_answer_behind(tmp_path):
    "OpenVINO with one thread gave the image before, and spoiled the one after."
    torch.set_num_threads(1)
    model = small(backbone="detr_nb_resnet").eval()  # its pooling fails on an image of one column
    processor = detr_nb.DetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    export_model(model, processor, tmp_path, "openvino")
    exported = pickle.loads(pickle.dumps(ExportedModel(tmp_path)))
    one, two = torch.randn(2, 1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    wanted, narrow = exported(two).logits.clone(), torch.randn(1, 3, 200, 1)
    exported(one)
    try: assert (exported(narrow).logits - model(narrow).logits).abs().max() < 1e-3
    except RuntimeError as error: assert "gave no answer for images of shape (1, 3, 200, 1)" in str(error)
    torch.testing.assert_close(exported(two).logits, wanted, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"want \(B, 3, H, W\) and \(B, H, W\)"): exported(two, torch.ones(1, 9, 64))
    with pytest.raises(TypeError, match="model is an export"): export_model(exported, processor, tmp_path / "b", "openvino")
    for arguments, words in (({"processor": None}, "the model's own"), ({"calibration": []}, "calibration is empty")):
        with pytest.raises((TypeError, ValueError), match=words):
            export_model(model, **({"processor": processor, "folder": tmp_path / "c", "format": "openvino"} | arguments))
    assert not (tmp_path / "b").exists() and not (tmp_path / "c").exists()
    other = tmp_path / "d"
    other.mkdir()
    (other / "config.json").write_text("{}")
    with pytest.raises(FileExistsError, match="config.json is another"): export_model(model, processor, other, "openvino")


def test_what_predict_takes():
    model, processor = small().eval(), detr_nb.DetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}, do_pad=False)
    images = [Image.new("RGB", (60, 40)), Image.new("RGB", (50, 70))]
    found = detr_nb.predict(iter(images), model, processor, threshold=0.0)
    assert len(found) == 2 and found[0]["boxes"].shape[1] == 4
    for arguments, words in (
        ({"threshold": 70}, "threshold=70: scores lie in 0…1"), ({"batch_size": 1.5}, "batch_size=1.5: want at least 1"),
        ({"model": images}, r"model is list: want predict\(images, model, processor\)"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            detr_nb.predict(**({"images": images, "model": model, "processor": processor} | arguments))


def test_attributes_follow_fields_that_are_taken_out():
    outputs = small().eval()(torch.zeros(1, 3, 64, 64))
    boxes = outputs.pred_boxes
    assert outputs.pop("pred_boxes") is boxes and outputs.pred_boxes is None and "pred_boxes" not in outputs
    del outputs["logits"]
    assert outputs.logits is None and outputs.pop("logits", 3) == 3 and list(outputs)[0] == "last_hidden_state"


def test_options_of_export_and_train_that_would_do_nothing(tmp_path):
    for words, message in (
        (["export", "scenes", "--out", "x", "--calibration", str(tmp_path)], "want --int8"),
        ([*COMMAND, "--data", str(tmp_path), "--out", "x", "--backbone", "resnet18"], "has a backbone of its own"),
        ([*COMMAND, "--data", str(tmp_path), "--out", "x", "--freeze-backbone", "--backbone-lr", "1e-4"], "give one of"),
    ):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 2 and message in " ".join(result.output.replace("│", " ").split()), result.output


def test_a_file_that_a_command_did_not_write_is_not_its_own(tmp_path):
    with pytest.raises(OSError, match="disk is full"):
        with claim(tmp_path / "a.json", False): raise OSError("disk is full")
    (tmp_path / "a.json").write_text("somebody's")
    with pytest.raises(OSError, match="disk is full"):
        with claim(tmp_path / "a.json", True): raise OSError("disk is full")
    assert (tmp_path / MANIFEST).read_text() == ""
    with pytest.raises(FileExistsError, match="detr-nb did not write it"):
        with claim(tmp_path / "a.json", False): pass


# -- trainings


def test_own_transforms_are_asked_for_every_pass(scenes, tmp_path):
    "They were asked once, and the image was kept. Each draw has its own random numbers, also after a resume."
    seen = []

    def dim(image, target):
        seen.append(factor := (random.random(), float(np.random.rand()), float(torch.rand(()))))
        return image.point(lambda v: v * factor[0]), target

    images = dataset(scenes, transforms=dim)
    recipe = replace(SHORT, steps=8, evaluations=1)
    train(init_scenes_detector(), images, tmp_path / "whole", recipe, scenes_processor())
    assert len(seen) == 16 and all(len(set(drawn)) == 16 for drawn in zip(*seen))  # of all three generators
    train(init_scenes_detector(), images, tmp_path / "parts", recipe, scenes_processor(), stop_after=5)
    train(init_scenes_detector(), images, tmp_path / "parts", recipe, scenes_processor(), resume=True)
    assert seen[16:] == seen[:16]
    ours, theirs = (load_checkpoint(tmp_path / name / "checkpoint.pt")["model"] for name in ("whole", "parts"))
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_own_transforms_and_augmentation_do_not_flip_together(scenes):
    "Both were seeded alike: a flip of one's own and the library's always came together, and cancelled."
    from PIL import ImageOps

    mine = []

    def flip(image, target):
        mine.append(random.random() < 0.5)
        return (ImageOps.mirror(image) if mine[-1] else image), target | {"annotations": []}

    images = TrainingImages(dataset(scenes, transforms=flip), scenes_processor(), replace(SHORT, augment="flips"))
    plain = TrainingImages(dataset(scenes), scenes_processor(), SHORT)[0, 0][0]
    mirrored = [not any(torch.equal(images[0, k][0], turned) for turned in (plain, plain.flip(1))) for k in range(12)]
    assert 1 < sum(mirrored) < 11 and 1 < sum(mine) < 11


def test_drawing_in_a_worker_does_not_touch_a_gpu(scenes, monkeypatch):
    "A forked process that touches one fails."
    def touched(*_): raise AssertionError("the GPU was touched")

    for name in ("get_rng_state", "set_rng_state", "manual_seed_all"): monkeypatch.setattr(torch.cuda, name, touched)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    images = TrainingImages(dataset(scenes, transforms=lambda image, target: (image, target)), scenes_processor(), SHORT)
    before = torch.get_rng_state()
    assert images[0, 0][0].shape == (3, 128, 128) and torch.equal(torch.get_rng_state(), before)


def test_an_own_val_split_is_the_same_at_every_evaluation(scenes):
    seen = []

    def dim(image, target):
        seen.append(random.random())
        return image.point(lambda v: v * seen[-1]), target

    val = dataset(scenes, "val", transforms=dim)
    numbers = [detr_nb.evaluate(init_scenes_detector(), val, scenes_processor(), progress=False) for _ in range(2)]
    assert numbers[0] == numbers[1] and seen[:4] == seen[-4:] and len(set(seen[:4])) == 4
    broken = dataset(scenes, "val", transforms=lambda image, target: 1 / 0)
    with pytest.raises(RuntimeError, match=r"dataset\[0\]: ZeroDivisionError"):
        detr_nb.evaluate(init_scenes_detector(), broken, scenes_processor(), progress=False)


def test_what_goes_wrong_in_own_code_names_the_image(scenes, tmp_path):
    images = dataset(scenes, transforms=lambda image, target: image)
    with pytest.raises(RuntimeError, match=r"dataset\[\d\]: TypeError"):
        train(init_scenes_detector(), images, tmp_path, SHORT, scenes_processor())


@pytest.mark.timeout(300)
def test_a_program_with_workers_ends_by_an_error(scenes, tmp_path):
    "The workers do not listen to SIGTERM, and Python waited for them for ever."
    (tmp_path / "script.py").write_text(f"""
from pathlib import Path
from detr_nb.data import CocoDetection
from detr_nb.pretraining import init_scenes_detector, scenes_processor
from detr_nb.training import Recipe, train
def look(step, model):
    if step: raise RuntimeError("of my own")
if __name__ == "__main__":
    data = CocoDetection(r"{scenes / 'train'}", r"{scenes / 'annotations' / 'instances_train.json'}")
    recipe = Recipe(steps=8, batch_size=2, augment=False, evaluations=4, query_groups=1)
    train(init_scenes_detector(), data, r"{tmp_path / 'run'}", recipe, scenes_processor(), workers=2, callback=look)
""")
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    result = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=240, env=env)
    assert result.returncode == 1 and "RuntimeError: of my own" in result.stderr
    assert (tmp_path / "run" / "checkpoint.pt").exists(), "the evaluated step was saved before the callback"


def test_resume_writes_a_model_that_was_lost(scenes, tmp_path):
    run = lambda **options: train(init_scenes_detector(), dataset(scenes), tmp_path, SHORT, scenes_processor(), **options)
    weights = (run() / "model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "model")
    assert (run(resume=True) / "model.safetensors").read_bytes() == weights


def test_the_seed_of_the_command_is_that_of_the_weights(scenes, tmp_path):
    losses = []
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        words = [*COMMAND, "--data", str(scenes), "--out", str(tmp_path / name), "--no-pretrained", "--steps", "1", "--seed", seed]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
        losses.append(read_log(tmp_path / name / "log.csv")[0]["loss"])
    assert losses[0] == losses[1] != losses[2]


def test_files_of_ones_own_in_a_run_stay(scenes, tmp_path):
    recipe = replace(SHORT, steps=6, evaluations=3)
    run = lambda **options: train(init_scenes_detector(), dataset(scenes), tmp_path, recipe, scenes_processor(), keep=1, **options)
    run(stop_after=2)
    for name in ("checkpoint-best.pt", "checkpoint-1-good.pt"): shutil.copy(tmp_path / "checkpoint.pt", tmp_path / name)
    run(resume=True)
    there = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert there == ["checkpoint-1-good.pt", "checkpoint-6.pt", "checkpoint-best.pt"]
    (tmp_path / "kept").mkdir()
    shutil.move(tmp_path / "model", tmp_path / "kept" / "best")
    with pytest.raises(FileExistsError, match="best exists"):
        train(init_scenes_detector(), dataset(scenes), tmp_path / "kept", recipe, scenes_processor())


def test_a_run_that_ends_while_another_waits_for_its_folder(scenes, tmp_path, monkeypatch):
    "The second looked for a checkpoint before it waited, and then wrote over it."
    check_run = training.check_run

    def meanwhile(*values):  # after the first look, and before the folder is ours
        (tmp_path / "checkpoint.pt").write_bytes(b"of the first")
        return check_run(*values)

    monkeypatch.setattr(training, "check_run", meanwhile)
    with pytest.raises(FileExistsError, match="checkpoint.pt exists"):
        train(init_scenes_detector(), dataset(scenes), tmp_path, SHORT, scenes_processor())
    assert (tmp_path / "checkpoint.pt").read_bytes() == b"of the first"


def test_what_cannot_work_is_said_before_the_first_step(scenes, tmp_path):
    empty = json.loads((scenes / "annotations" / "instances_val.json").read_text()) | {"annotations": []}
    (tmp_path / "empty.json").write_text(json.dumps(empty))
    nothing, frozen = CocoDetection(scenes / "val", tmp_path / "empty.json"), init_scenes_detector().requires_grad_(False)
    for changes, words in (
        ({"val": nothing}, "val has no object in any of its 4 images"), ({"dataset": nothing}, "dataset has no object"),
        ({"detector": frozen}, "no weight of the model may learn"),
        ({"detector": init_scenes_detector().optimize()}, "made by optimize"),
        ({"workers": -1}, "workers=-1: want 0 or more"), ({"dataset": [1, 2]}, "or one of your own with `id2label`"),
    ):
        given = {"detector": init_scenes_detector(), "dataset": dataset(scenes), "out": tmp_path / "run", "recipe": SHORT}
        with pytest.raises((TypeError, ValueError), match=words): train(**given | {"processor": scenes_processor()} | changes)
        assert not (tmp_path / "run" / "log.csv").exists()


def test_another_val_split_is_another_run(scenes, tmp_path):
    run = lambda val, **options: train(
        init_scenes_detector(), dataset(scenes), tmp_path / "run", SHORT, scenes_processor(), val=val, **options
    )
    run(dataset(scenes, "val"), stop_after=2)
    data = json.loads((scenes / "annotations" / "instances_val.json").read_text())
    (tmp_path / "fewer.json").write_text(json.dumps(data | {"annotations": data["annotations"][:5]}))
    with pytest.raises(ValueError, match="annotations of val: another file"):
        run(CocoDetection(scenes / "val", tmp_path / "fewer.json"), resume=True)
    run(None, resume=True)


def test_the_last_step_is_evaluated_where_a_run_stops_early():
    recipe = Recipe(steps=8, stop=5, evaluations=1)
    assert evaluation_steps(recipe, 8, watched=True) == {5, 8} and evaluation_steps(recipe, 8) == {8}
    assert evaluation_steps(RECIPES["scenes"], 18000, watched=True) >= {16500}


def test_a_loss_of_ones_own_is_learned_and_logged(scenes, tmp_path):
    "A further part was left out of the sum, and the log could not take it."
    class Own(detr_nb.DetrLoss):
        def forward(self, *values, **named):
            parts = super().forward(*values, **named)
            return parts | {"loss_size": 1000 + 0 * parts["loss_ce"]}

    detector = init_scenes_detector()
    detector.criterion = Own(detector.criterion.matcher, detector.config.num_labels)
    train(detector, dataset(scenes), tmp_path, SHORT, scenes_processor())
    rows = read_log(tmp_path / "log.csv")
    assert all(row["loss_size"] == 1000 and row["loss"] > 1000 for row in rows) and len(rows) == 4


def test_a_log_gets_new_columns(tmp_path):
    log = Log(tmp_path, 0)
    for row in ({"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5, "mine": 7.0}, {"step": 3, "mine": 8.0}): log.write(row)
    assert read_log(tmp_path / "log.csv") == [{"step": 1, "loss": 2}, {"step": 2, "loss": 1.5, "mine": 7}, {"step": 3, "mine": 8}]
    assert "mine" not in Log.columns
    Log(tmp_path, 2).write({"step": 3, "mine": 9.0})
    assert [row.get("mine") for row in read_log(tmp_path / "log.csv")] == [None, 7, 9]
