"The explorer without a browser: drawing is a function of its state, the sliders are wired, words change with the image, faults are named."
import inspect
import time
from functools import partial

import numpy as np
import pytest
import torch
from conftest import SMALL, draw_weights

from detr_nb import DetrConfig, DetrForObjectDetection, DetrForSegmentation, DetrImageProcessor, SceneDetection
from detr_nb.explore import (
    Recorder, answers_without, draw_matching, draw_pixel, draw_query, draw_threshold, inspect_image,
    loss_parts, matching_costs, read_record,
)
from detr_nb.runs import draw_training
from detr_nb.visualization import explore, png

DRAWINGS = {  # one state each, and for every slider another value
    "query": (draw_query, dict(query=6, layer=3), dict(query=10, layer=0)),
    "pixel": (draw_pixel, dict(x=96, y=30, layer=0), dict(x=20, y=100)),
    "matching": (draw_matching, dict(query=14, right=0, down=0, size=1.0), dict(query=6, right=30, down=-30, size=1.5)),
    "training": (draw_training, dict(moment=11, query=18, image=0), dict(moment=2, query=6, image=5)),
    "threshold": (draw_threshold, dict(threshold=0.5), dict(threshold=0.05)),
}


@pytest.fixture(scope="module")
def model():
    return DetrForObjectDetection.from_pretrained("scenes").eval()


@pytest.fixture(scope="module")
def processor():
    return DetrImageProcessor.from_pretrained("scenes")


@pytest.fixture(scope="module")
def inspection(model, processor):
    return inspect_image(model, processor, *SceneDetection(16, seed=0, split="val")[13])


@pytest.fixture(scope="module")
def record():
    return read_record()


@pytest.mark.parametrize("name", DRAWINGS)
def test_drawing_is_a_function_of_its_state(name, inspection, record):
    draw, state, others = DRAWINGS[name]
    subject = record if name == "training" else inspection
    first = draw(subject, **state)
    assert set(state) == set(list(inspect.signature(draw).parameters)[1:])
    for key, value in others.items():
        other = draw(subject, **state | {key: value})
        assert png(other) != png(first), key
        assert other.get_label() != first.get_label(), key
    start = time.perf_counter()
    again = draw(subject, **state)
    file = png(again)
    print(f"{name}: {1000 * (time.perf_counter() - start):.0f} ms")
    assert file == png(first) and again.get_label() == first.get_label()


def test_drawing_opens_no_figure_of_pyplot(inspection, record):
    import matplotlib.pyplot as plt
    plt.close("all")
    for name, (draw, state, _) in DRAWINGS.items():
        draw(record if name == "training" else inspection, **state)
    assert plt.get_fignums() == []


def test_drawing_leaves_what_it_draws(inspection):
    kept = [inspection.boxes.clone(), inspection.logits.clone(), torch.from_numpy(inspection.cross.copy()), torch.from_numpy(inspection.image.copy())]
    draw_matching(inspection, 14, 30, 10, 2.0), draw_query(inspection, 3, 1), draw_threshold(inspection, 0.2), draw_pixel(inspection, 3, 3)
    for before, after in zip(kept, (inspection.boxes, inspection.logits, torch.from_numpy(inspection.cross), torch.from_numpy(inspection.image))):
        assert torch.equal(before, after)


def test_look_sees_what_the_model_says_with_and_without_attention(model, processor, inspection):
    image = SceneDetection(16, seed=0, split="val")[13][0]
    batch = processor(image, return_tensors="pt")
    with torch.inference_mode():
        without, outputs = model(**batch), model(**batch, output_attentions=True)
    assert without.cross_attentions is None
    torch.testing.assert_close(inspection.logits, without.logits[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(inspection.boxes, without.pred_boxes[0], atol=1e-5, rtol=1e-4)
    for layer, attention in enumerate(outputs.cross_attentions):
        torch.testing.assert_close(torch.from_numpy(inspection.cross[layer]).flatten(-2), attention[0], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(torch.from_numpy(inspection.encoder[0]).flatten(-2), outputs.encoder_attentions[0][0], atol=1e-6, rtol=1e-4)


def test_costs_and_losses_are_the_models_own(model, processor, inspection):
    image, annotations = SceneDetection(16, seed=0, split="val")[13]
    batch = processor(image, annotations, return_tensors="pt")
    with torch.inference_mode():
        outputs = model(pixel_values=batch["pixel_values"], pixel_mask=batch["pixel_mask"], labels=batch["labels"])
        queries, targets = model.criterion.matcher({"logits": outputs.logits, "pred_boxes": outputs.pred_boxes}, batch["labels"])[0]
    assert matching_costs(inspection)[1] == dict(zip(queries.tolist(), targets.tolist()))
    parts = outputs.loss_dict
    wanted = {"class": parts["loss_ce"], "L1": 5 * parts["loss_bbox"], "GIoU": 2 * parts["loss_giou"]}
    assert loss_parts(inspection, inspection.boxes) == pytest.approx({k: float(v) for k, v in wanted.items()}, abs=1e-4)


def test_mode_and_weights_stay(processor):
    model = DetrForSegmentation.from_pretrained("scenes").train()
    model.freeze_detector()
    modes = [m.training for m in model.modules()]
    inspection = inspect_image(model, processor, SceneDetection(2, seed=0)[0][0])
    assert [m.training for m in model.modules()] == modes and inspection.target is None


@pytest.mark.parametrize("cls", [DetrForObjectDetection, DetrForSegmentation])
@pytest.mark.parametrize("height, width, frame, pad_size", [
    (70, 150, "image", None), (150, 70, "canvas", None), (70, 150, "canvas", {"height": 200, "width": 256}), (600, 330, "image", None),
])
def test_other_models_and_images(cls, height, width, frame, pad_size):
    model = draw_weights(cls(DetrConfig(**SMALL | {"encoder_attention_heads": 8})))  # a width the mask head can group
    processor = DetrImageProcessor(size={"shortest_edge": 96, "longest_edge": 192}, box_frame=frame, pad_size=pad_size)
    image = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    target = {"image_id": 1, "annotations": [{"bbox": [10, 20, 30, 40], "category_id": 3}, {"bbox": [0, 0, width, height], "category_id": 5}]}
    inspection = inspect_image(model, processor, image, target)
    factor = min(1, 256 / max(height, width))
    assert inspection.image.shape == (round(height * factor), round(width * factor), 3)
    np.testing.assert_allclose(inspection.cross.sum((-2, -1)), 1, rtol=1e-5)
    wanted = np.array([[10, 20, 40, 60], [0, 0, width, height]]) * factor
    np.testing.assert_allclose(inspection.corners(inspection.target["boxes"]), wanted, atol=0.6)  # the drawn copy is rounded to whole pixels
    with torch.inference_mode():
        batch = processor(image, return_tensors="pt")
        result = processor.post_process_object_detection(model.eval()(**batch), -1, [inspection.image.shape[:2]], batch["pixel_mask"])[0]
    torch.testing.assert_close(torch.from_numpy(inspection.corners(inspection.boxes)), result["boxes"], atol=0.05, rtol=1e-3)
    h, w = inspection.image.shape[:2]
    for figure in (draw_query(inspection, 11, 2), draw_pixel(inspection, w - 1, h - 1, 1), draw_matching(inspection, 0, 5, 5, 2), draw_threshold(inspection, 0.1)):
        assert figure.get_label() and png(figure).startswith(b"\x89PNG")


def test_map_lies_where_the_image_is():
    "A map over a padded image: the cell that a pixel is in is that of the same pixel in the resized image."
    model = draw_weights(DetrForObjectDetection(DetrConfig(**SMALL)))
    processor = DetrImageProcessor(size={"shortest_edge": 96, "longest_edge": 192}, pad_size={"height": 224, "width": 320})
    inspection = inspect_image(model, processor, np.zeros((192, 128, 3), np.uint8))  # resized to 144 × 96: cells of 32 are 128 / 3 wide
    assert inspection.cross.shape[-2:] == (7, 10)
    assert inspection.cell == pytest.approx((128 / 3, 128 / 3))
    cells = inspection.spread(np.arange(70).reshape(7, 10))
    assert cells[0, 0] == 0 and cells[0, 42] == 0 and cells[0, 43] == 1 and cells[191, 127] == 10 * 4 + 2


@pytest.mark.parametrize("name", DRAWINGS)
def test_sliders_change_image_and_words(name, inspection, record):
    draw, state, others = DRAWINGS[name]
    subject = record if name == "training" else inspection
    ranges = {k: (type(v)(min(v, others[k]) - 0), v, type(v)(max(v, others[k]))) for k, v in state.items() if k in others}
    box = explore(partial(draw, subject), **ranges)
    *sliders, image = box.children
    assert [slider.description for slider in sliders] == list(ranges)
    assert 'alt="' in image.value and "data:image/png;base64," in image.value
    for slider in sliders:
        alt, _, source = image.value.partition(" src=")
        slider.value = slider.min if slider.value == slider.max else slider.max
        assert image.value.partition(" src=")[0] != alt and image.value.partition(" src=")[2] != source, slider.description


def test_words_are_escaped():
    from matplotlib.figure import Figure
    figure = Figure(figsize=(1, 1))
    figure.set_label('a "star" <b> & more')
    assert 'alt="a &quot;star&quot; &lt;b&gt; &amp; more"' in explore(lambda: figure).children[-1].value


@pytest.mark.parametrize("draw, state, message", [
    (draw_query, dict(query=25, layer=0), "query=25: want a whole number, 0 ≤ query < 25"),
    (draw_query, dict(query=-1, layer=0), "query=-1: want a whole number, 0 ≤ query < 25"),
    (draw_query, dict(query=0, layer=4), "layer=4: want a whole number, 0 ≤ layer < 4"),
    (draw_pixel, dict(x=128, y=0), "x=128: want a whole number, 0 ≤ x < 128"),
    (draw_pixel, dict(x=0.5, y=0), "x=0.5: want a whole number"),
    (draw_pixel, dict(x=0, y=0, layer=1), "layer=1: want a whole number, 0 ≤ layer < 1"),
    (draw_matching, dict(query=25), "query=25"),
    (draw_threshold, dict(threshold=1.5), "threshold=1.5: want 0 ≤ threshold ≤ 1"),
])
def test_states_out_of_range_are_named(draw, state, message, inspection):
    with pytest.raises(ValueError, match=message):
        draw(inspection, **state)


def test_faults_are_named(model, processor, record):
    image, annotations = SceneDetection(2, seed=0)[0]
    with pytest.raises(ValueError, match=r"moment=12: want a whole number, 0 ≤ moment < 12"):
        draw_training(record, moment=12, query=0)
    with pytest.raises(ValueError, match=r"images: 2 images, 16 in .*record.npz"):
        read_record(images=[image, image])
    with pytest.raises(ValueError, match="inspection has no target"):
        draw_matching(inspect_image(model, processor, image), query=0)
    with pytest.raises(ValueError, match=r"target has the keys \['boxes'\]: want 'annotations'"):
        inspect_image(model, processor, image, {"boxes": []})
    with pytest.raises(ValueError, match="want 0 ≤ label < 13"):
        inspect_image(model, processor, image, {"image_id": 1, "annotations": [{"bbox": [0, 0, 9, 9], "category_id": 13}]})


def test_a_image_without_objects(model, processor):
    inspection = inspect_image(model, processor, SceneDetection(2, seed=0)[0][0], {"image_id": 1, "annotations": []})
    assert png(draw_query(inspection, 0, 0)) and png(draw_matching(inspection, 0, 3, 3)) and matching_costs(inspection)[1] == {}


def test_hidden_cells_are_not_read():
    "Nothing hidden: what the model says. Hidden cells may hold anything, and the answers stay the same."
    model, processor = DetrForObjectDetection.from_pretrained("scenes").eval(), DetrImageProcessor.from_pretrained("scenes")
    batch = processor(SceneDetection(16, seed=0, split="val")[13][0], return_tensors="pt")
    with torch.inference_mode(): outputs = model(**batch)
    trials, cells = torch.zeros(3, 256, dtype=torch.bool), [3, 40, 41, 200]
    trials[1, cells] = True
    trials[2, 100:156] = True
    classes, boxes = hidden = answers_without(model, batch, trials)
    assert classes.shape == (3, 25, 14) and boxes.shape == (3, 25, 4)
    torch.testing.assert_close(classes[0], outputs.logits[0].softmax(-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(boxes[0], outputs.pred_boxes[0], atol=1e-5, rtol=0)
    assert (classes[1:] - classes[0]).abs().amax((1, 2)).min() > 1e-3

    def spoil(module, inputs, states):
        states[0][-1][:, cells] += 100.0
        return states

    handle = model.model.encoder.register_forward_hook(spoil)
    try: spoiled = answers_without(model, batch, trials)
    finally: handle.remove()
    for one, other in zip(hidden, spoiled):
        torch.testing.assert_close(one[1], other[1], atol=1e-5, rtol=0)
        assert (one[0] - other[0]).abs().max() > 1e-3  # there the spoiled cells may be read


def test_recorder_keeps_maps_that_are_not_square(tmp_path):
    model, processor = DetrForObjectDetection.from_pretrained("scenes").eval(), DetrImageProcessor.from_pretrained("scenes")
    wide = np.concatenate([np.asarray(SceneDetection(16, seed=0, split="val")[i][0]) for i in (1, 9)], 1)
    recorder = Recorder(tmp_path / "record.npz", [(wide, None)], processor)
    recorder(7, model)
    seen = inspect_image(model, processor, wide)
    maps = torch.from_numpy(seen.cross[-1]).mean(0)
    with np.load(tmp_path / "record.npz") as file:
        assert file["attention"].shape == (1, 1, 25, 16, 32)
        wanted = maps / maps.amax((1, 2), keepdim=True) * 255
        assert np.abs(file["attention"][0, 0].astype(float) - wanted.numpy()).max() < 1
