"Outputs, freezing, other inputs, and numbers in low precision."
import copy
import pickle
import warnings

import pytest
import torch
from conftest import SMALL, draw_weights, padded_batch, random_labels

from detr_nb import DetrConfig, DetrForObjectDetection, DetrModel, DetrObjectDetectionOutput


@pytest.fixture(scope="module")
def model():
    return draw_weights(DetrForObjectDetection(DetrConfig(**SMALL | {"auxiliary_loss": True}))).eval()


def test_output_by_name_key_and_index(model):
    pixels, mask = padded_batch()
    outputs = model(pixels, mask, labels=random_labels(), output_attentions=True, output_hidden_states=True)
    assert outputs.loss is outputs["loss"] is outputs[0]
    assert outputs.to_tuple()[2] is outputs.logits and len(outputs) == 12
    assert len(outputs[:2]) == 2
    with pytest.raises(KeyError):
        outputs["pred_masks"]
    plain = model(pixels, mask)
    assert "loss" not in plain and plain[0] is plain.logits and plain.auxiliary_outputs is None
    as_tuple = model(pixels, mask, labels=random_labels(), output_attentions=True, output_hidden_states=True, return_dict=False)
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[0], outputs.loss)


def test_output_survives_copy_and_pickle(model):
    outputs = model(*padded_batch())
    for again in (copy.deepcopy(outputs.__class__(logits=outputs.logits.detach())), pickle.loads(pickle.dumps(outputs.__class__(logits=outputs.logits.detach())))):
        assert torch.equal(again.logits, outputs.logits) and again.pred_boxes is None
    from accelerate.utils import convert_outputs_to_fp32
    wrapped = convert_outputs_to_fp32(lambda: DetrObjectDetectionOutput(logits=torch.zeros(1, dtype=torch.float16)))()
    assert isinstance(wrapped, DetrObjectDetectionOutput) and wrapped.logits.dtype == torch.float32


def test_freeze_and_unfreeze(model):
    other = copy.deepcopy(model)
    other.freeze_backbone()
    assert not any(p.requires_grad for p in other.model.backbone.parameters())
    other.unfreeze_backbone()
    assert all(p.requires_grad for p in other.model.backbone.parameters())
    other.model.freeze_backbone()
    assert not any(p.requires_grad for p in other.model.backbone.parameters())


def test_encoder_outputs_are_taken(model):
    pixels, mask = padded_batch()
    first = model.model(pixels, mask)
    again = model.model(pixels, mask, encoder_outputs=(first.encoder_last_hidden_state,))
    assert torch.equal(first.last_hidden_state, again.last_hidden_state)
    other = model.model(pixels, mask, encoder_outputs=(torch.zeros_like(first.encoder_last_hidden_state),))
    assert not torch.allclose(first.last_hidden_state, other.last_hidden_state)


def test_decoder_inputs(model):
    pixels, mask = padded_batch()
    start = torch.randn(2, 12, 64, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(model(pixels, mask).logits, model(pixels, mask, decoder_inputs_embeds=start).logits)
    assert torch.equal(model(pixels, mask).logits, model(pixels, mask, decoder_inputs_embeds=torch.zeros_like(start)).logits)


def test_query_mask(model):
    "Masked queries have no influence on the others."
    pixels, mask = padded_batch()
    allowed = torch.ones(2, 12)
    allowed[:, 8:] = 0
    before = model(pixels, mask, decoder_attention_mask=allowed).logits[:, :8]
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.query_position_embeddings.weight[8:] += 1
    torch.testing.assert_close(other(pixels, mask, decoder_attention_mask=allowed).logits[:, :8], before)
    assert not torch.allclose(other(pixels, mask).logits[:, :8], model(pixels, mask).logits[:, :8])


def test_neither_or_both_inputs(model):
    with pytest.raises(ValueError, match="either pixel_values or inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="either pixel_values or inputs_embeds"):
        model(torch.zeros(1, 3, 32, 32), inputs_embeds=torch.zeros(1, 1, 64))


def test_attention_does_not_change_the_answer(model):
    pixels, mask = padded_batch()
    torch.testing.assert_close(model(pixels, mask).logits, model(pixels, mask, output_attentions=True).logits, rtol=0, atol=1e-5)


def test_low_precision(model):
    pixels, mask = padded_batch()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(pixels, mask, labels=random_labels())
    assert outputs.loss.dtype == torch.float32 and outputs.loss.isfinite()
    half = copy.deepcopy(model).bfloat16()
    assert half(pixels.bfloat16(), mask).logits.dtype == torch.bfloat16
    error = (half(pixels.bfloat16(), mask).pred_boxes.float() - model(pixels, mask).pred_boxes).abs().mean()
    assert error < 0.05


def test_position_is_computed_in_float32(model):
    "In a bfloat16 model the positions are the float32 ones, rounded once."
    half, mask = copy.deepcopy(model).bfloat16(), torch.ones(1, 64, 96)
    pixels = torch.zeros(1, 3, 64, 96)
    exact = model.model.backbone(pixels, mask)[1]
    assert exact.dtype == torch.float32
    assert torch.equal(half.model.backbone(pixels.bfloat16(), mask)[1], exact.bfloat16())


def test_learned_positions_too_large():
    model = DetrModel(DetrConfig(**SMALL | {"position_embedding_type": "learned"})).eval()
    with pytest.raises(ValueError, match="knows 50 × 50 positions, the feature map has 52 × 2"):
        model(torch.zeros(1, 3, 52 * 32, 64))


def test_initialisation():
    "The original's: Xavier in the transformer as if q, k, v were one matrix, N(0, 1) queries."
    torch.manual_seed(0)
    model = DetrModel(DetrConfig(**SMALL | {"num_queries": 400, "d_model": 128}))
    attention = model.encoder.layers[0].self_attn
    assert abs(float(attention.q_proj.weight.detach().abs().max()) - (6 / (4 * 128)) ** 0.5) < 2e-3
    assert abs(float(attention.out_proj.weight.detach().abs().max()) - (6 / (2 * 128)) ** 0.5) < 2e-3
    assert (attention.q_proj.bias == 0).all()
    assert abs(float(model.query_position_embeddings.weight.detach().std()) - 1) < 0.02


def test_dropout_where_the_original_has_it():
    "None on the encoder's input; each of the three rates acts when training."
    pixels, mask = padded_batch()
    bare = DetrModel(DetrConfig(**SMALL | {"dropout": 0.5, "encoder_layers": 0})).train()
    assert torch.equal(*(bare(pixels, mask).encoder_last_hidden_state for _ in range(2)))
    for name in ("dropout", "attention_dropout", "activation_dropout"):
        model = DetrModel(DetrConfig(**SMALL | {"dropout": 0.0, name: 0.5})).train()
        assert not torch.equal(*(model(pixels, mask).last_hidden_state for _ in range(2))), name
    still = DetrModel(DetrConfig(**SMALL | {"dropout": 0.0})).train()
    assert torch.equal(*(still(pixels, mask).last_hidden_state for _ in range(2)))


def test_layerdrop():
    model = draw_weights(DetrForObjectDetection(DetrConfig(**SMALL | {"dropout": 0.0, "decoder_layerdrop": 0.9, "auxiliary_loss": True}))).train()
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outputs = model(*padded_batch(), labels=random_labels())
    assert len(outputs.auxiliary_outputs) == 2 and outputs.loss.isfinite()
