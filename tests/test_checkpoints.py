"Reading every public layout, and refusing what is broken, with a message that says what."
import argparse
import json
import warnings
from pathlib import Path

import pytest
import torch
from conftest import SMALL, draw_weights, padded_batch
from safetensors.torch import save_file

from detr_nb import DetrConfig, DetrForObjectDetection, DetrModel
from detr_nb.checkpoints import read_weights, to_hub_layout

PUBLIC = json.loads((Path(__file__).parent / "reference" / "public_keys.json").read_text())


def detector_on_meta(backbone, num_labels):
    with torch.device("meta"):
        return DetrForObjectDetection(DetrConfig(backbone=backbone, use_pretrained_backbone=False, num_labels=num_labels))


def shapes(state):
    return {k: list(v.shape) for k, v in state.items()}


def as_tensors(keys):
    return {k: torch.empty(shape, device="meta") for k, shape in keys.items()}


def test_hub_keys():
    "Every key and shape of the public R50 file is ours, and we have no other."
    assert shapes(detector_on_meta("resnet50", 91).state_dict()) == PUBLIC["hub"]["detr-resnet-50"]


def test_module_keys_of_transformers_5():
    assert sorted(to_hub_layout(dict.fromkeys(PUBLIC["transformers 5 modules"]["detr-resnet-50"]))) == sorted(PUBLIC["hub"]["detr-resnet-50"])
    panoptic = {k.removeprefix("detr."): None for k in PUBLIC["transformers 5 modules"]["detr-resnet-50-panoptic"] if k.startswith("detr.")}
    hub = [k.removeprefix("detr.") for k in PUBLIC["hub"]["detr-resnet-50-panoptic"] if k.startswith("detr.")]
    assert sorted(to_hub_layout(panoptic)) == sorted(hub)


def test_embedded_config_is_one_that_version_4_writes():
    "transformers 4.x reads every key of the embedded config: all are its own, with its types, but two that it ignores."
    from detr_nb.files import ASSETS
    ours, theirs = json.loads((ASSETS / "scenes" / "config.json").read_text()), PUBLIC["config"]["4.57.6"]["detr-resnet-50"]
    assert set(ours) - set(theirs) == {"architectures", "detr_nb"}
    for name in set(ours) & set(theirs):
        assert type(ours[name]) is type(theirs[name]), name


@pytest.mark.parametrize("name", ["detr_resnet50", "detr_resnet50_dc5", "detr_resnet101"])
def test_original_keys(name):
    converted = to_hub_layout(as_tensors(PUBLIC["original"][name]))
    assert shapes(converted) == shapes(detector_on_meta(name.split("_")[1], 91).state_dict())


@pytest.mark.parametrize("version", ["4.57.6", "5.23.0"])
@pytest.mark.parametrize("name, labels", [("detr-resnet-50", 91), ("detr-resnet-50-panoptic", 250)])
def test_public_configs(version, name, labels):
    config = DetrConfig.from_dict(PUBLIC["config"][version][name])
    assert (config.backbone, config.backbone_kwargs, config.num_labels) == ("resnet50", None, labels)
    assert set(config.extra) <= {"transformers_version"}


def test_panoptic_keys():
    "The detector below the mask head is ours; what is left is the mask head."
    detector = shapes(detector_on_meta("resnet50", 250).state_dict())
    hub = PUBLIC["hub"]["detr-resnet-50-panoptic"]
    assert {k.removeprefix("detr."): v for k, v in hub.items() if k.startswith("detr.")} == detector
    assert {k.split(".")[0] for k in hub if not k.startswith("detr.")} == {"bbox_attention", "mask_head"}
    original = PUBLIC["original"]["detr_resnet50_panoptic"]
    inner = {k.removeprefix("detr."): v for k, v in original.items() if k.startswith("detr.")}
    assert shapes(to_hub_layout(as_tensors(inner))) == detector
    assert {k.split(".")[0] for k in original if not k.startswith("detr.")} == {"bbox_attention", "mask_head"}


def test_parameter_counts():
    "The published networks: all, trainable, frozen batch norm."
    for backbone, counts in {"resnet50": (41_524_768, 41_302_368), "resnet101": (60_464_672, 60_242_272)}.items():
        model = detector_on_meta(backbone, 91)
        parameters = list(model.parameters())
        assert (sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)) == counts
    assert sum(b.numel() for b in detector_on_meta("resnet50", 91).model.backbone.conv_encoder.buffers()) == 106_240


def to_original(state):
    "Our weights under the original's names, projections fused: the inverse of what is tested, written on its own."
    result = {}
    for key, value in state.items():
        key = key.replace("model.backbone.conv_encoder.model.", "backbone.0.body.")
        key = key.replace("model.encoder.", "transformer.encoder.").replace("model.decoder.", "transformer.decoder.")
        key = key.replace("model.query_position_embeddings", "query_embed").replace("model.input_projection", "input_proj")
        key = key.replace("class_labels_classifier", "class_embed").replace("bbox_predictor", "bbox_embed").replace("decoder.layernorm", "decoder.norm")
        last = "norm3" if ".decoder.layers." in key else "norm2"
        key = key.replace("self_attn_layer_norm", "norm1").replace("encoder_attn_layer_norm", "norm2").replace("final_layer_norm", last)
        key = key.replace("encoder_attn.", "multihead_attn.").replace(".fc1.", ".linear1.").replace(".fc2.", ".linear2.")
        result[key] = value
    for key in [k for k in result if ".q_proj." in k]:
        parts = [result.pop(key.replace("q_proj", f"{n}_proj")) for n in "qkv"]
        result[key.replace("q_proj.", "in_proj_")] = torch.cat(parts)
    return result


@pytest.fixture
def model():
    return draw_weights(DetrForObjectDetection(DetrConfig(**SMALL))).eval()


def same_numbers(a, b):
    pixels, mask = padded_batch()
    with torch.inference_mode():
        assert torch.equal(a(pixels, mask).logits, b(pixels, mask).logits)


def test_original_file(model, tmp_path):
    "The original's training checkpoint holds an argparse.Namespace beside the model."
    state = to_original(model.state_dict()) | {"backbone.0.body.bn1.num_batches_tracked": torch.tensor(3)}
    torch.save({"model": state, "args": argparse.Namespace(lr=1e-4)}, tmp_path / "detr.pth")
    same_numbers(DetrForObjectDetection.from_pretrained(tmp_path / "detr.pth", config=model.config), model)
    with pytest.raises(ValueError, match="pass config="):
        DetrForObjectDetection.from_pretrained(tmp_path / "detr.pth")


def test_pickled_hub_file(model, tmp_path):
    model.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    same_numbers(DetrForObjectDetection.from_pretrained(tmp_path), model)


def test_sharded_file(model, tmp_path):
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    state = model.state_dict()
    halves = [dict(list(state.items())[::2]), dict(list(state.items())[1::2])]
    for i, half in enumerate(halves):
        save_file(half, tmp_path / f"model-{i}.safetensors")
    index = {"weight_map": {k: f"model-{i}.safetensors" for i, half in enumerate(halves) for k in half}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    same_numbers(DetrForObjectDetection.from_pretrained(tmp_path), model)


def test_no_timm(tmp_path):
    "The hub's revision `no_timm` holds transformers' own ResNet."
    import transformers
    native = transformers.ResNetConfig(depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic", out_features=["stage4"])
    values = {k: v for k, v in SMALL.items() if k not in ("backbone", "use_pretrained_backbone")}
    config = transformers.DetrConfig(use_timm_backbone=False, backbone_config=native, **values)
    theirs = draw_weights(transformers.DetrForObjectDetection(config)).eval()
    theirs.save_pretrained(tmp_path)
    ours = DetrForObjectDetection.from_pretrained(tmp_path)
    assert ours.config.backbone == "resnet18"
    pixels, mask = padded_batch()
    with torch.inference_mode():
        a, b = ours(pixels, mask).logits, theirs(pixels, pixel_mask=mask).logits
    torch.testing.assert_close(a, b, rtol=0, atol=1e-4 * float(b.abs().max()))


def test_truncated(model, tmp_path):
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:10_000])
    with pytest.raises(ValueError, match="model.safetensors: not a whole safetensors file"):
        DetrForObjectDetection.from_pretrained(tmp_path)


def test_foreign(model, tmp_path):
    model.save_pretrained(tmp_path)
    save_file({"somebody.elses": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="lacks .* tensors, and has 1 .*: the config belongs to another network, or"):
        DetrForObjectDetection.from_pretrained(tmp_path)
    save_file(model.state_dict() | {"extra.weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"has 1 \(extra.weight\) that the model does not have"):
        DetrForObjectDetection.from_pretrained(tmp_path)


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('ran')",))


def test_code_is_refused(model, tmp_path):
    torch.save({"model": model.state_dict(), "evil": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="evil.pth: refused, for it holds more than tensors"):
        read_weights(tmp_path / "evil.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="want a mapping from names to tensors"):
        read_weights(tmp_path / "list.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "evil.pth").read_bytes()[:200])
    with pytest.raises(ValueError, match="cut.pth"):
        read_weights(tmp_path / "cut.pth")


def test_other_labels(model, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="ignore_mismatched_sizes=True"):
        DetrForObjectDetection.from_pretrained(tmp_path, num_labels=3)
    with pytest.warns(UserWarning, match="begun afresh.*class_labels_classifier"):
        other = DetrForObjectDetection.from_pretrained(tmp_path, id2label={0: "a", 2: "c"}, ignore_mismatched_sizes=True)
    assert other.config.num_labels == 3 and other.config.label2id == {"a": 0, "c": 2}
    assert other.class_labels_classifier.weight.shape == (4, 64)
    assert torch.equal(other.bbox_predictor.layers[0].weight, model.bbox_predictor.layers[0].weight)


def test_saving_loses_nothing(model, tmp_path, monkeypatch):
    "A save that fails half-way leaves the old file whole."
    model.save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    import safetensors.torch

    def fail(state, path, metadata=None):
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_no_such_folder():
    with pytest.raises(FileNotFoundError, match="./nowhere: no such folder"):
        DetrForObjectDetection.from_pretrained("./nowhere")


def test_offline_hub():
    with pytest.raises(FileNotFoundError, match="facebook/detr-resnet-50.*could not be had from the hub"):
        DetrForObjectDetection.from_pretrained("facebook/detr-resnet-50")
    with pytest.raises(FileNotFoundError, match="local_files_only=True"):
        DetrForObjectDetection.from_pretrained("facebook/detr-resnet-50", local_files_only=True)


def test_hub(model, tmp_path, monkeypatch):
    "The hub, stubbed: files are asked for by name and revision, and backbone weights never."
    import huggingface_hub
    import timm
    from huggingface_hub.errors import EntryNotFoundError
    model.save_pretrained(tmp_path)
    asked = []

    def download(name, filename, revision=None, local_files_only=False):
        asked.append((name, filename, revision))
        if not (tmp_path / filename).exists():
            raise EntryNotFoundError(filename, response=type("R", (), {"headers": {}, "request": None})())
        return str(tmp_path / filename)

    real = timm.create_model
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(timm, "create_model", lambda *a, pretrained=False, **k: pytest.fail("fetched") if pretrained else real(*a, **k))
    same_numbers(DetrForObjectDetection.from_pretrained("somebody/detr", revision="v2"), model)
    assert asked == [("somebody/detr", "config.json", "v2"), ("somebody/detr", "model.safetensors", "v2")]


def test_pretrained_backbone(monkeypatch):
    "The second way to begin: the weights are there after construction; offline the error says what to do."
    import timm
    from safetensors.torch import load_file

    from detr_nb.files import ASSETS
    model = DetrForObjectDetection(DetrConfig(**SMALL | {"backbone": "detr_nb_resnet", "use_pretrained_backbone": True}))
    stored = load_file(ASSETS / "scenes" / "backbone.safetensors")
    state = model.model.backbone.conv_encoder.model.state_dict()
    assert set(state) == set(stored)
    for name, value in stored.items():
        assert torch.equal(state[name], value.float())

    def offline(*args, pretrained=False, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(OSError, match="backbone='resnet50': its pretrained weights.*use_pretrained_backbone=False"):
        DetrForObjectDetection(DetrConfig())


def test_quiet_round_trip(model, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.save_pretrained(tmp_path)
        again = DetrForObjectDetection.from_pretrained(tmp_path)
    same_numbers(again, model)
    assert again.config.extra == {"architectures": ["DetrForObjectDetection"]}


@pytest.mark.parametrize("kind", [DetrModel, DetrForObjectDetection])
def test_learned_positions_come_back(kind, tmp_path):
    "They are written under two names, for transformers 4 and 5; a model without heads finds them too."
    model = draw_weights(kind(DetrConfig(**SMALL | {"position_embedding_type": "learned"}))).eval()
    model.save_pretrained(tmp_path)
    again = kind.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(again[k], v) for k, v in model.state_dict().items())


def test_two_tensors_under_one_name():
    "transformers 5 may have learned positions twice: equal ones are one, others an error."
    names = "model.backbone.position_embedding.row_embeddings.weight", "model.position_embedding.row_embeddings.weight"
    same = to_hub_layout({name: torch.ones(3, 2) for name in names})
    assert list(same) == [names[0]] and same[names[0]].shape == (3, 2)
    with pytest.raises(ValueError, match=f"{names[1]}: a second tensor for {names[0]}"):
        to_hub_layout({names[0]: torch.ones(3, 2), names[1]: torch.zeros(3, 2)})


def test_gradient_checkpointing_refuses_what_it_does_not_have():
    model = DetrForObjectDetection.from_pretrained("scenes")
    for options in ({"every_n_layers": 2}, {"offload": True}):
        with pytest.raises(ValueError, match="want 1 and False"): model.activation_checkpointing_enable(**options)
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    assert model.model.decoder.gradient_checkpointing
