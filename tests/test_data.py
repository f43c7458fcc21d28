"COCO files that are broken in every way we could think of; each message names the file, what was found and what is wanted."
import copy
import json
import re
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from detr_nb import CocoDetection, DetrImageProcessor, SceneDetection
from detr_nb.data import detection_target, mask_faults
from detr_nb.datasets import write_coco

GOOD = {
    "images": [{"id": 1, "file_name": "a.png", "width": 20, "height": 10}, {"id": 2, "file_name": "b.png", "width": 10, "height": 10}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 5, 5], "area": 25, "iscrowd": 0}],
    "categories": [{"id": 3, "name": "ball"}],
}


def folder_with(tmp_path, change=lambda d: None, text=None):
    data = copy.deepcopy(GOOD)
    change(data)
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    Image.new("L", (10, 10)).save(tmp_path / "b.png")
    (tmp_path / "truth.json").write_text(json.dumps(data) if text is None else text)
    return tmp_path, tmp_path / "truth.json"


def test_good(tmp_path):
    dataset = CocoDetection(*folder_with(tmp_path))
    assert len(dataset) == 2 and dataset.id2label == {3: "ball"}
    image, target = dataset[1]
    assert image.mode == "RGB" and target == {"image_id": 2, "annotations": []}
    tensors = detection_target(target, 10, 10)
    assert tensors["boxes"].shape == (0, 4) and tensors["boxes"].dtype == torch.float32


def test_transforms(tmp_path):
    dataset = CocoDetection(*folder_with(tmp_path), transforms=lambda image, target: (image.size, target["image_id"]))
    assert dataset[0] == ((20, 10), 1)


BROKEN = {
    "no images": (lambda d: d.pop("images"), "truth.json: no 'images'; it has"),
    "no annotations": (lambda d: d.pop("annotations"), "truth.json: no 'annotations'"),
    "an id that is a string": (lambda d: d["images"][0].update(id="1"), r"images\[0\] has id='1': want a whole number"),
    "an empty image": (lambda d: d["images"][0].update(width=0), "image 1 has width=0: want a whole number from 1"),
    "no categories": (lambda d: d.pop("categories"), "truth.json: no 'categories'"),
    "image without width": (lambda d: d["images"][0].pop("width"), "image 1 has no 'width'"),
    "annotation without box": (lambda d: d["annotations"][0].pop("bbox"), r"annotation 1 \(image 1\) has no 'bbox'"),
    "unknown category": (lambda d: d["annotations"][0].update(category_id=9), r"annotation 1 \(image 1\) has category 9, which is not listed"),
    "unknown category as 9.0": (lambda d: d["annotations"][0].update(category_id=9.0), r"annotation 1 \(image 1\) has category 9, which is not listed"),
    "unknown image": (lambda d: d["annotations"][0].update(image_id=7), r"annotation 1 \(image 7\) belongs to image 7, which is not listed"),
    "two ids": (lambda d: d["images"][1].update(id=1), "two images share the id 1"),
    "NaN": (lambda d: d["annotations"][0].update(bbox=[1, float("nan"), 2, 2]), r"annotation 1 \(image 1\) has bbox=\[1, nan, 2, 2\]: want x, y, width, height: four numbers"),
    "negative size": (lambda d: d["annotations"][0].update(bbox=[1, 1, -2, 2]), r"annotation 1 \(image 1\) has bbox=\[1, 1, -2, 2\].*sizes ≥ 0"),
    "three numbers": (lambda d: d["annotations"][0].update(bbox=[1, 1, 2]), "want x, y, width, height"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken(name, tmp_path):
    change, message = BROKEN[name]
    with pytest.raises(ValueError, match=message):
        CocoDetection(*folder_with(tmp_path, change))


def test_missing_image(tmp_path):
    with pytest.raises(FileNotFoundError, match="truth.json: 1 of 2 images have no such file: image 1: .*gone.png"):
        CocoDetection(*folder_with(tmp_path, lambda d: d["images"][0].update(file_name="gone.png")))


def test_wrong_size(tmp_path):
    dataset = CocoDetection(*folder_with(tmp_path, lambda d: d["images"][0].update(width=21)))
    with pytest.raises(ValueError, match="a.png has 20 × 10 pixels, its entry says 21 × 10"):
        dataset[0]


def test_not_json(tmp_path):
    with pytest.raises(ValueError, match="truth.json: not JSON"):
        CocoDetection(*folder_with(tmp_path, text="{"))
    with pytest.raises(ValueError, match="holds list, want an object"):
        CocoDetection(*folder_with(tmp_path, text="[]"))
    with pytest.raises(FileNotFoundError, match="other.json: no such annotation file"):
        CocoDetection(tmp_path, tmp_path / "other.json")


@pytest.mark.parametrize("data,found", [([{"image_id": 1}], "list"), (None, "NoneType")])
def test_a_results_file_is_no_annotation_file(data, found, tmp_path):
    with pytest.raises(ValueError, match=f"truth.json: holds {found}, want an object"):
        CocoDetection(*folder_with(tmp_path, text=json.dumps(data)))


def test_scenes_end():
    dataset = SceneDetection(3, seed=0)
    assert len(list(dataset)) == 3
    with pytest.raises(IndexError, match="index 3: want 0 … 2"):
        dataset[3]


def test_boxes_outside(tmp_path):
    "What reaches outside is cut; what has no area left is dropped, with one warning for the file."
    extra = [
        {"id": 2, "image_id": 1, "category_id": 3, "bbox": [15, 5, 20, 20], "area": 400}, {"id": 3, "image_id": 1, "category_id": 3, "bbox": [3, 3, 0, 4], "area": 0},
        {"id": 4, "image_id": 2, "category_id": 3, "bbox": [30, 3, 5, 4], "area": 20},
    ]
    with pytest.warns(UserWarning) as caught:
        dataset = CocoDetection(*folder_with(tmp_path, lambda d: d["annotations"].extend(extra)))
    assert [str(w.message).partition("truth.json: ")[2] for w in caught] == [
        "2 of 4 boxes have no area inside their image: not learned, and missed in an evaluation, the first in image 1",
        "1 of 4 boxes reach out of their image by more than a pixel and are cut at its edge, the first in image 1",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image, target = dataset[0]
        boxes = detection_target(target, image.height, image.width)["boxes"]
    assert boxes.tolist() == [[1, 2, 6, 7], [15, 5, 20, 10]]


def said_of(tmp_path, boxes, polygons=None, size=(200, 100), **more):
    "The warnings of a file with such boxes, and with polygons if they are given."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        CocoDetection(*folder_with(tmp_path, lambda d: d.update(
            images=[{"id": 1, "file_name": "a.png", "width": size[0], "height": size[1]}],
            annotations=[
                {"id": i + 1, "image_id": 1, "category_id": 3, "bbox": list(box)} | more
                | ({"segmentation": polygons[i]} if polygons else {}) for i, box in enumerate(boxes)
            ],
        )))
    return [str(w.message).partition("truth.json: ")[2] for w in caught]


def test_boxes_that_lie_elsewhere_than_their_masks_are_counted(tmp_path):
    square = lambda x, y, side: [[x, y, x + side, y, x + side, y + side, x, y + side]]
    polygons = [square(10, 10, 20), square(60, 20, 40), square(120, 30, 30), square(5, 80, 4), square(-20, 40, 30)]
    right = [(10, 10, 20, 20), (60, 20, 40, 40), (119, 31, 30, 30), (6, 81, 4, 4), (-20, 40, 30, 30)]
    cut = "1 of 5 boxes reach out of their image by more than a pixel and are cut at its edge, the first in image 1"
    assert said_of(tmp_path, right, polygons) == [cut]  # a pixel off, tiny, and half outside: all the same
    elsewhere = "{} of {} boxes that were compared with the masks of their objects lie elsewhere (IoU below 0.5), the first in image 1"
    assert said_of(tmp_path, [right[0], (100, 20, 40, 40), *right[2:]], polygons) == [cut, elsewhere.format(1, 5)]
    assert said_of(tmp_path, [(60, 20, 40, 40)], [square(0.3, 0.2, 0.2)]) == [elsewhere.format(1, 1)]  # shares
    empty = {"size": [100, 200], "counts": [20_000]}
    for broken in (empty, [[1, 2, 3]], {"size": 5, "counts": [1]}, {"size": True, "counts": "0"}):  # `check_masks` names them
        assert said_of(tmp_path, [(100, 20, 40, 40)], [broken]) == []
    assert said_of(tmp_path, [(100, 20, 40, 40)], [square(10, 10, 20)], iscrowd=1) == []
    many = [(10, 10, 20, 20) if i % 10 == 0 else (100, 20, 40, 40) for i in range(3000)]  # a step of ten would see none
    said, = said_of(tmp_path, many, [square(10, 10, 20)] * 3000)
    assert re.match(r"2\d\d of 300 boxes that were compared", said)


def test_a_box_that_was_drawn_too_far_does_not_hide_a_format(tmp_path):
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 1, (60, 2)) * (150, 70)
    corners = np.concatenate([low, low + rng.uniform(10, 30, (60, 2))], 1)
    corners[7, 2] = 204
    assert said_of(tmp_path, corners.tolist())[-1].startswith("the boxes look like corners")
    sizes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
    assert not [line for line in said_of(tmp_path, sizes.tolist()) if "look like" in line]
    sizes[:12, 0] = 190  # a fifth of them reaches out: still no other format
    said = said_of(tmp_path, sizes.tolist())
    assert len(said) == 1 and "reach out of their image" in said[0]


def test_a_image_that_is_cut_off(tmp_path):
    folder, truth = folder_with(tmp_path)
    (folder / "a.png").write_bytes((folder / "a.png").read_bytes()[:40])
    with pytest.raises(OSError, match="a.png: not a whole image"):
        CocoDetection(folder, truth)[0]


def test_real_annotations(coco_sample):
    "The sample's own detection file opens, and its boxes are those of the file."
    data = json.loads((coco_sample / "panoptic_coco_detection_format.json").read_text())
    categories = json.loads((coco_sample / "panoptic_coco_categories.json").read_text())
    for entry in data["images"]:
        annotations = [a for a in data["annotations"] if a["image_id"] == entry["id"]]
        target = detection_target({"image_id": entry["id"], "annotations": annotations}, entry["height"], entry["width"])
        wanted = [a["bbox"] for a in annotations if not a.get("iscrowd", 0)]
        corners = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in wanted], dtype=torch.float32)
        torch.testing.assert_close(target["boxes"], corners)
        assert set(target["class_labels"].tolist()) <= {c["id"] for c in categories}


# -- photographs that EXIF turns


def turned_file(path, width, height, orientation):
    "A file whose upright image is dark at the top, stored as a camera with this orientation stores it."
    upright = np.full((height, width, 3), 200, np.uint8)
    upright[: height // 4] = 20
    stored = {1: upright, 3: upright[::-1, ::-1], 6: np.rot90(upright), 8: np.rot90(upright, -1)}[orientation]
    image = Image.fromarray(np.ascontiguousarray(stored))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)
    return path


def exif_folder(tmp_path, orientation, size, stored_entry=False, count=2):
    "A COCO folder of such images; entries have the upright size, or that of the stored pixels."
    (tmp_path / "val").mkdir()
    (tmp_path / "annotations").mkdir()
    for i in range(count): turned_file(tmp_path / "val" / f"{i}.png", *size, orientation)
    width, height = size[::-1] if stored_entry else size
    data = {
        "images": [{"id": i + 1, "file_name": f"{i}.png", "width": width, "height": height} for i in range(count)],
        "annotations": [{"id": i + 1, "image_id": i + 1, "category_id": 1, "bbox": [0, 0, width, 5]} for i in range(count)],
        "categories": [{"id": 1, "name": "sky"}],
    }
    path = tmp_path / "annotations" / "instances_val.json"
    path.write_text(json.dumps(data))
    return CocoDetection(tmp_path / "val", path)


@pytest.mark.parametrize("orientation", [6, 8])
def test_photo_on_its_side_is_turned_where_its_entry_is_upright(tmp_path, orientation):
    dataset = exif_folder(tmp_path, orientation, (30, 40))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image, _ = dataset[0]
        pixels = DetrImageProcessor(size={"height": 40, "width": 30})(image, return_tensors="np", do_normalize=False)
    assert image.size == (30, 40)
    assert np.asarray(image)[:10].max() == 20 and np.asarray(image)[10:].min() == 200
    assert pixels.pixel_values.shape == (1, 3, 40, 30)  # not turned a second time
    assert pixels.pixel_values[0, 0, 2, 2] < 0.1 < pixels.pixel_values[0, 0, -2, 2]


def test_photo_on_its_side_stays_where_its_entry_is_as_stored(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image, _ = exif_folder(tmp_path, 6, (30, 40), stored_entry=True)[0]
        pixels, = DetrImageProcessor(do_resize=False, do_normalize=False)(image).pixel_values
    assert image.size == (40, 30) and np.asarray(image)[:, :10].max() == 20
    assert pixels.shape == (3, 30, 40)  # the processor does not turn it either


@pytest.mark.parametrize("orientation,size", [(3, (30, 40)), (6, (40, 40))])
def test_photo_that_fits_both_ways_is_turned_and_named_once(tmp_path, orientation, size):
    dataset = exif_folder(tmp_path, orientation, size)
    with pytest.warns(UserWarning, match=f"0.png: EXIF orientation {orientation}, and its entry fits both") as caught:
        image, _ = dataset[0]
        dataset[1]
    assert len(caught) == 1 and np.asarray(image)[:10].max() == 20


def test_photo_of_another_size_names_exif(tmp_path):
    dataset = exif_folder(tmp_path, 6, (30, 40))
    dataset.coco.imgs[1]["width"] = 31
    with pytest.raises(ValueError, match=r"0.png has 30 × 40 pixels \(40 × 30 as stored, EXIF orientation 6\), its entry says 31 × 40"):
        dataset[0]


@pytest.mark.parametrize("orientation,size,box,warned,entry", [
    (6, (30, 40), (0, 0, 30, 39), False, (30, 40)),   # fits the upright image only
    (6, (30, 40), (0, 0, 39, 30), False, (40, 30)),   # fits the stored pixels only
    (6, (30, 40), (0, 0, 9, 9), True, (30, 40)),      # fits both
    (3, (30, 40), (0, 0, 9, 9), True, (30, 40)), (1, (30, 40), (0, 0, 9, 9), False, (30, 40)),
])
def test_write_coco_takes_boxes_as_drawn_on_the_upright_image(tmp_path, orientation, size, box, warned, entry):
    (tmp_path / "val").mkdir()
    turned_file(tmp_path / "val" / "a.png", *size, orientation)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        path = write_coco(tmp_path, "val", {"a.png": [("sky", *box)]}, ["sky"])
    assert [("1 images have an EXIF orientation" in str(w.message)) for w in caught] == [True] * warned
    written = json.loads(path.read_text())["images"][0]
    assert (written["width"], written["height"]) == entry
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert CocoDetection(tmp_path / "val", path)[0][0].size == entry


def test_processor_turns_what_exif_turns_and_says_so(tmp_path):
    processor = DetrImageProcessor(size={"height": 40, "width": 30}, do_normalize=False)
    with Image.open(turned_file(tmp_path / "a.png", 30, 40, 6)) as stored, pytest.warns(UserWarning, match="1 of 2 images have an EXIF orientation .* image 1"):
        pixels = processor([np.zeros((40, 30, 3), np.uint8), stored], return_tensors="np").pixel_values
    assert pixels.shape == (2, 3, 40, 30) and pixels[1, :, 2].max() < 0.1 < pixels[1, :, -2].min()


@pytest.mark.parametrize("image,settings,said", [
    (np.full((8, 8, 3), 0.5), {}, "from 0.5 to 0.5 is divided by 255"), (torch.full((3, 8, 8), 1.0), {}, "from 1 to 1 is divided by 255"),
    (np.full((8, 8, 3), 99, np.uint8), {"do_rescale": False}, "numbers over 2"), (np.full((8, 8, 3), 99.0), {"do_rescale": False}, "numbers over 2"),
    (np.full((8, 8, 3), 0.5), {"do_rescale": False}, None), (np.full((8, 8, 3), 1, np.uint8), {}, None),
    (np.full((8, 8, 3), 99.0), {}, None), (np.zeros((8, 8, 3)), {}, None), (np.full((8, 8, 3), 99, np.uint8), {"do_rescale": False, "do_normalize": False}, None),
])
def test_image_that_is_rescaled_twice_or_not_at_all_is_warned_of(image, settings, said):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        DetrImageProcessor(size={"height": 8, "width": 8}, **settings)(image)
    assert len(caught) == (said is not None) and all(said in str(w.message) for w in caught)


def test_panoptic_png_that_exif_would_turn_is_refused(tmp_path):
    from detr_nb.data import read_panoptic
    with pytest.raises(ValueError, match="a.png has EXIF orientation 6: want a panoptic PNG as it is stored"):
        read_panoptic(turned_file(tmp_path / "a.png", 30, 40, 6), [{"id": 1}])


def test_whole_numbers_may_be_floats():
    "Albumentations gives labels back as 9.0; a half is no category."
    import numpy as np

    from detr_nb.data import detection_target
    entry = {"bbox": np.array([1.0, 2, 5, 5]), "category_id": np.float64(9), "iscrowd": 0.0}
    target = detection_target({"image_id": 1, "annotations": [entry]}, 20, 20)
    assert target["class_labels"].tolist() == [9] and target["class_labels"].dtype == torch.int64
    for wrong in (9.5, float("nan"), float("inf"), -1.0, "9"):
        with pytest.raises(ValueError, match="category_id="):
            detection_target({"image_id": 1, "annotations": [entry | {"category_id": wrong}]}, 20, 20)


def test_crop_keeps_every_field_of_an_object_with_it():
    from detr_nb.transforms import crop
    target = {
        "boxes": torch.tensor([[0.0, 0, 9, 9], [50, 50, 60, 60]]), "class_labels": torch.tensor([1, 2]),
        "keypoints": torch.tensor([[[1.0, 1]], [[55, 55]]]), "orig_size": torch.tensor([100, 100]), "area": torch.tensor([81.0, 100]),
    }
    _, kept = crop(torch.zeros(3, 100, 100), target, 40, 40, 30, 30)
    assert kept["keypoints"].tolist() == [[[55, 55]]] and kept["class_labels"].tolist() == [2]
    assert kept["orig_size"].tolist() == [100, 100] and kept["boxes"].shape == (1, 4)


def compressed(counts):
    "Run lengths as COCO's text, also those that pycocotools would not write."
    text = ""
    for i, value in enumerate(counts):
        if i > 2: value -= counts[i - 2]
        while True:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(48 + bits + 32 * more)
            if not more: break
    return text


@pytest.mark.parametrize("counts", [[5, -1, 5], [4, 3, 4, -2], [12, -3]])
def test_run_lengths_below_zero_are_refused(counts):
    "They add up to the pixels of the image, and a program in C would draw them; as numbers and as text alike."
    assert sum(counts) == 9
    for kind in (counts, compressed(counts)):
        (field, words), = mask_faults({"segmentation": {"size": [3, 3], "counts": kind}}, 3, 3, "annotation 1")
        assert field == "segmentation" and "want whole run lengths, not counts" in words
    assert not list(mask_faults({"segmentation": {"size": [3, 3], "counts": compressed([4, 3, 1, 1])}}, 3, 3, "annotation 1"))
