"What the structure promises: flat public classes, settings of one's own, one path through the model, files written whole."
import inspect

import pytest
import torch
from conftest import SMALL, draw_weights, padded_batch, random_labels

from detr_nb import (
    CocoEvaluator, DetrConfig, DetrForObjectDetection, DetrForSegmentation, DetrImageProcessor, DetrModel, PanopticEvaluator,
)
from detr_nb.checkpoints import Pretrained
from detr_nb.detector import evaluating, image_tokens, learned_states, predict_from, transform
from detr_nb.files import atomic
from detr_nb.mask_head import draw_masks
from detr_nb.matcher import pack_targets

FLAT = {
    DetrConfig: [], DetrImageProcessor: [], CocoEvaluator: [], PanopticEvaluator: [], DetrModel: [Pretrained],
    DetrForObjectDetection: [Pretrained], DetrForSegmentation: [Pretrained],
}


@pytest.mark.parametrize("cls", FLAT, ids=lambda cls: cls.__name__)
def test_public_classes_are_flat(cls):
    assert [base for base in cls.__bases__ if base is not object] == FLAT[cls]


class DatedConfig(DetrConfig):
    def __init__(self, trained_on="", **settings):
        super().__init__(**settings)
        self.trained_on = trained_on


class DatedDetector(DetrForObjectDetection):
    config_class = DatedConfig


def test_setting_of_ones_own_survives_in_a_model(tmp_path):
    "Through a model's folder and, as an unknown key, through a config that does not know it."
    model = DatedDetector(DatedConfig(trained_on="scenes", **SMALL))
    model.save_pretrained(tmp_path)
    again = DatedDetector.from_pretrained(tmp_path)
    assert type(again.config) is DatedConfig and again.config.trained_on == "scenes"
    assert torch.equal(again.class_labels_classifier.weight, model.class_labels_classifier.weight)
    plain = DetrForObjectDetection.from_pretrained(tmp_path)
    assert plain.config.extra["trained_on"] == "scenes"
    plain.save_pretrained(tmp_path / "plain")
    assert DatedConfig.from_pretrained(tmp_path / "plain").trained_on == "scenes"


def test_setting_of_ones_own_survives_in_a_processor(tmp_path):
    class Titled(DetrImageProcessor):
        def __init__(self, title="", **settings):
            super().__init__(**settings)
            self.title = title

    Titled(title="cells", size=600, box_frame="canvas").save_pretrained(tmp_path)
    again = Titled.from_pretrained(tmp_path, do_pad=False)
    assert (again.title, again.box_frame, again.do_pad, again.extra) == ("cells", "canvas", False, {})
    assert DetrImageProcessor.from_pretrained(tmp_path).extra == {"title": "cells"}


def test_every_field_has_a_check_or_is_a_visible_choice():
    from dataclasses import fields
    unchecked = {f.name for f in fields(DetrConfig) if not f.metadata}
    assert unchecked == {"num_labels", "id2label", "label2id", "stuff_ids", "extra"}
    for f in fields(DetrConfig):
        if f.metadata:
            with pytest.raises(ValueError, match=rf"^{f.name}="): DetrConfig(**{f.name: object()})


@pytest.fixture(scope="module")
def segmenter():
    return draw_weights(DetrForSegmentation(DetrConfig(**SMALL | {"auxiliary_loss": True, "dropout": 0.0, "encoder_attention_heads": 8}))).eval()


def test_functions_are_what_the_models_run(segmenter):
    "The forward pass of a model, and the same by its functions."
    pixels, mask = padded_batch()
    with torch.no_grad():
        outputs = segmenter(pixels, mask)
        features, tokens = image_tokens(segmenter.detr.model, pixels, mask)
        hidden = transform(segmenter.detr.model, tokens)
        predictions = predict_from(segmenter.detr, learned_states(hidden))
        states = hidden.last_hidden_state
        masks = draw_masks(segmenter, features, tokens, hidden.encoder_last_hidden_state, states)
    assert torch.equal(predictions["logits"], outputs.logits) and torch.equal(predictions["pred_boxes"], outputs.pred_boxes)
    assert torch.equal(torch.stack(masks), outputs.pred_masks)
    assert len(predictions["auxiliary_outputs"]) == SMALL["decoder_layers"] - 1


def test_loss_takes_pairs(segmenter):
    "Given the pairs, nothing is matched again; other pairs give another loss."
    pixels, mask = padded_batch()
    labels = random_labels()
    with torch.no_grad():
        predictions = predict_from(segmenter.detr, learned_states(segmenter.detr.model(pixels, mask)))
    criterion = segmenter.detr.criterion
    packed = pack_targets(labels, predictions["logits"])
    pairs = criterion.match(predictions, packed)
    assert pairs.layer.shape == pairs.target.shape == (SMALL["decoder_layers"] * (3 + 5),)
    assert packed.labels.shape == (2, 5) and packed.boxes.shape == (2, 5, 4) and packed.counts == [3, 5]
    own, given = criterion(predictions, labels), criterion(predictions, packed, pairs)
    assert own.keys() == given.keys() and all(torch.equal(own[name], given[name]) for name in own)
    turned = pairs._replace(query=(pairs.query + 1) % SMALL["num_queries"])
    assert criterion(predictions, packed, turned)["loss_bbox"] != own["loss_bbox"]


def test_masks_of_matched_queries_are_those_of_all(segmenter):
    "The loss from masks of the matched queries alone equals the one from every query's mask."
    pixels, mask = padded_batch()
    labels = [
        label | {"masks": torch.rand(len(label["boxes"]), *pixels.shape[2:], generator=torch.Generator().manual_seed(i)) > 0.5}
        for i, label in enumerate(random_labels())
    ]
    with torch.no_grad():
        alone = segmenter.training_loss(pixels, mask, labels)[1]
        whole = segmenter(pixels, mask, labels=labels).loss_dict
    assert alone.keys() == whole.keys()
    for name in alone: torch.testing.assert_close(alone[name], whole[name], rtol=1e-5, atol=1e-6)


def test_evaluating_restores_the_mode_of_every_part(segmenter):
    segmenter.train()
    segmenter.detr.model.encoder.eval()
    modes = [module.training for module in segmenter.modules()]
    with pytest.raises(KeyError):
        with evaluating(segmenter):
            assert not any(module.training for module in segmenter.modules())
            raise KeyError("in the middle")
    assert [module.training for module in segmenter.modules()] == modes
    segmenter.eval()


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "numbers.npz"
    path.write_text("old")
    with pytest.raises(OSError, match="full"):
        with atomic(path) as part:
            part.write_text("ne")
            raise OSError("the disk is full")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with atomic(path) as part:
        assert part.suffix == path.suffix and part.parent == tmp_path
        part.write_text("new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_train_is_a_loop_over_parts():
    "The loop itself is short; what it calls can be tested alone."
    from detr_nb import training
    source = inspect.getsource(training.train).splitlines()
    body = source[next(i for i, line in enumerate(source) if line.strip() == "from accelerate.utils import set_seed") :]
    start = next(i for i, line in enumerate(body) if line.lstrip().startswith("for batch in "))
    inside = body[start][: -len(body[start].lstrip())] + "    "
    loop = [line for line in body[start + 1 :] if line.startswith(inside)]
    assert 5 < len(loop) <= 12 and len(body) <= 35
