"What labelling tools write: YOLO, VOC, tables, and where they put it."
import json

import numpy as np
import pytest
from PIL import Image

from detr_nb.datasets import (
    Classes, check_split, convert_dataset, open_split, pair_labels, read_classes, read_table, read_voc, voc_objects, write_coco,
    yolo_objects,
)


def picture(path, size=(100, 50), turn=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if turn: exif[0x0112] = turn
    Image.fromarray(np.random.default_rng(len(str(path))).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)).save(path, exif=exif)


def yolo(folder, lines, names="names: [cat, dog]\n"):
    "An image and its label file."
    picture(folder / "images" / "a.png")
    (folder / "labels").mkdir()
    (folder / "labels" / "a.txt").write_text(lines)
    (folder / "data.yaml").write_text(names)
    return folder / "images", folder / "labels", folder / "coco", "train", "yolo", folder / "data.yaml"


def voc(folder, *boxes, size=(100, 50), turn=None, said=None, more=""):
    "An image and its XML."
    picture(folder / "images" / "a.jpg", size, turn)
    (folder / "labels").mkdir()
    width, height = said or size
    objects = "".join(
        f"<object><name>cat</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for x0, y0, x1, y1 in boxes
    )
    (folder / "labels" / "a.xml").write_text(
        f"<annotation><size><width>{width}</width><height>{height}</height></size>{objects}{more}</annotation>"
    )
    return folder / "images", folder / "labels", folder / "coco", "train", "voc"


def annotations(folder, split="train"):
    return json.loads((folder / "coco" / "annotations" / f"instances_{split}.json").read_text())["annotations"]


@pytest.mark.parametrize(("line", "box", "area", "corners"), [
    ("1 0.5 0.5 0.2 0.4", [40, 15, 20, 20], 400, None),
    ("1 0.5 0.5 0.2 0.4 0.93", [40, 15, 20, 20], 400, None),                                # a confidence
    ("1.0\t0.5 0.5 0.2 0.4 ", [40, 15, 20, 20], 400, None),
    ("1 0.1 0.2 0.5 0.2 0.5 0.8", [10, 10, 40, 30], 600, 3),                                # a triangle
    ("1 0.1 0.2 0.5 0.2 0.5 0.8 0.1 0.8", [10, 10, 40, 30], 1200, 4),                       # a rotated box
    # a ring with a seam: its mask has a hole, and it is one object all the same
    ("1 0 0 1 0 1 1 0 1 0 0 0.2 0.2 0.2 0.8 0.8 0.8 0.8 0.2 0.2 0.2", [0, 0, 100, 50], 5000 * (1 - 0.36), 10),
])
def test_each_line_of_yolo_is_an_object(tmp_path, line, box, area, corners):
    convert_dataset(*yolo(tmp_path, line + "\n\n"))
    found, = annotations(tmp_path)
    assert found["bbox"] == pytest.approx(box) and found["area"] == pytest.approx(area)
    assert found["category_id"] == 2 and found["iscrowd"] == 0
    assert (len(found["segmentation"][0]) // 2 if corners else found.get("segmentation")) == corners
    assert len(open_split(tmp_path / "coco", "train")[0][1]["annotations"]) == 1


def test_a_rotated_box_is_cut_at_its_image(tmp_path):
    (tmp_path / "a.txt").write_text("0 -0.1 0.2 0.5 0.2 0.5 1.2 -0.1 1.2\n")
    found, = yolo_objects(tmp_path / "a.txt", 100, 50, Classes(["cat"]))
    assert found["bbox"] == pytest.approx([0, 10, 50, 40]) and found["area"] == pytest.approx(2000)


def test_key_points_are_known_from_their_shape(tmp_path):
    line = "0 0.5 0.5 0.2 0.4 " + "0.1 0.2 2 " * 3
    (tmp_path / "a.txt").write_text(line)
    found, = yolo_objects(tmp_path / "a.txt", 100, 50, Classes(["cat"], 9))
    assert found["bbox"] == pytest.approx([40, 15, 20, 20]) and "segmentation" not in found
    (tmp_path / "data.yaml").write_text("names: {0: cat}\nkpt_shape: [3, 3]\n")
    assert read_classes(tmp_path / "data.yaml") == Classes(["cat"], 9)


@pytest.mark.parametrize(("line", "message"), [
    ("0 64 32 20 20", "line 2: '0 64 32 20 20': want shares of the image"),
    ("0 0.5 0.5 0.2 nan", "want shares of the image"), ("2 0.5 0.5 0.2 0.2", "class 2: want one of 0 … 1"),
    ("0.5 0.5 0.5 0.2 0.2", "class 0.5: want one of 0 … 1"), ("cat 0.5 0.5 0.2 0.2", "want numbers only"),
    ("0 0.5 0.5 0.2", "3 numbers after the class: want 4 of a box or x, y of a polygon"),
    ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "7 numbers after the class"),
])
def test_a_line_that_cannot_be_read_is_named_and_nothing_is_written(tmp_path, line, message):
    given = yolo(tmp_path, "1 0.5 0.5 0.2 0.4\n" + line)
    with pytest.raises(ValueError, match=message): convert_dataset(*given)
    assert not (tmp_path / "coco").exists()


@pytest.mark.parametrize(("name", "text", "names"), [
    ("data.yaml", "names: [no, yes, 007]\n", ["no", "yes", "007"]),                         # as they are written
    ("data.yml", "names:\n  1: b\n  0: a\n", ["a", "b"]), ("classes.txt", "a\r\n b c \n\n", ["a", "b c"]),
    ("obj.names", "\ufeffa\nb\n", ["a", "b"]), ("data.yaml", "names: {10: k, 0: a, 1: b, 2: c, 3: d, 4: e, 5: f, 6: g, 7: h, 8: i, 9: j}\n", list("abcdefghijk")),
])
def test_names_of_classes(tmp_path, name, text, names):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_classes(tmp_path / name) == Classes(names, 0)


def test_names_that_cannot_be_used(tmp_path):
    (tmp_path / "classes.txt").write_text("\n")
    with pytest.raises(ValueError, match="no name in it"): read_classes(tmp_path / "classes.txt")
    (tmp_path / "classes.txt").write_text("\na\nb\n")
    with pytest.raises(ValueError, match="classes.txt, line 1: empty"): read_classes(tmp_path / "classes.txt")
    (tmp_path / "data.yaml").write_text("names: [{a: b}]\n")
    with pytest.raises(ValueError, match="among the names: want text"): read_classes(tmp_path / "data.yaml")
    (tmp_path / "classes.txt").write_text("a\na\n")
    with pytest.raises(ValueError, match="two classes are called 'a'"): read_classes(tmp_path / "classes.txt")


def test_voc_counts_from_one_or_shows_that_it_does_not(tmp_path):
    convert_dataset(*voc(tmp_path / "one", (1, 1, 100, 50), (30, 40, 11, 11)))
    assert [a["bbox"] for a in annotations(tmp_path / "one")] == [[0, 0, 100, 50], [10, 10, 20, 30]]  # reversed corners, too
    with pytest.warns(UserWarning, match="1 corners below 1, of which one is 0 in .*: all are taken as counted from 0"):
        convert_dataset(*voc(tmp_path / "nought", (0, 5, 20, 25), (30.5, 10, 40, 20)))
    with pytest.raises(ValueError, match="a corner is -5: want first=0 or first=1"): convert_dataset(*voc(tmp_path / "less", (-5, 1, 9, 9)))
    convert_dataset(*voc(tmp_path / "said", (7, 5, 20, 20)), first=0)
    assert [a["bbox"] for a in annotations(tmp_path / "said")] == [[7, 5, 13, 15]]
    assert [a["bbox"] for a in annotations(tmp_path / "nought")] == [[0, 5, 20, 20], [30.5, 10, 9.5, 10]]


def test_one_stray_corner_does_not_decide_for_many(tmp_path):
    "Twelve corners are 1 and one is 0: neither way of counting is taken without being asked for."
    boxes = [(1, 1, 50, 50)] * 6 + [(0, 7, 50, 50)]
    with pytest.raises(ValueError, match="1 corners below 1, of which one is 0 in .*, and 12 at 1: want first=0 or first=1"):
        convert_dataset(*voc(tmp_path / "stray", *boxes))
    convert_dataset(*voc(tmp_path / "told", *boxes), first=0)
    assert annotations(tmp_path / "told")[0]["bbox"] == [1, 1, 49, 49]



def test_voc_of_another_size_is_refused(tmp_path):
    convert_dataset(*voc(tmp_path / "near", (1, 1, 50, 50), said=(99, 49)))  # as some tools count
    with pytest.raises(ValueError, match="a.jpg has 100 × 50 pixels, its label file says 640 × 480"):
        convert_dataset(*voc(tmp_path, (1, 1, 50, 50), said=(640, 480)))
    assert not (tmp_path / "coco").exists()


@pytest.mark.parametrize(("said", "upright"), [((100, 50), False), ((50, 100), True)])
def test_voc_of_a_turned_photograph(tmp_path, said, upright):
    "The size in the XML tells whether the boxes were drawn on the image as stored or upright."
    convert_dataset(*voc(tmp_path, (1, 1, 40, 20), turn=6, said=said))
    image, target = open_split(tmp_path / "coco", "train")[0]
    assert image.size == ((50, 100) if upright else (100, 50)) and target["annotations"][0]["bbox"] == [0, 0, 40, 20]


@pytest.mark.parametrize(("more", "message"), [
    ("<object><name>cat</name></object>", "object 2: no <bndbox>"),
    ("<object><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>", "object 2: no <name>"),
    ("<object><name>cat</name><bndbox><xmin>nan</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>", "no number in <xmin>"),
])
def test_objects_that_voc_does_not_tell_are_named(tmp_path, more, message):
    with pytest.raises(ValueError, match=f"a.xml: .*{message}"): convert_dataset(*voc(tmp_path, (1, 1, 9, 9), more=more))


def test_parts_of_an_object_are_no_objects(tmp_path):
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></part>"
    convert_dataset(*voc(tmp_path, more=f"<object><name>cat</name>{part}<bndbox><xmin>11</xmin><ymin>11</ymin><xmax>20</xmax><ymax>20</ymax></bndbox></object>"))
    assert [a["bbox"] for a in annotations(tmp_path)] == [[10, 10, 10, 10]]
    outline = "<polygon>" + "".join(f"<x{k}>{x}</x{k}><y{k}>{y}</y{k}>" for k, (x, y) in enumerate([(1, 1), (11, 1), (1, 21)], 1)) + "</polygon>"
    (tmp_path / "b.xml").write_text(f"<annotation><object><name>cat</name>{outline}<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>11</xmax><ymax>21</ymax></bndbox></object></annotation>")
    file = read_voc(tmp_path / "b.xml")
    assert file.size is None and file.objects[0][2] == [[1, 1, 11, 1, 1, 21]]
    two = outline + outline.replace(">11<", ">6<") + "<polygon><x1>1</x1><y1>1</y1><x2>2</x2><y2>2</y2><username>me</username></polygon>"
    (tmp_path / "b.xml").write_text((tmp_path / "b.xml").read_text().replace(outline, two))
    found, = voc_objects(read_voc(tmp_path / "b.xml"), 1)
    assert len(found["segmentation"]) == 2 and found["area"] == 100 + 50  # one of two corners is none


def test_labels_are_found_at_the_same_place(tmp_path):
    for name in ("x/a.png", "y/a.png", "b.PNG", "c.png", "d.png"): picture(tmp_path / "images" / name)
    for name in ("x/a.txt", "y/a.txt", "z/b.TXT", "c.txt"):
        (tmp_path / "labels" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "labels" / name).write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "images" / "e.heic").write_bytes(b"?")
    (tmp_path / "labels" / "lost.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    with pytest.warns(UserWarning) as said: pairs = pair_labels(tmp_path / "images", tmp_path / "labels", ".txt")
    own = {image.relative_to(tmp_path / "images").as_posix(): label and label.relative_to(tmp_path / "labels").as_posix() for image, label in pairs.items()}
    assert own == {"x/a.png": "x/a.txt", "y/a.png": "y/a.txt", "b.PNG": "z/b.TXT", "c.png": "c.txt", "d.png": None}
    words = [str(w.message) for w in said]
    assert len(words) == 3 and "1 images have no label file" in words[0] and "d.png" in words[0]
    assert "1 files belong to no image" in words[1] and "lost.txt" in words[1] and "e.heic" in words[2]


def test_folders_that_do_not_fit_are_refused(tmp_path):
    given = yolo(tmp_path, "0 0.5 0.5 0.5 0.5")
    (tmp_path / "labels" / "a.txt").rename(tmp_path / "labels" / "other.txt")
    with pytest.raises(ValueError, match="no .txt file belongs to one of the 1 images"): convert_dataset(*given)
    (tmp_path / "labels" / "other.txt").rename(tmp_path / "labels" / "a.txt")
    picture(tmp_path / "images" / "a.jpg")
    with pytest.raises(ValueError, match=r"belong to several images.*a.txt to 2 images"): convert_dataset(*given)
    (tmp_path / "images" / "a.jpg").unlink()
    for split in ("../evil", "a/b", "", ".."):
        with pytest.raises(ValueError, match="split="): convert_dataset(*given[:3], split, *given[4:])
        with pytest.raises(ValueError, match="split="): write_coco(tmp_path, split, {}, ["cat"])
    convert_dataset(*given)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coco", "data.yaml", "images", "labels"]


def test_a_folder_may_be_converted_into_itself(tmp_path):
    "Labels beside their images, and the COCO folder among them: what was converted before does not count."
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "classes.txt").write_text("cat\n")
    for split in ("train", "val"): convert_dataset(tmp_path, tmp_path, tmp_path / "coco", split, "yolo", tmp_path / "classes.txt")
    assert [len(open_split(tmp_path / "coco", split)) for split in ("train", "val")] == [1, 1]


def test_the_folder_may_be_the_one_that_holds_images_and_labels(tmp_path, monkeypatch):
    "As VOC's own folder; and the same with a relative place."
    given = voc(tmp_path, (1, 1, 9, 9))
    convert_dataset(*given[:2], tmp_path, *given[3:])
    assert len(open_split(tmp_path, "train")) == 1
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "b")
    picture(tmp_path / "b" / "a.png")
    (tmp_path / "b" / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "b" / "._a.png").write_bytes(b"of a Mac")
    (tmp_path / "b" / "classes.txt").write_text("cat\n")
    for split in ("train", "val"): convert_dataset(".", ".", tmp_path / "b" / "coco", split, "yolo", "classes.txt")
    assert [len(open_split(tmp_path / "b" / "coco", split)) for split in ("train", "val")] == [1, 1]


def test_splits_of_three_are_compared_with_each_other(tmp_path):
    from typer.testing import CliRunner

    from detr_nb.cli import app
    for split, count, names in (("train", 1, ((1, "cat"), (2, "cow"))), ("val", 1, ((1, "cat"),)), ("test", 2, ((1, "cat"), (2, "cow")))):
        coco(tmp_path, split, split, count, names=names)
    for k, split in enumerate(("train", "val")):
        (tmp_path / split / "0.png").write_bytes((tmp_path / "test" / f"{k}.png").read_bytes())
        file = tmp_path / "annotations" / f"instances_{split}.json"
        file.write_text(file.read_text().replace(f'"width": {100 + len(split)}', '"width": 104'))
    said = CliRunner().invoke(app, ["data", "check", str(tmp_path)]).output
    assert "FAULT in both splits (2)" in said and "nothing learns" not in said


def test_copies_go_where_one_cannot_be_made(tmp_path, monkeypatch):
    import detr_nb.datasets as datasets
    given = yolo(tmp_path, "0 0.5 0.5 0.5 0.5")
    picture(tmp_path / "images" / "b.png")
    copies, copy = [], datasets.shutil.copyfile
    monkeypatch.setattr(datasets.shutil, "copyfile", lambda *files: copies.append(files) or (copy(*files) if len(copies) < 2 else exec("raise OSError('full')")))
    with pytest.warns(UserWarning), pytest.raises(OSError, match="full"): convert_dataset(*given)
    assert len(copies) == 2 and not [path for path in (tmp_path / "coco").rglob("*") if path.is_file()]


@pytest.mark.parametrize("table", [
    "file;label;x0;y0;x1;y1\na.png;cat;1;2;30;40\n", "File, Label, X0, Y0, X1, Y1\na.png, cat, 1, 2, 30, 40\n",
    "file\tlabel\tx0\ty0\tx1\ty1\na.png\tcat\t1\t2\t30\t40\n",
    "filename,width,height,class,xmin,ymin,xmax,ymax\na.png,100,50,cat,1,2,30,40\n",
])
def test_tables_as_others_write_them(tmp_path, table):
    (tmp_path / "t.csv").write_text(table)
    assert read_table(tmp_path / "t.csv") == {"a.png": [("cat", 1, 2, 30, 40)]}


def test_a_column_of_its_own_name_comes_before_an_alias(tmp_path):
    (tmp_path / "t.csv").write_text("file,image,label,class,x0,y0,x1,y1\na.png,12,cat,7,1,2,30,40\n")
    assert read_table(tmp_path / "t.csv") == {"a.png": [("cat", 1, 2, 30, 40)]}
    (tmp_path / "t.csv").write_text("filename,image,label,x0,y0,x1,y1\na.png,12,cat,1,2,30,40\n")
    with pytest.raises(ValueError, match="several mean 'file'"): read_table(tmp_path / "t.csv")


def test_what_write_coco_is_given(tmp_path):
    picture(tmp_path / "train" / "a.png")
    with pytest.raises(ValueError, match=r"labels: 1: want names"): write_coco(tmp_path, "train", {"a.png": []}, [1, 2])
    for row in (("cat", 1, 2, 30), ("cat", "1", 2, 30, 40)):
        with pytest.raises(ValueError, match="want label, x0, y0, x1, y1"): write_coco(tmp_path, "train", {"a.png": [row]}, ["cat"])
    (tmp_path / "train" / "b.png").write_bytes((tmp_path / "train" / "a.png").read_bytes()[:20])
    with pytest.raises(ValueError, match="b.png: not an image that can be read"): write_coco(tmp_path, "train", {"b.png": []}, ["cat"])
    with pytest.raises(ValueError, match="not written"): write_coco(tmp_path, "train", {"../train/a.png": []}, ["cat"])
    assert not (tmp_path / "annotations").exists()
    numbers = [np.int64(1), np.float32(2), np.float64(30), 40]
    path = write_coco(tmp_path, "train", {"a.png": [("cat", *numbers)]}, ["cat"])
    assert json.loads(path.read_text())["annotations"][0]["bbox"] == [1, 2, 29, 38]


def coco(folder, place, split, count=3, box=(1, 2, 10, 20), names=((1, "cat"),), crowd=0):
    "Images in one place, and a file that lists them in another."
    for k in range(count): picture(folder / place / f"{k}.png", (100 + len(split), 50))
    (folder / "annotations").mkdir(exist_ok=True)
    file = folder / "annotations" / f"instances_{split}.json"
    file.write_text(json.dumps({
        "images": [{"id": k, "file_name": f"{k}.png", "width": 100 + len(split), "height": 50} for k in range(count)],
        "annotations": [{"id": k, "image_id": k, "category_id": names[0][0], "bbox": list(box), "iscrowd": crowd} for k in range(count)],
        "categories": [{"id": i, "name": name} for i, name in names],
    }))
    return file


def test_a_file_has_the_images_of_its_own_split(tmp_path):
    files = {split: coco(tmp_path, split, split) for split in ("train", "val", "test")}
    for split, file in files.items():
        assert open_split(file, "train").folder == tmp_path / split and open_split(file, "val").folder == tmp_path / split
    assert open_split(tmp_path, "test").folder == tmp_path / "test"


@pytest.mark.parametrize("whole", [True, False], ids=["folder", "file"])
def test_images_below_a_folder_of_that_name(tmp_path, whole):
    file = coco(tmp_path, "images/train", "train")
    assert open_split(tmp_path if whole else file, "train").folder == tmp_path / "images" / "train"


def test_one_missing_image_does_not_lose_the_folder(tmp_path):
    file = coco(tmp_path, "images", "train")
    (tmp_path / "images" / "0.png").unlink()
    with pytest.raises(FileNotFoundError, match="1 of 3 images"): open_split(file, "train")


def test_checks_that_stop_a_training_that_learns_nothing(tmp_path):
    coco(tmp_path, "train", "train", crowd=1)
    assert "crowds" in check_split(tmp_path, "train", progress=False)["faults"]
    coco(tmp_path, "train", "train", box=(0.1, 0.2, 0.3, 0.4))
    assert "look like shares" in check_split(tmp_path, "train", progress=False)["faults"]["format"][0]


def test_classes_of_other_numbers_are_told(tmp_path):
    from typer.testing import CliRunner

    from detr_nb.cli import app
    coco(tmp_path, "train", "train", names=((1, "cat"), (2, "dog")))
    coco(tmp_path, "val", "val", names=((3, "cat"), (4, "cow")))
    said = CliRunner().invoke(app, ["data", "check", str(tmp_path)])
    assert said.exit_code == 1 and "'cat' has the numbers 1 and 3" in said.output and "'cow'" in said.output


def test_a_box_without_area_is_told_for_what_it_does(tmp_path):
    file = coco(tmp_path, "train", "train", box=(1, 2, 0, 20))
    with pytest.warns(UserWarning, match="not learned, and missed in an evaluation"): open_split(file, "train")


def test_an_image_over_pillows_limit_is_told_so(tmp_path, monkeypatch):
    from detr_nb.files import read_image
    picture(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(OSError, match="a.png: .*want a smaller image, or a higher"): read_image(tmp_path / "a.png")
