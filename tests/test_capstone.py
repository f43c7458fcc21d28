"The capstone: its tests pass for the napkin, and see what people get wrong."
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAPKIN = '''
import importlib
import torch
napkin = importlib.import_module("detr_nb.napkin")  # as an import, it would be refused
Napkin, hungarian, napkin_loss = napkin.Napkin, napkin.hungarian, napkin.napkin_loss
nearest, train_napkin = napkin.nearest, napkin.train_napkin
Detr, match, loss = Napkin, hungarian, napkin_loss
def train(steps, seed): return train_napkin(steps, seed=seed)[0]
'''
WRONG = {  # what is written instead, and the test that must see it
    "nearest query": ("match = lambda cost: (cost.argmin(0), range(cost.shape[1]))", "match_is_the_cheapest"),
    "nearest object in the loss": ("loss = lambda *a: napkin_loss(*a, assign=nearest)", "duplicates_cost"),
    "last layer only": ("loss = lambda logits, boxes, truth: napkin_loss(logits[-1:], boxes[-1:], truth)", "every_layer_counts"),
    "objects in their order": (
        "import numpy as np\nloss = lambda *a: napkin_loss(*a, assign=lambda cost: (np.arange(cost.shape[1]),) * 2)", "loss_knows_no_order"
    ),
    "softmax twice": ("loss = lambda logits, boxes, truth: napkin_loss(logits.softmax(-1), boxes, truth)", "loss_is_small_only_for_right_answers"),
    "classes of the last layer only": (
        "loss = lambda logits, boxes, truth: napkin_loss(logits[-1:].expand_as(logits), boxes, truth)", "every_layer_counts"
    ),
    "the class's sign in the cost": (
        "loss = lambda logits, boxes, truth: napkin_loss(logits, boxes, truth, assign=lambda cost: hungarian(-cost))",
        "class_and_box_both_decide_the_match",
    ),
    "a seed that is ignored": ("def train(steps, seed): return train_napkin(steps, seed=0)[0]", "same_seed_same_weights"),
    "no training": ("def train(steps, seed): torch.manual_seed(seed); return Napkin()", "same_seed_same_weights"),
    "a seed that is not used": ("def train(steps, seed): return train_napkin(steps, seed=torch.seed() % 1000)[0]", "same_seed_same_weights"),
    "equal queries": (
        "class Detr(Napkin):\n    def __init__(self):\n        super().__init__()\n        self.queries.data[:] = self.queries.data[:1]",
        "answers_depend_on_image_and_query",
    ),
    "batch norm": (
        "class Detr(Napkin):\n    def forward(self, images): return super().forward(images - images.mean(0))", "every_image_is_answered_alone"
    ),
    "a layer that is not used": (
        "class Detr(Napkin):\n    def __init__(self):\n        super().__init__()\n        self.spare = torch.nn.Linear(2, 2)", "every_parameter_learns"
    ),
    "boxes without a sigmoid": (
        "class Detr(Napkin):\n    def forward(self, images):\n        logits, boxes = super().forward(images)\n        return logits, boxes - 0.6",
        "shapes_and_ranges",
    ),
}


def run(tmp_path, code, *arguments):
    path = tmp_path / "my_detr.py"
    path.write_text(code)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(ROOT / "course" / "capstone"), *arguments]
    environment = os.environ | {"DETR": str(path), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_napkin_passes(tmp_path):
    result = run(tmp_path, NAPKIN)
    assert result.returncode == 0 and "16 passed" in result.stdout, result.stdout[-3000:]
    assert "of the images all right" in result.stdout and (tmp_path / "answers.png").stat().st_size > 5000


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", WRONG)
def test_wrong_answers_are_seen(tmp_path, name):
    code, test = WRONG[name]
    result = run(tmp_path, f"{NAPKIN}\n{code}\n", "-k", test)
    assert result.returncode == 1 and f"test_{test}" in result.stdout and "1 failed" in result.stdout, result.stdout[-2000:]


@pytest.mark.parametrize("line", ["from detr_nb.napkin import Napkin as Detr, make_images", "import detr_nb", "from transformers import DetrModel"])
def test_borrowed_parts_are_refused(tmp_path, line):
    result = run(tmp_path, f"{line}\n{NAPKIN}", "-k", "shapes")
    assert result.returncode == 1 and "line 1 imports" in result.stdout, result.stdout[-2000:]


def test_nothing_written_yet(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "DETR"} | {"DETR": str(tmp_path / "gone.py")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(ROOT / "course" / "capstone"), "-k", "shapes"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 1 and "not written yet" in result.stdout
