"Configs: every field checked when it is made, files that both versions of transformers wrote, round trips."
import json
import warnings

import pytest

from detr_nb import DetrConfig

BAD = [
    ({"num_queries": -1}, "num_queries=-1"), ({"num_queries": 2.5}, "num_queries=2.5"), ({"num_queries": True}, "num_queries=True"),
    ({"d_model": 100}, "d_model=100: want a multiple of encoder_attention_heads=8"),
    ({"d_model": 6, "encoder_attention_heads": 2, "decoder_attention_heads": 2}, "d_model=6: want a multiple of 4"),
    ({"decoder_attention_heads": 7}, "d_model=256: want a multiple of decoder_attention_heads=7"),
    ({"decoder_layers": 0}, "decoder_layers=0"), ({"dropout": 1.5}, "dropout=1.5"), ({"dropout": "a"}, "dropout='a'"),
    ({"position_embedding_type": "sinus"}, "position_embedding_type='sinus': want one of 'sine', 'learned'"),
    ({"activation_function": "step"}, "activation_function='step'"), ({"class_cost": -1}, "class_cost=-1"), ({"eos_coefficient": float("nan")}, "eos_coefficient=nan"),
    ({"class_cost": 0, "bbox_cost": 0, "giou_cost": 0}, "class_cost=0: want not 0 together"),
    ({"num_labels": 0}, "num_labels=0"), ({"id2label": {4: "cat"}, "num_labels": 3}, "num_labels=3: want more than the largest id 4"),
    ({"backbone": ""}, "backbone=''"), ({"backbone_kwargs": "x"}, "backbone_kwargs='x'"), ({"id2label": ["a"]}, "id2label=['a']"),
    ({"dilation": True, "backbone_kwargs": {"output_stride": 8}}, "dilation=True: want False where"), ({"auxiliary_loss": 1}, "auxiliary_loss=1: want True or False"),
]


@pytest.mark.parametrize("values, message", BAD, ids=[m for _, m in BAD])
def test_refused(values, message):
    with pytest.raises(ValueError) as error:
        DetrConfig(**values)
    assert str(error.value).startswith(message.split(": want")[0]) and message in str(error.value)


def test_unknown_field():
    with pytest.raises(TypeError, match="num_querys"):
        DetrConfig(num_querys=3)


def test_public_defaults():
    "Field by field against transformers."
    import transformers
    theirs, ours = transformers.DetrConfig(), DetrConfig()
    names = [
        "num_channels", "num_queries", "encoder_layers", "encoder_ffn_dim", "encoder_attention_heads", "decoder_layers", "decoder_ffn_dim",
        "decoder_attention_heads", "encoder_layerdrop", "decoder_layerdrop", "is_encoder_decoder", "activation_function", "d_model", "dropout",
        "attention_dropout", "activation_dropout", "init_std", "init_xavier_std", "auxiliary_loss", "position_embedding_type", "dilation", "class_cost",
        "bbox_cost", "giou_cost", "mask_loss_coefficient", "dice_loss_coefficient", "bbox_loss_coefficient", "giou_loss_coefficient", "eos_coefficient",
        "num_labels", "hidden_size", "num_attention_heads",
    ]
    for name in names:
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.backbone == "resnet50" and ours.use_pretrained_backbone is True


@pytest.mark.parametrize("values", [{}, {"class_cost": 1.5}, {"dilation": True}, {"backbone_kwargs": {"output_stride": 8}}, {"id2label": {1: "a", 5: "b"}}], ids=str)
def test_round_trip(values, tmp_path):
    config = DetrConfig(use_pretrained_backbone=False, **values)
    config.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = DetrConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    assert (again.num_labels, again.backbone_kwargs, again.dilation) == (config.num_labels, config.backbone_kwargs, config.dilation)


def test_all_spellings_of_the_backbone():
    import transformers
    native = transformers.ResNetConfig(depths=[3, 4, 23, 3])
    assert DetrConfig(use_timm_backbone=False, backbone_config=native).backbone == "resnet101"
    assert DetrConfig(use_timm_backbone=False).backbone == "resnet50"
    timm = {"model_type": "timm_backbone", "backbone": "resnet18", "out_indices": [1, 2, 3, 4], "output_stride": 16}
    config = DetrConfig(backbone_config=timm, dilation=True)
    assert (config.backbone, config.dilation, config.backbone_kwargs, config.use_pretrained_backbone) == ("resnet18", True, None, False)
    assert DetrConfig(use_timm_backbone=True, backbone="resnet34").backbone == "resnet34" and config.use_timm_backbone is True


def test_foreign_keys_survive(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "detr", "architectures": ["DetrForSegmentation"], "my_own": [1, 2], "scale_embedding": False}))
    config = DetrConfig.from_pretrained(tmp_path)
    assert config.extra["my_own"] == [1, 2] and config.to_dict()["my_own"] == [1, 2]


def test_a_file_of_version_4():
    "As facebook/detr-resnet-50 has it: backbone by name, kwargs spelled out."
    file = {"backbone": "resnet50", "backbone_config": None, "backbone_kwargs": {"in_chans": 3, "out_indices": [1, 2, 3, 4]}, "use_timm_backbone": True,
            "use_pretrained_backbone": True, "dilation": False, "auxiliary_loss": False, "id2label": {"0": "N/A", "1": "person"}, "model_type": "detr"}
    config = DetrConfig.from_dict(file)
    assert config.backbone_kwargs is None and config.id2label == {0: "N/A", 1: "person"} and config.num_labels == 2


def test_files_that_are_not_ours(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="model_type='bert'"):
        DetrConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json: not JSON"):
        DetrConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match="holds list, want an object"):
        DetrConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="has none of config.json"):
        DetrConfig.from_pretrained(tmp_path)


def test_backbone_config_that_cannot_be():
    with pytest.raises(ValueError, match="model_type 'timm_backbone', or 'resnet'"):
        DetrConfig.from_dict({"use_timm_backbone": False, "backbone_config": {"model_type": "swin"}})
