"The command line as a user has it: another process, files on disk, exit codes."
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detr_nb import draw_scene, make_scenes

COMMAND = str(Path(sys.executable).parent / "detr-nb")


def run(*arguments, **options):
    return subprocess.run([COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=300, **options)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_scenes(folder, train=8, val=6, seed=3)
    return folder


def test_help():
    text = run("--help").stdout
    assert all(word in text for word in ("demo", "detect", "train", "eval", "data"))


@pytest.mark.slow
def test_demo(tmp_path):
    result = run("demo", "--out", tmp_path / "demo", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for name in ("detections.png", "panoptic.png"):
        with Image.open(tmp_path / "demo" / name) as image:
            assert min(image.size) > 400
    answers = json.loads((tmp_path / "demo" / "detections.json").read_text())
    assert len(answers) == 12 and sum(len(a["detections"]) for a in answers) > 20
    table = [line.split() for line in result.stdout.splitlines() if line.startswith(("AP", "AR"))]
    assert len(table) == 12 and all(len(row) in (5, 6) for row in table)
    assert all(a["segments"] and {"id", "category_id", "label", "score", "area", "bbox"} == set(a["segments"][0]) for a in answers)
    assert all(any(line.startswith(kind) for line in result.stdout.splitlines()) for kind in ("All", "Things", "Stuff"))
    assert "Open" in result.stdout


@pytest.fixture
def photos(tmp_path):
    image = Image.fromarray(draw_scene(2, 0, "val").image)
    folder = tmp_path / "photos"
    folder.mkdir()
    image.save(folder / "a.png")
    image.convert("L").save(folder / "b.jpg")
    image.convert("RGBA").save(folder / "c.webp", lossless=True)
    return folder


def test_detect_folder_and_json(photos, tmp_path):
    result = run("detect", photos, "--threshold", 0.3, "--json", "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [Path(a["file"]).name for a in answers] == ["a.png", "b.jpg", "c.webp"]
    assert answers[0]["detections"] == answers[2]["detections"] != []
    scores = [d["score"] for d in answers[0]["detections"]]
    assert scores == sorted(scores, reverse=True) and min(scores) > 0.3
    assert sorted(p.name for p in (tmp_path / "out").glob("*.png")) == ["a.png", "b.png", "c.png"]


def test_detect_glob_and_bad_file(photos):
    (photos / "d.png").write_bytes(b"no image")
    result = run("detect", str(photos / "*.png"), photos / "nowhere.png", "--threshold", 0.3)
    assert result.returncode == 1
    assert "d.png: not an image" in result.stderr and "nowhere.png" in result.stderr
    assert "a.png: " in result.stdout and "Traceback" not in result.stderr


def test_exif_is_honoured(photos):
    image = Image.open(photos / "a.png")
    turned = Image.fromarray(np.rot90(np.asarray(image)))
    exif = turned.getexif()
    exif[274] = 6
    turned.save(photos / "turned.png", exif=exif)
    result = run("detect", photos / "a.png", photos / "turned.png", "--threshold", 0.3, "--json")
    a, b = (json.loads(line)["detections"] for line in result.stdout.splitlines())
    assert a == b


def test_detect_panoptic(photos, tmp_path):
    from detr_nb.data import read_panoptic
    result = run("detect", photos / "a.png", "--task", "panoptic", "--threshold", 0.3, "--json", "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    said = json.loads(result.stdout)["segments"]
    written = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    entry = written["annotations"][0]
    assert entry["segments_info"] == said != [] and entry["image_id"] == written["images"][0]["id"] == 1
    ids = read_panoptic(tmp_path / "out" / "panoptic" / entry["file_name"], said, (128, 128))
    assert all((ids == s["id"]).sum() == s["area"] for s in said)
    assert len({s["label"] for s in said if s["category_id"] > 8}) == sum(s["category_id"] > 8 for s in said)  # stuff is fused
    with Image.open(tmp_path / "out" / "a.png") as image:
        assert min(image.size) > 400


def test_detect_instance_and_semantic(photos, tmp_path):
    from pycocotools import mask as coco_mask
    result = run("detect", photos / "a.png", "--task", "instance", "--threshold", 0.3, "--out", tmp_path / "out")
    assert result.returncode == 0 and " pixels" in result.stdout, result.stderr
    from detr_nb.data import coco_index
    results = json.loads((tmp_path / "out" / "instance.json").read_text())
    truth = coco_index({"images": [{"id": 1}], "categories": [{"id": i} for i in range(13)], "annotations": []})
    assert all(set(annotation) == {"image_id", "file_name", "category_id", "segmentation", "score"} for annotation in results)
    loaded = truth.loadRes(results).anns.values()  # as COCO's own reader takes them
    said = [int(line.split()[-2]) for line in result.stdout.splitlines() if line.endswith(" pixels")]
    assert [a["area"] for a in loaded] == said and len(said) > 3 and min(said) > 0
    assert all(list(a["bbox"]) == coco_mask.toBbox(a["segmentation"]).tolist() for a in loaded)
    result = run("detect", photos / "a.png", "--task", "semantic", "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    with Image.open(tmp_path / "out" / "semantic" / "a.png") as image:
        classes = np.asarray(image)
    assert classes.shape == (128, 128) and 9 in classes  # sky


def test_a_detector_draws_no_masks(photos, tmp_path):
    from detr_nb import DetrForObjectDetection, DetrImageProcessor
    DetrForObjectDetection.from_pretrained("scenes").save_pretrained(tmp_path / "detector")
    DetrImageProcessor.from_pretrained("scenes").save_pretrained(tmp_path / "detector")
    result = run("detect", photos / "a.png", "--model", tmp_path / "detector", "--task", "panoptic")
    assert result.returncode == 2 and "--frozen-detector" in result.stderr and "Traceback" not in result.stderr
    assert run("detect", photos / "a.png", "--model", tmp_path / "detector").returncode == 0


@pytest.mark.slow
def test_eval_masks(data, tmp_path):
    result = run("eval", "--data", data, "--task", "instance", "--json", tmp_path / "numbers.json")
    assert result.returncode == 0, result.stderr
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert set(numbers) == {"all", "things", "all masks", "things masks"} and 0 < numbers["all masks"]["AP"] <= 1
    result = run("eval", "--data", data, "--task", "panoptic", "--json", tmp_path / "pq.json", "--out", tmp_path / "found")
    assert result.returncode == 0, result.stderr
    quality = json.loads((tmp_path / "pq.json").read_text())
    assert 0 < quality["All"]["pq"] <= 1 and f"{quality['Stuff']['pq']:.3f}" in result.stdout
    assert len(list((tmp_path / "found").glob("*.png"))) == 6 and (tmp_path / "found" / "predictions.json").exists()
    assert run("eval", "--data", data, "--task", "semantic").returncode == 2


@pytest.mark.slow
@pytest.mark.parametrize("panoptic", [[], ["--panoptic"]], ids=["instances", "panoptic"])
def test_train_masks(panoptic, data, tmp_path):
    common = ["--data", data, "--preset", "scenes", "--steps", 2, "--batch-size", 4, "--workers", 0, *panoptic]
    frozen = run("train", "--out", tmp_path / "frozen", "--frozen-detector", "scenes", *common)
    assert frozen.returncode == 0, frozen.stderr
    joint = run("train", "--out", tmp_path / "joint", "--masks", *common)
    assert joint.returncode == 0, joint.stderr
    from detr_nb import DetrForObjectDetection, DetrForSegmentation
    before, after = DetrForObjectDetection.from_pretrained("scenes"), DetrForSegmentation.from_pretrained(tmp_path / "frozen" / "model")
    assert all((v == after.detr.state_dict()[k]).all() for k, v in before.state_dict().items())
    header, *rows = (tmp_path / "frozen" / "log.csv").read_text().splitlines()
    last = dict(zip(header.split(","), rows[-1].split(",")))
    assert float(last["loss_mask"]) > 0 and last["PQ" if panoptic else "mask AP"] != ""
    found = run("detect", "--model", tmp_path / "joint" / "model", "--task", "panoptic", data / "val" / "000001.png")
    assert found.returncode == 0, found.stderr


def test_eval(data, tmp_path):
    result = run("eval", "--data", data, "--split", "val", "--json", tmp_path / "numbers.json")
    assert result.returncode == 0, result.stderr
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert set(numbers) == {"all", "things"} and len(numbers["all"]) == 12 and 0 < numbers["all"]["AP"] <= 1
    assert f"{numbers['all']['AP']:.3f}" in result.stdout
    counted = run("eval", "--data", data, "--counts", "--json", tmp_path / "counts.json")
    counts = json.loads((tmp_path / "counts.json").read_text())
    assert counted.returncode == 0 and {n: v for n, v in counts.items() if "over" not in n} == numbers
    assert list(counts)[2:] == [f"over {n / 20:g}" for n in range(2, 19)]
    right, missed = ([counts[f"over {n / 20:g}"][word] for n in range(2, 19)] for word in ("right", "missed"))
    assert right == sorted(right, reverse=True) and len({a + b for a, b in zip(right, missed)}) == 1 and right[8] > 0
    refused = run("eval", "--data", data, "--task", "panoptic", "--counts", "--out", tmp_path / "found")
    assert refused.returncode == 2 and "--counts" in refused.stderr


def test_eval_sorts_the_answers(data, tmp_path):
    figure, numbers = tmp_path / "errors.png", tmp_path / "numbers.json"
    result = run("eval", "--data", data, "--counts", "--review", "0.5", "--figure", figure, "--json", numbers)
    assert result.returncode == 0, result.stderr
    kinds, counted = (json.loads(numbers.read_text())[key] for key in ("review over 0.5", "over 0.5"))
    assert kinds["right"] == counted["right"] and kinds["missed"] == counted["missed"]
    assert sum(kinds.get(kind, 0) for kind in ("duplicate", "wrong class", "wrong place")) == counted["wrong"]
    assert f"{kinds['right']} right" in result.stdout and Image.open(figure).size[0] > 500
    (tmp_path / "foreign.png").write_bytes(b"somebody's")
    for wrong, option in (
        (("--figure", figure), "--figure"), (("--review", "0.5", "--task", "panoptic"), "--review"),
        (("--review", "0.5", "--figure", tmp_path / "a.txt"), "want an ending such as .png"),
        (("--review", "0.5", "--figure", tmp_path / "b.png", "--json", tmp_path / "x" / ".." / "b.png"), "--json"),
        (("--review", "0.5", "--figure", tmp_path / "foreign.png", "--json", tmp_path / "new.json"), "did not write it"),
    ):
        refused = run("eval", "--data", data, "--out", tmp_path / "found", *wrong)
        assert refused.returncode == 2 and option in refused.stderr
    assert "new.json" not in (tmp_path / ".detr_nb_files").read_text()  # nothing was written, so nothing is ours


@pytest.mark.slow
def test_train_and_resume(data, tmp_path):
    arguments = ["train", "--data", data, "--out", tmp_path / "run", "--preset", "scenes", "--steps", 2, "--batch-size", 4, "--workers", 0]
    first = run(*arguments)
    assert first.returncode == 0, first.stderr
    assert (tmp_path / "run" / "model" / "model.safetensors").exists() and (tmp_path / "run" / "log.csv").exists()
    again = run(*arguments)
    assert again.returncode == 2 and "--resume" in again.stderr and "Traceback" not in again.stderr
    resumed = run(*arguments, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    found = run("eval", "--data", data, "--model", tmp_path / "run" / "model")
    assert found.returncode == 0 and "AP75" in found.stdout


@pytest.mark.slow
@pytest.mark.parametrize("start", [["--backbone", "resnet18", "--no-pretrained"], ["--model", "scenes"]], ids=["fresh", "checkpoint"])
def test_train_by_the_original_recipe(start, data, tmp_path):
    result = run("train", "--data", data, "--out", tmp_path / "run", "--steps", 1, "--batch-size", 2, "--workers", 0, *start)
    assert result.returncode == 0, result.stderr
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["attention_dropout"] == config["activation_dropout"] == 0.1 and config["detr_nb"]["auxiliary_loss"] is True


def test_nothing_to_detect(tmp_path):
    result = run("detect", tmp_path)
    assert result.returncode == 2 and "no files" in result.stderr


def test_an_answer_of_nothing_says_so(photos):
    result = run("detect", photos, "--model", "scenes", "--threshold", 1)
    assert result.returncode == 0 and "0 detections" in result.stdout
    assert result.stderr.strip().endswith("nothing scores over 1: --threshold takes a lower one")
    assert "nothing scores" not in run("detect", photos, "--model", "scenes", "--threshold", 0.3).stderr


def test_warnings_are_one_line(photos):
    "Without the line of the program that warns."
    image = Image.open(photos / "a.png")
    Image.fromarray(np.asarray(image)).save(photos / "note.tif", save_all=True, append_images=[image.convert("RGB")])
    lines = run("detect", photos / "note.tif", "--model", "scenes", "--threshold", 0.3).stderr.splitlines()
    assert any(line.startswith("detr-nb: ") and "2 pages, of which the first is read" in line for line in lines)
    assert not any("UserWarning" in line or "warnings.warn" in line for line in lines)


def test_a_split_in_the_shell(data, tmp_path):
    truth = data / "annotations" / "instances_train.json"
    result = run("data", "split", truth, "--out", tmp_path / "mine", "--share", 0.25, "--seed", 3)
    assert result.returncode == 0, result.stderr
    train, val = result.stdout.splitlines()
    assert train.startswith("train: 6 images, ") and val.startswith("val: 2 images, ") and " sky" in val
    names = [sorted(path.name for path in (tmp_path / "mine" / split).iterdir()) for split in ("train", "val")]
    assert sorted(sum(names, [])) == sorted(path.name for path in (data / "train").glob("*.png"))
    again = run("data", "split", truth, "--out", tmp_path / "mine")
    assert again.returncode == 2 and "nothing is overwritten" in again.stderr


def test_drawings_never_cover_a_image(photos):
    "Results beside the images they are of: the images stay as they were."
    before = {p.name: p.read_bytes() for p in photos.iterdir()}
    result = run("detect", photos, "--threshold", 0.3, "--out", photos)
    assert result.returncode == 0, result.stderr
    assert {name: (photos / name).read_bytes() for name in before} == before
    assert len([p for p in photos.iterdir() if p.name != ".detr_nb_files"]) == 2 * len(before)


def test_data_scenes(tmp_path):
    result = run("data", "scenes", tmp_path / "d", "--train", 0, "--val", 2, "--seed", 4)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "d" / "annotations" / "panoptic_val.json").exists() and not (tmp_path / "d" / "train").exists()
    assert run("data", "scenes", tmp_path / "d", "--train", 0, "--val", 2).returncode == 2


@pytest.mark.parametrize("arguments, message", [
    (["eval", "--data", "nowhere"], "no val split. Looked for annotations/instances_val.json"),
    (["eval", "--data", "nowhere", "--model", "./no-model"], "no such folder"),
    (["detect", "a.png", "--model", "somebody/else"], "could not be had from the hub"),
    (["train", "--data", "nowhere", "--out", "run"], "no train split. Looked for annotations/instances_train.json"),
])
def test_mistakes_are_one_line(arguments, message, tmp_path):
    result = run(*arguments, cwd=tmp_path, env={**__import__("os").environ, "HF_HUB_OFFLINE": "1"})
    assert result.returncode == 2 and message in result.stderr and "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_files_in_the_way_are_found_before_the_work(photos, tmp_path):
    "Somebody's file under a name that would be written: exit code 2, and nothing at all was written."
    out = tmp_path / "out"
    out.mkdir()
    (out / "panoptic.json").write_text("mine")
    result = run("detect", str(photos), "--model", "scenes", "--task", "panoptic", "--out", str(out))
    assert result.returncode == 2 and "panoptic.json exists" in result.stderr and not result.stdout
    assert sorted(p.name for p in out.iterdir()) == ["panoptic.json"] and (out / "panoptic.json").read_text() == "mine"


def test_label_files_beside_the_images(photos):
    "A labelling tool's files have no image's ending: they are counted on stderr, and no fault."
    for name in ("a.xml", "b.txt"): (photos / name).write_text("x")
    images = [p for p in photos.iterdir() if p.suffix in (".png", ".jpg", ".webp")]
    result = run("detect", str(photos), "--model", "scenes", "--json")
    assert result.returncode == 0 and "files that are not images (2): a.xml; b.txt" in result.stderr
    assert len(result.stdout.splitlines()) == len(images)


def test_masks_of_objects_name_their_file(photos, tmp_path):
    result = run("detect", str(photos), "--model", "scenes", "--task", "instance", "--out", str(tmp_path / "out"))
    entries = json.loads((tmp_path / "out" / "instance.json").read_text())
    assert result.returncode == 0 and entries
    assert {entry["file_name"] for entry in entries} <= {p.name for p in photos.iterdir()}
    assert len({(entry["image_id"], entry["file_name"]) for entry in entries}) == len({entry["image_id"] for entry in entries})


def test_check_draws_images_and_counts(data, tmp_path):
    result = run("data", "check", str(data), "--figure", str(tmp_path / "check.png"))
    assert result.returncode == 0, result.stderr
    with Image.open(tmp_path / "check.png") as figure: assert figure.width > 800 and figure.height > 400


def test_a_fault_of_the_program_has_a_code_of_its_own():
    "1 is for what went on, 2 for what the user can mend; what nobody expected is 3, with Python's own words."
    code = "import detr_nb.cli as cli\ndef app(*given, **options): raise RuntimeError('out of memory')\ncli.app = app\ncli.main()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 3 and "RuntimeError: out of memory" in result.stderr and not result.stdout


@pytest.mark.parametrize("given, code, said", [
    (["detect", "a.png", "--threshold", "high"], 2, "--threshold"), (["detcet"], 2, "detcet"), ([], 2, ""), (["--help"], 0, ""),
])
def test_a_wrong_option_is_one_line(given, code, said, capsys):
    "A bare command prints its help and complains of nothing."
    from detr_nb.cli import main
    with pytest.raises(SystemExit) as end: main(given)
    complaint = capsys.readouterr().err
    assert end.value.code == code and complaint.count("\n") == bool(said) and said in complaint
