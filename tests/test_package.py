"The package as a whole: every public name, and nothing heavy before it is needed."
import subprocess
import sys

import pytest

import detr_nb

PUBLIC = [
    "DetrConfig", "DetrModel", "DetrForObjectDetection", "DetrModelOutput", "DetrObjectDetectionOutput", "HungarianMatcher", "DetrHungarianMatcher",
    "DetrLoss", "DetrImageProcessor", "CocoEvaluator", "CocoDetection", "train", "make_scenes", "register_backbones",
]


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names(name):
    assert getattr(detr_nb, name).__module__.startswith("detr_nb.") and name in detr_nb.__all__ and name in dir(detr_nb)


def test_unknown_name():
    with pytest.raises(AttributeError, match="has no attribute 'Detr'; it has CocoDetection"):
        detr_nb.Detr  # noqa: B018


def test_nothing_heavy_is_imported():
    "The names of a plain user: timm, torchvision, scipy, matplotlib, pycocotools, accelerate and transformers wait."
    code = (
        "import sys; from detr_nb import DetrForObjectDetection, DetrImageProcessor, DetrConfig; "
        "print([m for m in ('timm', 'torchvision', 'scipy', 'matplotlib', 'pycocotools', 'accelerate', 'transformers', 'typer') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_import_alone_is_light():
    code = "import sys, detr_nb; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
