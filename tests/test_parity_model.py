"The model against transformers 5 with the same weights. Tolerances: logits, states, attentions, gradients 1e-4 of the largest value; boxes 1e-5."
import warnings

import pytest
import torch
from conftest import SMALL, close_to_scale, draw_weights, hf_model, ours_from, padded_batch, random_labels

from detr_nb import DetrConfig, DetrForObjectDetection, DetrForSegmentation, DetrModel


def test_every_part_is_seen(tmp_path):
    "With these weights, leaving out positions or queries, or swapping x and y, moves the logits by over 1e-2."
    model = ours_from(hf_model(), tmp_path)
    pixels, mask = padded_batch()
    with torch.inference_mode():
        logits = model(pixels, mask).logits
        embed, halves = model.model.backbone.position_embedding, SMALL["d_model"] // 2
        forward = embed.forward
        embed.forward = lambda m: torch.zeros_like(forward(m))
        zeroed = model(pixels, mask).logits
        embed.forward = lambda m: torch.cat([forward(m)[:, halves:], forward(m)[:, :halves]], 1)
        swapped = model(pixels, mask).logits
        embed.forward = forward
        model.model.query_position_embeddings.weight.zero_()
        no_queries = model(pixels, mask).logits
    for other in (zeroed, swapped, no_queries):
        assert (other - logits).abs().max() > 1e-2


CASES = {
    "r18": {},
    "dc5": {"dilation": True, "backbone": "resnet50"},
    "learned": {"position_embedding_type": "learned"},
    "gelu": {"activation_function": "gelu", "encoder_layers": 1},
    "aux": {"auxiliary_loss": True},
}


@pytest.mark.parametrize("case", CASES)
def test_outputs(case, tmp_path):
    theirs = hf_model(**CASES[case])
    ours = ours_from(theirs, tmp_path)
    pixels, mask = padded_batch()
    with torch.inference_mode():
        a = ours(pixels, mask, output_attentions=True, output_hidden_states=True)
        b = theirs(pixels, pixel_mask=mask, output_attentions=True, output_hidden_states=True)
    close_to_scale(a.logits, b.logits, 1e-4)
    assert a.pred_boxes.shape == b.pred_boxes.shape
    torch.testing.assert_close(a.pred_boxes, b.pred_boxes, atol=1e-5, rtol=0)
    close_to_scale(a.last_hidden_state, b.last_hidden_state, 1e-4)
    close_to_scale(a.encoder_last_hidden_state, b.encoder_last_hidden_state, 1e-4)
    for name in ("encoder_hidden_states", "encoder_attentions", "decoder_attentions", "cross_attentions"):
        mine, wanted = getattr(a, name), getattr(b, name)
        assert len(mine) == len(wanted), (name, len(mine), len(wanted))
        for x, y in zip(mine, wanted):
            close_to_scale(x, y, 1e-4)
    assert len(a.decoder_hidden_states) == len(b.decoder_hidden_states)
    if case != "aux":  # there transformers records the states before the norm that it feeds on
        for x, y in zip(a.decoder_hidden_states, b.decoder_hidden_states):
            close_to_scale(x, y, 1e-4)


@pytest.mark.parametrize("auxiliary", [False, True])
def test_losses_and_gradients(auxiliary, tmp_path):
    "In float64: a ReLU that rounding tips over would otherwise show as a difference."
    theirs = hf_model(auxiliary_loss=auxiliary)
    ours = ours_from(theirs, tmp_path).double()
    theirs = theirs.double()
    assert ours.config.decoder_renormalize == auxiliary
    pixels, mask = padded_batch()
    pixels, labels = pixels.double(), [label | {"boxes": label["boxes"].double()} for label in random_labels()]
    torch.set_default_dtype(torch.float64)  # transformers builds its loss anew in every call
    try:
        a, b = ours(pixels, mask, labels=labels), theirs(pixels, pixel_mask=mask, labels=labels)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(a.loss.double(), b.loss.double(), rtol=1e-5, atol=0)
    assert set(a.loss_dict) == set(b.loss_dict)
    for name, value in b.loss_dict.items():
        torch.testing.assert_close(a.loss_dict[name].double(), value.double(), rtol=1e-5, atol=1e-6)
    a.loss.backward()
    b.loss.backward()
    renamed = {
        k.replace("backbone.model.", "backbone.conv_encoder.model.").replace(".o_proj.", ".out_proj.").replace(".mlp.fc", ".fc"): p
        for k, p in theirs.named_parameters()
    }
    compared = 0
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            close_to_scale(parameter.grad, renamed[name].grad, 1e-4, floor=1e-6)
            compared += 1
    assert compared > 100


def test_default_size_r50(tmp_path):
    "The published network once, at its own size."
    import transformers
    theirs = draw_weights(transformers.DetrForObjectDetection(transformers.DetrConfig(num_labels=91))).eval()
    ours = ours_from(theirs, tmp_path)
    pixels, mask = padded_batch(((256, 320),))
    with torch.inference_mode():
        a, b = ours(pixels, mask), theirs(pixels, pixel_mask=mask)
    close_to_scale(a.logits, b.logits, 1e-4)
    torch.testing.assert_close(a.pred_boxes, b.pred_boxes, atol=1e-5, rtol=0)


def test_base_model(tmp_path):
    theirs = hf_model(cls="DetrModel")
    ours = ours_from(theirs, tmp_path, DetrModel)
    pixels, mask = padded_batch()
    with torch.inference_mode():
        close_to_scale(ours(pixels, mask).last_hidden_state, theirs(pixels, pixel_mask=mask).last_hidden_state, 1e-4)


@pytest.mark.parametrize("auxiliary", [False, True])
@pytest.mark.parametrize("positions", ["sine", "learned"])
def test_transformers_opens_ours(auxiliary, positions, tmp_path):
    import transformers
    config = DetrConfig(**SMALL | {"auxiliary_loss": auxiliary, "position_embedding_type": positions})
    ours = draw_weights(DetrForObjectDetection(config)).eval()
    ours.save_pretrained(tmp_path)
    theirs, report = transformers.DetrForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["mismatched_keys"]
    pixels, mask = padded_batch()
    with torch.inference_mode():
        a, b = ours(pixels, mask), theirs.eval()(pixels, pixel_mask=mask)
    close_to_scale(a.logits, b.logits, 1e-4)
    torch.testing.assert_close(a.pred_boxes, b.pred_boxes, atol=1e-5, rtol=0)
    again = DetrForObjectDetection.from_pretrained(tmp_path)
    assert again.config == ours.config or again.config.to_dict() == ours.config.to_dict() | {"architectures": ["DetrForObjectDetection"]}
    assert again.config.auxiliary_loss == auxiliary
    assert torch.equal(again(pixels, mask).logits, ours(pixels, mask).logits)


@pytest.mark.parametrize("auxiliary", [False, True])
@pytest.mark.parametrize("renormalize", [False, True])
def test_flags_survive_a_round_trip(auxiliary, renormalize, tmp_path):
    import transformers
    config = DetrConfig(**SMALL | {"auxiliary_loss": auxiliary, "decoder_renormalize": renormalize})
    ours = draw_weights(DetrForObjectDetection(config)).eval()
    ours.save_pretrained(tmp_path)
    theirs = transformers.DetrForObjectDetection.from_pretrained(tmp_path).eval()
    again = DetrForObjectDetection.from_pretrained(tmp_path)
    pixels, mask = padded_batch()
    with torch.inference_mode():
        close_to_scale(ours(pixels, mask).logits, theirs(pixels, pixel_mask=mask).logits, 1e-4)
        assert torch.equal(ours(pixels, mask).logits, again(pixels, mask).logits)
    assert (again.config.auxiliary_loss, again.config.decoder_renormalize) == (auxiliary, renormalize)


def test_auxiliary_loss_never_changes_a_prediction():
    pixels, mask = padded_batch()
    results = []
    for auxiliary in (False, True):
        model = draw_weights(DetrForObjectDetection(DetrConfig(**SMALL | {"auxiliary_loss": auxiliary}))).eval()
        with torch.inference_mode():
            results.append(model(pixels, mask).logits)
    assert torch.equal(*results)


def test_embedded_model_opens_in_transformers():
    import transformers

    from detr_nb import register_backbones
    from detr_nb.data import SceneDetection
    from detr_nb.files import ASSETS
    from detr_nb.processor import DetrImageProcessor
    register_backbones()
    ours, processor = DetrForSegmentation.from_pretrained("scenes"), DetrImageProcessor.from_pretrained("scenes")
    theirs = transformers.DetrForSegmentation.from_pretrained(ASSETS / "scenes", dtype=torch.float32).eval()
    dataset = SceneDetection(4, seed=9)
    batch = processor([dataset[i][0] for i in range(4)], return_tensors="pt")
    with torch.inference_mode():
        a, b = ours(batch.pixel_values, batch.pixel_mask), theirs(batch.pixel_values, pixel_mask=batch.pixel_mask)
    close_to_scale(a.logits, b.logits, 1e-4)
    torch.testing.assert_close(a.pred_boxes, b.pred_boxes, atol=1e-5, rtol=0)
    close_to_scale(a.pred_masks, b.pred_masks, 1e-4)
    pixels = transformers.DetrImageProcessor.from_pretrained(ASSETS / "scenes")(dataset[0][0], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(batch.pixel_values[:1], pixels, atol=1e-5, rtol=0)


def test_config_reads_both_spellings():
    import transformers
    config = transformers.DetrConfig(num_labels=9, dilation=True, class_cost=1, dropout=0.2)
    ours = DetrConfig.from_dict(config.to_dict())
    assert (ours.backbone, ours.dilation, ours.backbone_kwargs, ours.num_labels, ours.dropout) == ("resnet50", True, None, 9, 0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = transformers.DetrConfig.from_dict(ours.to_dict())
    for name in ("d_model", "num_queries", "class_cost", "eos_coefficient", "dilation", "id2label"):
        assert getattr(back, name) == getattr(config, name)
