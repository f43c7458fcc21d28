"Matching and loss against transformers, many targets, none, several layers; what is refused."
import pytest
import torch
from conftest import random_labels

from detr_nb import DetrHungarianMatcher, DetrLoss, HungarianMatcher


def random_outputs(batch, queries=20, classes=7, layers=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: {
        "logits": torch.randn(batch, queries, classes + 1, generator=generator, requires_grad=True),
        "pred_boxes": (torch.rand(batch, queries, 4, generator=generator) * 0.5 + 0.1).requires_grad_(),
    }
    last, *rest = [draw() for _ in range(layers)]
    return last | ({"auxiliary_outputs": rest} if rest else {})


@pytest.mark.parametrize("counts", [(3, 5), (1,), (0, 4), (0, 0), (20, 7, 1), (25, 3)], ids=str)
@pytest.mark.parametrize("layers", [1, 4])
@pytest.mark.filterwarnings("ignore:.*stay unmatched")
def test_against_transformers(counts, layers):
    from transformers.loss.loss_for_object_detection import HungarianMatcher as TheirMatcher
    from transformers.loss.loss_for_object_detection import ImageLoss
    outputs, labels = random_outputs(len(counts), layers=layers), random_labels(counts)
    mine = DetrLoss(HungarianMatcher(1, 5, 2), 7, 0.1, ["labels", "boxes", "cardinality"])
    theirs = ImageLoss(TheirMatcher(1, 5, 2), 7, 0.1, ["labels", "boxes", "cardinality"])
    a, b = mine(outputs, labels), theirs(outputs, labels)
    assert set(a) == set(b)
    for name in b:
        assert a[name].shape == b[name].shape and a[name].dtype == b[name].dtype, name
        torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-7)
    leaves = [outputs["logits"], outputs["pred_boxes"]]
    mine_gradient = torch.autograd.grad(sum(v for v in a.values() if v.requires_grad), leaves, allow_unused=True)
    their_gradient = torch.autograd.grad(sum(v for v in b.values() if v.requires_grad), leaves, allow_unused=True)
    for x, y in zip(mine_gradient, their_gradient):
        assert (x is None) == (y is None)
        if y is not None:
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("counts", [(3, 5), (0, 12, 1)], ids=str)
def test_matcher_against_transformers(counts):
    from transformers.loss.loss_for_object_detection import HungarianMatcher as TheirMatcher
    outputs, labels = random_outputs(len(counts), layers=1), random_labels(counts)
    for (a, b), (c, d) in zip(HungarianMatcher(1, 5, 2)(outputs, labels), TheirMatcher(1, 5, 2)(outputs, labels), strict=True):
        assert torch.equal(a, c) and torch.equal(b, d) and a.dtype == c.dtype


def test_alias_and_defaults():
    assert DetrHungarianMatcher is HungarianMatcher
    matcher = HungarianMatcher()
    assert (matcher.class_cost, matcher.bbox_cost, matcher.giou_cost) == (1, 1, 1)
    with pytest.raises(ValueError, match="are all 0"):
        HungarianMatcher(0, 0, 0)


def test_half_precision():
    outputs, labels = random_outputs(2, layers=1), random_labels((3, 5))
    loss = DetrLoss(HungarianMatcher(1, 5, 2), 7)
    low = loss({k: v.bfloat16() for k, v in outputs.items()}, labels)
    for name, value in loss(outputs, labels).items():
        assert low[name].dtype == torch.float32
        torch.testing.assert_close(low[name], value, rtol=2e-2, atol=2e-2)


def test_points_have_a_loss():
    "A box without area gives a finite loss and a finite gradient."
    outputs = {"logits": torch.zeros(1, 2, 3), "pred_boxes": torch.tensor([[[0.5, 0.5, 0.0, 0.0]] * 2], requires_grad=True)}
    labels = [{"class_labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, 0.5, 0.0, 0.0]])}]
    parts = DetrLoss(HungarianMatcher(1, 5, 2), 2)(outputs, labels)
    (parts["loss_bbox"] + parts["loss_giou"]).backward()
    assert all(v.isfinite().all() for v in parts.values()) and outputs["pred_boxes"].grad.isfinite().all()


BAD = [
    ({"class_labels": torch.tensor([7]), "boxes": torch.rand(1, 4)}, r"class_labels\[0\] = 7: want 0 ≤ label < 7"),
    ({"class_labels": torch.tensor([-1]), "boxes": torch.rand(1, 4)}, r"class_labels\[0\] = -1"),
    ({"class_labels": torch.tensor([0, 8]), "boxes": torch.rand(2, 4), "image_id": torch.tensor([42])}, r"labels\[1\] \(image_id \[42\]\): class_labels\[1\] = 8"),
    ({"class_labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, float("nan"), 0.1, 0.1]])}, "want finite centre and size"),
    ({"class_labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, 0.5, -0.1, 0.1]])}, "size ≥ 0"),
    ({"class_labels": torch.tensor([0]), "boxes": torch.rand(2, 4)}, r"class_labels of shape \(1,\), boxes of shape \(2, 4\): want \(T,\) and \(T, 4\)"),
    ({"labels": torch.tensor([0])}, r"labels\[1\] has the keys \['labels'\]"),
]


@pytest.mark.parametrize("target, message", BAD, ids=range(len(BAD)))
def test_bad_targets(target, message):
    outputs = random_outputs(2, layers=1)
    with pytest.raises(ValueError, match=message):
        DetrLoss(HungarianMatcher(1, 5, 2), 7)(outputs, [*random_labels((2,)), target])


def test_predictions_that_are_not_finite():
    outputs = random_outputs(1, layers=1)
    outputs["logits"] = outputs["logits"] * float("nan")
    with pytest.raises(ValueError, match="predictions are not finite"):
        HungarianMatcher()(outputs, random_labels((2,)))


def test_too_many_targets():
    with pytest.warns(UserWarning, match=r"labels\[0\] has 25 targets for 20 queries") as caught:
        DetrLoss(HungarianMatcher(1, 5, 2), 7)(random_outputs(1), random_labels((25,)))
    assert len(caught) == 1


def test_unknown_loss():
    with pytest.raises(ValueError, match=r"losses=\['labels', 'colour'\]: want some of 'labels', 'boxes'"):
        DetrLoss(HungarianMatcher(), 7, 0.1, ["labels", "colour"])


@pytest.mark.parametrize("counts", [(3, 5), (1, 0), (0, 0, 1, 0), (0, 0)], ids=str)
def test_parts_of_a_batch_give_the_loss_of_the_whole(counts):
    "Also where there are fewer objects than parts: the divisor may be below 1, and it is never 0."
    outputs, labels = random_outputs(len(counts), layers=1), random_labels(counts)
    loss = DetrLoss(HungarianMatcher(1, 5, 2), 7, 0.1)
    divisors = loss.divisors([[target] for target in labels], num_queries=20)
    whole = loss(outputs, labels)
    parts = [
        loss({name: value[[i]] for name, value in outputs.items()}, [target], divisors=divisors)
        for i, target in enumerate(labels)
    ]
    for name in ("loss_ce", "loss_bbox", "loss_giou"):
        assert whole[name].isfinite()
        torch.testing.assert_close(sum(part[name] for part in parts) / len(parts), whole[name], rtol=1e-5, atol=1e-6)
