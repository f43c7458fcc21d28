"Scenes: the same bytes for any number of processes, what is stored as reference, COCO's two formats, hardness."
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detr_nb import SceneDetection, draw_scene, make_scenes
from detr_nb.scenes import CATEGORIES, THINGS, panoptic_ids

REFERENCE = Path(__file__).parent / "reference"


def digest(folder):
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("scenes")
    make_scenes(path, train=3, val=12, seed=5)
    return path


def test_same_bytes_for_any_number_of_processes(folder, tmp_path):
    make_scenes(tmp_path, train=3, val=12, seed=5, processes=2)
    assert digest(tmp_path) == digest(folder)
    assert len(digest(folder)) == 2 * 15 + 4


@pytest.mark.parametrize("index", range(3))
def test_stored_reference(index):
    "Within one grey level, so that another machine's arithmetic may round."
    stored = np.asarray(Image.open(REFERENCE / f"scene_{index}.png")).astype(int)
    drawn = draw_scene(123, index, "val").image.astype(int)
    assert drawn.shape == stored.shape
    assert np.abs(drawn - stored).max() <= 1


def test_hardness():
    sizes, crowded, counts = [], [], []
    for i in range(500):
        scene = draw_scene(31, i)
        boxes = scene.boxes()[np.array(scene.category_ids) <= len(THINGS)]
        counts.append(len(boxes))
        area = np.prod(boxes[:, 2:] - boxes[:, :2], 1)
        sizes += np.sqrt(area).tolist()
        shared = np.clip(np.minimum(boxes[:, None, 2:], boxes[:, 2:]) - np.maximum(boxes[:, None, :2], boxes[:, :2]), 0, None).prod(-1)
        np.fill_diagonal(shared, 0)
        crowded += (shared.max(1) / area > 0.1).tolist()
    sizes = np.array(sizes)
    assert np.mean(counts) >= 4.3 and min(counts) >= 1 and max(counts) <= 8
    assert (sizes < 16).mean() >= 0.20 and (sizes < 24).mean() >= 0.45
    assert np.mean(crowded) >= 0.35


def test_segments_are_the_visible_pixels():
    for i in range(50):
        scene = draw_scene(8, i)
        masks, boxes = scene.masks(), scene.boxes()
        assert (masks.sum(0) == 1).all() and masks.any((1, 2)).all()
        for mask, (x0, y0, x1, y1) in zip(masks, boxes):
            ys, xs = np.nonzero(mask)
            assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == (x0, y0, x1, y1)
        assert len(set(panoptic_ids(scene))) == len(boxes)


def test_colour_is_independent_of_class():
    "The mean hue direction of a class is no further from the others' than chance allows."
    from detr_nb.scenes import random_thing
    rng = np.random.default_rng(0)
    things = [random_thing(rng) for _ in range(8000)]
    colours = np.array([t.colours[0] for t in things])
    classes = np.array([THINGS.index(t.name) for t in things])
    spread = colours.std(0) / np.sqrt(len(things) / 8)
    for k in range(8):
        assert (np.abs(colours[classes == k].mean(0) - colours.mean(0)) < 4.5 * spread).all()


def test_coco_files(folder):
    from pycocotools import mask as coco_mask
    data = json.loads((folder / "annotations" / "instances_val.json").read_text())
    assert data["categories"] == CATEGORIES and len(data["images"]) == 12
    assert [a["id"] for a in data["annotations"]] == list(range(1, len(data["annotations"]) + 1))
    for annotation in data["annotations"]:
        mask = coco_mask.decode(annotation["segmentation"])
        assert mask.sum() == annotation["area"] and coco_mask.toBbox(annotation["segmentation"]).tolist() == annotation["bbox"]


def test_panoptic_files(folder):
    data = json.loads((folder / "annotations" / "panoptic_val.json").read_text())
    kinds = set()
    for entry in data["annotations"]:
        rgb = np.asarray(Image.open(folder / "panoptic_val" / entry["file_name"])).astype(int)
        ids = rgb @ (1, 256, 256**2)
        assert set(np.unique(ids)) == {s["id"] for s in entry["segments_info"]}
        for segment in entry["segments_info"]:
            ys, xs = np.nonzero(ids == segment["id"])
            assert len(xs) == segment["area"]
            assert segment["bbox"] == [xs.min(), ys.min(), xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()]
            kinds.add(segment["category_id"] <= len(THINGS))
    assert kinds == {True, False}


def test_splits_and_seeds_differ():
    assert (draw_scene(0, 0, "train").image != draw_scene(0, 0, "val").image).any()
    assert (draw_scene(0, 0).image != draw_scene(1, 0).image).any()


def test_refuses_to_overwrite(folder):
    before = digest(folder)
    with pytest.raises(FileExistsError, match="nothing is overwritten"):
        make_scenes(folder, train=1)
    assert digest(folder) == before
    with pytest.raises(ValueError, match="val=-1"):
        make_scenes(folder / "new", val=-1)


def test_none(tmp_path):
    make_scenes(tmp_path / "x", train=0, val=1)
    assert not (tmp_path / "x" / "train").exists() and (tmp_path / "x" / "val").exists()


def test_dataset_without_a_folder(folder):
    from detr_nb import CocoDetection
    stored = CocoDetection(folder / "val", folder / "annotations" / "instances_val.json")
    drawn = SceneDetection(12, seed=5, split="val")
    for i in range(12):
        assert stored[i][0].tobytes() == drawn[i][0].tobytes()
        assert [a["bbox"] for a in stored[i][1]["annotations"]] == [a["bbox"] for a in drawn[i][1]["annotations"]]
    assert stored.id2label == drawn.id2label
    assert {k: (v["bbox"], v["area"]) for k, v in stored.coco.anns.items()} == {k: (v["bbox"], v["area"]) for k, v in drawn.coco.anns.items()}
