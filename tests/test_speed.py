"What is fast gives what is slow: inference copies, compiled, in bf16, exported; one image or many."
import numpy as np
import pytest
import torch
from conftest import SMALL, draw_weights
from PIL import Image

from detr_nb import DetrConfig, DetrForObjectDetection, DetrForSegmentation, DetrImageProcessor, DetrModel, draw_scene
from detr_nb.backbone import FrozenBatchNorm2d


def images(count, height, width):
    torch.manual_seed(count)
    mask = torch.ones(count, height, width)
    mask[0, height * 2 // 3 :] = 0
    return torch.randn(count, 3, height, width), mask


def made(kind, **changes):
    return draw_weights(kind(DetrConfig(**SMALL | changes))).eval()


@pytest.mark.parametrize("kind", [DetrModel, DetrForObjectDetection, DetrForSegmentation])
@pytest.mark.parametrize("invariant", [False, True])
def test_inference_copy_gives_the_outputs(kind, invariant):
    "In float64, where rounding is no excuse."
    model = made(kind, batch_invariant=invariant, encoder_attention_heads=8).double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fast = model.optimize()
    assert type(fast) is kind and not any(isinstance(m, FrozenBatchNorm2d) for m in fast.modules())
    assert not any(p.requires_grad for p in fast.parameters())
    batch = images(2, 131, 157)
    with torch.no_grad(): wanted, found = model(*batch), fast(*batch)
    assert set(wanted) == set(found)
    for name in wanted: torch.testing.assert_close(found[name], wanted[name], atol=1e-9, rtol=1e-9)
    for name, value in model.state_dict().items(): assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("kind", [DetrForObjectDetection, DetrForSegmentation])
def test_inference_copy_of_the_trained_model(kind):
    model = kind.from_pretrained("scenes").eval()
    batch = DetrImageProcessor.from_pretrained("scenes")([draw_scene(0, i, "val").image for i in range(4)], return_tensors="pt")
    with torch.no_grad(): wanted, found = (m(batch.pixel_values, batch.pixel_mask) for m in (model, model.optimize()))
    for name in ("logits", "pred_boxes"): torch.testing.assert_close(found[name], wanted[name], atol=1e-4, rtol=0)


@pytest.mark.parametrize("backbone", ["tf_mobilenetv3_small_075", "efficientnet_b0", "regnetx_002", "convnext_atto"])
def test_any_backbone(backbone):
    model = made(DetrForObjectDetection, backbone=backbone)
    batch = images(1, 96, 128)
    with torch.no_grad(): wanted, found = model(*batch), model.optimize()(*batch)
    torch.testing.assert_close(found.logits, wanted.logits, atol=1e-4, rtol=1e-4)


def test_a_map_that_is_wanted_itself_is_not_folded():
    "Feature 0 of the narrow ResNet is the output of a convolution."
    from detr_nb.backbone import ConvEncoder, fold_norms
    encoder = draw_weights(ConvEncoder("detr_nb_resnet", out_indices=(0, 1, 2, 3, 4))).eval()
    batch = images(1, 64, 64)
    with torch.no_grad():
        wanted = encoder(*batch)
        found = fold_norms(encoder)(*batch)
    for (a, _), (b, _) in zip(found, wanted): torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_an_inference_copy_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="want the model that it is of"):
        made(DetrForObjectDetection).optimize().save_pretrained(tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_bf16():
    model = DetrForObjectDetection.from_pretrained("scenes").eval()
    fast = model.optimize(torch.bfloat16)
    assert {p.dtype for p in fast.parameters()} == {torch.bfloat16}
    processor = DetrImageProcessor.from_pretrained("scenes")
    batch = processor([draw_scene(0, i, "val").image for i in range(4)], return_tensors="pt")
    with torch.no_grad(): wanted, found = (m(batch.pixel_values, batch.pixel_mask) for m in (model, fast))
    sure = wanted.logits.softmax(-1)[..., :-1].amax(-1) > 0.7
    assert (found.pred_boxes - wanted.pred_boxes)[sure].abs().max() < 2e-2
    assert (found.logits.argmax(-1) == wanted.logits.argmax(-1))[sure].all()


@pytest.mark.slow
def test_compiled_whole(tmp_path):
    "One graph, without a break, for any batch and size; `optimize(compile=True)` gives the outputs too."
    model = made(DetrForObjectDetection)
    whole = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    quick = model.optimize(compile=True)
    for batch in (images(2, 70, 90), images(3, 101, 64)):
        with torch.no_grad(): torch.testing.assert_close(whole(*batch).logits, model(*batch).logits, atol=1e-4, rtol=1e-4)
    with torch.no_grad(): wanted = model(*batch)
    torch.testing.assert_close(quick(*batch).pred_boxes, wanted.pred_boxes, atol=1e-4, rtol=1e-4)


SCENES = [draw_scene(0, i, "val").image for i in range(6)]


def test_predict_takes_what_users_have(tmp_path):
    "Arrays, PIL images, tensors, paths, a batch: the same answers, in the order given, in each image's own pixels."
    from detr_nb import predict
    Image.fromarray(SCENES[0]).save(tmp_path / "a.png")
    wanted = predict(SCENES[:3], "scenes", threshold=0.7)
    assert [set(one) for one in wanted] == [{"scores", "labels", "boxes"}] * 3 and sum(len(one["labels"]) for one in wanted) > 10
    model, processor = DetrForObjectDetection.from_pretrained("scenes").train(), DetrImageProcessor.from_pretrained("scenes")
    stack = np.stack(SCENES[:3])
    for given in (stack, torch.from_numpy(stack).permute(0, 3, 1, 2), [tmp_path / "a.png", SCENES[1], Image.fromarray(SCENES[2])]):
        for size in (1, 2, 8):
            found = predict(given, model, processor, threshold=0.7, batch_size=size)
            for a, b in zip(found, wanted, strict=True):
                assert a["labels"].tolist() == b["labels"].tolist()
                torch.testing.assert_close(a["boxes"], b["boxes"], atol=1e-3, rtol=0)
    assert model.training  # as it was
    cut = SCENES[0][:70, :110]
    (beside, _), (alone,) = (predict(given, model, processor, threshold=0.7) for given in ([cut, SCENES[1]], cut))
    torch.testing.assert_close(beside["boxes"], alone["boxes"], atol=1e-3, rtol=0)
    assert predict([], model, processor) == []


@pytest.mark.parametrize("task", ["instance", "panoptic", "semantic"])
def test_predict_draws(task):
    "As model and post-processing by hand."
    from detr_nb import predict
    model, processor = DetrForSegmentation.from_pretrained("scenes").eval(), DetrImageProcessor.from_pretrained("scenes")
    batch = processor(SCENES[:2], return_tensors="pt")
    with torch.no_grad(): outputs = model(batch.pixel_values, batch.pixel_mask)
    given = dict(target_sizes=[(128, 128)] * 2, pixel_mask=batch.pixel_mask)
    if task == "semantic": wanted = processor.post_process_semantic_segmentation(outputs, **given)
    elif task == "instance": wanted = processor.post_process_instance_segmentation(outputs, 0.7, **given)
    else: wanted = processor.post_process_panoptic_segmentation(outputs, 0.7, label_ids_to_fuse=model.config.stuff_ids, **given)
    for found, one in zip(predict(SCENES[:2], model, processor, task, 0.7), wanted, strict=True):
        assert torch.equal(found["segmentation"], one if task == "semantic" else one["segmentation"])
        for segment in found["segments_info"]:
            mask = found["segmentation"] == segment["id"]
            rows, columns = np.nonzero(mask.numpy())
            assert segment["area"] == len(rows) and segment["label"] == model.config.id2label[segment["category_id"]]
            assert segment["bbox"] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]


def test_predict_refuses():
    from detr_nb import predict
    model, processor = DetrForObjectDetection.from_pretrained("scenes"), DetrImageProcessor.from_pretrained("scenes")
    for given, words in (
        (dict(task="boxes"), "task='boxes': want"), (dict(batch_size=0), "batch_size=0: want"), (dict(threshold=None), "threshold=None: want"),
        (dict(task="panoptic"), "task='panoptic', but DetrForObjectDetection draws no masks"), (dict(processor=None), "processor=None: want"),
    ):
        with pytest.raises(ValueError, match=words): predict(SCENES[:1], model, **{"processor": processor} | given)
    with pytest.raises(TypeError, match="image is int"): predict([5], model, processor)
    with pytest.raises(FileNotFoundError, match="gone.png"): predict("gone.png", model, processor)


@pytest.mark.slow
@pytest.mark.parametrize("kind, format", [(DetrForObjectDetection, "torch"), (DetrForSegmentation, "onnx"), (DetrForObjectDetection, "openvino")])
def test_export(tmp_path, kind, format):
    "Opened with the engine's own API, for sizes and batches that were not exported; and by the library, without PyTorch's model."
    from detr_nb import predict
    from detr_nb.speed import ExportedModel, export_model
    model, processor = kind.from_pretrained("scenes").eval(), DetrImageProcessor.from_pretrained("scenes")
    apart = export_model(model, processor, tmp_path, format)
    assert max(apart.values()) < 1e-3 and set(apart) == {"logits", "pred_boxes"} | ({"pred_masks"} if kind is DetrForSegmentation else set())
    pixels, mask = images(3, 90, 70)
    with torch.no_grad(): wanted = model(pixels, mask)
    if format == "onnx":
        import onnxruntime
        session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
        logits, boxes, masks = session.run(["logits", "pred_boxes", "pred_masks"], {"pixel_values": pixels.numpy(), "pixel_mask": mask.long().numpy()})
        np.testing.assert_allclose(masks, wanted.pred_masks, atol=5e-3)
    elif format == "openvino":
        import openvino
        compiled = openvino.Core().compile_model(tmp_path / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        found = compiled({"pixel_values": pixels.numpy(), "pixel_mask": mask.long().numpy()})
        logits, boxes = found["logits"], found["pred_boxes"]
    else:
        logits, boxes = torch.export.load(tmp_path / "model.pt2").module()(pixels, mask.long())
    np.testing.assert_allclose(logits, wanted.logits, atol=1e-3)
    np.testing.assert_allclose(boxes, wanted.pred_boxes, atol=1e-4)
    exported = ExportedModel(tmp_path)
    assert exported.config.id2label == model.config.id2label
    for a, b in zip(predict(SCENES, exported, threshold=0.7), predict(SCENES, model, processor, threshold=0.7)):
        assert a["labels"].tolist() == b["labels"].tolist()
        torch.testing.assert_close(a["boxes"], b["boxes"], atol=1e-2, rtol=0)
    with pytest.raises(FileExistsError, match="overwrite=True"): export_model(model, processor, tmp_path, format)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []
    if format == "torch":  # a configuration of somebody else stays
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "config.json").write_text("{}")
        with pytest.raises(FileExistsError, match="config.json is another"): export_model(model, processor, tmp_path / "other", format)
        assert (tmp_path / "other" / "config.json").read_text() == "{}" and not (tmp_path / "other" / "model.pt2").exists()


@pytest.mark.slow
def test_export_in_eight_bits(tmp_path):
    "The objects that are sure are found again."
    from detr_nb import predict
    from detr_nb.speed import ExportedModel, export_model
    model, processor = DetrForObjectDetection.from_pretrained("scenes").eval(), DetrImageProcessor.from_pretrained("scenes")
    export_model(model, processor, tmp_path / "large", "openvino")
    export_model(model, processor, tmp_path / "small", "openvino", [draw_scene(0, i, "train").image for i in range(16)])
    large, small = ((tmp_path / name / "model.bin").stat().st_size for name in ("large", "small"))
    assert small < 0.7 * large  # matrix products keep their bits
    exact, rounded = (predict(SCENES, ExportedModel(tmp_path / name), threshold=0.9) for name in ("large", "small"))
    total = sum(len(one["labels"]) for one in exact)
    kept = sum(len(set(a["labels"].tolist()) & set(b["labels"].tolist())) for a, b in zip(exact, rounded))
    assert total > 20 and kept >= 0.6 * sum(len(set(one["labels"].tolist())) for one in exact)


@pytest.mark.parametrize("fault", ["pool", "norm"])
def test_an_export_is_compared_with_the_model_as_it_was_given(fault, tmp_path, monkeypatch):
    "What goes wrong on the way to the graph, in a pool that is mended or in a norm that is folded, is found."
    from detr_nb import detector, speed
    model, processor = (cls.from_pretrained("scenes") for cls in (DetrForObjectDetection, DetrImageProcessor))
    fold_norms = detector.fold_norms

    def shifted(pool):
        given = (pool.kernel_size, pool.stride, 0, False, pool.count_include_pad)
        pool.forward = lambda x: torch.nn.functional.avg_pool2d(torch.nn.functional.pad(x, [1, 0, 1, 0]), *given)

    def folded_twice(encoder):
        fold_norms(encoder).model.layer2[0].conv1.weight.mul_(1.1)
        return encoder

    if fault == "pool": monkeypatch.setattr(speed, "fix_padding", shifted)
    else: monkeypatch.setattr(detector, "fold_norms", torch.no_grad()(folded_twice))
    with pytest.raises(ValueError, match="the exported model differs from the model"):
        speed.export_model(model, processor, tmp_path / "wrong", "torch")
    assert not list((tmp_path / "wrong").glob("*.pt2"))


def test_a_folder_of_several_exports_is_not_chosen_from(tmp_path):
    "A command says so; beside weights, these are opened."
    from detr_nb.speed import load_model
    for name in ("model.onnx", "model.pt2"): (tmp_path / name).touch()
    with pytest.raises(FileNotFoundError, match="it holds model.pt2 and model.onnx: name the file"): load_model(tmp_path)
    DetrForObjectDetection.from_pretrained("scenes").save_pretrained(tmp_path)
    DetrImageProcessor.from_pretrained("scenes").save_pretrained(tmp_path)
    assert isinstance(load_model(tmp_path)[0], DetrForObjectDetection)


def test_predict_reads_a_film_in_parts(tmp_path):
    "An iterator is asked for one batch at a time, so that a film need not fit into memory."
    from detr_nb import predict
    from detr_nb.speed import load_model
    model, processor = load_model("scenes")
    seen, asked = [], []

    def film():
        for i, image in enumerate(SCENES[:5]):
            asked.append(i)
            yield image

    run, calls = model.forward, lambda *inputs, **more: (seen.append(len(asked)), run(*inputs, **more))[1]
    model.forward = calls
    found = predict(film(), model, processor, threshold=0.7, batch_size=2)
    assert seen == [2, 4, 5]
    for one, other in zip(found, predict(SCENES[:5], model, processor, threshold=0.7, batch_size=2), strict=True):
        assert torch.equal(one["boxes"], other["boxes"])
    with pytest.raises(IsADirectoryError, match="a folder, want the paths of its files"): predict(tmp_path, model, processor)
