"A part of a dataset is a dataset: `select`, `random_split`, `split_dataset`."
import json
import shutil

import numpy as np
import pytest
import torch
from torch.utils.data import Subset, random_split

import detr_nb
from detr_nb.data import CocoDetection, CocoPanoptic, SceneDetection, as_split
from detr_nb.datasets import open_split, split_dataset
from detr_nb.evaluation import evaluate, evaluate_panoptic
from detr_nb.files import read_log
from detr_nb.pretraining import scenes_processor
from detr_nb.scenes import make_scenes
from detr_nb.training import Recipe, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    make_scenes(folder, train=6, val=8, seed=0)
    return folder


def detection(folder): return CocoDetection(folder / "val", folder / "annotations" / "instances_val.json")


def panoptic(folder):
    return CocoPanoptic(folder / "val", folder / "panoptic_val", folder / "annotations" / "panoptic_val.json")


def drawn(folder): return SceneDetection(8, seed=0, split="val")


@pytest.mark.parametrize("make", [detection, panoptic, drawn])
def test_a_selection_knows_its_images_alone(folder, make):
    whole = make(folder)
    own = as_split(Subset(Subset(whole, [5, 2, 7]), [2, 0]))
    assert len(own) == 2 and own.id2label == whole.id2label
    for mine, index in enumerate((7, 5)):
        (image, target), (other, wanted) = own[mine], whole[index]
        assert image.tobytes() == other.tobytes() and target == wanted
    ids = {whole[7][1]["image_id"], whole[5][1]["image_id"]}
    assert own.coco.imgs.keys() == ids == {a["image_id"] for a in own.coco.anns.values()}
    count = sum(a["image_id"] in ids for a in whole.coco.anns.values())
    assert len(own.coco.anns) == count and len(whole.coco.imgs) == len(whole) == 8
    assert len(whole.select([])) == 0 and len(whole.select(np.array([-1]))) == 1


def test_what_cannot_be_selected(folder):
    whole = detection(folder)
    with pytest.raises(IndexError, match="index 8: want 0 … 7"): whole.select([0, 8])
    with pytest.raises(ValueError, match="index 3 twice"): whole.select([3, 1, 3])
    with pytest.raises(ValueError, match="index 7 twice"): whole.select([7, -1])
    with pytest.raises(TypeError): whole.select([0.5])


def test_a_subset_is_evaluated_on_its_own_images(folder, tmp_path):
    "The numbers are those of a file that lists these images and no others."
    raw = json.loads((folder / "annotations" / "instances_val.json").read_text())
    whole, chosen = detection(folder), [6, 1, 4]
    ids = {whole.ids[i] for i in chosen}
    raw["images"] = [entry for entry in raw["images"] if entry["id"] in ids]
    raw["annotations"] = [a for a in raw["annotations"] if a["image_id"] in ids]
    (tmp_path / "own.json").write_text(json.dumps(raw))
    written = CocoDetection(folder / "val", tmp_path / "own.json")
    model, processor = detr_nb.DetrForSegmentation.from_pretrained("scenes"), scenes_processor()
    found, wanted = [evaluate(model, data, processor, progress=False) for data in (Subset(whole, chosen), written)]
    assert found == wanted and found["all"]["AP"] > 0.5
    assert evaluate(model, whole, processor, progress=False) != wanted
    one = evaluate_panoptic(model, Subset(panoptic(folder), chosen), processor, tmp_path / "some", progress=False)
    assert one["All"]["pq"] > 0.5 and len(list((tmp_path / "some").glob("*.png"))) == 3


def test_masks_are_judged_on_panoptic_data(folder):
    "The same masks in another file give the same numbers."
    model, processor = detr_nb.DetrForSegmentation.from_pretrained("scenes"), scenes_processor()
    of_boxes, of_segments = [
        evaluate(model, make(folder), processor, progress=False, iou_types=("bbox", "segm"))
        for make in (detection, panoptic)
    ]
    assert of_boxes["all masks"]["AP"] > 0.4
    for table, numbers in of_boxes.items(): assert of_segments[table] == pytest.approx(numbers, abs=1e-9)


def test_a_random_split_trains(folder, tmp_path):
    model = detr_nb.DetrForObjectDetection.from_pretrained("scenes")
    parts = random_split(detection(folder), [6, 2], torch.Generator().manual_seed(0))
    recipe, rest = Recipe(steps=2, batch_size=2, lr=2e-4, augment=False, evaluations=1), dict(processor=scenes_processor())
    train(model, parts[0], tmp_path / "run", recipe, val=parts[1], **rest)
    assert read_log(tmp_path / "run" / "log.csv")[-1]["AP"] > 0.3
    other = random_split(detection(folder), [6, 2], torch.Generator().manual_seed(1))
    with pytest.raises(ValueError, match="annotations: another file, or other images of it"):  # other images of the same file
        train(model, other[0], tmp_path / "run", recipe, val=other[1], resume=True, **rest)


def test_divided_by_chance_with_copies_together(folder, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(folder / "val", source / "images")
    raw = json.loads((folder / "annotations" / "instances_val.json").read_text()) | {"info": {"year": 2020}}
    for k in range(4):  # copies of one image: half of what there is
        name = f"copies/{k}.png"
        (source / "images" / "copies").mkdir(exist_ok=True)
        shutil.copyfile(folder / "val" / raw["images"][0]["file_name"], source / "images" / name)
        raw["images"].append(raw["images"][0] | {"id": 100 + k, "file_name": name})
    (source / "labels.json").write_text(json.dumps(raw))
    places = set()
    for seed in range(6):
        counts = split_dataset(source / "labels.json", tmp_path / f"out{seed}", share=0.25, seed=seed)
        splits = {name: open_split(tmp_path / f"out{seed}", name) for name in ("train", "val")}
        assert counts == {name: len(data) for name, data in splits.items()} and sum(counts.values()) == 12
        assert splits["train"].id2label == splits["val"].id2label
        twins = {name: [i for i in data.ids if i >= 100 or i == raw["images"][0]["id"]] for name, data in splits.items()}
        assert sorted(map(len, twins.values())) == [0, 5]
        places.add(min(splits, key=lambda name: len(twins[name])))
        assert 3 <= counts["val"] <= 7
        written = [json.loads((tmp_path / f"out{seed}" / "annotations" / f"instances_{name}.json").read_text())
                   for name in splits]
        assert sorted(a["id"] for one in written for a in one["annotations"]) == sorted(a["id"] for a in raw["annotations"])
        assert all(one["info"] == {"year": 2020} for one in written)
    assert places == {"train", "val"}
    again = split_dataset(source / "labels.json", tmp_path / "again", share=0.25, seed=5)
    assert again == counts and open_split(tmp_path / "again", "val").ids == splits["val"].ids


def test_what_cannot_be_divided(folder, tmp_path):
    truth = folder / "annotations" / "instances_val.json"
    for share in (0, 1, -0.5, 20):
        with pytest.raises(ValueError, match=f"share={share}: want a number between 0 and 1"):
            split_dataset(truth, tmp_path / "out", share)
    raw = json.loads(truth.read_text())
    one = raw | {"images": raw["images"][:1], "annotations": []}
    (folder / "val" / "one.json").write_text(json.dumps(one))
    with pytest.raises(ValueError, match="1 different images: want at least one for each split"):
        split_dataset(folder / "val" / "one.json", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    split_dataset(truth, tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    with pytest.raises(FileExistsError, match="nothing is overwritten"): split_dataset(truth, tmp_path / "out")
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}


def test_a_file_of_the_other_kind_is_named(folder):
    boxes, segments = folder / "annotations" / "instances_val.json", folder / "annotations" / "panoptic_val.json"
    with pytest.raises(ValueError, match="panoptic_val.json is a file of segments .*: want one of objects"):
        CocoDetection(folder / "val", segments)
    with pytest.raises(ValueError, match="instances_val.json is a file of objects .*: want one of segments"):
        CocoPanoptic(folder / "val", folder / "panoptic_val", boxes)


def test_scenes_are_divided_like_files(folder):
    "What is found in a part is what the same images have as files."
    model, processor = detr_nb.DetrForObjectDetection.from_pretrained("scenes"), scenes_processor()
    found = [evaluate(model, Subset(make(folder), [5, 0, 3]), processor, progress=False) for make in (drawn, detection)]
    assert found[0] == found[1] and found[0]["all"]["AP"] > 0.5

