"Backbones against timm itself, what is frozen, and the names that do not exist."
import pytest
import torch
from conftest import draw_weights

from detr_nb.backbone import ConvEncoder, FrozenBatchNorm2d, create_backbone, resize_mask

FAMILIES = ["resnet18", "resnet50", "tf_mobilenetv3_small_075", "efficientnet_b0", "regnety_002", "densenet121", "mobilenetv2_100"]


@pytest.mark.parametrize("name", FAMILIES)
def test_features_equal_timm(name):
    import timm
    theirs = draw_weights(timm.create_model(name, features_only=True, out_indices=(1, 2, 3, 4))).eval()
    ours = ConvEncoder(name).eval()
    ours.model.load_state_dict(theirs.state_dict())
    pixels = torch.randn(1, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for (a, mask), b in zip(ours(pixels, torch.ones(1, 96, 64)), theirs(pixels), strict=True):
            assert a.shape == b.shape and mask.shape == a.shape[:1] + a.shape[2:]
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4 * float(b.abs().max()))
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in ours.modules())


def test_training_mode_changes_nothing():
    encoder = ConvEncoder("resnet18")
    pixels, mask = torch.randn(2, 3, 64, 64), torch.ones(2, 64, 64)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    a = encoder.train()(pixels, mask)[-1][0]
    assert torch.equal(a, encoder.eval()(pixels, mask)[-1][0])
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


def test_frozen_norm_needs_no_batches_tracked():
    norm = FrozenBatchNorm2d(2)
    norm.load_state_dict(torch.nn.BatchNorm2d(2).state_dict())
    with pytest.raises(RuntimeError, match="running_var"):
        norm.load_state_dict({"weight": torch.ones(2), "bias": torch.ones(2), "running_mean": torch.ones(2)})


def test_what_is_frozen():
    trained = {n.split(".")[1] for n, p in ConvEncoder("resnet18").named_parameters() if p.requires_grad}
    assert trained == {"layer2", "layer3", "layer4"}
    assert all(p.requires_grad for p in ConvEncoder("tf_mobilenetv3_small_075").parameters())


def test_dilation():
    assert ConvEncoder("resnet50", dilation=True).strides == [4, 8, 16, 16]
    assert ConvEncoder("detr_nb_resnet").strides == [2, 4, 8, 8]


def test_mask_is_nearest():
    mask = torch.zeros(1, 50, 70)
    mask[:, :30, :45] = 1
    small = resize_mask(mask, (4, 5))  # cell (r, c) is pixel (⌊12.5 r⌋, 14 c)
    wanted = torch.tensor([[r * 50 // 4 < 30 and c * 14 < 45 for c in range(5)] for r in range(4)])[None]
    assert small.dtype == torch.bool and torch.equal(small, wanted) and 0 < small.sum() < 20


def test_unknown_name():
    with pytest.raises(ValueError, match="backbone='resnet_50': timm has no such model; close: resnet50"):
        create_backbone("resnet_50")


def test_dilation_where_there_is_none():
    with pytest.raises(ValueError, match="backbone='densenet121' does not take .*output_stride.*dilation=True"):
        create_backbone("densenet121", dilation=True)


@pytest.mark.parametrize("name, size", [("convnext_atto", 64), ("swin_s3_tiny_224", 224)])
def test_four_stages_and_channels_last(name, size):
    import timm
    theirs = draw_weights(timm.create_model(name, features_only=True, out_indices=(0, 1, 2, 3))).eval()
    ours = ConvEncoder(name).eval()
    ours.model.load_state_dict(theirs.state_dict())
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for (a, _), b, channels in zip(ours(pixels, torch.ones(1, size, size)), theirs(pixels), ours.channels, strict=True):
            b = b if b.shape[1] == channels else b.permute(0, 3, 1, 2)
            assert a.shape == b.shape and a.shape[1] == channels
            torch.testing.assert_close(a, b)


def test_other_channels():
    assert ConvEncoder("resnet18", in_chans=1)(torch.zeros(1, 1, 64, 64), torch.ones(1, 64, 64))[-1][0].shape == (1, 512, 2, 2)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "regnety_002", "detr_nb_resnet"])
def test_no_branch_of_a_fresh_network_is_dead(name):
    "timm begins the last norm of a residual block at 0; frozen, it would stay there and let no gradient through."
    torch.manual_seed(0)
    encoder = ConvEncoder(name)
    assert not [n for n, b in encoder.model.named_buffers() if n.endswith("weight") and not b.any()]
    for parameter in encoder.parameters(): parameter.requires_grad_(True)
    encoder(torch.rand(1, 3, 64, 64), torch.ones(1, 64, 64))[-1][0].square().sum().backward()
    assert not [n for n, p in encoder.model.named_parameters() if p.grad is None or not p.grad.any()]


def test_norms_of_a_checkpoint_are_not_touched():
    "A weight of 0 that was learned stays 0."
    encoder = ConvEncoder("resnet18")
    state = {k: torch.zeros_like(v) if k.endswith("bn2.weight") else v for k, v in encoder.state_dict().items()}
    encoder.load_state_dict(state)
    assert not encoder.state_dict()["model.layer1.0.bn2.weight"].any()
