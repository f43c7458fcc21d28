"""Segmentation: what differs from the public libraries on purpose, panoptic files and quality, and
bad input."""
import io
import json
import shutil
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SMALL, draw_weights, random_labels
from PIL import Image
from pycocotools import mask as coco_mask

from detr_nb import (
    CocoEvaluator, CocoPanoptic, DetrConfig, DetrForObjectDetection, DetrForSegmentation, DetrImageProcessor,
    PanopticEvaluator, SceneDetection, evaluate, make_scenes,
)
from detr_nb.boxes import masks_to_boxes
from detr_nb.data import (
    annotation_mask, detection_target, id_to_rgb, panoptic_target, read_panoptic,
    rgb_to_id,
)
from detr_nb.evaluation import compare_segments
from detr_nb.panoptic import merge_masks

WIDE = SMALL | dict(d_model=128, encoder_attention_heads=8, decoder_attention_heads=8)
PROCESSOR = DetrImageProcessor()


def outputs_of(probabilities, scores, labels, classes=4):
    """Outputs whose masks have these probabilities and whose queries say these labels with these
    scores."""
    scores = torch.tensor(scores, dtype=torch.float32)
    probability = (1 - scores)[:, None].expand(-1, classes + 1) / classes
    probability = probability.scatter(1, torch.tensor(labels)[:, None], scores[:, None])
    return SimpleNamespace(
        logits=probability.log()[None], pred_masks=torch.as_tensor(probabilities, dtype=torch.float32).logit()[None],
        pred_boxes=torch.rand(1, len(labels), 4),
    )


def panoptic(outputs, **settings):
    return PROCESSOR.post_process_panoptic_segmentation(outputs, **settings)[0]


# -- A3: padding


def test_padding_is_cut_off():
    """The image fills the upper left quarter; its mask must fill the result. Theirs stretches the
    canvas."""
    masks = torch.zeros(1, 1, 16, 16) + 1e-4
    masks[..., :8, :4] = 1 - 1e-4
    outputs = SimpleNamespace(logits=torch.tensor([[[9.0, 0, 0]]]), pred_masks=masks.logit())
    valid = torch.zeros(1, 64, 64)
    valid[:, :32, :16] = 1
    found = panoptic(outputs, target_sizes=[(50, 30)], pixel_mask=valid)
    theirs = panoptic(outputs, target_sizes=[(50, 30)], compat="transformers")
    assert (found["segmentation"] == 1).all() and found["segmentation"].shape == (50, 30)
    without = panoptic(outputs, target_sizes=[(50, 30)])
    # one query fills it all: A4
    assert (without["segmentation"] == 1).float().mean() < 0.3 and (theirs["segmentation"] == 1).all()
    semantic = PROCESSOR.post_process_semantic_segmentation(outputs, [(50, 30)], pixel_mask=valid)[0]
    oldest = PROCESSOR.post_process_segmentation(outputs, [(50, 30)], pixel_mask=valid)[0]["masks"]
    assert (semantic == 0).all() and oldest.min() == 1


def test_padding_that_becomes_part_of_the_masks_is_noted():
    "Images of different shapes on one canvas, without `pixel_mask`: a warning at the caller's line, and only then."
    torch.manual_seed(0)
    outputs = SimpleNamespace(logits=torch.randn(2, 3, 4), pred_masks=torch.randn(2, 3, 32, 43))
    ways = [getattr(PROCESSOR, f"post_process_{kind}_segmentation") for kind in ("semantic", "instance", "panoptic")]
    for way in ways:
        with pytest.warns(UserWarning, match=r"masks of 32 × 43 .* image 1 of 128 × 72: pass pixel_mask=") as caught:
            way(outputs, target_sizes=[(96, 128), (128, 72)])
        assert len(caught) == 1 and caught[0].filename == __file__
    mask = torch.ones(2, 128, 171)
    fine = (
        dict(target_sizes=[(96, 128), (128, 72)], pixel_mask=mask), dict(target_sizes=None),
        dict(target_sizes=[(96, 128), (191, 255)]), dict(target_sizes=[(72, 72), (72, 72)]),  # stretched, both alike
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for way in ways:
            for case in fine: way(outputs, **case)
        for way in ways[1:]: way(outputs, target_sizes=[(96, 128), (128, 72)], compat="transformers")


@pytest.mark.parametrize("sizes", [((96, 128), (64, 80)), ((61, 93), (101, 77)), ((128, 128), (37, 128), (90, 53))], ids=str)
def test_batch_equals_images_one_by_one(sizes):
    """Same segments, labels and ids; scores to 1e-4. With the embedded backbone; the public
    networks let padding leak."""
    torch.manual_seed(0)
    config = DetrConfig(**WIDE | {"backbone": "detr_nb_resnet", "num_queries": 25}, batch_invariant=True)
    model = draw_weights(DetrForSegmentation(config), seed=4).eval()
    with torch.no_grad():
        model.mask_head.lay1.weight[:, 128:] *= 1e4
        model.detr.class_labels_classifier.weight *= 3
        model.detr.class_labels_classifier.bias[-1] -= 9
    rng = np.random.default_rng(1)
    images = [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in sizes]
    processor, settings = DetrImageProcessor(do_resize=False), dict(threshold=0.2, overlap_mask_area_threshold=0.02)

    def segments(images):
        batch = processor(images, return_tensors="pt")
        with torch.inference_mode():
            outputs = model(batch.pixel_values, batch.pixel_mask)
        targets = [(p.height * 2, p.width * 2) for p in images]
        return processor.post_process_panoptic_segmentation(
            outputs, target_sizes=targets, pixel_mask=batch.pixel_mask, **settings
        )

    together, alone = segments(images), [segments([image])[0] for image in images]
    assert sum(len(found["segments_info"]) for found in alone) >= 3
    for a, b in zip(together, alone):
        assert [(s["id"], s["label_id"]) for s in a["segments_info"]] == [
            (s["id"], s["label_id"]) for s in b["segments_info"]
        ]
        np.testing.assert_allclose(
            [s["score"] for s in a["segments_info"]], [s["score"] for s in b["segments_info"]], atol=1e-4
        )
        # rounding where two masks are equally sure
        assert (a["segmentation"] != b["segmentation"]).float().mean() < 1e-3
    model.config.batch_invariant = False
    leaking = segments(images)
    assert any((a["segmentation"] != b["segmentation"]).float().mean() > 0.01 for a, b in zip(leaking, alone))


def test_batch_invariant_wants_a_resnet():
    with pytest.raises(ValueError, match="plain ResNet"):
        DetrForObjectDetection(DetrConfig(**SMALL | {"backbone": "tf_mobilenetv3_small_075"}, batch_invariant=True))
    DetrForObjectDetection(DetrConfig(**SMALL | {"backbone": "resnet18"}, batch_invariant=True))
    for name in ("seresnet50", "resnetblur50"):
        with pytest.raises(ValueError, match="plain ResNet"):
            DetrForObjectDetection(DetrConfig(**SMALL | {"backbone": name}, batch_invariant=True))


def test_stride_of_a_grid():
    from detr_nb.backbone import halving_stride
    for stride in (1, 2, 4, 8, 16, 32):
        for canvas in range(1, 200):
            cells = -(-canvas // stride)
            found = halving_stride(canvas, cells)
            assert -(-canvas // found) == cells and (found == stride or cells < 3 or stride > canvas // 2)


# -- A4, A5, A6


def test_background():
    "One confident query: only its own pixels are its. Theirs gives it the whole image."
    outputs = outputs_of([[[0.9, 0.9, 0.1, 0.1]]], [0.9], [2])
    assert panoptic(outputs)["segmentation"].tolist() == [[1, 1, 0, 0]]
    assert panoptic(outputs, compat="transformers")["segmentation"].tolist() == [[1, 1, 1, 1]]


def test_mask_threshold_is_of_the_mask():
    "Score 0.6, probability 0.8: theirs compares 0.48 with 0.5 and finds nothing."
    outputs = outputs_of([[[0.8, 0.8, 0.1, 0.1]]], [0.6], [2])
    assert panoptic(outputs)["segments_info"] == [{"id": 1, "label_id": 2, "was_fused": False, "score": 0.6}]
    assert panoptic(outputs, compat="transformers")["segments_info"] == []


def test_ids_are_unique():
    "Classes 0, 1, 0, 2 with 0 fused: theirs calls the last one 2, like the second."
    rows = np.full((4, 1, 8), 0.01)
    for k in range(4):
        rows[k, 0, 2 * k : 2 * k + 2] = 0.99
    outputs = outputs_of(rows, [0.9] * 4, [0, 1, 0, 2])
    found, theirs = (panoptic(outputs, label_ids_to_fuse={0}, compat=c) for c in (None, "transformers"))
    assert found["segmentation"].tolist() == [[1, 1, 2, 2, 1, 1, 3, 3]]
    assert [(s["id"], s["label_id"], s["was_fused"]) for s in found["segments_info"]] == [
        (1, 0, True), (2, 1, False), (3, 2, False),
    ]
    assert [s["id"] for s in theirs["segments_info"]] == [1, 2, 1, 2]


@pytest.mark.parametrize("size", [None, (7, 9)])
def test_no_segment_has_the_same_form(size):
    outputs = outputs_of([[[0.9, 0.9]]], [0.9], [4])  # label 4 is no-object
    found = panoptic(outputs, target_sizes=None if size is None else [size])
    assert found["segmentation"].dtype == torch.int32 and found["segmentation"].shape == (size or (1, 2))
    assert not found["segmentation"].any() and found["segments_info"] == []
    empty = PROCESSOR.post_process_instance_segmentation(outputs, return_coco_annotation=True)[0]
    assert empty == {"segmentation": [], "segments_info": []}


def test_coco_annotation_is_coco():
    masks = np.full((2, 6, 9), 0.01)
    masks[0, 1:4, 2:5], masks[1, 4:, 6:] = 0.99, 0.99
    outputs = outputs_of(masks, [0.9, 0.8], [1, 3])
    found = PROCESSOR.post_process_instance_segmentation(outputs, return_coco_annotation=True)[0]
    decoded = coco_mask.decode(found["segmentation"])
    assert (decoded.transpose(2, 0, 1) == (masks > 0.5)).all() and json.dumps(found)


def test_share_of_exactly_the_threshold():
    "Four of five pixels are 0.8 of a mask: theirs, rounded to float32, is over 0.8; ours is not."
    masks = np.full((2, 1, 9), 0.01)
    masks[0, 0, :5], masks[1, 0, 4:] = 0.9, 0.95
    outputs = outputs_of(masks, [0.9, 0.95], [1, 2])
    assert [s["label_id"] for s in panoptic(outputs)["segments_info"]] == [2]
    assert [s["label_id"] for s in panoptic(outputs, compat="transformers")["segments_info"]] == [1, 2]


def test_half_precision_is_not_lost():
    "A score of just over one half is one half in bfloat16: predict and the merge must agree."
    model = draw_weights(DetrForSegmentation(DetrConfig(**WIDE | {"backbone": "detr_nb_resnet"}))).eval().bfloat16()
    outputs = model.predict(torch.randn(1, 3, 64, 64).bfloat16(), torch.ones(1, 64, 64), threshold=0.3)
    drawn = (outputs.pred_masks > -50).flatten(2).any(-1)
    assert torch.equal(drawn, outputs.logits.float().softmax(-1)[..., :-1].amax(-1) > 0.3)


# -- older methods


def test_older_panoptic():
    masks = np.full((4, 8, 8), 0.01)
    masks[0, :4], masks[1, 4:, :4], masks[2, 4:, 4:], masks[3, 0, :4] = 0.9, 0.95, 0.9, 0.95
    outputs = outputs_of(masks, [0.95, 0.9, 0.9, 0.95], [2, 1, 2, 3])
    found = PROCESSOR.post_process_panoptic(outputs, [(8, 8)], is_thing_map={1: True, 2: False, 3: True})[0]
    ids = rgb_to_id(np.asarray(Image.open(io.BytesIO(found["png_string"]))))
    assert sum(s["area"] for s in found["segments_info"]) == 64 == ids.size
    assert all((ids == s["id"]).sum() == s["area"] > 4 for s in found["segments_info"])
    with pytest.raises(ValueError, match=r"does not say what \[1, 2, 3\] are"):
        PROCESSOR.post_process_panoptic(outputs, [(8, 8)], is_thing_map={})
    two = SimpleNamespace(
        logits=outputs.logits.expand(2, -1, -1), pred_masks=outputs.pred_masks.expand(2, -1, -1, -1)
    )
    whole, half = PROCESSOR.post_process_panoptic(two, [(8, 8), (8, 4)], is_thing_map={1: True, 2: False, 3: True})
    # the stuff's second mask became the first's; four pixels are too few
    assert [s["area"] for s in whole["segments_info"]] == [48, 16]
    assert [s["area"] for s in half["segments_info"]] == [16, 16]   # the second image is the canvas's left half


def test_older_instance():
    outputs = SimpleNamespace(
        logits=torch.randn(2, 3, 5), pred_boxes=torch.rand(2, 3, 4), pred_masks=torch.randn(2, 3, 16, 16)
    )
    originals, processed = torch.tensor([[40, 60], [30, 30]]), torch.tensor([[32, 48], [32, 32]])
    results = PROCESSOR.post_process_instance(
        PROCESSOR.post_process(outputs, originals), outputs, originals, processed
    )
    assert [r["masks"].shape for r in results] == [(3, 1, 40, 60), (3, 1, 30, 30)] and results[0][
        "masks"
    ].dtype == torch.uint8
    enlarged = torch.nn.functional.interpolate(outputs.pred_masks, (32, 48), mode="bilinear").sigmoid() > 0.5
    wanted = torch.nn.functional.interpolate(enlarged[1:, :, :, :32].float(), (30, 30))[0]
    assert torch.equal(results[1]["masks"][:, 0], wanted.byte())


@pytest.mark.parametrize("sizes", [[(8, 8)], torch.tensor([[8, 8], [9, 9], [7, 7]]), [8, 8], [(8, 8, 3), (8, 8, 3)]], ids=str)
def test_target_sizes_of_the_wrong_form(sizes):
    outputs = SimpleNamespace(logits=torch.randn(2, 3, 5), pred_masks=torch.randn(2, 3, 8, 8))
    for method in (
        "post_process_semantic_segmentation", "post_process_instance_segmentation",
        "post_process_panoptic_segmentation", "post_process_segmentation",
    ):
        with pytest.raises(ValueError, match="target_sizes"):
            getattr(PROCESSOR, method)(outputs, target_sizes=sizes)


def test_target_sizes_of_any_right_form():
    outputs = SimpleNamespace(logits=torch.randn(2, 3, 5) * 5, pred_masks=torch.randn(2, 3, 8, 8))
    forms = [
        [(9, 12), (20, 5)], torch.tensor([[9, 12], [20, 5]]), [torch.tensor([9, 12]), torch.tensor([20, 5])],
        np.array([[9, 12], [20, 5]]).tolist(),
    ]
    results = [PROCESSOR.post_process_panoptic_segmentation(outputs, target_sizes=form) for form in forms]
    for result in results:
        assert [tuple(r["segmentation"].shape) for r in result] == [(9, 12), (20, 5)]
        assert all(torch.equal(a["segmentation"], b["segmentation"]) for a, b in zip(result, results[0]))


# -- A16: targets without masks, crowds


def test_images_without_objects_train(tmp_path):
    model = draw_weights(DetrForSegmentation(DetrConfig(**WIDE))).train()
    labels = [
        {
            "class_labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4),
            "masks": torch.zeros(0, 64, 64, dtype=torch.bool),
        }
    ] * 2
    outputs = model(torch.randn(2, 3, 64, 64), labels=labels)
    assert outputs.loss.isfinite() and outputs.loss_dict["loss_mask"] == outputs.loss_dict["loss_dice"] == 0
    loss, _ = model.training_loss(torch.randn(2, 3, 64, 64), torch.ones(2, 64, 64), labels)
    loss.backward()
    assert loss.isfinite()


def test_frozen_detector_and_images_without_objects():
    "The loss still hangs on the mask head, or a step has nothing to follow back."
    model = DetrForSegmentation(DetrConfig(**WIDE))
    model.freeze_detector()
    labels = [
        {
            "class_labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4),
            "masks": torch.zeros(0, 64, 64, dtype=torch.bool),
        }
    ]
    loss, _ = model.train().training_loss(torch.randn(1, 3, 64, 64), torch.ones(1, 64, 64), labels)
    loss.backward()
    assert loss.isfinite() and model.mask_head.out_lay.bias.grad == 0


def test_padding_does_not_bleed_into_the_edge():
    from detr_nb.mask_head import OUTSIDE, pad_to_canvas
    masks = torch.full((2, 5, 4), 3.0)
    canvas = pad_to_canvas(masks, 8, 8)
    assert canvas.shape == (2, 8, 8) and (canvas[:, 6:] == OUTSIDE).all()
    enlarged = torch.nn.functional.interpolate(canvas[None], (16, 16), mode="bilinear")[0]
    assert (enlarged[:, :10, :8] == 3).all()
    assert pad_to_canvas(masks, 5, 4) is masks and pad_to_canvas(masks, 6, 4).shape == (2, 6, 4)


def test_crowds_are_not_learned_from():
    from detr_nb.training import drop_crowds
    target = {
        "iscrowd": torch.tensor([0, 1]), "boxes": torch.rand(2, 4), "class_labels": torch.tensor([1, 2]),
        "area": torch.ones(2), "masks": torch.ones(2, 3, 3),
    }
    kept = drop_crowds(target | {"image_id": torch.tensor([4])})
    assert kept["class_labels"].tolist() == [1] and kept["masks"].shape == (1, 3, 3) and kept["image_id"] == 4


def test_crowds_and_empty_images():
    square, crowd = [[2.0, 2, 12, 2, 12, 12, 2, 12]], {"size": [20, 30], "counts": [0, 100, 500]}
    annotations = [
        {"id": 1, "bbox": [0, 0, 5, 20], "category_id": 3, "iscrowd": 1, "segmentation": crowd, "area": 100},
        {"id": 2, "bbox": [2, 2, 10, 10], "category_id": 1, "iscrowd": 0, "segmentation": square, "area": 100},
    ]
    target = detection_target({"image_id": 5, "annotations": annotations}, 20, 30, masks=True)
    assert (
        target["masks"].shape == (1, 20, 30) and target["masks"][0, 3:11, 3:11].all() and target["masks"].sum() < 150
    )
    batch = PROCESSOR(
        [np.zeros((20, 30, 3), np.uint8)] * 2,
        [{"image_id": 1, "annotations": []}, {"image_id": 2, "annotations": annotations}],
        return_segmentation_masks=True, return_tensors="pt",
    )
    assert (
        batch.labels[0]["masks"].shape == (0, *batch.pixel_values.shape[-2:])
        and batch.labels[0]["masks"].dtype == torch.bool
    )
    assert batch.labels[1]["masks"].shape[0] == 1


@pytest.mark.parametrize("segmentation, message", [
    (None, "want polygons or run lengths"), ([], "want polygons or run lengths"), ([[1, 2]], "at least three corners"),
    ([[1, 2, 3, 4]], "at least three corners"), ([[1, 2, 3, 4, 5, 6, 7]], "at least three corners"), ({"size": [5, 5], "counts": [25]}, r"for size \[20, 30\]"), ({"size": [20, 30]}, "want whole run lengths, not counts None"),
], ids=str)
def test_segmentation_that_is_none(segmentation, message):
    with pytest.raises(ValueError, match=f"image 7: annotation 3.*{message}"):
        annotation_mask({"id": 3, "segmentation": segmentation}, 20, 30, 7)


def test_masks_that_do_not_fit_the_boxes():
    model = draw_weights(DetrForSegmentation(DetrConfig(**WIDE)))
    labels = random_labels((3,))
    with pytest.raises(ValueError, match=r"labels\[0\]: 3 class_labels, masks of shape \(2, 64, 64\)"):
        model(torch.randn(1, 3, 64, 64), labels=[labels[0] | {"masks": torch.zeros(2, 64, 64)}])


# -- frozen


def test_frozen_in_parameters_and_mode(tmp_path):
    model = DetrForSegmentation(DetrConfig(**WIDE, attention_dropout=0.3))
    model.freeze_detector()
    model.train()
    assert not model.detr.training and all(not m.training for m in model.detr.modules()) and model.mask_head.training
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad} == {
        "mask_head", "bbox_attention",
    }
    pixels = torch.randn(1, 3, 64, 64)
    assert torch.equal(model(pixels).logits, model(pixels).logits)


# -- panoptic files


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("panoptic")
    make_scenes(folder, train=4, val=12, seed=3)
    return folder


def dataset(folder, split="val"):
    return CocoPanoptic(
        folder / split, folder / f"panoptic_{split}", folder / "annotations" / f"panoptic_{split}.json"
    )


def test_reader_on_scenes(folder):
    for image, entry in dataset(folder):
        target = panoptic_target(entry, entry["masks_path"], image.height, image.width)
        boxes = torch.tensor([s["bbox"] for s in entry["segments_info"]])
        torch.testing.assert_close(target["boxes"], torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1))
        assert target["area"].tolist() == [s["area"] for s in entry["segments_info"]]
        assert target["masks"].sum(0).max() == 1


def test_reader_on_coco(coco_sample):
    data = CocoPanoptic(
        coco_sample / "input_images", coco_sample / "panoptic_examples", coco_sample / "panoptic_examples.json"
    )
    assert len(data) == 2
    for image, entry in data:
        target = panoptic_target(entry, entry["masks_path"], image.height, image.width)
        boxes = torch.tensor([s["bbox"] for s in entry["segments_info"]]).float()
        torch.testing.assert_close(
            target["boxes"], torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1), atol=0, rtol=0
        )
        assert target["area"].tolist() == [s["area"] for s in entry["segments_info"]]
        assert target["class_labels"].tolist() == [s["category_id"] for s in entry["segments_info"]]


def their_quality(truth, truth_folder, found_folder):
    from hotcoco.panoptic import pq_compute
    return pq_compute(str(truth), str(found_folder / "predictions.json"), str(truth_folder), str(found_folder))


def judged(truth, truth_folder, out, change):
    """Our numbers and an independent evaluator's, for the truth changed by a function of each
    image's ids."""
    judge = PanopticEvaluator(truth, truth_folder, out)
    for entry in json.loads(truth.read_text())["annotations"]:
        ids = change(read_panoptic(truth_folder / entry["file_name"], entry["segments_info"]))
        kept = [s for s in entry["segments_info"] if (ids == s["id"]).any()]
        judge.update([{"image_id": entry["image_id"], "segmentation": torch.from_numpy(ids), "segments_info": kept}])
    judge.synchronize_between_processes()
    return judge.summarize(), their_quality(truth, truth_folder, out)


def compare_quality(mine, theirs):
    for kind in ("All", "Things", "Stuff"):
        assert mine[kind]["n"] == theirs[kind]["n"]
        for name in ("pq", "sq", "rq"):
            assert abs(mine[kind][name] - theirs[kind][name]) < 1e-6, (kind, name)
    for category, row in mine["per_class"].items():
        wanted = theirs["per_class"].get(category) or theirs["per_class"][str(category)]
        assert abs(row["pq"] - wanted["pq"]) < 1e-6


CHANGES = {
    "itself": lambda ids: ids, "shifted": lambda ids: np.roll(ids, 5, 1),
    "holes": lambda ids: np.where(np.arange(ids.shape[1]) % 7 == 0, 0, ids),
    "emptied": lambda ids: np.where(np.arange(ids.shape[0])[:, None] < ids.shape[0] // 2, ids, 0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_quality_on_coco(change, coco_sample, tmp_path):
    mine, theirs = judged(
        coco_sample / "panoptic_examples.json", coco_sample / "panoptic_examples", tmp_path, CHANGES[change]
    )
    compare_quality(mine, theirs)
    assert (mine["All"]["pq"] == 1) == (change == "itself")


@pytest.mark.parametrize("change", CHANGES)
def test_quality_on_scenes(change, folder, tmp_path):
    mine, theirs = judged(
        folder / "annotations" / "panoptic_val.json", folder / "panoptic_val", tmp_path, CHANGES[change]
    )
    compare_quality(mine, theirs)
    assert (mine["All"]["pq"] == 1) == (change == "itself")


def test_quality_with_crowds():
    """A prediction over a crowd of its class, or over nobody's pixels, is not counted against the
    model."""
    true = np.array([[1, 1, 1, 1, 2, 2, 0, 0]])
    truth = [{"id": 1, "category_id": 1, "iscrowd": 1}, {"id": 2, "category_id": 1, "iscrowd": 0}]
    found = np.array([[5, 5, 5, 0, 6, 6, 7, 7]])
    quality = compare_segments(true, truth, found, [{"id": i, "category_id": 1} for i in (5, 6, 7)])
    assert (quality[1].tp, quality[1].fp, quality[1].fn) == (1, 0, 0)


def test_panoptic_files_that_are_wrong(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "data")
    data = tmp_path / "data"
    path = data / "annotations" / "panoptic_val.json"
    good = json.loads(path.read_text())

    def opened(change):
        spoilt = json.loads(json.dumps(good))
        change(spoilt)
        path.write_text(json.dumps(spoilt))
        return dataset(data)

    for change, message in [
        (
            lambda d: d["annotations"][0]["segments_info"][0].update(category_id=77),
            "has category 77, which is not listed",
        ),
        (lambda d: d["annotations"].append(d["annotations"][0]), "has two annotations"),
        (lambda d: d["annotations"][0].update(image_id=999), "image 999, which is not listed"),
        (lambda d: d["annotations"][0].pop("segments_info"), "no 'segments_info'"),
        (lambda d: d.pop("categories"), "no 'categories'"),
    ]:
        with pytest.raises(ValueError, match=message):
            opened(change)
    with pytest.raises(FileNotFoundError, match="images have no such file: image .*gone.png"):
        opened(lambda d: d["annotations"][0].update(file_name="gone.png"))
    image, entry = opened(lambda d: None)[0]
    png = data / "panoptic_val" / entry["file_name"]
    with pytest.raises(ValueError, match="has no pixel of the listed segments"):
        panoptic_target(
            entry | {"segments_info": [*entry["segments_info"], {"id": 3, "category_id": 1}]}, png.parent, 128, 128
        )
    with pytest.raises(ValueError, match="which segments_info does not list"):
        panoptic_target(entry | {"segments_info": entry["segments_info"][1:]}, png.parent, 128, 128)
    with pytest.raises(ValueError, match="lists segment .* twice"):
        panoptic_target(
            entry | {"segments_info": entry["segments_info"] + entry["segments_info"][:1]}, png.parent, 128, 128
        )
    with pytest.raises(ValueError, match="want 64 × 128, those of its image"):
        panoptic_target(entry, png.parent, 128, 64)
    png.write_bytes(png.read_bytes()[:100])
    with pytest.raises(OSError, match="not a whole image"):
        panoptic_target(entry, png.parent, 128, 128)


def test_evaluator_refuses(folder, tmp_path):
    judge = PanopticEvaluator(folder / "annotations" / "panoptic_val.json", folder / "panoptic_val", tmp_path)
    with pytest.raises(ValueError, match="image 99 is not in the ground truth"):
        judge.update([{"image_id": 99, "segmentation": torch.zeros(4, 4), "segments_info": []}])
    with pytest.raises(ValueError, match=r"categories \[55\]"):
        judge.update(
            [{"image_id": 1, "segmentation": torch.ones(128, 128), "segments_info": [{"id": 1, "label_id": 55}]}]
        )
    with pytest.raises(ValueError, match="no prediction for the images"):
        judge.summarize()
    for image_id in judge.annotations:
        judge.update(
            [{"image_id": image_id, "segmentation": torch.zeros(128, 128, dtype=torch.int32), "segments_info": []}]
        )
    tables = judge.summarize()
    assert tables["All"]["pq"] == 0 and tables["All"]["n"] > 0
    assert len(json.loads((tmp_path / "predictions.json").read_text())["annotations"]) == 12
    judge.update([{"image_id": 1, "segmentation": torch.ones(64, 64), "segments_info": [{"id": 1, "label_id": 1}]}])
    judge.synchronize_between_processes()
    with pytest.raises(ValueError, match="want 128 × 128"):
        judge.summarize()


def test_ids_and_boxes():
    ids = np.random.default_rng(0).integers(0, 256**3, (5, 7))
    assert (rgb_to_id(id_to_rgb(ids)) == ids).all()
    masks = torch.rand(9, 6, 5, generator=torch.Generator().manual_seed(0)) > 0.8
    masks[3] = False
    for mask, box in zip(masks, masks_to_boxes(masks), strict=True):
        rows, columns = mask.nonzero().T if mask.any() else (torch.zeros(1), torch.zeros(1))
        wanted = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if mask.any() else [0, 0, 0, 0]
        assert box.tolist() == [float(v) for v in wanted]
    assert masks_to_boxes(torch.zeros(0, 4, 4, dtype=torch.bool)).shape == (0, 4)


# -- mask AP


class Truth(torch.nn.Module):
    "A model that knows the masks, at full resolution."
    def __init__(self, data):
        super().__init__()
        self.data, self.seen, self.anchor = data, 0, torch.nn.Parameter(torch.zeros(1))

    def forward(self, pixel_values, pixel_mask):
        batch = len(pixel_values)
        logits, boxes, masks = (
            torch.full((batch, 25, 14), -9.0), torch.rand(batch, 25, 4), torch.full((batch, 25, 128, 128), -9.0),
        )
        for i in range(batch):
            target = detection_target(self.data[self.seen + i][1], 128, 128, masks=True)
            n = len(target["boxes"])
            logits[i, range(n), target["class_labels"]], masks[i, :n] = 9.0, target["masks"] * 18.0 - 9
            boxes[i, :n] = (
                torch.cat(
                    [
                        target["boxes"][:, :2] + target["boxes"][:, 2:],
                        2 * (target["boxes"][:, 2:] - target["boxes"][:, :2]),
                    ],
                    1,
                )
                / 256
            )
        self.seen += batch
        return SimpleNamespace(logits=logits, pred_boxes=boxes, pred_masks=masks)


def test_segm():
    data = SceneDetection(20, 4, "val", masks=True)
    tables = evaluate(
        Truth(data), data, DetrImageProcessor(do_resize=False), progress=False, iou_types=("bbox", "segm")
    )
    assert (
        tables["all masks"]["AP"] > 0.999
        and tables["all"]["AP"] > 0.999
        and set(tables) == {"all", "things", "all masks", "things masks"}
    )


def test_segm_alone_and_without_masks():
    data = SceneDetection(4, 4, "val", masks=True)
    for iou_types in ("segm", ["segm"]):
        tables = evaluate(Truth(data), data, DetrImageProcessor(do_resize=False), progress=False, iou_types=iou_types)
        assert set(tables) == {"all masks", "things masks"} and tables["all masks"]["AP"] > 0.999
    with pytest.raises(ValueError, match=r"annotation 1 \(image 1\) has segmentation=None: want polygons or run lengths"):
        CocoEvaluator(SceneDetection(2, 4, "val").coco, "segm")


def test_segm_against_the_plain_evaluator():
    from pycocotools.cocoeval import COCOeval
    data = SceneDetection(6, 4, "val", masks=True)
    generator, evaluator, rows = torch.Generator().manual_seed(0), CocoEvaluator(data.coco, ["bbox", "segm"]), []
    for i in range(6):
        target = detection_target(data[i][1], 128, 128, masks=True)
        masks = torch.stack(
            [m.roll(tuple(torch.randint(-4, 5, (2,), generator=generator).tolist()), (0, 1)) for m in target["masks"]]
        )
        scores = torch.rand(len(masks), generator=generator)
        evaluator.update(
            {
                i + 1: {
                    "scores": scores, "labels": target["class_labels"], "boxes": target["boxes"],
                    "masks": masks[:, None],
                }
            }
        )
        for mask, score, label in zip(masks, scores, target["class_labels"]):
            rle = coco_mask.encode(np.asfortranarray(mask.numpy(), dtype=np.uint8))
            rows.append(
                {
                    "image_id": i + 1, "category_id": int(label), "score": float(score),
                    "segmentation": rle | {"counts": rle["counts"].decode()},
                }
            )
    evaluator.synchronize_between_processes()
    evaluator.accumulate()
    mine = evaluator.summarize(verbose=False)
    plain = COCOeval(data.coco, data.coco.loadRes(rows), "segm")
    plain.evaluate(), plain.accumulate(), plain.summarize()
    np.testing.assert_allclose(list(mine["segm"].values()), plain.stats, atol=1e-12)
    assert 0 < mine["segm"]["AP"] < mine["bbox"]["AP"] == pytest.approx(1)
    with pytest.raises(ValueError, match="has no 'masks'"):
        evaluator.update({1: {"scores": torch.zeros(1), "labels": torch.zeros(1), "boxes": torch.zeros(1, 4)}})


# -- parameter counts


@pytest.mark.parametrize("backbone, wanted", [("resnet50", 42_899_288), ("resnet101", 61_839_192)])
def test_published_counts(backbone, wanted):
    with torch.device("meta"):
        model = DetrForSegmentation(DetrConfig(backbone=backbone, num_labels=250, use_pretrained_backbone=False))
    assert sum(p.numel() for p in model.parameters()) == wanted
    assert sum(p.numel() for n, p in model.named_parameters() if not n.startswith("detr.")) == 1_333_657


def test_predict_draws_the_kept_only():
    torch.manual_seed(0)
    model = draw_weights(DetrForSegmentation(DetrConfig(**WIDE | {"backbone": "detr_nb_resnet"}))).eval()
    pixels, mask = torch.randn(2, 3, 96, 96), torch.ones(2, 96, 96)
    with torch.inference_mode():
        everything, kept = model(pixels, mask), model.predict(pixels, mask, threshold=0.31)
    keep = everything.logits.softmax(-1)[..., :-1].amax(-1) > 0.31
    assert 0 < keep.sum() < keep.numel()
    torch.testing.assert_close(
        kept.pred_masks[keep], everything.pred_masks[keep], atol=1e-4 * float(everything.pred_masks.abs().max()),
        rtol=0,
    )
    assert (kept.pred_masks[~keep] < -50).all()
    a, b = (PROCESSOR.post_process_panoptic_segmentation(o, threshold=0.31) for o in (everything, kept))
    assert [r["segments_info"] for r in a] == [r["segments_info"] for r in b]
    with torch.inference_mode():
        nothing = model.predict(pixels, mask, threshold=1.0)
    assert nothing.pred_masks.shape == everything.pred_masks.shape and (nothing.pred_masks < -50).all()


def test_no_mask_at_all():
    segmentation, segments = merge_masks(torch.zeros(0, 4, 6), torch.zeros(0), [])
    assert (
        segmentation.shape == (4, 6)
        and segmentation.dtype == torch.int32
        and not segmentation.any()
        and segments == []
    )


def test_a_segment_without_a_pixel_is_named():
    with pytest.raises(ValueError, match="segments \\[5\\] are listed and have no pixel"):
        compare_segments(
            np.ones((2, 2), np.int64), [{"id": 1, "category_id": 1}, {"id": 5, "category_id": 1}],
            np.ones((2, 2), np.int64), [],
        )
