"Sixteen bits, gradients against finite differences, and the default dtype."
import pytest
import torch
from torch.autograd import gradcheck

from detr_nb import SceneDetection
from detr_nb.boxes import box_cxcywh_to_xyxy, box_iou, generalized_box_iou, paired_giou
from detr_nb.data import detection_target
from detr_nb.mask_losses import dice_loss, sigmoid_focal_loss
from detr_nb.position import SinePositionEmbedding
from detr_nb.pretraining import init_scenes_detector, scenes_processor


def losses_of(kind: str, steps: int, side: int = 128) -> list[float]:
    "A few steps of the scenes model in a number format."
    processor, data = scenes_processor(), SceneDetection(16, seed=3)
    processor.size = {"height": side, "width": side}
    model, found = init_scenes_detector().train(), []
    if kind == "pure bfloat16": model.to(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    halves = {"float16": torch.float16, "bfloat16": torch.bfloat16}
    for step in range(steps):
        drawn = [data[(2 * step + i) % 16] for i in range(2)]
        batch = processor.collate([processor.encode(image, detection_target(target, 128, 128)) for image, target in drawn])
        pixels = batch.pixel_values.to(next(model.parameters()).dtype)
        with torch.autocast("cpu", halves.get(kind, torch.bfloat16), enabled=kind in halves):
            outputs = model(pixels, batch.pixel_mask, labels=batch.labels)
        assert outputs.loss.dtype == torch.float32 and all(value.dtype == torch.float32 for value in outputs.loss_dict.values())
        optimizer.zero_grad()
        outputs.loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        assert norm.isfinite(), (kind, step)
        optimizer.step()
        found.append(outputs.loss.item())
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind, steps, side", [("float16", 3, 64), ("bfloat16", 12, 128), ("pure bfloat16", 12, 128)])
def test_sixteen_bits_train_as_thirty_two_do(kind, steps, side):
    "Within 3 % of float32 at every step, without a number that is none."
    torch.testing.assert_close(torch.tensor(losses_of(kind, steps, side)), torch.tensor(losses_of("float32", steps, side)), rtol=0.03, atol=0)


def boxes(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    center, size = torch.rand(2, count, 2, generator=generator, dtype=torch.float64)
    return torch.cat([center * 0.4 + 0.3, size * 0.3 + 0.1], 1).requires_grad_()


@pytest.mark.parametrize("seed", range(5))
def test_gradients_of_boxes(seed):
    a, b = boxes(4, seed), boxes(4, seed + 100)
    assert gradcheck(lambda x, y: box_iou(box_cxcywh_to_xyxy(x), box_cxcywh_to_xyxy(y)), (a, b))
    assert gradcheck(lambda x, y: generalized_box_iou(box_cxcywh_to_xyxy(x), box_cxcywh_to_xyxy(y)), (a, b))
    assert gradcheck(lambda x, y: paired_giou(box_cxcywh_to_xyxy(x), box_cxcywh_to_xyxy(y)), (a, b))
    assert gradcheck(box_cxcywh_to_xyxy, (a,))


@pytest.mark.parametrize("seed", range(3))
def test_gradients_of_mask_losses(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 20, generator=generator, dtype=torch.float64, requires_grad=True)
    truth = (torch.rand(3, 20, generator=generator) > 0.6).double()
    objects = torch.tensor(2.0, dtype=torch.float64)
    assert gradcheck(lambda x: sigmoid_focal_loss(x, truth, objects), (logits,))
    assert gradcheck(lambda x: dice_loss(x, truth, objects), (logits,))


@pytest.mark.parametrize("default", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_sine_embedding_is_float32_whatever_the_default(default):
    mask = torch.ones(1, 40, 30, dtype=torch.bool)
    mask[:, 33:] = False
    wanted = SinePositionEmbedding(64)(mask)
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try: found = SinePositionEmbedding(64)(mask)
    finally: torch.set_default_dtype(before)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_sixteen_bits_learns_in_float32_on_a_cpu(dtype, masked, monkeypatch):
    "The fused function gets 32 bits where gradients are wanted, under autocast too; what comes out has 16 again."
    from detr_nb import transformer
    given, fused = [], torch.nn.functional.scaled_dot_product_attention

    def watched(q, k, v, **more):
        given.append(q.dtype)
        return fused(q, k, v, **more)

    monkeypatch.setattr(transformer, "scaled_dot_product_attention", watched)
    torch.manual_seed(0)
    inputs = [torch.randn(2, 4, tokens, 8).to(dtype).requires_grad_() for tokens in (5, 7, 7)]
    mask = torch.rand(2, 1, 1, 7) > 0.3 if masked else None
    if masked: mask[..., 0] = True
    with torch.autocast("cpu", dtype): out, _ = transformer.attend(*inputs, mask)
    assert out.shape == (2, 4, 5, 8) and out.dtype == dtype
    out.float().square().sum().backward()
    assert given == [torch.float32]

    wide = [value.detach().float().requires_grad_() for value in inputs]
    exact = fused(*wide, attn_mask=mask)
    exact.square().sum().backward()
    torch.testing.assert_close(out.float(), exact, atol=2e-2, rtol=0)
    for narrow, value in zip(inputs, wide): torch.testing.assert_close(narrow.grad.float(), value.grad, atol=5e-2, rtol=0)

    transformer.attend(*(value.detach() for value in inputs), mask)
    assert given[1:] == [dtype]  # nothing to learn: the fast 16 bits
