"Programs that train, match, save and run in ways of their own; other systems than the one that this was written on."
import copy
import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import detr_nb
from detr_nb import (
    DetrConfig, DetrForObjectDetection, DetrForSegmentation, HungarianMatcher, Recipe, SceneDetection, evaluate, train,
)
from detr_nb.files import read_log
from detr_nb.losses import DetrLoss, weighted_sum
from detr_nb.pretraining import scenes_processor
from detr_nb.training import RECIPES, check_run

SHORT = Recipe(steps=2, batch_size=2, augment=False, evaluations=1)


def tiny(cls=DetrForObjectDetection, **changes):
    torch.manual_seed(0)
    return cls(DetrConfig(**{
        "backbone": "detr_nb_resnet", "use_pretrained_backbone": False, "d_model": 32, "encoder_layers": 1, "decoder_layers": 2,
        "encoder_attention_heads": 8, "decoder_attention_heads": 8, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "num_queries": 12,
        "id2label": {0: "N/A"} | SceneDetection.id2label, "dropout": 0.0, "auxiliary_loss": True, **changes,
    }))


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "lr=.* are the rates of COCO")
        warnings.filterwarnings("ignore", ".*images have more objects")
        yield


def same(a, b): return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


# --- Accelerate in the user's own program

_ACCELERATE = """
import copy, os, sys, torch
from torch import nn
sys.path.insert(0, sys.argv[1])
from test_own_ways import SHORT, tiny, same
from detr_nb import SceneDetection, train
from detr_nb.pretraining import scenes_processor
from accelerate import Accelerator
data, folder = SceneDetection(4, seed=0), sys.argv[2]
plain = tiny(); train(plain, data, folder + "/a", SHORT, scenes_processor())
Accelerator(mixed_precision="bf16")  # the training has left nothing behind that would be in its way
from accelerate.state import AcceleratorState, GradientState
AcceleratorState._reset_state(True); GradientState._reset_state()
accelerator = Accelerator(mixed_precision="bf16", gradient_accumulation_steps=4)
net = accelerator.prepare(nn.Linear(2, 1))
with accelerator.accumulate(net): accelerator.backward(net(torch.ones(1, 2)).sum())  # in the middle of an accumulation
other = tiny(); train(other, data, folder + "/b", SHORT, scenes_processor())
assert same(plain, other) and not same(other, tiny()), "the user's own settings changed the training"
assert accelerator.gradient_accumulation_steps == 4 and accelerator.mixed_precision == "bf16"
os.environ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] = "4"
third = tiny(); train(third, data, folder + "/c", SHORT, scenes_processor())
assert same(plain, third), "a variable of the environment changed the training"
"""


def test_a_training_and_the_users_accelerate_leave_each_other_alone(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _ACCELERATE, str(Path(__file__).parent), str(tmp_path)], capture_output=True, text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]


# --- what is trained

class Louder(DetrForObjectDetection):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


def test_a_forward_of_ones_own_is_told_to_be_passed_by():
    with pytest.warns(UserWarning, match="Louder.forward is not called in training.*belongs into `loss`"):
        check_run(tiny(Louder), SceneDetection(4, 0), SHORT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_run(tiny(), SceneDetection(4000, 0), SHORT)
        check_run(tiny(DetrForSegmentation, d_model=64), SceneDetection(4000, 0, masks=True), SHORT)


def test_warnings_name_the_line_that_called(tmp_path):
    with pytest.warns(UserWarning) as said:
        warnings.filterwarnings("always")
        train(tiny(Louder), SceneDetection(4, 0), tmp_path, SHORT, scenes_processor())
    named = {word: [w.filename for w in said if word in str(w.message)] for word in ("is not called in training", "are the rates of COCO")}
    assert named == {word: [__file__] for word in named}


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda model: SimpleNamespace(config=model.config)])
def test_what_is_no_detector_is_named(wrap):
    with pytest.raises(TypeError, match="want a DetrForObjectDetection or a DetrForSegmentation"):
        check_run(wrap(tiny()), SceneDetection(4, 0), SHORT)


def test_patience_needs_something_to_watch():
    with pytest.raises(ValueError, match="patience=2 without a val split"):
        check_run(tiny(), SceneDetection(4, 0), replace(SHORT, patience=2))
    check_run(tiny(), SceneDetection(4, 0), replace(SHORT, patience=2), SceneDetection(4, 0, "val"))


def test_a_frozen_detector_stays_as_it_is(tmp_path):
    "Also where `start_training` was asked for it, or the weights were frozen by hand."
    tiny(num_queries=25, d_model=64).save_pretrained(tmp_path / "detector")
    scenes_processor().save_pretrained(tmp_path / "detector")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network, processor = detr_nb.own_data.start_training(
            SceneDetection(4, 0, masks=True), str(tmp_path / "detector"), preset="scenes", masks=True, frozen=True
        )
    assert network.detector_is_frozen and not network.train().detr.training and network.mask_head.training
    before = copy.deepcopy(network.detr)
    train(network, SceneDetection(4, 0, masks=True), tmp_path / "run", SHORT, processor)
    assert same(before, network.detr)
    network.detr.requires_grad_(True)
    assert not network.detector_is_frozen and network.train().detr.training
    network.detr.requires_grad_(False)
    assert network.detector_is_frozen and not network.train().detr.training


def test_start_training_takes_a_dataset_without_coco():
    data = SimpleNamespace(id2label={1: "cat"})
    network, _ = detr_nb.own_data.start_training(data, preset="scenes", pretrained=False)
    assert network.config.stuff_ids is None and network.config.id2label == {0: "N/A", 1: "cat"}


# --- a matcher and losses of one's own

class InOrder(HungarianMatcher):
    "Query k for object k, as the original's and transformers' matchers are asked."
    calls = 0

    def forward(self, outputs, targets):
        self.calls += 1
        assert outputs["logits"].dim() == 3 and all(len(t["boxes"]) == len(t["class_labels"]) for t in targets)
        return [(torch.arange(len(t["boxes"])), torch.arange(len(t["boxes"]))) for t in targets]


class Bare(nn.Module):
    forward, calls = InOrder.forward, 0


@pytest.mark.parametrize("matcher", [InOrder(), Bare()], ids=["subclass", "module"])
def test_a_matcher_that_only_knows_forward(matcher):
    model = tiny()
    targets = [{"class_labels": torch.tensor([1, 2][:n]), "boxes": torch.rand(n, 4) * 0.4 + 0.3} for n in (2, 0, 1)]
    model.criterion = DetrLoss(matcher, 13, eos_coef=0.1, losses=("labels", "boxes", "cardinality"))
    outputs = model(torch.randn(3, 3, 64, 64), labels=targets)
    assert matcher.calls == 2  # one for each layer
    wanted = (outputs.pred_boxes[0, :2] - targets[0]["boxes"]).abs().sum() + (outputs.pred_boxes[2, :1] - targets[2]["boxes"]).abs().sum()
    torch.testing.assert_close(outputs.loss_dict["loss_bbox"], wanted / 3)


def test_a_loss_of_ones_own_counts_as_it_is():
    one = torch.tensor(1.0)
    assert weighted_sum({"loss_bbox": one, "loss_bbox_0": one, "loss_giou_11": one}) == 12
    assert weighted_sum({"loss_bbox_quality": one, "loss_giou_x": one, "loss_extra": one, "loss_extra_2": one}) == 4


class Extra(DetrForObjectDetection):
    def loss(self, *args, **kwargs):
        total, parts = super().loss(*args, **kwargs)
        return total, parts | {"loss_extra_2": total.detach() * 0 + 7}


def test_a_loss_of_ones_own_is_in_the_log(tmp_path):
    train(tiny(Extra), SceneDetection(4, 0), tmp_path, SHORT, scenes_processor())
    rows = detr_nb.files.read_log(tmp_path / "log.csv")
    assert {row["loss_extra_2"] for row in rows} == {7} and not [key for row in rows for key in row if key.startswith("loss_ce_")]


def test_more_queries_than_the_config_says_are_counted(tmp_path):
    "The divisors of accumulated steps are those of the whole batch."
    losses = []
    for accumulate in (1, 2):
        model = tiny()
        model.model.query_position_embeddings = nn.Embedding(40, 32)
        torch.manual_seed(1)
        nn.init.normal_(model.model.query_position_embeddings.weight)
        try: train(model, SceneDetection(4, 0), tmp_path / str(accumulate), replace(SHORT, steps=1, accumulate=accumulate), scenes_processor())
        except ValueError: pass  # saving such a model may be refused
        losses.append(detr_nb.files.read_log(tmp_path / str(accumulate) / "log.csv")[0]["loss_ce"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


# --- datasets of one's own

class Kept(torch.utils.data.Dataset):
    "Keeps what it gives, and changes it later."
    def __init__(self, shift=0):
        self.source, self.kept, self.shift = SceneDetection(4, seed=0, split="val"), {}, shift
        self.coco, self.id2label = self.source.coco, self.source.id2label

    def __len__(self): return 4

    def __getitem__(self, index):
        if index not in self.kept: self.kept[index] = torch.zeros(1)
        self.kept[index] += 1
        image, target = self.source[index]
        return image, target | {"image_id": self.source[(index + self.shift) % 4][1]["image_id"]}


def test_a_dataset_may_keep_tensors_that_an_evaluation_saw():
    data = Kept()
    evaluate(tiny(), data, scenes_processor(), progress=False)
    data[0]
    assert not data.kept[0].is_inference() and float(data.kept[0]) == 2


class Filtered(Kept):
    "Some annotations, in another order: nothing is wrong with that."
    def __getitem__(self, index):
        image, target = super().__getitem__(index)
        return image, target | {"annotations": target["annotations"][::-2]}


class Truncated(Kept):
    "One of its images cannot be read, and the error names no file."
    def __getitem__(self, index):
        if index == 2: raise OSError("image file is truncated")
        return super().__getitem__(index)


def test_an_image_that_a_dataset_cannot_read_is_named(tmp_path):
    with pytest.raises(OSError, match=r"dataset\[2\]: image file is truncated"):
        evaluate(tiny(), Truncated(), scenes_processor(), progress=False)
    with pytest.raises(OSError, match=r"dataset\[2\]: image file is truncated"):
        train(tiny(), Truncated(), tmp_path / "run", SHORT, scenes_processor())


def test_a_dataset_may_leave_annotations_out():
    assert evaluate(tiny(), Filtered(), scenes_processor(), progress=False)["all"]["AP"] >= 0


def test_answers_are_not_compared_with_another_image():
    with pytest.raises(ValueError, match="gives it another size, or boxes that the file does not have"):
        evaluate(tiny(), Kept(shift=1), scenes_processor(), progress=False)


# --- saving

def test_layers_that_are_one_are_saved_and_opened_again(tmp_path):
    model = tiny(decoder_layers=2)
    model.model.decoder.layers[1] = model.model.decoder.layers[0]
    model.save_pretrained(tmp_path)
    again = DetrForObjectDetection.from_pretrained(tmp_path)
    assert same(model, again)


# --- other systems

def test_a_log_without_its_lock_is_begun_again(tmp_path):
    "Windows takes the lock's file away: a training that ended before its first checkpoint may begin again all the same."
    (tmp_path / "log.csv").write_text("step,pictures,lr\n1,2,0.1\n")
    with pytest.raises(FileNotFoundError, match="start it again without resume"): detr_nb.runs.find_checkpoint(tmp_path, True)
    assert detr_nb.runs.find_checkpoint(tmp_path, False) == tmp_path / "checkpoint.pt"
    (tmp_path / "best").mkdir()
    with pytest.raises(FileExistsError): detr_nb.runs.find_checkpoint(tmp_path, False)
    (tmp_path / "best").rmdir()
    (tmp_path / "log.csv").write_text("mine\n")
    with pytest.raises(FileExistsError): detr_nb.runs.find_checkpoint(tmp_path, False)


def test_a_terminal_that_does_not_know_a_letter_gets_it_in_another_way(tmp_path):
    (tmp_path / "t.csv").write_text("file,label,x0,y0,x1,y1\na.png,球,1,1,5,5\n", encoding="utf-8")
    (tmp_path / "train").mkdir()
    from PIL import Image
    Image.new("RGB", (9, 9)).save(tmp_path / "train" / "a.png")
    command = [sys.executable, "-m", "detr_nb.cli", "data", "from-table", str(tmp_path / "t.csv"), "--data", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "cp1252"})
    assert done.returncode == 0 and rb"\u7403" in done.stdout, done.stderr


def test_processes_that_cannot_begin_end_with_an_error(tmp_path):
    "A script without a guard runs again in each of its processes."
    script = tmp_path / "scenes.py"
    script.write_text(f"import detr_nb\ndetr_nb.make_scenes({str(tmp_path / 'out')!r}, train=40, val=0, processes=2)\n")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300)
    assert done.returncode != 0 and "__main__" in done.stderr


def test_python_without_asserts_checks_no_answer():
    code = "from detr_nb.files import check\ndef f(): return 1\n@check(f)\ndef judge(f): assert f() == 2\n"
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True)
    assert done.returncode != 0 and "-O, which leaves checks out" in done.stderr and "passed" not in done.stdout


def test_a_program_in_which_default_devices_and_threads_are_others():
    with torch.device("meta"): assert sorted(detr_nb.runs.shuffled(5, 0)) == [0, 1, 2, 3, 4]
    assert detr_nb.boxes.masks_to_boxes(torch.zeros(0, 4, 4, device="meta")).device.type == "meta"


def test_a_detector_has_no_masks_and_no_filter_is_left(tmp_path):
    tiny(d_model=64).save_pretrained(tmp_path)
    scenes_processor().save_pretrained(tmp_path)
    filters = list(warnings.filters)
    with pytest.raises(ValueError, match="draws no masks"): detr_nb.speed.load_model(tmp_path, "panoptic")
    assert warnings.filters == filters
    assert detr_nb.speed.load_model("scenes", "panoptic")[0].begun_afresh == set()


@pytest.mark.parametrize("name", [r"C:\models\detr", "C:/models/detr", r"runs\a\model"])
def test_paths_of_windows_are_no_names_of_the_hub(name):
    with pytest.raises(FileNotFoundError, match="no such folder"): DetrForObjectDetection.from_pretrained(name)


def test_no_file_is_open_while_it_is_moved(tmp_path, monkeypatch):
    "As Windows wants it: what is read while exports are compared is let go before the files move."
    pytest.importorskip("openvino")
    from detr_nb import speed
    seen, move = [], os.replace
    real = speed.ExportedModel
    import gc
    import weakref
    alive = []

    class Watched(real):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            alive.append(weakref.ref(self))

    monkeypatch.setattr(speed, "ExportedModel", Watched)
    monkeypatch.setattr(speed.os, "replace", lambda a, b: seen.append([r() for r in alive if r() is not None]) or move(a, b))
    gc.disable()
    try: speed.export_model(tiny(), scenes_processor(), tmp_path / "e", "openvino")
    finally: gc.enable()
    assert alive and seen and not any(seen)


def test_answers_on_another_device_are_drawn():
    from detr_nb.visualization import as_array

    class Elsewhere:
        "A tensor that NumPy cannot read before it has come back."
        def detach(self): return self
        def cpu(self): return torch.ones(2)
        def __array__(self, *args): raise TypeError("can't convert cuda:0 device type tensor to numpy")

    assert np.array_equal(as_array(Elsewhere()), [1, 1]) and np.array_equal(as_array([1, 2]), [1, 2])


# What two engineers met who had not seen the code: trainings on a cluster, and masks of batches.

def short_run(out, steps=4, **more):
    recipe = replace(RECIPES["scenes"], steps=steps, stop=None, batch_size=2, evaluations=2, query_groups=1)
    model = DetrForObjectDetection.from_pretrained("scenes")
    val = SceneDetection(2, seed=3, split="val")
    return train(model, SceneDetection(4, seed=3), out, recipe, scenes_processor(), val, **more)


def test_a_tidied_run_is_not_begun_again(tmp_path):
    "Without checkpoint.pt, model and best, but with numbered checkpoints: which one to copy is said."
    short_run(tmp_path, keep=3)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*") if path.is_file()}
    (tmp_path / "checkpoint.pt").unlink()
    for name in ("model", "best"): shutil.rmtree(tmp_path / name)
    with pytest.raises(FileExistsError, match="log.csv exists"): short_run(tmp_path)
    with pytest.raises(FileNotFoundError, match="to go on from checkpoint-4.pt, copy it to checkpoint.pt"):
        short_run(tmp_path, resume=True)
    assert all((tmp_path / name).read_bytes() == data for name, data in before.items() if name != "checkpoint.pt")


def test_numbered_checkpoints_are_copies(tmp_path):
    "Copying an older one over checkpoint.pt leaves the newest as it is; numbers beyond this run's are not counted."
    short_run(tmp_path, keep=2, stop_after=2)
    (tmp_path / "checkpoint-20241130.pt").write_bytes(b"somebody's")
    short_run(tmp_path, keep=2, resume=True)
    newest = (tmp_path / "checkpoint-4.pt").read_bytes()
    assert newest == (tmp_path / "checkpoint.pt").read_bytes() and (tmp_path / "checkpoint-2.pt").exists()
    (tmp_path / "checkpoint.pt").write_bytes((tmp_path / "checkpoint-2.pt").read_bytes())  # in place, as cp does
    assert (tmp_path / "checkpoint-4.pt").read_bytes() == newest and (tmp_path / "checkpoint-20241130.pt").exists()


def test_somebodys_files_in_a_folder_stay(tmp_path):
    hidden = [tmp_path / name for name in (".thesis.pdf.part", ".my.particles.csv")]
    for path in hidden: path.write_text("mine")
    (tmp_path / ".x.parts").mkdir()
    left = tmp_path / ".checkpoint.26438-140326113570368.part.pt"
    left.write_bytes(b"half")
    short_run(tmp_path, stop_after=1)
    assert all(path.read_text() == "mine" for path in hidden) and (tmp_path / ".x.parts").is_dir() and not left.exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / "log.csv").write_text("step,loss\n1,2\n")
    with pytest.raises(FileExistsError, match="log.csv exists"): short_run(other)
    assert (other / "log.csv").read_text() == "step,loss\n1,2\n"


def test_what_is_gone_from_a_run_is_said(tmp_path):
    short_run(tmp_path, stop_after=2)
    (tmp_path / "log.csv").unlink()
    shutil.rmtree(tmp_path / "best")
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    torch.save(state | {"evaluated": 1}, tmp_path / "checkpoint.pt")  # the best was at an earlier step
    with pytest.warns(UserWarning) as caught: short_run(tmp_path, resume=True)
    said = [str(warning.message) for warning in caught]
    assert any("log.csv is gone: a new one begins after step 2" in text for text in said)
    assert any("best is gone: the next evaluation over" in text for text in said)
    assert [row["step"] for row in read_log(tmp_path / "log.csv")] == [3, 4]


def test_models_tell_device_dtype_and_size():
    model = DetrForObjectDetection.from_pretrained("scenes")
    assert model.device == torch.device("cpu") and model.dtype == torch.float32 and model.half().dtype == torch.float16
    assert model.num_parameters() == sum(p.numel() for p in model.parameters())
    queries = model.model.query_position_embeddings.weight.numel()
    assert model.num_parameters(exclude_embeddings=True) == model.num_parameters() - queries
    model.freeze_backbone()
    assert 0 < model.num_parameters(only_trainable=True) < model.num_parameters()
    with pytest.raises(TypeError, match=r"torch_dtype: no such field .* write .to\(device, dtype\) after opening"):
        DetrForObjectDetection.from_pretrained("scenes", torch_dtype=torch.float16)


def test_masks_of_a_batch_as_people_ask_for_them(tmp_path):
    from detr_nb import CocoPanoptic, DetrImageProcessor, make_scenes
    processor = DetrImageProcessor.from_pretrained("scenes")
    torch.manual_seed(0)
    said = SimpleNamespace(logits=torch.randn(2, 5, 14) * 4, pred_masks=torch.randn(2, 5, 64, 66))
    sizes = [(128, 128), (128, 132)]  # four columns of padding
    with pytest.warns(UserWarning, match="image 0 of 128 × 128: pass pixel_mask=") as caught:
        processor.post_process_instance_segmentation(said, target_sizes=sizes)
    assert caught[0].filename == __file__
    mask = torch.ones(2, 128, 132)
    mask[0, :, 128:] = 0
    panoptic = partial(processor.post_process_panoptic_segmentation, said, target_sizes=sizes)
    for fuse in ([9, 10], np.array([9, 10]), torch.tensor([9, 10]), {9, 10}):
        one, other = panoptic(pixel_mask=mask, label_ids_to_fuse=fuse), panoptic(pixel_mask=mask.numpy(), label_ids_to_fuse=[9, 10])
        assert all(torch.equal(a["segmentation"], b["segmentation"]) for a, b in zip(one, other))
    for wrong in (["sky"], 9, "sky", [1.5]):
        with pytest.raises(ValueError, match="label_ids_to_fuse=.*: want class ids"):
            panoptic(pixel_mask=mask, label_ids_to_fuse=wrong)
    make_scenes(tmp_path, val=1)
    image, annotation = CocoPanoptic(tmp_path / "val", tmp_path / "panoptic_val", tmp_path / "annotations" / "panoptic_val.json")[0]
    batch = processor(image, annotations=annotation, format="coco_panoptic", return_tensors="pt")
    assert batch.labels[0]["masks"].shape[0] == len(annotation["segments_info"])
