"Training: what the log says is found again, interruptions, two processes, transformers' Trainer, supervision."
import importlib
import json
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from detr_nb import DetrForObjectDetection, DetrImageProcessor, SceneDetection
from detr_nb.files import ASSETS, experiment, read_log
from detr_nb.own_data import compare_coins
from detr_nb.pretraining import (
    PretrainingScenes, choose_cells, compare_beginnings, dense_losses, init_scenes_detector, pretrain_backbone,
    scenes_config, scenes_processor,
)
from detr_nb.runs import StepSampler, find_collapse
from detr_nb.training import (
    BY_HEART, RECIPES, GroupedQueries, Recipe, RunReport, TrainingImages, TrainState, evaluation_steps, learn_by_heart,
    load_batches, make_accelerator, train, warn_of_collapse, warn_of_rates,
)


def tiny(seed=0, **changes):
    torch.manual_seed(seed)
    return DetrForObjectDetection(scenes_config(use_pretrained_backbone=True, encoder_layers=1, decoder_layers=2, **changes))


SHORT = replace(RECIPES["scenes"], steps=6, batch_size=4, evaluations=2, query_groups=2)


@pytest.mark.slow
def test_first_twenty_steps_of_the_embedded_model(tmp_path):
    "The log that ships is the log of this recipe: its first losses are found again to 1 %."
    recipe = RECIPES["scenes"]
    train(init_scenes_detector(), SceneDetection(recipe.steps * recipe.batch_size, seed=2), tmp_path, recipe, scenes_processor(), stop_after=20)
    again, shipped = read_log(tmp_path / "log.csv"), read_log(ASSETS / "scenes" / "log.csv")[:20]
    assert [row["step"] for row in again] == [row["step"] for row in shipped] == list(range(1, 21))
    for name in ("loss", "loss_ce", "loss_bbox", "loss_giou", "lr"):
        np.testing.assert_allclose([row[name] for row in again], [row[name] for row in shipped], rtol=0.01, err_msg=name)


def test_record_ships():
    assert (ASSETS / "scenes" / "record.npz").stat().st_size <= 1_000_000
    with np.load(ASSETS / "scenes" / "record.npz") as record:
        moments = len(record["step"])
        assert 12 <= moments <= 14 and record["step"][0] == 0 and record["step"][-1] == RECIPES["scenes"].stop
        assert record["boxes"].shape == (moments, 16, 25, 4) and record["attention"].shape == (moments, 16, 25, 16, 16)
        assert record["probabilities"].shape == (moments, 16, 25, 14)
        probabilities = record["probabilities"].astype(float).sum(-1)
    assert np.abs(probabilities - 255).max() < 8


def test_record_is_of_the_shipped_model():
    "The last moment is what the embedded model says today."
    dataset, processor = SceneDetection(16, seed=4, split="val"), scenes_processor()
    batch = processor([dataset[i][0] for i in range(16)], return_tensors="pt")
    with torch.inference_mode():
        outputs = DetrForObjectDetection.from_pretrained("scenes")(batch.pixel_values, batch.pixel_mask)
    with np.load(ASSETS / "scenes" / "record.npz") as record:
        np.testing.assert_allclose(record["boxes"][-1].astype(float), outputs.pred_boxes.numpy(), atol=5e-3)


def test_embedded_package_is_small():
    assert sum(p.stat().st_size for p in (ASSETS / "scenes").iterdir()) <= 12_000_000


def test_interrupted_and_resumed(tmp_path):
    dataset, processor = SceneDetection(24, seed=6), scenes_processor()
    train(tiny(), dataset, tmp_path / "whole", SHORT, processor)
    train(tiny(), dataset, tmp_path / "parts", SHORT, processor, stop_after=3)
    train(tiny(seed=9), dataset, tmp_path / "parts", SHORT, processor, resume=True)
    a, b = (DetrForObjectDetection.from_pretrained(tmp_path / name / "model").state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    rows = [[row["loss"] for row in read_log(tmp_path / name / "log.csv")] for name in ("whole", "parts")]
    assert rows[0] == rows[1] and len(rows[0]) == 6


@pytest.mark.parametrize("moment", ["before the first checkpoint", "before the best model"])
def test_killed_at_its_first_evaluation(tmp_path, monkeypatch, moment):
    "An evaluation writes a checkpoint, then the best model. Whichever is missing, the run goes on and ends as the whole one."
    from detr_nb import training
    dataset, val, processor = SceneDetection(8, seed=6), SceneDetection(4, seed=6, split="val"), scenes_processor()
    run = lambda name, **more: train(tiny(), dataset, tmp_path / name, SHORT, processor, val, **more)
    run("whole")
    save = training.save_model

    def die(*arguments):
        raise KeyboardInterrupt

    if moment == "before the first checkpoint": monkeypatch.setattr(training, "save_run", die)
    else:
        monkeypatch.setattr(
            training, "save_model", lambda model, its, folder: die() if folder.name == "best" else save(model, its, folder)
        )
    with pytest.raises(KeyboardInterrupt): run("killed")
    monkeypatch.undo()
    saved = (tmp_path / "killed" / "checkpoint.pt").exists()
    assert saved == (moment == "before the best model") and not (tmp_path / "killed" / "best").exists()
    if saved:  # the next start writes what is missing before the next step
        run("killed", resume=True, stop_after=SHORT.steps // 2)
        assert (tmp_path / "killed" / "best" / "model.safetensors").exists()
    run("killed", resume=saved)
    for name in ("log.csv", "model/model.safetensors", "best/model.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name


def test_nothing_is_overwritten(tmp_path):
    dataset, processor = SceneDetection(24, seed=6), scenes_processor()
    with pytest.raises(FileNotFoundError, match="no checkpoint to resume from"):
        train(tiny(), dataset, tmp_path, SHORT, processor, resume=True)
    train(tiny(), dataset, tmp_path, SHORT, processor, stop_after=1)
    with pytest.raises(FileExistsError, match="pass resume=True"):
        train(tiny(), dataset, tmp_path, SHORT, processor)
    with pytest.raises(ValueError, match="was made with another recipe"):
        train(tiny(), dataset, tmp_path, replace(SHORT, lr=1.0), processor, resume=True)


def test_checkpoint_is_whole_or_not_at_all(tmp_path, monkeypatch):
    path, state = tmp_path / "checkpoint.pt", TrainState(tiny(), SHORT, steps=4)
    state.step = 1
    state.save(path)

    def fail(value, part):
        part.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    state.step = 2
    with pytest.raises(OSError, match="disk full"):
        state.save(path)
    assert torch.load(path, weights_only=True)["step"] == 1


@pytest.mark.parametrize("changes", [{}, {"cells": 3, "thing_weight": 2}], ids=str)
def test_pretraining_goes_on_where_it_was_interrupted(tmp_path, monkeypatch, changes):
    run = partial(pretrain_backbone, steps=7, batch_size=2, save_every=2, **changes)
    whole, draw = run(tmp_path / "whole"), PretrainingScenes.__getitem__

    def interrupt(self, index):
        if index >= 10: raise KeyboardInterrupt
        return draw(self, index)

    monkeypatch.setattr(PretrainingScenes, "__getitem__", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts")
    monkeypatch.setattr(PretrainingScenes, "__getitem__", draw)
    with pytest.raises(ValueError, match="parts.state was made with .* = \\[7, 2, 0.002"):
        run(tmp_path / "parts", lr=1e-3)
    assert run(tmp_path / "parts") == whole and (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["parts", "whole"]


def test_cells_that_are_not_asked_teach_nothing():
    asked = choose_cells(4, 9, torch.Generator().manual_seed(3))
    assert asked.shape == (4, 16, 16) and asked.dtype == torch.float32 and asked.sum((1, 2)).tolist() == [9] * 4
    assert len({tuple(one.flatten().tolist()) for one in asked}) == 4
    assert torch.equal(asked, choose_cells(4, 9, torch.Generator().manual_seed(3)))
    torch.manual_seed(0)
    logits, mixture = torch.randn(4, 16, 16, 13), torch.rand(4, 16, 16, 13).softmax(-1)
    corners = torch.rand(4, 16, 16, 2, 2).sort(-2).values.flatten(-2)
    losses = dense_losses(logits, corners.roll(1, 0), mixture, corners, asked=asked)
    noise = torch.where(asked[..., None] > 0, 0.0, torch.randn(4, 16, 16, 13))
    spoiled = dense_losses(logits + noise, corners.roll(1, 0), mixture, corners, asked=asked)
    assert torch.equal(losses[0], spoiled[0]) and torch.equal(losses[1], spoiled[1])
    chosen = asked.bool()
    alone = -(mixture * logits.log_softmax(-1)).sum(-1)[chosen].mean()
    torch.testing.assert_close(dense_losses(logits, corners, mixture, corners, 1, asked)[0], alone, rtol=1e-5, atol=0)


@pytest.mark.parametrize("thing_weight", [1, 10])
def test_a_cell_of_a_thing_counts_as_many_of_stuff(thing_weight):
    mixture = torch.zeros(1, 16, 16, 13)
    mixture[..., 9], mixture[0, 0, 0] = 1, torch.eye(13)[3]  # sky, and one cell of a star
    logits, boxes = torch.randn(1, 16, 16, 13, generator=torch.Generator().manual_seed(0)), torch.tensor([0.2, 0.2, 0.4, 0.4])
    loss = dense_losses(logits, boxes.expand(1, 16, 16, 4), mixture, boxes.expand(1, 16, 16, 4), thing_weight)[0]
    each = -(mixture * logits.log_softmax(-1)).sum(-1).flatten()
    wanted = (thing_weight * each[0] + each[1:].sum()) / (thing_weight + 255)
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("lesson", "weight"), [("none, a higher rate", 0.0), ("none, a second loss", 30.0), ("none, a light second loss", 1.0)])
def test_stored_lessons(lesson, weight):
    "The first five steps of a random backbone with a higher rate, and with a second loss, again, to 1 %."
    stored = [row for row in experiment("lessons") if row["lesson"] == lesson]
    assert {row["lesson"] for row in experiment("lessons")} == {
        "none, a higher rate", "a lower rate", "things count like stuff", "nine cells of an image", "none, a second loss",
        "none, a light second loss",
    }
    torch.set_num_threads(1)
    again = compare_beginnings("normalised", rate=4.0, dense_weight=weight, stop=5)
    np.testing.assert_allclose([row["loss"] for row in again], [row["loss"] for row in stored[:2]], rtol=0.01)


def test_a_loss_that_is_not_finite(tmp_path, monkeypatch):
    model = tiny()
    real = model.loss

    def broken(*arguments, **named):
        loss, *rest = real(*arguments, **named)
        return loss * float("nan"), *rest

    monkeypatch.setattr(model, "loss", broken)
    with pytest.raises(FloatingPointError, match=r"step 1, images \[\d+, \d+, \d+, \d+\]: the loss is nan; there is no checkpoint yet"):
        train(model, SceneDetection(24, seed=6), tmp_path / "first", SHORT, scenes_processor())
    train(tiny(), SceneDetection(24, seed=6), tmp_path / "later", SHORT, scenes_processor(), stop_after=1)
    with pytest.raises(FloatingPointError, match="step 2, images .*: the loss is nan; the last checkpoint is .*later/checkpoint.pt. The batch was saved"):
        train(model, SceneDetection(24, seed=6), tmp_path / "later", SHORT, scenes_processor(), resume=True)


def test_a_bad_batch_is_saved_and_drawn(tmp_path, monkeypatch):
    "It holds the images of that step, and the command draws them."
    from typer.testing import CliRunner

    from detr_nb.cli import app
    model, real, seen = tiny(), GroupedQueries.forward, []

    def broken(self, pixel_values, pixel_mask, labels, divisors=None):
        seen.append((pixel_values.clone(), [int(target["image_id"]) for target in labels]))
        loss, parts = real(self, pixel_values, pixel_mask, labels, divisors)
        return (loss / 0 if len(seen) == 3 else loss), parts

    monkeypatch.setattr(GroupedQueries, "forward", broken)
    with pytest.raises(FloatingPointError, match="step 3, images .*: the loss is inf") as error:
        train(model, SceneDetection(24, seed=6), tmp_path, SHORT, scenes_processor())
    path = tmp_path / "bad_batch_3_0.pt"
    pixels, images = seen[-1]
    batch = torch.load(path, weights_only=True)
    assert torch.equal(batch["pixel_values"], pixels) and str(images) in str(error.value) and str(path) in str(error.value)
    assert [int(target["image_id"]) for target in batch["labels"]] == images
    batch["labels"][1]["boxes"][0] = float("nan")
    torch.save(batch, path)
    done = CliRunner().invoke(app, ["data", "show-batch", str(path)])
    assert done.exit_code == 0 and "4 images" in done.output, done.output
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_gradient_that_is_not_finite_stops_before_the_step(tmp_path, monkeypatch):
    model = tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.class_labels_classifier.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(FloatingPointError, match="step 1, images .*: the gradient's norm is (nan|inf)"):
        train(model, SceneDetection(24, seed=6), tmp_path, SHORT, scenes_processor())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("accumulate", [2, 4])
def test_parts_of_a_batch_give_the_step_of_the_whole(tmp_path, accumulate):
    "Losses of all rows to 1e-5, weights to 1e-5; without the common divisors it would be another step."
    recipe = replace(SHORT, lr=1e-4, backbone_lr=1e-5, ema=0.0)
    train(tiny(dropout=0.0), SceneDetection(24, seed=6), tmp_path / "whole", recipe, scenes_processor())
    train(tiny(dropout=0.0), SceneDetection(24, seed=6), tmp_path / "parts", replace(recipe, accumulate=accumulate), scenes_processor())
    one, other = (read_log(tmp_path / name / "log.csv") for name in ("whole", "parts"))
    for name in ("loss", "loss_ce", "loss_bbox", "loss_giou"):
        np.testing.assert_allclose([row[name] for row in other], [row[name] for row in one], rtol=1e-5, err_msg=name)
    a, b = (DetrForObjectDetection.from_pretrained(tmp_path / name / "model").state_dict() for name in ("whole", "parts"))
    for name in a: torch.testing.assert_close(a[name], b[name], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="batch_size=4 is not divisible by 1 process with 3 parts each"):
        train(tiny(), SceneDetection(24, seed=6), tmp_path / "odd", replace(SHORT, accumulate=3), scenes_processor())


def test_what_a_collapse_looks_like():
    torch.manual_seed(0)
    logits, boxes = torch.randn(4, 25, 14), torch.rand(4, 25, 4)
    assert find_collapse(logits, boxes) is None
    silent = logits.index_fill(2, torch.tensor([13]), 20.0)
    assert find_collapse(silent, boxes) == 'every query says "nothing" in every image'
    assert find_collapse(logits, boxes[:, :1].expand(-1, 25, -1)) == "all queries give one and the same box"
    assert find_collapse(logits[:1].expand(4, -1, -1), boxes[:1].expand(4, -1, -1)) == "all images get the same answer"
    one = logits.index_fill(2, torch.tensor([5]), 20.0)
    assert find_collapse(one, boxes) == "all queries give one and the same class"
    assert find_collapse(one.index_fill(1, torch.tensor([0]), 0.0).index_fill(2, torch.tensor([13]), 1.0), boxes) is None  # one query says nothing


def test_a_collapse_is_named_at_the_second_evaluation():
    "Not at the first, not in the first 200 steps, and the model comes back in its mode."
    model = tiny().train()
    torch.nn.init.zeros_(model.class_labels_classifier.weight)
    model.class_labels_classifier.bias.data = torch.tensor([0.0] * 13 + [30.0])
    batch = scenes_processor()([SceneDetection(2, seed=6)[i][0] for i in range(2)], return_tensors="pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = warn_of_collapse(model, batch, None, 400)
        assert found == 'every query says "nothing" in every image' and warn_of_collapse(model, batch, found, 199) == found
    with pytest.warns(UserWarning, match='step 400: every query says "nothing" in every image, as at the evaluation before'):
        warn_of_collapse(model, batch, found, 400)
    with pytest.warns(UserWarning, match='says "nothing" in every image, at the evaluation before: all queries give one and the same box'):
        warn_of_collapse(model, batch, "all queries give one and the same box", 400)  # it went on under another name
    assert model.training


def test_rates_of_coco_on_few_images(tmp_path):
    with pytest.warns(UserWarning, match="lr=0.0001 and backbone_lr=1e-05 are the rates of COCO's recipe.*this dataset has 24"):
        warn_of_rates(RECIPES["coco"], 24)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_rates(RECIPES["coco"], 118_287)
        warn_of_rates(replace(RECIPES["coco"], lr=2e-4), 24)


def test_log_with_a_tracker_of_accelerate(tmp_path):
    "TensorBoard's file holds what the log holds, through Accelerate alone; without a tracker there is no such file."
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(tiny(), SceneDetection(24, seed=6), tmp_path / "with", SHORT, scenes_processor(), log_with="tensorboard")
    train(tiny(), SceneDetection(24, seed=6), tmp_path / "without", SHORT, scenes_processor())
    events = event_accumulator.EventAccumulator(str(tmp_path / "with" / "events"))
    events.Reload()
    rows = read_log(tmp_path / "with" / "log.csv")
    found = [(scalar.step, scalar.value) for scalar in events.Scalars("loss")]
    assert [step for step, _ in found] == [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose([value for _, value in found], [row["loss"] for row in rows], rtol=1e-4)
    assert not (tmp_path / "without" / "events").exists()


def test_what_cannot_work_leaves_nothing_behind(tmp_path):
    with pytest.raises(ValueError, match="schedule='line': want 'step' or 'cosine'"):
        train(tiny(), SceneDetection(24, seed=6), tmp_path / "run", replace(SHORT, schedule="line"), scenes_processor())
    assert not (tmp_path / "run").exists()


def test_categories_must_fit(tmp_path):
    with pytest.raises(ValueError, match="num_labels=2: want at least 13, the largest id \\+ 1"):
        train(tiny(id2label={1: "ball"}), SceneDetection(24, seed=6), tmp_path, SHORT, scenes_processor())


def test_augmentation_depends_on_the_draw_alone():
    recipe = Recipe(batch_size=2, seed=3)
    draws = TrainingImages(SceneDetection(4, seed=6), DetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 100}), recipe)
    (a, x), (b, y), (c, z) = draws[1, 5], draws[1, 5], draws[1, 6]
    assert torch.equal(a, b) and torch.equal(x["boxes"], y["boxes"])
    assert a.shape != c.shape or not torch.equal(a, c) or not torch.equal(x["boxes"], z["boxes"])


def test_every_pass_sees_every_image():
    draws = [draw for batch in StepSampler(10, 4, 0, 0, 5) for draw in batch]
    assert sorted(i for i, _ in draws[:10]) == sorted(i for i, _ in draws[10:20]) == list(range(10))
    assert [n for _, n in draws] == list(range(20))


def test_cached_images_change_nothing(tmp_path):
    "Two passes with kept images and without: the same log to the last digit; what does not fit is not kept."
    for augment in (False, "flips", True):
        recipe, logs = replace(SHORT, augment=augment, steps=4, evaluations=1, query_groups=1), []
        for cache in (0.0, 1.0):
            out = tmp_path / f"{augment} {cache}"
            train(tiny(), SceneDetection(6, seed=6), out, recipe, scenes_processor(), cache=cache)
            logs.append((out / "log.csv").read_bytes())
        assert logs[0] == logs[1]
    images = TrainingImages(SceneDetection(4, seed=6), scenes_processor(), Recipe(augment=False), cache=500_000 / 1e9)
    first = [images[i, i] for i in (0, 1, 2, 0)]
    assert sorted(images.kept) == [0, 1] and 0 <= images.room < 200_000  # an image takes 197 kB
    assert first[0][0] is first[3][0] and first[0][1] is not first[3][1]


def test_flips_alone():
    "The size stays, boxes follow, and all four ways occur; another seed, other draws."
    dataset = SceneDetection(2, seed=6)
    plain = TrainingImages(dataset, scenes_processor(), Recipe(augment=False))[0, 0]
    flipped = TrainingImages(dataset, scenes_processor(), Recipe(augment="flips"))
    ways = set()
    for number in range(24):
        image, target = flipped[0, number]
        way = next(axes for axes in ((), (1,), (2,), (1, 2)) if torch.equal(image, plain[0].flip(axes)))
        center = plain[1]["boxes"][:, :2].clone()
        for axis, column in ((2, 0), (1, 1)):
            if axis in way: center[:, column] = 1 - center[:, column]
        np.testing.assert_allclose(target["boxes"], torch.cat([center, plain[1]["boxes"][:, 2:]], 1), atol=1e-6)
        ways.add(way)
    assert len(ways) == 4


@pytest.mark.parametrize("length", [100, 103, 5])
def test_buckets_hold_what_the_passes_hold(length):
    "Every pass has every image once, on one process and on two; and images of a batch are of about one shape."
    ratios = np.random.default_rng(0).choice([0.5, 0.75, 1.0, 1.5], length).tolist()
    steps = 3 * length // 4
    whole = list(StepSampler(length, 4, 1, 0, steps, ratios=ratios))
    halves = [list(StepSampler(length, 2, 1, 0, steps, rank, 2, ratios)) for rank in range(2)]
    assert whole == [one + other for one, other in zip(*halves)]
    assert whole[9:] == list(StepSampler(length, 4, 1, 9, steps, ratios=ratios))
    draws = [index for batch in whole for index, _ in batch]
    for start in range(0, len(draws) - length + 1, length):
        assert sorted(draws[start : start + length]) == list(range(length))
    assert [number for batch in whole for _, number in batch] == list(range(4 * steps))
    if length < 50: return
    plain = list(StepSampler(length, 4, 1, 0, steps))
    kinds = [np.mean([len({ratios[i] for i, _ in batch}) for batch in batches]) for batches in (whole, plain)]
    assert kinds[0] < 1.5 < 2 < kinds[1]
    assert whole != sorted(whole, key=lambda batch: ratios[batch[0][0]])  # batches come in random order


def test_sizes_for_buckets_come_from_the_annotations():
    from detr_nb.data import CocoDetection, coco_index
    from detr_nb.runs import aspect_ratios
    dataset = CocoDetection.__new__(CocoDetection)
    entries = [{"id": 7, "width": 40, "height": 20}, {"id": 9, "width": 10, "height": 30}]
    dataset.coco = coco_index({"images": entries, "annotations": [], "categories": []})
    dataset.ids = [9, 7]
    assert aspect_ratios(dataset) == [3.0, 0.5] and aspect_ratios(SceneDetection(3, seed=0)) is None
    del dataset.coco.imgs[7]["height"]
    with pytest.raises(ValueError, match="buckets=True: image 7 has no width and height"): aspect_ratios(dataset)


def test_fewer_bits(tmp_path):
    "bfloat16 learns what float32 learns, about as well, and the weights stay in float32."
    logs = {}
    for precision in ("float32", "bfloat16"):
        recipe = replace(SHORT, precision=precision, query_groups=1)
        model = tiny()
        train(model, SceneDetection(24, seed=6), tmp_path / precision, recipe, scenes_processor())
        logs[precision] = [row["loss"] for row in read_log(tmp_path / precision / "log.csv")]
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    np.testing.assert_allclose(logs["bfloat16"], logs["float32"], rtol=0.05)
    assert logs["bfloat16"] != logs["float32"]


TWO = """
    import sys, torch, warnings
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    sys.path.insert(0, {tests!r})
    from test_training import SHORT, tiny
    from dataclasses import replace
    from detr_nb import SceneDetection
    from detr_nb.pretraining import scenes_processor
    from detr_nb.training import train
    train(tiny(), SceneDetection(24, seed=6), {out!r}, replace(SHORT, query_groups=1), scenes_processor(), val=SceneDetection(5, seed=7, split="val"))
"""


@pytest.mark.slow
def test_two_processes_give_the_loss_of_one(tmp_path):
    "`num_boxes` is averaged: two processes with half a batch each walk the same road as one with all of it."
    from pathlib import Path
    from conftest import run_processes
    run_processes(TWO.format(tests=str(Path(__file__).parent), out=str(tmp_path / "two")), tmp_path)
    train(tiny(), SceneDetection(24, seed=6), tmp_path / "one", replace(SHORT, query_groups=1), scenes_processor(), val=SceneDetection(5, seed=7, split="val"))
    a, b = (DetrForObjectDetection.from_pretrained(tmp_path / name / "model").state_dict() for name in ("one", "two"))
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=2e-5, rtol=1e-3)
    one, two = (read_log(tmp_path / name / "log.csv") for name in ("one", "two"))
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for name in ("loss", "loss_ce", "loss_bbox", "loss_giou"):
        np.testing.assert_allclose([row[name] for row in one], [row[name] for row in two], rtol=1e-3, err_msg=name)
    assert abs(one[-1]["AP"] - two[-1]["AP"]) < 1e-3


LOSS_OF_TWO = """
    import sys, torch, torch.distributed as dist
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    from conftest import random_labels
    from test_losses import random_outputs
    from detr_nb import DetrLoss, HungarianMatcher
    rank, counts = dist.get_rank(), (6, 2)
    loss = DetrLoss(HungarianMatcher(1, 5, 2), 7)
    outputs, labels = random_outputs(2, layers=1), random_labels(counts)
    mine = {{k: v[rank : rank + 1] for k, v in outputs.items()}}
    parts = loss(mine, labels[rank : rank + 1])
    Path({out!r}, f"{{rank}}.txt").write_text(" ".join(str(parts[k].item()) for k in ("loss_ce", "loss_bbox", "loss_giou")))
"""


@pytest.mark.slow
def test_num_boxes_of_two_processes(tmp_path):
    "The mean over processes, which is what gradients are averaged to, is the loss of one process."
    from pathlib import Path

    from conftest import random_labels, run_processes
    from test_losses import random_outputs

    from detr_nb import DetrLoss, HungarianMatcher
    run_processes(LOSS_OF_TWO.format(tests=str(Path(__file__).parent), out=str(tmp_path)), tmp_path)
    values = np.array([[float(x) for x in (tmp_path / f"{rank}.txt").read_text().split()] for rank in range(2)])
    assert values.shape == (2, 3)
    whole = DetrLoss(HungarianMatcher(1, 5, 2), 7)(random_outputs(2, layers=1), random_labels((6, 2)))
    np.testing.assert_allclose(values.mean(0), [whole[k].item() for k in ("loss_ce", "loss_bbox", "loss_giou")], rtol=1e-5)


@pytest.mark.slow
def test_trains_under_transformers_trainer(tmp_path):
    import transformers
    dataset, processor = SceneDetection(8, seed=6), scenes_processor()
    items = [processor(*dataset[i], return_tensors="pt") for i in range(8)]

    def collate(batch):
        return {"pixel_values": torch.cat([b.pixel_values for b in batch]), "pixel_mask": torch.cat([b.pixel_mask for b in batch]), "labels": [b.labels[0] for b in batch]}

    model = tiny()
    before = model.bbox_predictor.layers[0].weight.detach().clone()
    arguments = transformers.TrainingArguments(str(tmp_path), max_steps=3, per_device_train_batch_size=4, per_device_eval_batch_size=4, remove_unused_columns=False, report_to=[], use_cpu=True, save_strategy="no", logging_steps=1)
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=items, eval_dataset=items, data_collator=collate)
    result = trainer.train()
    assert np.isfinite(result.training_loss) and not torch.equal(before, model.bbox_predictor.layers[0].weight)
    assert np.isfinite(trainer.evaluate()["eval_loss"])


def test_supervision_takes_the_results():
    import supervision
    dataset = SceneDetection(1, seed=6)
    model, processor = DetrForObjectDetection.from_pretrained("scenes"), DetrImageProcessor.from_pretrained("scenes")
    inputs = processor(dataset[0][0], return_tensors="pt")
    with torch.inference_mode():
        results = processor.post_process_object_detection(model(**inputs), threshold=0.3, target_sizes=[(128, 128)])[0]
    detections = supervision.Detections.from_transformers(results, id2label=model.config.id2label)
    assert len(detections) == len(results["scores"]) > 0 and detections.xyxy.shape[1] == 4


def test_average_of_the_weights(tmp_path):
    "With EMA the saved weights lie between the first and the last ones."
    states = {}
    for ema in (0.0, 0.5):
        train(tiny(), SceneDetection(24, seed=6), tmp_path / str(ema), replace(SHORT, steps=3, evaluations=1, ema=ema), scenes_processor())
        states[ema] = DetrForObjectDetection.from_pretrained(tmp_path / str(ema) / "model").state_dict()
    name = "bbox_predictor.layers.0.weight"
    first, last, average = tiny().state_dict()[name], states[0.0][name], states[0.5][name]
    assert 0 < (average - first).norm() < (last - first).norm()


def test_gradient_is_clipped(monkeypatch, tmp_path):
    import accelerate
    limits = []
    real = accelerate.Accelerator.clip_grad_norm_
    monkeypatch.setattr(accelerate.Accelerator, "clip_grad_norm_", lambda self, p, limit: limits.append(limit) or real(self, p, limit))
    train(tiny(), SceneDetection(24, seed=6), tmp_path, replace(SHORT, steps=1, evaluations=1), scenes_processor())
    assert limits == [0.1]


def test_crop_cuts_boxes_and_areas():
    from detr_nb.transforms import crop
    target = {
        "boxes": torch.tensor([[10.0, 10, 50, 50], [70, 70, 90, 90]]), "class_labels": torch.tensor([1, 2]),
        "iscrowd": torch.zeros(2, dtype=torch.int64), "area": torch.tensor([5.0, 5]),
    }
    image, kept = crop(torch.zeros(3, 100, 100), target, top=20, left=30, height=40, width=40)
    assert image.shape == (3, 40, 40) and kept["boxes"].tolist() == [[0, 0, 20, 30]]
    assert kept["class_labels"].tolist() == [1] and kept["area"].tolist() == [600]


def test_query_groups_are_not_kept(tmp_path):
    train(tiny(), SceneDetection(24, seed=6), tmp_path, replace(SHORT, steps=1, evaluations=1), scenes_processor())
    model = DetrForObjectDetection.from_pretrained(tmp_path / "model")
    assert model.model.query_position_embeddings.weight.shape == (25, 128)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["num_queries"] == 25


@pytest.mark.parametrize("name", BY_HEART)
def test_stored_losses_of_learning_by_heart(name):
    "The first steps again; to 1 %, for other processors add in another order."
    stored = [row["loss"] for row in experiment("by_heart") if row["run"] == name]
    torch.set_num_threads(1)
    _, losses = learn_by_heart(**BY_HEART[name] | {"steps": 3})
    assert len(stored) == 100
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(stored[:3]), rtol=0.01, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("beginning", ["pretrained", "frozen", "random", "normalised"])
def test_stored_beginnings(beginning):
    "The first five steps from each of the four backbones again, to 1 %."
    stored = [row for row in experiment("beginnings") if row["beginning"] == beginning and row["seed"] == 0]
    assert [row["step"] for row in stored] == [1, 5, *range(250, 2001, 250)]
    torch.set_num_threads(1)
    again = compare_beginnings(beginning, stop=5)
    np.testing.assert_allclose([row["loss"] for row in again], [row["loss"] for row in stored[:2]], rtol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("trial", [{"count": 20}, {"start": "random head"}, {"start": "nothing"}, {"least": 0.1}], ids=str)
def test_stored_coins(trial, tmp_path):
    "The first step of a training on the photograph of coins again, to 1 %."
    pytest.importorskip("skimage")
    usual = {"count": 160, "start": "checkpoint", "seed": 0, "least": 0.4, "steps": 70}
    stored = [row for row in experiment("coins") if all(row[key] == value for key, value in (usual | trial).items())]
    torch.set_num_threads(1)
    again = compare_coins(tmp_path, **trial, stop=1)
    assert len(stored) == 1 and again["loss"] == pytest.approx(stored[0]["loss"], rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("run", ["as it is", "all queries alike", "grey", "black", "x and y exchanged"])
def test_stored_broken_detectors(run, experiments):
    "The first two steps with two images by heart again, to 1 %."
    stored = [row for row in experiment("broken") if row["run"] == run and row["images"] == 2]
    assert [row["step"] for row in stored] == [*range(0, 101, 2)]
    torch.set_num_threads(1)
    again, _ = experiments.learn_broken(run, 2, steps=2)
    for key, rel in {"loss": 0.01, "apart": 0.1, "nothing": 0.02, "tokens": 0.02}.items():
        assert [row[key] for row in again] == pytest.approx([row[key] for row in stored[:2]], rel=rel, abs=1e-6), key


def test_experiments_refuse_what_they_do_not_know(tmp_path):
    "A misspelt beginning or fault would silently be the usual run."
    with pytest.raises(ValueError, match="start='checkpiont': want"): compare_coins(tmp_path, start="checkpiont")
    with pytest.raises(ValueError, match="beginning='fresh': want"): compare_beginnings("fresh", stop=1)
    with pytest.raises(ValueError, match="fault='corner': want"): learn_by_heart(steps=1, fault="corner")


@pytest.fixture
def experiments(monkeypatch):
    "The file that makes the logs again; it needs the photographs of scikit-image."
    pytest.importorskip("skimage")
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "tools")
    return importlib.import_module("make_experiments")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["many sizes", "128 pixels"])
def test_stored_sizes(name, tmp_path, experiments):
    "The first step of the training on images of one size or of many again, to 1 %."
    stored = {row["loss"] for row in experiment("sizes") if row["run"] == name}
    torch.set_num_threads(1)
    assert experiments.learn_sizes(name, tmp_path / "run", stop=1)[1] == pytest.approx(stored.pop(), rel=0.01) and not stored


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mean of all", "its own", "boxes by the sum"])
def test_stored_divisors(name, tmp_path, experiments):
    "The first step of the trainings with right and wrong divisors again, to 1 %."
    stored, = (row["loss"] for row in experiment("divisors") if row["divisor"] == name and row["seed"] == 0)
    torch.set_num_threads(1)
    assert experiments.learn_with_divisor(name, 0, tmp_path / "run", stop=1)[1] == pytest.approx(stored, rel=0.01)


@pytest.mark.slow
def test_stored_turned(tmp_path, experiments):
    "The first step of the training on turned scenes again, to 1 %; and what the model was before."
    stored = experiment("turned")
    (loss,) = {row["loss"] for row in stored if row["run"] == "turned"}
    torch.set_num_threads(1)
    assert experiments.learn_turned(tmp_path / "run", stop=1)[1] == pytest.approx(loss, rel=0.01)
    ap, sure = experiments.judge_turned(DetrForObjectDetection.from_pretrained("scenes").eval(), 1)
    before = next(row for row in stored if row["run"] == "as it was" and row["quarters"] == 1)
    assert ap == pytest.approx(before["AP"], abs=0.005) and abs(sure - before["sure"]) <= 2


@pytest.mark.slow
def test_stored_mask_losses(experiments):
    "The first 50 steps of a mask head that learns from dice again, to 0.02 of IoU, and what it draws."
    stored = [row for row in experiment("mask_losses") if row["loss"] == "dice" and row["seed"] == 0]
    assert [row["step"] for row in stored] == [*range(0, 601, 50)]
    torch.set_num_threads(1)
    scenes = experiments.known_scenes(200, 1, "train"), experiments.known_scenes(40, 0, "val")
    pictures = []
    again = experiments.learn_mask_head("dice", 0, *scenes, steps=50, pictures=pictures)
    assert again[1]["iou"] > again[0]["iou"] + 0.1
    for key in ("iou", "small", "empty"):
        assert [row[key] for row in again] == pytest.approx([row[key] for row in stored[:2]], abs=0.02), key
    drawn = {row["step"]: row["mask"] for row in experiment("mask_pictures") if row["loss"] == "dice"}
    for row in pictures:  # a letter is a tenth: each pixel to one of them
        assert len(row["mask"]) == 14 * 14
        assert max(abs(ord(a) - ord(b)) for a, b in zip(row["mask"], drawn[row["step"]], strict=True)) <= 1


def test_batches_and_random_numbers_follow_from_the_step():
    "A run that begins at step 3 has the batches and the random numbers of one in a piece from there on."
    recipe, accelerator = replace(SHORT, batch_size=4, accumulate=2, seed=5), make_accelerator(4, 2)

    def drawn(start, last):
        state = TrainState(tiny(), recipe, steps=6)
        state.step, found = start, []
        for parts in load_batches(state, last, SceneDetection(10, seed=2), scenes_processor(), accelerator):
            found.append(([[int(t["image_id"]) for t in part.labels] for part in parts], float(torch.rand(()))))
        return found

    whole = drawn(0, 6)
    assert len(whole) == 6 and all([len(part) for part in parts] == [2, 2] for parts, _ in whole)
    assert drawn(3, 6) == whole[3:] and drawn(0, 2) == whole[:2]
    assert len({number for _, number in whole}) == 6


def test_evaluations_are_evenly_spaced_and_the_last_step_is_one():
    assert evaluation_steps(replace(SHORT, evaluations=3), 10) == {3, 7, 10}
    assert evaluation_steps(replace(SHORT, evaluations=30), 4) == {0, 1, 2, 3, 4}


def test_report_keeps_the_best_model_apart(tmp_path, monkeypatch, capsys):
    values = iter([0.2, 0.4, 0.3])
    monkeypatch.setattr("detr_nb.training.metrics", lambda *a: {"AP": next(values)})
    state, accelerator, seen = TrainState(tiny(), replace(SHORT, patience=2), steps=6), make_accelerator(SHORT.batch_size), []
    report = RunReport(
        state, tmp_path, scenes_processor(), SceneDetection(1, seed=0), accelerator, callback=lambda step, _: seen.append(step)
    )
    kept = []
    for step in (1, 2, 3):
        state.step = step
        state.note({"loss": torch.tensor(float(step))})
        assert report.write(1e-4, evaluate=True) == step
        assert step > 1 or not (tmp_path / "best").exists()  # it is written after the checkpoint
        report.keep_best()
        kept.append((tmp_path / "best" / "model.safetensors").stat().st_mtime_ns)
    assert kept[0] < kept[1] == kept[2] and (state.best, state.since, state.out_of_patience) == (0.4, 1, False)
    assert [row["AP"] for row in read_log(tmp_path / "log.csv")] == [0.2, 0.4, 0.3] and seen == [0]
    state.take_note(0.4)
    assert state.out_of_patience
