"""The capstone's tests: `pytest -q` in this folder. They read `my_detr.py` here, or the file that DETR names."""
import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from detr_nb.napkin import make_images, score_napkin


@pytest.fixture(scope="module")
def mine():
    "The file that is tested."
    path = Path(os.environ.get("DETR", Path(__file__).parent / "my_detr.py"))
    if not path.is_file(): pytest.fail(f"{path}: not written yet", pytrace=False)
    spec = importlib.util.spec_from_file_location("my_detr", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.set_num_threads(1)
    return module


@pytest.fixture
def some():
    return make_images(6, torch.Generator().manual_seed(5))


@pytest.fixture
def model(mine):
    torch.manual_seed(0)
    return mine.Detr()


def perfect(truth, queries=6, sure=8.0):
    "Logits and boxes (2, B, N, 4) of a model that knows the truth: query k answers for object k."
    logits = torch.zeros(2, len(truth), queries, 4)
    boxes = torch.full((2, len(truth), queries, 4), 0.5)
    logits[..., 3] = sure
    for i, t in enumerate(truth):
        for k, (label, box) in enumerate(zip(t["labels"], t["boxes"])):
            logits[:, i, k] = torch.nn.functional.one_hot(label, 4) * sure
            boxes[:, i, k] = box
    return logits, boxes


# -- Detr


def test_shapes_and_ranges(model, some):
    logits, boxes = model(some[0])
    layers, batch, queries, classes = logits.shape
    assert layers >= 2 and batch == 6 and queries >= 5 and classes == 4
    assert boxes.shape == (layers, batch, queries, 4) and logits.dtype == boxes.dtype == torch.float32
    assert 0 <= boxes.min() and boxes.max() <= 1


def test_every_image_is_answered_alone(model, some):
    model.eval()
    with torch.no_grad(): together, alone = model(some[0]), model(some[0][2:3])
    for a, b in zip(together, alone): torch.testing.assert_close(a[:, 2:3], b, atol=1e-4, rtol=1e-4)


def test_answers_depend_on_image_and_query(model, some):
    model.eval()
    with torch.no_grad(): logits, boxes = model(some[0])
    for x in (logits[-1], boxes[-1]):
        assert x.std(0).max() > 1e-6, "all images get the same answer"
        assert x.std(1).max() > 1e-6, "all queries give the same answer"


def test_every_parameter_learns(mine, model, some):
    mine.loss(*model(some[0]), some[1]).backward()
    silent = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not silent, f"no gradient reaches {silent}"


# -- match


def test_match_is_the_cheapest(mine):
    rng = np.random.default_rng(0)
    for _ in range(100):
        cost = rng.normal(size=(6, rng.integers(1, 6)))
        queries, objects = (np.asarray(x) for x in mine.match(cost))
        assert sorted(objects.tolist()) == list(range(cost.shape[1])), "every object wants a query"
        assert len(set(queries.tolist())) == len(queries), "no query answers for two objects"
        assert np.isclose(cost[queries, objects].sum(), cost[linear_sum_assignment(cost)].sum())


# -- loss


def test_loss_is_small_only_for_right_answers(mine, some):
    truth = some[1]
    logits, boxes = perfect(truth)
    right = mine.loss(logits, boxes, truth)
    assert right.shape == () and right.isfinite()
    assert mine.loss(logits, (boxes + 0.1).clamp(max=1), truth) > right + 0.1, "moved boxes should cost"
    assert mine.loss(logits.roll(1, -1), boxes, truth) > right + 0.1, "wrong classes should cost"


def test_loss_knows_no_order(mine, some):
    torch.manual_seed(1)
    truth = some[1]
    logits, boxes = torch.randn(2, 6, 6, 4), torch.rand(2, 6, 6, 4) * 0.5 + 0.25
    loss = mine.loss(logits, boxes, truth)
    turned = [{name: value.flip(0) for name, value in t.items()} for t in truth]
    order = torch.randperm(6)
    torch.testing.assert_close(mine.loss(logits, boxes, turned), loss, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mine.loss(logits[:, :, order], boxes[:, :, order], truth), loss, rtol=1e-4, atol=1e-5)


def test_duplicates_cost(mine, some):
    truth = some[1]
    logits, boxes = perfect(truth)
    again_logits, again_boxes = logits.clone(), boxes.clone()
    again_logits[:, :, 5], again_boxes[:, :, 5] = logits[:, :, 0], boxes[:, :, 0]
    assert mine.loss(again_logits, again_boxes, truth) > mine.loss(logits, boxes, truth) + 0.1


def test_every_layer_counts(mine, some):
    truth = some[1]
    logits, boxes = perfect(truth)
    for layer in range(2):
        worse = boxes.clone()
        worse[layer] = 0.05
        assert mine.loss(logits, worse, truth) > mine.loss(logits, boxes, truth) + 0.1, f"layer {layer} is free to err"


# -- learning


def test_four_images_by_heart(mine, model, some):
    images, truth = some[0][:4], some[1][:4]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(150):
        loss = mine.loss(*model.train()(images), truth)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3, f"the loss fell from {losses[0]:.2f} to {losses[-1]:.2f}: want a third"


def test_same_seed_same_weights(mine):
    one, other = (mine.train(3, seed=1).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_trained_model_is_good(mine):
    score = score_napkin(mine.train(2000, seed=0).eval())
    assert score.exact >= 0.45, f"{score.exact:.0%} of the images are all right: want 45 %"
    assert score.duplicates <= 250, f"{score.duplicates} duplicates: want at most 250"
