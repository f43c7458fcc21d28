"Faults that raise no error and only make a model worse. `tools/mutations.py` puts each in: a test here must see it."
import copy
import json
import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SMALL, draw_weights, padded_batch, random_labels
from PIL import Image
from safetensors.torch import load_file

from detr_nb.checkpoints import load_weights, to_hub_layout
from detr_nb.config import DetrConfig
from detr_nb.data import (
    CocoDetection, SceneDetection, annotation_mask, coco_index, detection_target,
)
from detr_nb.detector import DetrForObjectDetection
from detr_nb.files import read_image, read_log
from detr_nb.datasets import open_split, read_table, write_coco
from detr_nb.own_data import init_class_head, read_stuff_ids, start_training
from detr_nb.position import LearnedPositionEmbedding
from detr_nb.pretraining import scenes_config, scenes_processor
from detr_nb.processor import BatchFeature, DetrImageProcessor
from detr_nb.runs import StepSampler
from detr_nb.training import (
    Recipe, TrainState, TrainingImages, as_learner, count_steps, make_accelerator,
    make_optimizer, mean_numbers, train, train_step,
)
from detr_nb.transforms import crop, flip, random_scale, resize
from detr_nb.visualization import class_colour


def detector(**changes):
    "A small detector without dropout, in training mode, its weights drawn."
    return draw_weights(DetrForObjectDetection(DetrConfig(**SMALL | {"dropout": 0.0} | changes))).train()


def same(actual, wanted, dtype=None):
    "Shape and dtype first, then every number."
    wanted = torch.as_tensor(wanted, dtype=dtype or actual.dtype)
    assert actual.shape == wanted.shape
    assert actual.dtype == wanted.dtype
    assert actual.tolist() == wanted.tolist()


# -- training: groups of queries


def test_every_earlier_layer_predicts_from_its_own_states():
    model = detector(auxiliary_loss=True)
    pixels, mask = padded_batch()
    with torch.no_grad():
        outputs = model(pixels, mask, labels=random_labels((3, 5)))
        states = model.model(pixels, mask).intermediate_hidden_states
    assert len(outputs.auxiliary_outputs) == len(states) - 1 == 2
    for layer, auxiliary in enumerate(outputs.auxiliary_outputs):
        torch.testing.assert_close(auxiliary["logits"], model.class_labels_classifier(states[layer]), rtol=1e-5, atol=1e-5)
    assert (outputs.auxiliary_outputs[0]["logits"] - outputs.auxiliary_outputs[1]["logits"]).abs().max() > 0.01


def test_groups_of_queries_are_detectors_side_by_side():
    "Two groups have the mean of the losses that two detectors have, each with the queries of one group (Group DETR)."
    torch.manual_seed(0)
    model = detector(auxiliary_loss=True)
    learner = as_learner(model, Recipe(query_groups=2))
    own = {id(p) for p in model.parameters()}
    first = model.model.query_position_embeddings.weight.detach()
    extra = [p.detach().view(first.shape) for p in learner.parameters() if id(p) not in own]
    assert len(extra) == 1
    for queries in (first, *extra):
        queries.mul_(4)  # so that it matters who looks at whom
    pixels, mask = padded_batch()
    labels = random_labels((3, 5))
    loss, parts = learner(pixels, mask, labels)
    assert loss.shape == () and loss.dtype == torch.float32
    alone = []
    for queries in (first, *extra):
        single = copy.deepcopy(model)
        with torch.no_grad():
            single.model.query_position_embeddings.weight.copy_(queries)
            alone.append(single(pixels, mask, labels=labels))
    assert abs(alone[0].loss - alone[1].loss) > 0.01  # the groups do differ
    torch.testing.assert_close(loss.detach(), (alone[0].loss + alone[1].loss) / 2, rtol=1e-5, atol=0)
    names = [name for name in parts if "cardinality" not in name]
    assert len(names) == 9  # class, distance and overlap of three layers
    for name in names:
        wanted = (alone[0].loss_dict[name] + alone[1].loss_dict[name]) / 2
        torch.testing.assert_close(parts[name].detach(), wanted, rtol=1e-5, atol=0, msg=name)


# -- training: optimizer and schedule


def rates(recipe, steps):
    "The rates of every step: of the backbone, and of everything else."
    learner = as_learner(detector(), recipe)
    optimizer, schedule = make_optimizer(learner, recipe, steps)
    of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(of)
    assert set(of) == {id(p) for p in learner.parameters() if p.requires_grad}
    backbone = [of[id(p)] for n, p in learner.named_parameters() if "conv_encoder" in n and p.requires_grad]
    rest = [of[id(p)] for n, p in learner.named_parameters() if "conv_encoder" not in n]
    assert len(backbone) > 5 and len(rest) > 20
    found = []
    for _ in range(steps):
        found.append([{group["lr"] for group in groups} for groups in (backbone, rest)])
        optimizer.step()
        schedule.step()
    assert all(len(kind) == 1 for step in found for kind in step)
    return np.array([[kind.pop() for kind in step] for step in found])


def test_rates_of_the_paper():
    "1e-4, the backbone's 1e-5, and a tenth of both after two thirds of it (paper, section 4: after 200 of 300 epochs)."
    wanted = np.array([[1e-5, 1e-4]] * 6 + [[1e-6, 1e-5]] * 3)
    np.testing.assert_allclose(rates(Recipe(), 9), wanted, rtol=1e-9)


def test_cosine_after_warming_up():
    "Two steps of warming up, a half and a whole; after them torch's own cosine, which ends at 0."
    recipe = Recipe(lr=0.5, backbone_lr=0.25, schedule="cosine", warmup=0.2)
    plain = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(plain, T_max=10)
    factors = []
    for _ in range(10):
        factors.append(plain.param_groups[0]["lr"])
        plain.step()
        cosine.step()
    factors[:2] = 0.5, 1.0
    np.testing.assert_allclose(rates(recipe, 10), np.outer(factors, [0.25, 0.5]), rtol=1e-6)


def test_weights_decay():
    "Without a gradient AdamW makes a weight smaller by rate × decay, in the backbone by that of its own rate."
    recipe = Recipe(lr=0.1, backbone_lr=0.01, weight_decay=0.5)
    learner = as_learner(detector(), recipe)
    optimizer, _ = make_optimizer(learner, recipe, 10)
    learned = {n: p for n, p in learner.named_parameters() if p.requires_grad}
    before = {n: p.detach().clone() for n, p in learned.items()}
    for parameter in learned.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in learned.items():
        factor = 1 - 0.5 * (0.01 if "conv_encoder" in name else 0.1)
        torch.testing.assert_close(parameter.detach(), before[name] * factor, rtol=1e-6, atol=0, msg=name)


# -- training: a step


def begin(recipe, model):
    "A state, a batch, and what takes a step with them. Returns the gradient's norm as it is logged."
    accelerator = make_accelerator(recipe.batch_size)
    state = TrainState(model, recipe, 10, accelerator.device)
    learner, optimizer = accelerator.prepare(state.learner, state.optimizer)
    pixels, mask = padded_batch()
    batch = BatchFeature({"pixel_values": pixels, "pixel_mask": mask, "labels": random_labels((3, 5))})
    batch = batch.to(accelerator.device)
    return state, batch, lambda: train_step(state, learner, optimizer, batch, accelerator)


def gradient_norm(model):
    return math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None))


def test_gradient_of_all_weights_is_clipped_together():
    "The norm that is logged is plain torch's; what is left of it is 0.1, backbone and other groups' queries included."
    model = detector()
    state, batch, step = begin(Recipe(query_groups=2), model)
    plain = copy.deepcopy(state.learner)
    plain(batch.pixel_values, batch.pixel_mask, batch.labels)[0].backward()
    norm = step()["grad_norm"]
    assert norm > 1
    torch.testing.assert_close(float(norm), gradient_norm(plain), rtol=1e-4, atol=0)
    torch.testing.assert_close(gradient_norm(state.learner), 0.1, rtol=1e-4, atol=0)


def test_steps_do_not_share_a_gradient():
    "At a rate of 0 the second step sees what the first saw: the same gradient, not the sum of both."
    _, _, step = begin(Recipe(lr=1e-12, backbone_lr=0.0), detector())
    first, second = step(), step()
    torch.testing.assert_close(second["loss"], first["loss"], rtol=1e-5, atol=0)
    torch.testing.assert_close(second["grad_norm"], first["grad_norm"], rtol=1e-4, atol=0)


def test_average_follows_the_new_weights():
    "After the first step the average is the new weights; after the second 0.9 of these and 0.1 of the newest."
    model = detector()
    state, _, step = begin(Recipe(lr=0.01, backbone_lr=0.01, ema=0.9, ema_warmup=False), model)
    weights = []
    for _ in range(2):
        step()
        weights.append({n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad})
        wanted = weights[0] if len(weights) == 1 else {n: 0.9 * weights[0][n] + 0.1 * weights[1][n] for n in weights[0]}
        average = dict(state.eval_model.named_parameters())
        for name, value in wanted.items():
            torch.testing.assert_close(average[name].detach(), value, rtol=0, atol=1e-6, msg=name)
    moved = max(float((weights[1][n] - weights[0][n]).abs().max()) for n in weights[0])
    assert moved > 1e-3  # 0.1 of it is far above the tolerance


def test_numbers_of_a_row_are_means():
    state = TrainState(DetrForObjectDetection(scenes_config(encoder_layers=1, decoder_layers=1, use_pretrained_backbone=False)), Recipe(steps=5), 5)
    for a in (1.0, 2.0, 6.0): state.note({"a": torch.tensor(a), "b": torch.tensor(5.0)})
    assert mean_numbers(state, make_accelerator(2)) == {"a": 3.0, "b": 5.0}
    assert (state.sums, state.count) == ({}, 0)


def test_training_trains_and_stops_where_the_recipe_says(tmp_path):
    "Dropout is on in every step; the last step before the stop is logged and saved, though no evaluation falls on it."
    model = DetrForObjectDetection(scenes_config(encoder_layers=1, decoder_layers=1, use_pretrained_backbone=False))
    modes = []
    model.model.encoder.register_forward_hook(lambda module, *_: modes.append(module.training))
    recipe = Recipe(steps=6, stop=2, batch_size=2, evaluations=1, augment=False)
    saved = train(model, SceneDetection(4, seed=6), tmp_path, recipe, scenes_processor())
    assert modes == [True, True]
    assert [row["step"] for row in read_log(tmp_path / "log.csv")] == [1, 2]
    again = load_file(saved / "model.safetensors")
    name = "class_labels_classifier.weight"
    assert torch.equal(again[name], model.state_dict()[name].cpu())


# -- training: what a step sees


def test_an_epoch_is_a_whole_one():
    "COCO's 118 287 images, 16 at a time, 300 times; and three batches of four for ten images."
    assert count_steps(Recipe(), 118_287) == 2_217_882
    assert count_steps(Recipe(epochs=1, batch_size=4), 10) == 3


def test_two_processes_share_what_one_would_take():
    "The batches of two processes are together that of one, with nothing twice; later steps do not need earlier ones."
    one = list(StepSampler(10, 4, seed=1, start=0, stop=5))
    two = [list(StepSampler(10, 2, seed=1, start=0, stop=5, rank=rank, world=2)) for rank in range(2)]
    assert [len(batch) for batch in one] == [4] * 5
    assert [a + b for a, b in zip(*two)] == one
    assert list(StepSampler(10, 2, seed=1, start=3, stop=5, rank=1, world=2)) == two[1][3:]


def test_every_pass_has_an_order_of_its_own():
    "Of 20 images in three passes, and with another seed: all four orders differ."
    draws = [index for batch in StepSampler(20, 4, seed=1, start=0, stop=15) for index, _ in batch]
    other = [index for batch in StepSampler(20, 4, seed=2000, start=0, stop=5) for index, _ in batch]
    orders = {tuple(draws[:20]), tuple(draws[20:40]), tuple(draws[40:]), tuple(other)}
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert len(orders) == 4


def test_augmented_images_have_the_sizes_of_their_processor():
    "480 … 800 pixels for a processor of 800 are 38 … 64 for one of 64, in steps of 32 · 64 / 800."
    processor = DetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 70})
    draws = TrainingImages(SceneDetection(2, seed=6), processor, Recipe(seed=3))
    edges, longest = set(), []
    for number in range(40):
        pixels, target = draws[number % 2, number]
        assert pixels.dim() == 3 and pixels.dtype == torch.float32
        longest.append(max(pixels.shape[1:]))
        if longest[-1] < 69: edges.add(min(pixels.shape[1:]))
    assert edges <= {round(edge * 64 / 800) for edge in range(480, 801, 32)} and len(edges) > 5
    assert max(longest) == 70 and longest.count(70) > 1


def test_young_average_forgets():
    "With a warm-up the second step counts (1 + 1) / (10 + 1) of what was there, though the decay is 0.9."
    model = detector()
    state, _, step = begin(Recipe(lr=0.01, backbone_lr=0.01, ema=0.9), model)
    weights = []
    for _ in range(2):
        step()
        weights.append({n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad})
    average = dict(state.eval_model.named_parameters())
    for name in weights[0]:
        wanted = 2 / 11 * weights[0][name] + 9 / 11 * weights[1][name]
        torch.testing.assert_close(average[name].detach(), wanted, rtol=0, atol=1e-6, msg=name)


def test_augmentation_depends_on_the_seed():
    processor = DetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 100})
    first, second = (TrainingImages(SceneDetection(2, seed=6), processor, Recipe(seed=seed)) for seed in (3, 4))
    pairs = [(first[0, number][0], second[0, number][0]) for number in range(4)]
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in pairs)


def test_crowds_of_segments_are_left_out(tmp_path):
    "A image in three stripes: a thing, a crowd, a stuff. The crowd's box and mask are not among what is learned."
    ids = np.repeat(np.array([5, 6, 7], np.uint8), 4)[None].repeat(8, 0)  # (8, 12)
    Image.fromarray(np.stack([ids, 0 * ids, 0 * ids], -1)).save(tmp_path / "a.png")
    segments = [
        {"id": 5 + i, "category_id": 1 + i, "iscrowd": int(i == 1), "area": 32, "bbox": [4 * i, 0, 4, 8]}
        for i in range(3)
    ]
    entry = {"image_id": 3, "file_name": "a.png", "segments_info": segments, "masks_path": tmp_path}
    processor = DetrImageProcessor(do_resize=False)
    pixels, target = TrainingImages([(Image.new("RGB", (12, 8)), entry)], processor, Recipe(augment=False), masks=True)[0, 0]
    assert pixels.shape == (3, 8, 12)
    same(target["class_labels"], [1, 3], torch.int64)
    same(target["boxes"], [[1 / 6, 0.5, 1 / 3, 1], [5 / 6, 0.5, 1 / 3, 1]], torch.float32)
    assert target["masks"].shape == (2, 8, 12)
    assert target["masks"].bool()[:, 0].int().tolist() == [[1] * 4 + [0] * 8, [0] * 8 + [1] * 4]


# -- data: a image and its target change together


def rectangle(height, width, x0, y0, x1, y1):
    "A mask (H, W) that is True in a rectangle."
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[y0:y1, x0:x1] = True
    return mask


def places(height, width):
    "A image (3, H, W) that says where each pixel came from: column, row, 0."
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([columns, rows, 0 * rows]).float()


def target_of(height, width, *boxes):
    "A target whose masks are the rectangles of its boxes."
    masks = torch.stack([rectangle(height, width, *box) for box in boxes])
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32), "class_labels": torch.arange(1, len(boxes) + 1),
        "iscrowd": torch.zeros(len(boxes), dtype=torch.int64), "area": masks.flatten(1).sum(1).float(), "masks": masks,
    }


def test_flip_turns_image_boxes_and_masks():
    "A image of 6 × 10: columns 1 … 3 become 7 … 9, and what was in column 1 stands in column 8."
    image, target = flip(places(6, 10), target_of(6, 10, (1, 2, 3, 5), (0, 0, 10, 1)))
    same(image[0, 0], list(range(9, -1, -1)), torch.float32)
    same(target["boxes"], [[7, 2, 9, 5], [0, 0, 10, 1]], torch.float32)
    same(target["masks"], torch.stack([rectangle(6, 10, 7, 2, 9, 5), rectangle(6, 10, 0, 0, 10, 1)]))
    same(target["area"], [6, 10], torch.float32)


def test_crop_cuts_rows_as_rows():
    "Ten rows from row 5, thirty columns from column 20, of a image of 40 × 60."
    whole = target_of(40, 60, (25, 8, 45, 12), (0, 0, 10, 40), (40, 10, 60, 40))
    image, target = crop(places(40, 60), whole, top=5, left=20, height=10, width=30)
    assert image.shape == (3, 10, 30)
    assert image[:, 0, 0].tolist() == [20, 5, 0] and image[:, -1, -1].tolist() == [49, 14, 0]
    same(target["boxes"], [[5, 3, 25, 7], [20, 5, 30, 10]], torch.float32)
    same(target["masks"], torch.stack([rectangle(10, 30, 5, 3, 25, 7), rectangle(10, 30, 20, 5, 30, 10)]))
    same(target["class_labels"], [1, 3], torch.int64)
    same(target["area"], [80, 50], torch.float32)


def test_resize_scales_each_axis_by_its_own_ratio():
    "Twice as high and three times as wide: an area is six times as large, and a mask still fills its box."
    image, target = resize(places(4, 5), (8, 15), target_of(4, 5, (1, 1, 3, 4)))
    assert image.shape == (3, 8, 15) and image.dtype == torch.float32
    same(target["boxes"], [[3, 2, 9, 8]], torch.float32)
    same(target["area"], [36], torch.float32)
    same(target["masks"], rectangle(8, 15, 3, 2, 9, 8)[None])


def test_masks_are_resized_by_the_centres_of_pixels():
    "Sizes that do not divide each other: each pixel is that of the nearest centre, as Pillow takes it."
    masks = torch.rand(3, 11, 13, generator=torch.Generator().manual_seed(0)) < 0.5  # odd: no centre falls between two
    target = target_of(11, 13, (0, 0, 13, 11)) | {"masks": masks}
    images = [Image.fromarray(mask.numpy()) for mask in masks]
    for height, width in ((7, 5), (16, 33)):
        found = resize(places(11, 13), (height, width), target)[1]["masks"]
        wanted = [np.asarray(image.resize((width, height), Image.Resampling.NEAREST)) for image in images]
        same(found, torch.from_numpy(np.stack(wanted)))


@pytest.fixture(scope="module")
def augmented():
    """How 120 draws see a image of 300 × 400 whose colour says place, 0 … 1 across and down, and whose object is its
    left half. Every row is as the first and every column as the first, so these two are kept."""
    image, target = places(300, 400), target_of(300, 400, (0, 0, 200, 300))
    image = torch.stack([image[0] / 399, image[1] / 299, image[2]])
    draws = []
    for number in range(120):
        seen, changed = random_scale(image, target, random.Random(number))
        assert seen.dtype == torch.float32 and seen.shape[0] == 3
        assert changed["masks"].dtype == torch.bool and changed["masks"].shape[1:] == seen.shape[1:]
        assert changed["boxes"].dtype == torch.float32 and changed["boxes"].shape == (len(changed["masks"]), 4)
        assert torch.equal(changed["masks"], changed["masks"][:, :1].expand_as(changed["masks"]))
        across, down, columns = seen[0, 0].clone(), seen[1, :, 0].clone(), changed["masks"][:, 0].clone()
        share = float((across.max() - across.min()) * (down.max() - down.min()))
        draws.append(SimpleNamespace(
            size=tuple(seen.shape[1:]), across=across, down=down, boxes=changed["boxes"], area=changed["area"],
            columns=columns, flipped=bool(across[0] > across[-1]), cropped=share < 0.97,  # as nearly every crop is
        ))
    return draws


def test_augmentation_takes_the_originals_sizes(augmented):
    "The shorter edge is one of 480, 512 … 800, and in 120 draws each of the eleven comes."
    assert {min(draw.size) for draw in augmented} == set(range(480, 801, 32))


def test_augmentation_flips_and_crops_every_other_image(augmented):
    "Both happen with probability 1/2: in 120 draws 40 … 80 times each, independently (10 … 50 times both)."
    assert 40 <= sum(draw.flipped for draw in augmented) <= 80
    assert 40 <= sum(draw.cropped for draw in augmented) <= 80
    assert 10 <= sum(draw.flipped and draw.cropped for draw in augmented) <= 50


def test_crops_lie_anywhere_and_are_not_small(augmented):
    "Both sides are 384 … 600, so none is longer than 1.57 of the other; some crops touch neither top, left nor right."
    crops = [draw for draw in augmented if draw.cropped]
    assert max(max(draw.size) / min(draw.size) for draw in crops) < 600 / 384 + 0.01
    assert sum(float(draw.down.min()) > 0.05 for draw in crops) >= 5
    assert sum(float(draw.down.max()) < 0.95 for draw in crops) >= 5
    assert sum(float(draw.across.min()) > 0.05 and float(draw.across.max()) < 0.95 for draw in crops) >= 5


def test_augmented_boxes_stay_on_what_they_enclose(augmented):
    "Box and mask cover what is left of the picture's left half, whose colour is below 0.5: to two pixels."
    halves = 0
    for draw in augmented:
        seen = (draw.across < 0.5).nonzero()[:, 0]
        if len(seen) < 5: continue  # next to nothing is left
        halves += 1
        assert draw.boxes.shape == (1, 4)
        wanted = torch.tensor([float(seen[0]), 0, float(seen[-1]) + 1, draw.size[0]])
        torch.testing.assert_close(draw.boxes[0], wanted, rtol=0, atol=2)
        assert (draw.columns[0] != (draw.across < 0.5)).sum() <= 2
        torch.testing.assert_close(draw.area[0], (draw.boxes[0, 2:] - draw.boxes[0, :2]).prod(), rtol=1e-5, atol=0)
    assert halves > 100


def test_augmentation_keeps_the_longest_edge():
    "A long image of 100 × 400 would become up to 3200 pixels wide: no more than 333 are allowed."
    image, target = places(100, 400), target_of(100, 400, (0, 0, 9, 9))
    shapes = [random_scale(image, target, random.Random(number), 333)[0].shape for number in range(12)]
    assert all(len(shape) == 3 for shape in shapes)
    assert max(max(shape) for shape in shapes) in (332, 333)


# -- data: what files say


def test_area_of_an_annotation_is_its_own():
    "An area is its mask's, less than its box's, and decides what counts as small: only what is lacking is filled in."
    own = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 5], "area": 7.0, "iscrowd": 1}
    bare = {"id": 2, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 5]}
    image, category = {"id": 1, "file_name": "a.png", "width": 9, "height": 9}, {"id": 1, "name": "cup"}
    index = coco_index({"images": [image], "categories": [category], "annotations": [own, bare]})
    assert [(index.anns[i]["area"], index.anns[i]["iscrowd"]) for i in (1, 2)] == [(7.0, 1), (20, 0)]


def test_sixteen_bits_become_eight(tmp_path):
    "65535 is white, 0 black, and 257 one step: the colours of eight bits, each repeated in both bytes."
    Image.fromarray(np.array([[0, 257, 128 * 257, 65535]], np.uint16)).save(tmp_path / "a.png")
    found = read_image(tmp_path / "a.png")
    assert found.mode == "RGB" and found.size == (4, 1)
    assert np.asarray(found)[0].tolist() == [[0] * 3, [1] * 3, [128] * 3, [255] * 3]


def test_an_object_of_two_polygons_is_both():
    polygons = [[1, 1, 4, 1, 4, 3, 1, 3], [6, 2, 9, 2, 9, 6, 6, 6]]
    mask = annotation_mask({"id": 1, "segmentation": polygons}, 8, 10, 1)
    same(mask, rectangle(8, 10, 1, 1, 4, 3) | rectangle(8, 10, 6, 2, 9, 6))


# -- own data


TABLE = """file,label,x0,y0,x1,y1
b.png,mug,2,3,12,9
a.png,,,,,
b.png,pot,0,1,30,18.5
c.png,mug,5,6,7,10
"""


@pytest.fixture
def own_folder(tmp_path):
    "Three images, a table of boxes, and the annotation file that is written from them."
    (tmp_path / "train").mkdir()
    for name, size in {"a.png": (8, 9), "b.png": (40, 20), "c.png": (10, 30)}.items():
        Image.new("RGB", size).save(tmp_path / "train" / name)
    (tmp_path / "table.csv").write_text(TABLE, encoding="utf-8")
    write_coco(tmp_path, "train", read_table(tmp_path / "table.csv"), ["pot", "mug"])
    return tmp_path


def test_table_is_written_as_coco_has_it(own_folder):
    "Ids from 1, boxes as x, y, width and height, images without objects too."
    found = json.loads((own_folder / "annotations" / "instances_train.json").read_text())
    images = [("b.png", 40, 20), ("a.png", 8, 9), ("c.png", 10, 30)]
    boxes = [(1, 2, [2, 3, 10, 6], 60), (1, 1, [0, 1, 30, 17.5], 525), (3, 2, [5, 6, 2, 4], 8)]
    assert found == {
        "images": [
            {"id": i + 1, "file_name": name, "width": width, "height": height}
            for i, (name, width, height) in enumerate(images)
        ],
        "annotations": [
            {"id": i + 1, "image_id": image, "category_id": category, "bbox": box, "area": area, "iscrowd": 0}
            for i, (image, category, box, area) in enumerate(boxes)
        ],
        "categories": [{"id": 1, "name": "pot"}, {"id": 2, "name": "mug"}],
    }


def test_table_comes_back_as_boxes(own_folder):
    "The corners and names of the table are those that a model learns from."
    dataset = open_split(own_folder, "train")
    assert isinstance(dataset, CocoDetection) and len(dataset) == 3
    found = {}
    for image, target in dataset:
        tensors = detection_target(target, image.height, image.width)
        assert tensors["boxes"].dtype == torch.float32 and tensors["boxes"].shape[1:] == (4,)
        names = [dataset.id2label[i] for i in tensors["class_labels"].tolist()]
        found[image.size] = list(zip(names, tensors["boxes"].tolist()))
    assert found[8, 9] == []
    assert found[40, 20] == [("mug", [2, 3, 12, 9]), ("pot", [0, 1, 30, 18.5])]
    assert found[10, 30] == [("mug", [5, 6, 7, 10])]


def test_folders_of_coco_are_found(own_folder):
    "COCO calls its images train2017 and keeps the PNGs of segments among the annotations."
    (own_folder / "train").rename(own_folder / "train2017")
    annotations = own_folder / "annotations"
    (annotations / "instances_train.json").rename(annotations / "instances_train2017.json")
    assert len(open_split(own_folder, "train")) == 3
    data = json.loads((annotations / "instances_train2017.json").read_text())
    entry = {"image_id": 1, "file_name": "b.png", "segments_info": [{"id": 1, "category_id": 1}]}
    categories = [c | {"isthing": 1} for c in data["categories"]]
    panoptic = {"images": data["images"][:1], "annotations": [entry], "categories": categories}
    (annotations / "panoptic_train2017.json").write_text(json.dumps(panoptic))
    (annotations / "panoptic_train2017").mkdir()
    Image.new("RGB", (40, 20), (1, 0, 0)).save(annotations / "panoptic_train2017" / "b.png")
    found = open_split(own_folder, "train", panoptic=True)
    assert len(found) == 1 and found[0][1]["masks_path"] == annotations / "panoptic_train2017"


def test_stuff_is_what_is_no_thing():
    "From a panoptic file, from a detection file, and None where the file does not say."
    said = [{"id": 4, "isthing": 1}, {"id": 6, "isthing": 0}, {"id": 9, "isthing": 0}, {"id": 11, "isthing": 1}]
    silent = [{"id": 4}, {"id": 6, "isthing": 0}]
    as_detection = lambda categories: SimpleNamespace(coco=SimpleNamespace(dataset={"categories": categories}))
    for wrap in (lambda categories: SimpleNamespace(data={"categories": categories}), as_detection):
        assert read_stuff_ids(wrap(said)) == [6, 9]
        assert read_stuff_ids(wrap(silent)) is None


def test_new_classes_begin_as_the_mean_of_the_old_things():
    "Of N/A, cat, dog, sky and N/A only cat and dog are things; N/A stays N/A, and nothing, the last row, nothing."
    names = {0: "N/A", 1: "cat", 2: "dog", 3: "sky", 4: "N/A"}
    old = draw_weights(detector(num_labels=None, id2label=names, stuff_ids=[3]), seed=1)
    new = draw_weights(detector(num_labels=None, id2label={0: "N/A", 1: "mug"}), seed=2)
    before = {k: v.clone() for k, v in new.state_dict().items() if "class_labels_classifier" not in k}
    init_class_head(new, old)
    for name, shape in (("weight", (3, 64)), ("bias", (3,))):
        found, values = (getattr(model.class_labels_classifier, name).detach() for model in (new, old))
        assert found.shape == shape and found.dtype == torch.float32 and len(values) == 6
        thing, nobody = (values[1] + values[2]) / 2, (values[0] + values[4]) / 2
        torch.testing.assert_close(found, torch.stack([nobody, thing, values[5]]), rtol=0, atol=1e-6)
    assert all(torch.equal(new.state_dict()[k], v) for k, v in before.items())


def test_classes_of_the_same_name_keep_their_weights():
    "Whatever their number is in the new data; the others begin as the mean of the old things."
    old = draw_weights(detector(num_labels=None, id2label={0: "N/A", 1: "cat", 2: "dog"}), seed=1)
    new = draw_weights(detector(num_labels=None, id2label={0: "dog", 1: "mug"}), seed=2)
    init_class_head(new, old)
    for name in ("weight", "bias"):
        found, values = (getattr(model.class_labels_classifier, name).detach() for model in (new, old))
        wanted = torch.stack([values[2], (values[1] + values[2]) / 2, values[3]])
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore:begun afresh")
@pytest.mark.parametrize("known, kept", [
    ({0: "N/A", 1: "pot", 2: "mug"}, [0, 1, 2]), ({0: "N/A", 1: "mug", 2: "pot"}, [0, 2, 1]),
    ({0: "N/A", 1: "car", 2: "pot"}, [0, 2, None]), ({i: f"LABEL_{i}" for i in range(3)}, [0, 1, 2]),
], ids=["the same", "exchanged", "one is new", "no names"])
def test_as_many_classes_but_others(tmp_path, known, kept):
    "The classes are compared by name, not by number; a checkpoint without names is taken as it is."
    names = {0: "N/A", 1: "pot", 2: "mug"}
    old = draw_weights(detector(num_labels=None, id2label=known), seed=1)
    old.save_pretrained(tmp_path)
    DetrImageProcessor(size=64).save_pretrained(tmp_path)
    dataset = SimpleNamespace(id2label=names, data={"categories": [{"id": 1}, {"id": 2}]})
    network, _ = start_training(dataset, model=str(tmp_path), preset="scenes")
    assert network.config.id2label == names
    for name in ("weight", "bias"):
        found, values = (getattr(model.class_labels_classifier, name).detach() for model in (network, old))
        mean = values[1:3].mean(0)
        wanted = torch.stack([mean if i is None else values[i] for i in (*kept, 3)])
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_ids_without_a_category_begin_below_the_things():
    "A checkpoint that has no unused id says nothing of what nobody is: the mean of its things, ten lower."
    old = draw_weights(detector(num_labels=None, id2label={0: "cat", 1: "dog"}), seed=1)
    new = draw_weights(detector(num_labels=None, id2label={0: "N/A", 1: "mug"}), seed=2)
    init_class_head(new, old)
    head, known = new.class_labels_classifier, old.class_labels_classifier
    assert head.bias.shape == (3,)
    torch.testing.assert_close(head.weight[:2], known.weight[:2].mean(0).expand(2, -1), rtol=0, atol=1e-6)
    torch.testing.assert_close(head.bias[:2], known.bias[:2].mean() - torch.tensor([10.0, 0.0]), rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:begun afresh")
def test_own_classes_begin_with_what_the_checkpoint_knows(own_folder):
    "The embedded model has eight things, 1 … 8: every new class begins as their mean; N/A and the rest as they were."
    old = DetrForObjectDetection.from_pretrained("scenes")
    network, _ = start_training(open_split(own_folder, "train"), model="scenes", preset="scenes")
    assert network.config.id2label == {0: "N/A", 1: "pot", 2: "mug"}
    for name in ("weight", "bias"):
        found, values = (getattr(model.class_labels_classifier, name).detach() for model in (network, old))
        assert found.shape[0] == 4 and values.shape[0] == 14 and found.dtype == torch.float32
        wanted = torch.stack([values[0]] + [values[1:9].sum(0) / 8] * 2 + [values[13]])
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    assert torch.equal(network.bbox_predictor.layers[0].weight, old.bbox_predictor.layers[0].weight)


@pytest.mark.filterwarnings("ignore:begun afresh")
def test_frozen_detector_keeps_its_classes(own_folder):
    "Where only masks are learned, the classes stay those of the checkpoint, whatever the data calls its own."
    old = DetrForObjectDetection.from_pretrained("scenes")
    dataset = open_split(own_folder, "train")
    network, _ = start_training(dataset, model="scenes", preset="scenes", masks=True, frozen=True)
    assert network.config.id2label == old.config.id2label and network.config.stuff_ids == old.config.stuff_ids
    assert torch.equal(network.detr.class_labels_classifier.weight, old.class_labels_classifier.weight)


# -- checkpoints


def test_learned_positions_of_the_original():
    "Its `models/position_encoding.py` puts the column's vector first and the row's behind: so do we with its tensors."
    generator = torch.Generator().manual_seed(0)
    row, column = (torch.rand(50, 8, generator=generator) for _ in range(2))
    state = {"transformer.encoder.layers.0.linear1.bias": torch.zeros(4)}  # by its name the layout is known
    found = to_hub_layout(state | {"backbone.1.row_embed.weight": row, "backbone.1.col_embed.weight": column})
    beginning = "model.backbone.position_embedding."
    positions = LearnedPositionEmbedding(16)
    positions.load_state_dict({k.removeprefix(beginning): v for k, v in found.items() if k.startswith(beginning)})
    values = positions(torch.ones(1, 3, 5)).detach()
    assert values.shape == (1, 16, 3, 5) and values.dtype == torch.float32
    for y in range(3):
        for x in range(5):
            assert torch.equal(values[0, :, y, x], torch.cat([column[x], row[y]]))


def parts(seed):
    "A model of two parts."
    return draw_weights(torch.nn.ModuleDict({"body": torch.nn.Linear(3, 4), "head": torch.nn.Linear(4, 2)}), seed)


def test_a_part_is_lacking_altogether_or_not_at_all():
    "A file without a head is a beginning; one with half a head is broken."
    model, state = parts(1), parts(2).state_dict()
    head = {k: v.clone() for k, v in model.state_dict().items() if k.startswith("head.")}
    with pytest.raises(ValueError, match=r"file lacks 1 \(head.bias\)"):
        load_weights(model, {k: v for k, v in state.items() if k != "head.bias"}, "file", optional_parts=("head.",))
    with pytest.raises(ValueError, match=r"file lacks 1 \(body.bias\)"):
        load_weights(model, {k: v for k, v in state.items() if k != "body.bias"}, "file", optional_parts=("head.",))
    with pytest.warns(UserWarning, match="begun afresh, for file does not have them: head$"):
        load_weights(model, {k: v for k, v in state.items() if k.startswith("body.")}, "file", optional_parts=("head.",))
    for name, value in model.state_dict().items():
        assert torch.equal(value, head[name] if name in head else state[name]), name


@pytest.fixture
def stored(tmp_path):
    "A small detector and the folder that it was saved in."
    model = detector().eval()
    model.save_pretrained(tmp_path / "model")
    return model, tmp_path / "model"


def head_of(folder, **arguments):
    return DetrForObjectDetection.from_pretrained(folder, **arguments).class_labels_classifier.weight


def test_dtype_of_the_file_is_as_asked(stored, tmp_path):
    "As they are without `dtype`; with it, each floating point number is rounded once."
    model, folder = stored
    model.save_pretrained(tmp_path / "half", dtype=torch.float16)
    whole, half = load_file(folder / "model.safetensors"), load_file(tmp_path / "half" / "model.safetensors")
    own = model.state_dict()
    assert set(own) <= set(whole) and set(whole) == set(half)
    for name, value in own.items():
        assert (value.dtype, whole[name].dtype, half[name].dtype) == (torch.float32, torch.float32, torch.float16), name
        assert torch.equal(whole[name], value) and torch.equal(half[name], value.half()), name


def test_files_can_be_read_by_others(stored):
    "safetensors writes a file that its owner alone may read: a model in a shared folder is for all."
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in stored[1].glob("*.safetensors"))


def test_safetensors_come_before_a_pickle(stored):
    "A folder with both, as many on the hub are: the pickle is not opened."
    model, folder = stored
    torch.save({k: torch.zeros_like(v) for k, v in model.state_dict().items()}, folder / "pytorch_model.bin")
    assert torch.equal(head_of(folder), model.class_labels_classifier.weight)


def test_shards_of_a_pickle(stored):
    "The oldest layout of large models: an index, and pickles that share the tensors out."
    model, folder = stored
    (folder / "model.safetensors").unlink()
    state = list(model.state_dict().items())
    shards = {f"pytorch_model-{i + 1}.bin": dict(state[i::3]) for i in range(3)}
    for name, part in shards.items():
        torch.save(part, folder / name)
    index = {"weight_map": {k: name for name, part in shards.items() for k in part}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    found = DetrForObjectDetection.from_pretrained(folder).state_dict()
    assert set(found) == {k for k, _ in state}
    assert all(torch.equal(found[k], v) for k, v in state)


@pytest.mark.parametrize("given", [False, True], ids=["of the file", "given"])
def test_changes_to_a_configuration_hold(given, stored):
    "Named changes hold for the checkpoint's own configuration, and for one that is given in its place."
    model, folder = stored
    config = model.config if given else None
    found = DetrForObjectDetection.from_pretrained(folder, config=config, auxiliary_loss=True, eos_coefficient=0.25)
    assert found.config.auxiliary_loss is True and found.config.eos_coefficient == 0.25
    assert model.config.auxiliary_loss is False and model.config.eos_coefficient == 0.1


def test_other_shapes_are_begun_afresh_and_nothing_else(stored):
    "With other labels the class head keeps its own first numbers, and every other tensor is the file's."
    model, folder = stored
    state = load_file(folder / "model.safetensors")
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="begun afresh, for .* has other shapes: class_labels_classifier"):
        found = DetrForObjectDetection.from_pretrained(folder, num_labels=3, ignore_mismatched_sizes=True).state_dict()
    afresh = {"class_labels_classifier.weight": (4, 64), "class_labels_classifier.bias": (4,)}
    assert {k: tuple(v.shape) for k, v in found.items() if v.shape != state[k].shape} == afresh
    assert all(torch.equal(v, state[k]) for k, v in found.items() if k not in afresh)


# -- figures


def test_colours_of_the_categories():
    "Category 1 is the first of Okabe and Ito's colours, 2 the second … and after the last they begin again."
    palette = ["0072B2", "D55E00", "009E73", "CC79A7", "E69F00", "56B4E9", "F0E442"]
    for category_id, hexadecimal in enumerate(palette, start=1):
        found = class_colour(category_id)
        assert len(found) == 3 and all(type(value) is float for value in found)
        assert [round(value * 255) for value in found] == list(bytes.fromhex(hexadecimal))
    first = class_colour(1)
    assert [n for n in range(2, 40) if class_colour(n) == first][0] > len(palette)
