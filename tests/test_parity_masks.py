"""Segmentation against transformers 5 with the same weights: masks to 1e-4 of their largest value, losses to 1e-5, gradients
to 1e-4; every post-processing method under `compat="transformers"` on random outputs, exactly."""
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import close_to_scale, hf_model, ours_from, padded_batch, random_labels

from detr_nb import DetrForObjectDetection, DetrForSegmentation, DetrImageProcessor

WIDE = dict(encoder_attention_heads=8, decoder_attention_heads=8, d_model=128)  # the mask head wants multiples of 8, down to d / 16


def with_masks(labels, height, width, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return [label | {"masks": torch.rand(len(label["boxes"]), height, width, generator=generator) > 0.6} for label in labels]


def hf_segmenter(**changes):
    "The maps sum to 1 over heads and pixels, so they are small beside drawn features: weights that let them be seen."
    model = hf_model(cls="DetrForSegmentation", **WIDE | changes)
    with torch.no_grad():
        model.mask_head.conv1.conv.weight[:, WIDE["d_model"] :] *= 3e5
        model.bbox_attention.q_proj.weight *= 3
        for stage in model.mask_head.fpn_stages: stage.fpn_adapter.weight *= 1e-3
    return model


CASES = {"r18": {}, "dc5": {"dilation": True, "backbone": "resnet50"}, "gelu": {"activation_function": "gelu"}, "aux": {"auxiliary_loss": True}}


@pytest.mark.parametrize("case", CASES)
def test_pred_masks(case, tmp_path):
    theirs = hf_segmenter(**CASES[case])
    ours = ours_from(theirs, tmp_path, DetrForSegmentation)
    pixels, mask = padded_batch()
    with torch.inference_mode():
        a, b = ours(pixels, mask), theirs(pixels, pixel_mask=mask)
        close_to_scale(a.pred_masks, b.pred_masks, 1e-4)
        close_to_scale(a.logits, b.logits, 1e-4)
        ours.bbox_attention.q_linear.weight.zero_()  # the attention must be seen in the masks
        assert (ours(pixels, mask).pred_masks - a.pred_masks).abs().max() > 1e-2 * a.pred_masks.abs().max()


def test_losses_and_gradients(tmp_path):
    "In float64. Auxiliary layers have no mask losses."
    theirs = hf_segmenter(auxiliary_loss=True)
    ours = ours_from(theirs, tmp_path, DetrForSegmentation).double()
    theirs = theirs.double()
    pixels, mask = padded_batch()
    labels = with_masks([label | {"boxes": label["boxes"].double()} for label in random_labels()], *pixels.shape[-2:])
    pixels = pixels.double()
    torch.set_default_dtype(torch.float64)
    try:
        a, b = ours(pixels, mask, labels=labels), theirs(pixels, pixel_mask=mask, labels=labels)
        alone, parts = ours.training_loss(pixels, mask, labels)
    finally:
        torch.set_default_dtype(torch.float32)
    assert set(a.loss_dict) == set(b.loss_dict) == set(parts) and "loss_mask" in parts and "loss_mask_0" not in parts
    for name, value in b.loss_dict.items():
        torch.testing.assert_close(a.loss_dict[name].double(), value.double(), rtol=1e-5, atol=1e-9)
        torch.testing.assert_close(parts[name], a.loss_dict[name], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(a.loss.double(), b.loss.double(), rtol=1e-5, atol=0)
    torch.testing.assert_close(alone, a.loss, rtol=1e-9, atol=0)
    a.loss.backward(), b.loss.backward()
    wanted = {n.replace("mask_head.", ""): p.grad for n, p in theirs.named_parameters() if "mask_head" in n}
    mine = {n.replace("mask_head.", ""): p.grad for n, p in ours.named_parameters() if "mask_head" in n}
    assert len(mine) == len(wanted) == 28
    for (a_name, b_name) in (
        ("lay1.weight", "conv1.conv.weight"), ("gn2.bias", "conv2.norm.bias"), ("adapter1.weight", "fpn_stages.0.fpn_adapter.weight"),
        ("lay5.weight", "fpn_stages.2.refine.conv.weight"), ("out_lay.weight", "output_conv.weight"),
    ):
        close_to_scale(mine[a_name], wanted[b_name], 1e-4)
    close_to_scale(ours.bbox_attention.k_linear.weight.grad, theirs.bbox_attention.k_proj.weight.grad, 1e-4)
    close_to_scale(ours.detr.model.input_projection.weight.grad, theirs.detr.model.input_projection.weight.grad, 1e-4)


def test_transformers_opens_ours(tmp_path):
    import transformers
    ours = ours_from(hf_segmenter(), tmp_path / "theirs", DetrForSegmentation)
    ours.save_pretrained(tmp_path / "ours")
    theirs, info = transformers.DetrForSegmentation.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    pixels, mask = padded_batch()
    with torch.inference_mode():
        close_to_scale(theirs.eval()(pixels, pixel_mask=mask).pred_masks, ours(pixels, mask).pred_masks, 1e-4)
    reopened = DetrForSegmentation.from_pretrained(tmp_path / "ours")
    assert all(torch.equal(v, reopened.state_dict()[k]) for k, v in ours.state_dict().items())


def test_the_names_inside_transformers(tmp_path):
    "A state dict of transformers 5's own modules has other names than its files."
    theirs = hf_segmenter()
    ours = ours_from(theirs, tmp_path, DetrForSegmentation)
    torch.save(theirs.state_dict(), tmp_path / "state.pth")
    again = DetrForSegmentation.from_pretrained(tmp_path / "state.pth", config=ours.config)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in ours.state_dict().items())


def test_detector_inside_and_around(tmp_path):
    "A segmentation checkpoint opens as a detector; a detector's starts a segmentation model, and the warning says what is new."
    segmenter = ours_from(hf_segmenter(), tmp_path / "a", DetrForSegmentation)
    segmenter.save_pretrained(tmp_path / "b")
    detector = DetrForObjectDetection.from_pretrained(tmp_path / "b")
    pixels, mask = padded_batch()
    with torch.inference_mode():
        assert torch.equal(detector(pixels, mask).pred_boxes, segmenter(pixels, mask).pred_boxes)
    detector.save_pretrained(tmp_path / "c")
    with pytest.warns(UserWarning, match="begun afresh.*bbox_attention, mask_head"):
        around = DetrForSegmentation.from_pretrained(tmp_path / "c")
    assert all(torch.equal(v, around.detr.state_dict()[k]) for k, v in detector.state_dict().items())
    with pytest.raises(ValueError, match="ignore_mismatched_sizes=True"):
        DetrForSegmentation.from_pretrained(tmp_path / "b", num_labels=3)
    with pytest.warns(UserWarning, match="class_labels_classifier.weight"):
        DetrForSegmentation.from_pretrained(tmp_path / "b", num_labels=3, ignore_mismatched_sizes=True)
    state = segmenter.state_dict()
    del state["mask_head.lay1.weight"]
    from detr_nb.checkpoints import load_weights
    with pytest.raises(ValueError, match="mask_head.lay1.weight"):  # a part of a part is no detector's checkpoint
        load_weights(DetrForSegmentation(segmenter.config), state, "file", False, DetrForSegmentation.optional_parts)


# -- post-processing


def random_outputs(seed, batch=2, queries=12, classes=5, size=(20, 28), sure=3.0):
    "Blobs, so that masks overlap as real ones do; some queries say nothing."
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, queries, 4, 5, generator=generator) * 4
    return SimpleNamespace(
        logits=torch.randn(batch, queries, classes + 1, generator=generator) * sure, pred_boxes=torch.rand(batch, queries, 4, generator=generator),
        pred_masks=torch.nn.functional.interpolate(coarse, size, mode="bicubic") - 1,
    )


def their_processor():
    import transformers
    return transformers.DetrImageProcessor()


def copied(outputs):
    "Theirs changes the masks that it is given."
    return SimpleNamespace(**{k: v.clone() for k, v in vars(outputs).items()})


def same(mine, wanted):
    assert len(mine) == len(wanted)
    for a, b in zip(mine, wanted):
        assert a["segments_info"] == b["segments_info"]
        if isinstance(b["segmentation"], list):
            assert a["segmentation"] == [[int(v) for v in row] for row in b["segmentation"]]
        else:
            assert a["segmentation"].dtype == b["segmentation"].dtype and torch.equal(a["segmentation"], b["segmentation"])


SETTINGS = [
    dict(), dict(threshold=0.2), dict(threshold=0.99), dict(threshold=0.0, mask_threshold=0.3), dict(overlap_mask_area_threshold=0.4),
    dict(threshold=0.3, mask_threshold=0.7, overlap_mask_area_threshold=0.0),
]
TARGETS = [None, [(33, 47), (60, 20)], [(20, 28), (20, 28)]]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_panoptic_and_instance(seed, settings):
    outputs, sizes = random_outputs(seed, sure=(1.0, 3.0, 6.0)[seed % 3]), TARGETS[seed // 3 % 3]
    theirs, ours = their_processor(), DetrImageProcessor()
    fuse = {(0,): None, (1,): {1, 2}, (2,): {0, 1, 2, 3, 4}}[(seed % 3,)]
    same(
        ours.post_process_panoptic_segmentation(outputs, label_ids_to_fuse=fuse, target_sizes=sizes, compat="transformers", **settings),
        theirs.post_process_panoptic_segmentation(copied(outputs), label_ids_to_fuse=fuse, target_sizes=sizes, **settings),
    )
    for as_coco in (False, True):
        same(
            ours.post_process_instance_segmentation(outputs, target_sizes=sizes, return_coco_annotation=as_coco, compat="transformers", **settings),
            theirs.post_process_instance_segmentation(copied(outputs), target_sizes=sizes, return_coco_annotation=as_coco, **settings),
        )


@pytest.mark.parametrize("seed", range(9))
def test_semantic(seed):
    outputs, sizes = random_outputs(seed, classes=(3, 20, 45)[seed % 3]), TARGETS[seed // 3]
    mine = DetrImageProcessor().post_process_semantic_segmentation(outputs, sizes)
    wanted = their_processor().post_process_semantic_segmentation(copied(outputs), sizes)
    assert len(mine) == len(wanted)
    for a, b in zip(mine, wanted):
        assert a.dtype == b.dtype and torch.equal(a, b)


def run_lengths(compressed):
    from pycocotools import mask as coco_mask
    pixels = coco_mask.decode(compressed).ravel(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[0], pixels, [1 - pixels[-1]]])))
    return {"size": compressed["size"], "counts": np.diff(np.concatenate([[0], edges])).tolist()}


def test_masks_of_labels(tmp_path):
    "Panoptic and detection annotations with masks, as the public processor prepares them; its boxes of segments end a pixel early."
    import transformers

    from detr_nb import CocoPanoptic, SceneDetection, make_scenes
    folder = tmp_path
    make_scenes(folder, val=3, seed=5)
    data = CocoPanoptic(folder / "val", folder / "panoptic_val", folder / "annotations" / "panoptic_val.json")
    images, targets = zip(*(data[i] for i in range(3)))
    size = {"shortest_edge": 96, "longest_edge": 200}
    ours = DetrImageProcessor(size=size, format="coco_panoptic")(list(images), list(targets), masks_path=data.masks_path, return_tensors="pt")
    theirs = transformers.DetrImageProcessor(size=size, format="coco_panoptic")
    theirs = theirs(list(images), annotations=[{k: t[k] for k in ("image_id", "file_name", "segments_info")} for t in targets],
                    masks_path=data.masks_path, return_tensors="pt")
    for mine, wanted in zip(ours.labels, theirs["labels"]):
        for name in ("masks", "class_labels", "iscrowd", "image_id", "orig_size"):
            assert mine[name].dtype == wanted[name].dtype and torch.equal(mine[name], torch.as_tensor(wanted[name])), name
        torch.testing.assert_close(mine["area"], wanted["area"])
        low, high = (mine["boxes"][:, :2] - mine["boxes"][:, 2:] / 2) * 128, (mine["boxes"][:, :2] + mine["boxes"][:, 2:] / 2) * 128
        their_low, their_high = (wanted["boxes"][:, :2] - wanted["boxes"][:, 2:] / 2) * 128, (wanted["boxes"][:, :2] + wanted["boxes"][:, 2:] / 2) * 128
        torch.testing.assert_close(low, their_low, atol=1e-3, rtol=0)
        torch.testing.assert_close(high - 1, their_high, atol=1e-3, rtol=0)
    image, target = SceneDetection(3, 5, "val", masks=True)[1]
    mine = DetrImageProcessor(size=size)(image, target, return_segmentation_masks=True, return_tensors="pt").labels[0]
    for a in target["annotations"]:  # theirs reads run lengths only where they are not compressed
        a["segmentation"] = run_lengths(a["segmentation"])
    again = DetrImageProcessor(size=size)(image, target, return_segmentation_masks=True, return_tensors="pt").labels[0]
    assert torch.equal(mine["masks"], again["masks"])
    wanted = transformers.DetrImageProcessor(size=size)(image, annotations=target, return_segmentation_masks=True, return_tensors="pt")["labels"][0]
    assert torch.equal(mine["masks"], torch.as_tensor(np.asarray(wanted["masks"])).bool())


def test_older_name_says_so_once():
    from detr_nb import DetrFeatureExtractor
    DetrFeatureExtractor.warned = False
    with pytest.warns(FutureWarning, match="DetrImageProcessor"):
        DetrFeatureExtractor()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(DetrFeatureExtractor(size=200), DetrImageProcessor)
        stored = DetrFeatureExtractor.from_pretrained("scenes")
        assert stored.size == DetrImageProcessor.from_pretrained("scenes").size != DetrImageProcessor().size
        image = np.zeros((50, 60, 3), np.uint8)
        assert DetrFeatureExtractor(size=200)(image, do_normalize=False, return_tensors="pt").pixel_values.shape == (1, 3, 200, 240)


def test_none_means_as_configured():
    processor, image = DetrImageProcessor(size=64), np.zeros((50, 60, 3), np.uint8)
    wanted = processor(image, return_tensors="pt").pixel_values
    same = processor(image, return_tensors="pt", do_resize=None, size=None, image_mean=None, data_format="channels_first").pixel_values
    assert torch.equal(same, wanted)
    unpadded = processor(image, {"image_id": 1, "annotations": []}, return_tensors="pt", do_pad=False)
    assert torch.equal(unpadded.pixel_values, wanted) and len(unpadded.labels) == 1 and "pixel_mask" not in unpadded
    with pytest.raises(ValueError, match="data_format='channels_last'"):
        processor(image, data_format="channels_last")
