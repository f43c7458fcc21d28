"The processor against transformers 5, on the two real COCO images and on made ones."
import json
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from detr_nb import DetrImageProcessor
from detr_nb.processor import pad_images
from detr_nb.transforms import resized_size


def theirs(**values):
    import transformers
    return transformers.DetrImageProcessor(**values)


def made_image(height, width, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def made_annotations(height, width, count, image_id=3, seed=0):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 0.7, (count, 2)) * (width, height)
    size = rng.uniform(0.1, 0.6, (count, 2)) * (width, height)  # some reach outside
    boxes = np.concatenate([low, size], 1).tolist()
    return {"image_id": image_id, "annotations": [
        {"id": i, "image_id": image_id, "category_id": i % 5, "bbox": b, "area": b[2] * b[3], "iscrowd": int(i == 1)} for i, b in enumerate(boxes)
    ]}


def compare(a, b):
    assert a["pixel_values"].shape == b["pixel_values"].shape and a["pixel_values"].dtype == b["pixel_values"].dtype
    torch.testing.assert_close(a["pixel_values"], b["pixel_values"], atol=1e-5, rtol=0)
    assert a["pixel_mask"].dtype == b["pixel_mask"].dtype and torch.equal(a["pixel_mask"], b["pixel_mask"])
    assert len(a.get("labels", [])) == len(b.get("labels", []))
    for mine, wanted in zip(a.get("labels", []), b.get("labels", [])):
        assert set(mine) - set(wanted) <= {"size"} and set(wanted) <= set(mine)  # theirs leaves `size` out where nothing was resized
        for name, value in wanted.items():
            value = torch.as_tensor(value)
            assert mine[name].shape == value.shape and mine[name].dtype == value.dtype, name
            torch.testing.assert_close(mine[name], value, atol=1e-5, rtol=1e-5)


SIZES = [
    None, {"shortest_edge": 200, "longest_edge": 300}, {"height": 90, "width": 130}, {"max_height": 150, "max_width": 120}, {"shortest_edge": 64, "longest_edge": 90},
]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("shape", [(120, 160), (161, 93), (50, 400), (200, 200)])
def test_one_image(size, shape):
    values = {} if size is None else {"size": size}
    image, annotations = made_image(*shape), made_annotations(*shape, 6)
    compare(
        DetrImageProcessor(**values)(image, annotations, return_tensors="pt"),
        theirs(**values)(image, annotations=annotations, return_tensors="pt"),
    )


def test_batch_on_the_canvas():
    "With transformers' frame, a padded batch has transformers' labels."
    shapes = [(120, 160), (161, 93), (60, 60)]
    images = [made_image(*s) for s in shapes]
    annotations = [made_annotations(*s, n, image_id=i) for i, (s, n) in enumerate(zip(shapes, (5, 3, 0)))]
    size = {"shortest_edge": 150, "longest_edge": 240}
    compare(
        DetrImageProcessor(size=size, box_frame="canvas")(images, annotations, return_tensors="pt"),
        theirs(size=size)(images, annotations=annotations, return_tensors="pt"),
    )


def test_labels_do_not_depend_on_neighbours():
    image, annotations = made_image(120, 160), made_annotations(120, 160, 5)
    processor = DetrImageProcessor(size={"shortest_edge": 150, "longest_edge": 240})
    alone = processor(image, annotations, return_tensors="pt").labels[0]
    together = processor([image, made_image(50, 200)], [annotations, made_annotations(50, 200, 2)], return_tensors="pt").labels[0]
    for name in alone:
        assert torch.equal(alone[name], together[name]), name


@pytest.mark.parametrize("flags", [{"do_resize": False}, {"do_rescale": False}, {"do_normalize": False}, {"do_convert_annotations": False}, {"do_pad": True, "pad_size": {"height": 300, "width": 310}}], ids=str)
def test_flags(flags):
    image, annotations = made_image(100, 140), made_annotations(100, 140, 4)
    values = {"size": {"shortest_edge": 200, "longest_edge": 300}, "box_frame": "canvas"} | flags
    mine = DetrImageProcessor(**values)(image, annotations, return_tensors="pt")
    values.pop("box_frame")
    compare(mine, theirs(**values)(image, annotations=annotations, return_tensors="pt"))


def test_kinds_of_input():
    image = made_image(60, 90)
    array = np.asarray(image)
    processor = DetrImageProcessor(size={"shortest_edge": 60, "longest_edge": 90})
    wanted = processor(image, return_tensors="pt").pixel_values
    first = np.ascontiguousarray(array.transpose(2, 0, 1))
    for other in (array, first, torch.from_numpy(array.copy()), torch.from_numpy(first), [image], first[None], torch.from_numpy(first)[None]):
        assert torch.equal(processor(other, return_tensors="pt").pixel_values, wanted)
    grey = processor(image.convert("L"), return_tensors="pt").pixel_values
    assert grey.shape == wanted.shape
    for mode in ("RGBA", "P", "CMYK", "1", "LA"):
        assert processor(image.convert(mode), return_tensors="pt").pixel_values.shape == wanted.shape
    assert processor(image, return_tensors="np").pixel_values.dtype == np.float32
    assert processor([image, image]).pixel_values.equal(processor([image, image], return_tensors="pt").pixel_values)
    listed = processor([image, image.rotate(90, expand=True)], do_pad=False)
    assert isinstance(listed.pixel_values, list) and len(listed.pixel_values) == 2


def test_pad_and_create_pixel_mask():
    batch = DetrImageProcessor().pad_and_create_pixel_mask([torch.ones(3, 4, 6), torch.ones(3, 5, 2)], return_tensors="pt")
    assert batch.pixel_values.shape == (2, 3, 5, 6) and batch.pixel_mask.sum((1, 2)).tolist() == [24, 10]
    assert DetrImageProcessor().pad_and_create_pixel_mask([torch.ones(3, 4, 6)]).pixel_mask.shape == (1, 4, 6)


def test_real_images(coco_sample):
    data = json.loads((coco_sample / "panoptic_coco_detection_format.json").read_text())
    images, labels = [], []
    for entry in data["images"]:
        image = Image.open(coco_sample / "input_images" / entry["file_name"]).convert("RGB")
        annotations = {"image_id": entry["id"], "annotations": [a for a in data["annotations"] if a["image_id"] == entry["id"]]}
        assert annotations["annotations"]
        images.append(image)
        labels.append(annotations)
        compare(
            DetrImageProcessor()(image, annotations, return_tensors="pt"),
            theirs()(image, annotations=annotations, return_tensors="pt"),
        )
    assert len(images) == 2 and images[0].size != images[1].size
    compare(
        DetrImageProcessor(box_frame="canvas")(images, labels, return_tensors="pt"),
        theirs()(images, annotations=labels, return_tensors="pt"),
    )


def random_outputs(batch=3, seed=0):
    from types import SimpleNamespace
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, 20, 8, generator=generator) * 3
    return SimpleNamespace(logits=logits, pred_boxes=torch.rand(batch, 20, 4, generator=generator))


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("sizes", [None, [(100, 200), (50, 60), (480, 640)], torch.tensor([[100, 200], [50, 60], [480, 640]])], ids=["none", "list", "tensor"])
def test_post_processing(threshold, sizes):
    outputs = random_outputs()
    mine = DetrImageProcessor().post_process_object_detection(outputs, threshold, sizes)
    wanted = theirs().post_process_object_detection(outputs, threshold, sizes)
    for a, b in zip(mine, wanted, strict=True):
        assert set(a) == set(b)
        for name in b:
            assert a[name].shape == b[name].shape and a[name].dtype == b[name].dtype
            torch.testing.assert_close(a[name], b[name])


def test_older_post_process():
    results = DetrImageProcessor().post_process(random_outputs(), torch.tensor([[10, 20]] * 3))
    assert [len(r["scores"]) for r in results] == [20, 20, 20]


def test_frame_is_inverted():
    "A perfect prediction comes back as the annotated box, in a padded batch, in either frame."
    from types import SimpleNamespace
    image, other = made_image(100, 100), made_image(100, 200)
    annotation = {"image_id": 1, "annotations": [{"id": 1, "category_id": 1, "bbox": [20, 30, 60, 40], "area": 2400, "iscrowd": 0}]}
    for frame in ("image", "canvas"):
        processor = DetrImageProcessor(do_resize=False, box_frame=frame)
        batch = processor([image, other], [annotation, {"image_id": 2, "annotations": []}], return_tensors="pt")
        outputs = SimpleNamespace(logits=torch.tensor([[[0.0, 9, 0]]] * 2), pred_boxes=batch.labels[0]["boxes"][None].repeat(2, 1, 1))
        found = processor.post_process_object_detection(outputs, 0.5, [(100, 100), (100, 200)], pixel_mask=batch.pixel_mask)[0]
        torch.testing.assert_close(found["boxes"], torch.tensor([[20.0, 30, 80, 70]]), atol=1e-4, rtol=0)


def test_files_of_both_sides(tmp_path):
    import transformers
    theirs(size={"shortest_edge": 100, "longest_edge": 200}).save_pretrained(tmp_path / "theirs")
    ours = DetrImageProcessor.from_pretrained(tmp_path / "theirs")
    assert ours.size == {"shortest_edge": 100, "longest_edge": 200}
    ours.save_pretrained(tmp_path / "ours")
    back = transformers.DetrImageProcessor.from_pretrained(tmp_path / "ours")
    image = made_image(80, 120)
    compare(ours(image, return_tensors="pt"), back(image, return_tensors="pt"))


@pytest.mark.parametrize("call, message", [
    (lambda p, i: p([]), "images is empty"),
    (lambda p, i: p([i, i], [{"image_id": 1, "annotations": []}]), "2 images, 1 annotations"),
    (lambda p, i: p(i, {"image_id": 1, "annotations": [{"bbox": [1, 2, float("nan"), 4], "category_id": 1, "id": 9}]}), "image 1: annotation 9 has bbox="),
    (lambda p, i: p(i, {"image_id": 1, "annotations": [{"bbox": [1, 2, -3, 4], "category_id": 1, "id": 9}]}), "sizes ≥ 0"),
    (lambda p, i: p(i, {"image_id": 1, "annotations": [{"bbox": [1, 2, 3, 4], "id": 9}]}), "annotation 9 has no 'category_id'"),
    (lambda p, i: p(i, return_tensors="tf"), "return_tensors='tf'"),
    (lambda p, i: p(np.zeros((0, 10, 3), np.uint8)), "image has 0 × 10 pixels: want at least one"),
    (lambda p, i: p(i, input_data_format="sideways"), "input_data_format='sideways'"),
    (lambda p, i: p(np.zeros((7, 8, 5))), "want 1, 3 or 4"),
    (lambda p, i: DetrImageProcessor(size={"edge": 3}), "want a number"),
    (lambda p, i: DetrImageProcessor(box_frame="page"), "box_frame='page'"),
    (lambda p, i: DetrImageProcessor(pad_size={"height": 4, "width": 4})(i), "pad_size 4 × 4 is smaller"),
    (lambda p, i: p.post_process_object_detection(random_outputs(), 0.5, [(1, 2)]), r"target_sizes=\[\(1, 2\)\]: want \(height, width\) of each of 3 images"),
])
def test_bad_input(call, message):
    processor, image = DetrImageProcessor(size={"shortest_edge": 8, "longest_edge": 20}), made_image(10, 12)
    with pytest.raises(ValueError, match=message):
        call(processor, image)


def test_lost_boxes_are_counted_once():
    image = made_image(50, 50)
    annotations = [{"image_id": i, "annotations": [{"id": 1, "category_id": 1, "bbox": [60, 10, 5, 5], "area": 25}]} for i in (4, 5)]
    with pytest.warns(UserWarning, match="boxes without area inside their image are left out: 2, the first in image 4") as caught:
        batch = DetrImageProcessor()([image, image], annotations, return_tensors="pt")
    assert len(caught) == 1 and batch.labels[0]["boxes"].shape == (0, 4)


def test_unknown_arguments_and_keys(tmp_path):
    with pytest.raises(TypeError, match="do_resise"):
        DetrImageProcessor(do_resise=False)
    processor = DetrImageProcessor()
    processor.save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"my_own": 3, "pad_and_return_pixel_mask": False}))
    again = DetrImageProcessor.from_pretrained(tmp_path)
    assert again.to_dict()["my_own"] == 3 and again.do_pad is False
    with pytest.raises(TypeError, match="do_resise"):
        DetrImageProcessor.from_pretrained(tmp_path, do_resise=False)


def test_changes_for_one_call():
    processor, image = DetrImageProcessor(size={"shortest_edge": 20, "longest_edge": 40}), made_image(30, 40)
    assert processor(image, return_tensors="pt", do_resize=False).pixel_values.shape == (1, 3, 30, 40)
    assert processor(image, return_tensors="pt", size={"height": 8, "width": 9}).pixel_values.shape == (1, 3, 8, 9)
    assert processor(image, return_tensors="pt").pixel_values.shape == (1, 3, 20, 26)


def test_awkward_images():
    processor = DetrImageProcessor(size={"shortest_edge": 20, "longest_edge": 40})
    array = np.asarray(made_image(30, 40))
    assert torch.equal(processor(array[..., ::-1], return_tensors="pt").pixel_values, processor(array[..., ::-1].copy(), return_tensors="pt").pixel_values)
    assert processor(made_image(1, 300), return_tensors="pt").pixel_values.shape == (1, 3, 1, 40)
    deep = Image.fromarray(np.linspace(0, 65535, 30 * 40).reshape(30, 40).astype(np.uint16))
    shallow = Image.fromarray((np.linspace(0, 65535, 30 * 40).reshape(30, 40).astype(np.uint16) // 257).astype(np.uint8))
    assert torch.equal(processor(deep, return_tensors="pt").pixel_values, processor(shallow, return_tensors="pt").pixel_values)
    with pytest.raises(ValueError, match="mode F"):
        processor(Image.fromarray(np.zeros((4, 4), np.float32)))


@pytest.mark.parametrize("size, max_size, wanted", [
    (800, 1333, {"shortest_edge": 800, "longest_edge": 1333}), (800, None, {"shortest_edge": 800, "longest_edge": 1333}),
    ({"shortest_edge": 800}, None, {"shortest_edge": 800}), ({"shortest_edge": 800}, 900, {"shortest_edge": 800, "longest_edge": 900}),
    (None, 1000, {"shortest_edge": 800, "longest_edge": 1000}), ((480, 640), None, {"height": 480, "width": 640}), (np.array([480, 640]), None, {"height": 480, "width": 640}),
    (640.0, 900, {"shortest_edge": 640, "longest_edge": 900}), ({"height": 3, "width": 4, "longest_edge": None}, None, {"height": 3, "width": 4}),
], ids=str)
def test_forms_of_size(size, max_size, wanted):
    assert DetrImageProcessor(size=size, max_size=max_size).size == wanted


@pytest.mark.parametrize("changes, wanted", [
    (dict(max_size=500), {"shortest_edge": 800, "longest_edge": 500}), (dict(size=200), {"shortest_edge": 200, "longest_edge": 1333}),
    (dict(size=200, max_size=300), {"shortest_edge": 200, "longest_edge": 300}), (dict(size={"shortest_edge": 200}), {"shortest_edge": 200}),
    (dict(size=(30, 40)), {"height": 30, "width": 40}), (dict(size=None, max_size=None), {"shortest_edge": 800, "longest_edge": 1333}),
], ids=str)
def test_one_edge_can_be_changed(tmp_path, changes, wanted):
    "In a call, and when a checkpoint's file is read: what is not named stays as it was."
    processor, image = DetrImageProcessor(), np.zeros((200, 400, 3), np.uint8)
    shape = tuple(processor(image, return_tensors="pt", **changes).pixel_values.shape[2:])
    assert shape == resized_size(200, 400, wanted)
    processor.save_pretrained(tmp_path)
    assert DetrImageProcessor.from_pretrained(tmp_path, **changes).size == wanted
    small = DetrImageProcessor(size=100, max_size=150)
    assert small.from_dict(small.to_dict(), size=90).size == {"shortest_edge": 90, "longest_edge": 150}
    unlimited = DetrImageProcessor(size={"shortest_edge": 100}).to_dict()
    assert DetrImageProcessor.from_dict(unlimited, size=90).size == {"shortest_edge": 90}
    assert DetrImageProcessor.from_dict(unlimited, max_size=150).size == {"shortest_edge": 100, "longest_edge": 150}
    fixed = DetrImageProcessor(size=(30, 40)).to_dict()
    assert DetrImageProcessor.from_dict(fixed, size=90).size == {"shortest_edge": 90, "longest_edge": 1333}
    with pytest.raises(ValueError, match="max_size=150 beside size="): DetrImageProcessor.from_dict(fixed, max_size=150)


def test_a_longest_edge_twice_is_refused():
    "In the constructor and in a call; a public file may hold both, and its dictionary counts, as in transformers."
    both = {"shortest_edge": 800, "longest_edge": 1333}
    with pytest.raises(ValueError, match="max_size=500 beside size=.*: want it beside a shortest edge alone"):
        DetrImageProcessor(size=both, max_size=500)
    with pytest.raises(ValueError, match="max_size=500 beside size="):
        DetrImageProcessor(size=(300, 400), max_size=500)
    with pytest.raises(ValueError, match="max_size=500 beside size="):
        DetrImageProcessor()(np.zeros((20, 40, 3), np.uint8), size=both, max_size=500)
    assert DetrImageProcessor.from_dict({"size": both, "max_size": 500}).size == both


@pytest.mark.parametrize("low, high, warned", [(0, 1, True), (-1, 1, True), (-2.1, 2.6, True), (0, 255, False), (0, 1.5, False)])
def test_floats_that_were_prepared_before(low, high, warned):
    image = np.linspace(low, high, 48, dtype=np.float32).reshape(4, 4, 3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        DetrImageProcessor(do_resize=False)(image)
    assert len(caught) == warned
    if warned: assert f"from {low:.3g} to {high:.3g} is divided by 255" in str(caught[0].message)


@pytest.mark.parametrize("size", [True, 0, -3, [1, 2, 3], {"height": 3}, 2.5, "large"], ids=str)
def test_sizes_that_say_nothing(size):
    with pytest.raises(ValueError, match="size="):
        DetrImageProcessor(size=size)


def test_the_mask_lies_where_the_images_do():
    "On a GPU, too; the device without memory stands for it."
    values, mask = pad_images([torch.zeros(3, 4, 5, device="meta"), torch.zeros(3, 6, 2, device="meta")])
    assert values.device == mask.device == torch.device("meta") and values.shape == (2, 3, 6, 5) and mask.shape == (2, 6, 5)
