"The package as a whole: every public name, and nothing heavy before it is needed."
import re
import subprocess
import sys
from pathlib import Path

import pytest

import detr_nb

ROOT = Path(__file__).parent.parent
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


def test_version_is_cited_and_logged():
    citation, changelog = ((ROOT / name).read_text(encoding="utf-8") for name in ("CITATION.cff", "CHANGELOG.md"))
    assert re.findall(r"^version: (.+)$", citation, re.MULTILINE) == [detr_nb.__version__]
    assert re.findall(r"^## \[(.+?)\]", changelog, re.MULTILINE)[:2] == ["Unreleased", detr_nb.__version__]


def test_what_a_wheel_lacks_is_named():
    "A wheel that has everything lacks nothing; each thing that is taken out is named."
    sys.path.insert(0, str(ROOT / "tools"))
    from check_package import ASSETS, CLASSIFIERS, URLS, lacking
    names = [f"detr_nb/assets/scenes/{name}" for name in ASSETS] + ["detr_nb/py.typed"]
    fields = [f"Project-URL: {name}, https://example.org" for name in sorted(URLS)]
    fields += [f"Classifier: {name}" for name in sorted(CLASSIFIERS)]
    command = "[console_scripts]\ndetr-nb = detr_nb.cli:main\n"
    whole = "\n".join(["Metadata-Version: 2.4", *fields, "", "A description"])

    assert lacking(names, command, whole) == []
    assert lacking(names[:-1], command, whole) == ["detr_nb/py.typed"]
    assert lacking(names, "", whole) == ["the command detr-nb"]
    for field in fields:
        missing = lacking(names, command, whole.replace(field + "\n", ""))
        assert len(missing) == 1 and field.split(": ", 1)[1].split(", ")[0] in missing[0]
