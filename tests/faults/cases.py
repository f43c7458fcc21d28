"""Generated cases of what users hand to the library. Each case knows what is right: a value, or an entry and a field to be
refused by name. `judge` says what became of it:

- right: the value is as it should be
- clear: refused, as it should be, with entry, field, value found and what is wanted
- unclear: refused, but something of that is missing in the message, or the kind of error is another
- silent: a result where something should have been refused, or another value; or good input refused
"""
import copy
import json
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image

from detr_nb import CocoDetection, DetrConfig, DetrForObjectDetection, DetrImageProcessor
from detr_nb.data import annotation_mask, read_panoptic_file
from detr_nb.datasets import read_table
from detr_nb.training import Recipe

NAN, INF = float("nan"), float("inf")
CLEAR = (ValueError, TypeError, FileNotFoundError)


@dataclass
class Case:
    "What is called; and the value that is right, or the words that a refusal must have."
    call: Callable[[], Any]
    value: Any = None
    refuse: tuple[str, ...] = ()
    same: Callable[[Any, Any], bool] = field(default=lambda found, value: found == value)
    about: str = ""


def judge(case: Case) -> tuple[str, str]:
    "right, clear, unclear or silent; and what happened, in words."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try: found = case.call()
        except CLEAR as error:
            if not case.refuse: return "silent", f"good input was refused: {error}"
            lacking = [word for word in case.refuse if word not in str(error)]
            return ("unclear", f"{error} lacks {lacking}") if lacking else ("clear", str(error))
        except Exception as error:  # any other kind of error
            return "unclear", f"{type(error).__name__}: {error}"
    if case.refuse: return "silent", f"gave {str(found)[:100]}, should have been refused for {case.refuse}"
    return ("right", "") if case.same(found, case.value) else ("silent", f"gave {str(found)[:100]}, right is {str(case.value)[:100]}")


def shown(value: Any) -> str:
    "The beginning of a value as a message shows it."
    return repr(value)[:40]


@cache
def folder() -> Path:
    "Two images, their files of boxes and of segments."
    place = Path(tempfile.mkdtemp(prefix="detr_nb_faults_"))
    for name, size in (("a.png", (20, 10)), ("b.png", (10, 10))): Image.new("RGB", size).save(place / name)
    return place


COCO_FILE = {
    "images": [
        {"id": 1, "file_name": "a.png", "width": 20, "height": 10}, {"id": 2, "file_name": "b.png", "width": 10, "height": 10},
    ],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 5, 5], "area": 25, "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 4, "bbox": [3, 1, 9, 6], "area": 54, "iscrowd": 0},
        {"id": 3, "image_id": 2, "category_id": 3, "bbox": [0, 0, 4, 8], "area": 32, "iscrowd": 1},
    ],
    "categories": [{"id": 3, "name": "ball"}, {"id": 4, "name": "box"}],
}
PANOPTIC_FILE = {
    "images": COCO_FILE["images"],
    "annotations": [
        {"image_id": 1, "file_name": "a.png", "segments_info": [{"id": 7, "category_id": 3, "iscrowd": 0, "bbox": [0, 0, 3, 3], "area": 9}]},
        {"image_id": 2, "file_name": "b.png", "segments_info": [{"id": 8, "category_id": 4, "iscrowd": 0, "bbox": [0, 0, 3, 3], "area": 9}]},
    ],
    "categories": [{"id": 3, "name": "ball", "isthing": 1}, {"id": 4, "name": "sky", "isthing": 0}],
}
WHOLE = ["1", -1, 1.5, None, True, 2**53, [1], {}, "", NAN]
BAD = {  # field → values that cannot be
    "id": WHOLE, "image_id": [*WHOLE, 99], "category_id": [*WHOLE, 77, 10**7],
    "bbox": [[], [1, 2, 3], "1 2", None, [1, 2, NAN, 4], [1, 2, -1, 4], [1, 2, INF, 4], [1, 2, "3", 4], {"x": 1}, [1, 2, 1e7, 4], 5, [1, 2, None, 4]],
    "iscrowd": ["0", "1", 2, -1, None, 0.5, [], {}], "isthing": ["0", 2, None, 0.5, []],
    "area": ["9", -1, NAN, INF, None, [], True], "width": [0, -5, "20", 1.5, None, True, 10**9], "height": [0, -5, "20", None, [], 10**9],
    "file_name": [5, "", "../a.png", "/a.png", None, "a\0", ["a.png"], "x/../../a.png", "C:\\a.png"], "name": [5, "", None, []],
    "segments_info": [None, 5, "x", {"id": 1}, True],
}
GOOD = {
    "id": [0, 5, 2**53 - 1], "iscrowd": [0, 1, True, False], "area": [0, 0.5, 1e6], "bbox": [[0, 0, 1, 1], [0.5, 0.25, 3, 3.5], [1, 1, 0, 0], [1e2, 3, 4, 5]],
    "name": ["x", "ä", "two words"], "isthing": [0, 1, True],
}


def write(data: Any) -> Path:
    path = folder() / "truth.json"
    path.write_text(json.dumps(data))
    return path


@st.composite
def json_cases(draw, panoptic: bool):
    "One change of a good file: a field, a key that is missing, a list that is none, an entry that is none, or nothing bad."
    good = PANOPTIC_FILE if panoptic else COCO_FILE
    data = copy.deepcopy(good)
    lists = ["images", "annotations", "categories"]
    what = draw(st.sampled_from(["bad", "bad", "bad", "bad", "good", "missing", "list", "entry", "extra"]))
    name = draw(st.sampled_from(lists))
    index = draw(st.integers(0, len(data[name]) - 1))
    entry = data[name][index]
    if panoptic and name == "annotations" and draw(st.booleans()): entry, in_segment = entry["segments_info"][0], True
    else: in_segment = False
    refuse: tuple[str, ...] = ()
    if what == "bad":
        key = draw(st.sampled_from(sorted(set(entry) & set(BAD))))
        value = draw(st.sampled_from(BAD[key]))
        if in_segment and key == "id" and value == 2**53: value = -1
        entry[key] = value
        unlisted = value in (99, 77) and not isinstance(value, bool)
        refuse = ("not listed", str(value)) if unlisted else (f"{key}={shown(value)}"[:60], "want", "truth.json")
    elif what == "good":
        kept = {"id"} if name != "annotations" or in_segment else set()  # others refer to these
        if keys := sorted(set(entry) & set(GOOD) - kept):
            key = draw(st.sampled_from(keys))
            entry[key] = draw(st.sampled_from(GOOD[key]))
    elif what == "missing":
        needed = {
            "images": ["id", "file_name"] + ([] if panoptic else ["width", "height"]),
            "annotations": ["image_id", "file_name", "segments_info"] if panoptic else ["id", "image_id", "category_id", "bbox"],
            "categories": ["id", "name"] + (["isthing"] if panoptic else []),
        }[name] if not in_segment else ["id", "category_id"]
        key = draw(st.sampled_from(needed))
        entry.pop(key)
        refuse = (f"no {key!r}", "truth.json")
    elif what == "list":
        value = draw(st.sampled_from([None, 5, "x", {}]))
        data[name] = value
        refuse = (name, "want a list")
    elif what == "entry":
        value = draw(st.sampled_from([None, 5, "x", [1]]))
        data[name][index] = value
        refuse = (f"{name}[{index}]", "want an object")
    else: entry["something else"] = draw(st.sampled_from([1, None, "x", [1]]))
    def opened():
        path = write(data)
        if panoptic: return len(read_panoptic_file(path)["annotations"])
        return len(CocoDetection(folder(), path))
    return Case(opened, 2, refuse, about=f"{what} {name}[{index}]")


@st.composite
def mask_cases(draw):
    "Polygons and run lengths: drawn as they should be, or refused."
    from pycocotools import mask as coco_mask
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    mask = rng.random((height, width)) < draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    flat = mask.ravel(order="F").astype(np.int8)
    edges = [*np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist(), flat.size]
    counts = [int(b - a) for a, b in zip([0, *edges], edges)]
    text = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    what = draw(st.sampled_from(["counts", "text", "bytes", "more", "negative", "cut", "size", "polygon", "corner", "flat", "few", "none", "character"]))
    size, value, refuse = [height, width], mask, ("segmentation=", "image 4: annotation 9", "want")
    shapes = {
        "counts": {"size": size, "counts": counts}, "text": {"size": size, "counts": text.decode()}, "bytes": {"size": size, "counts": text},
        "more": {"size": size, "counts": [*counts, 1 + draw(st.integers(0, 99))]}, "negative": {"size": size, "counts": [-1, *counts]},
        "cut": {"size": size, "counts": text[:-1].decode()}, "size": {"size": [height + 1, width], "counts": counts},
        "corner": [[0, 0, 5, 0, 5, draw(st.sampled_from([NAN, INF, -INF, 1e9, None, "3", 10**30]))]], "flat": [0, 0, 5, 0, 5, 5],
        "few": [[0, 0, 5, 0][: draw(st.integers(0, 4))]], "none": draw(st.sampled_from([None, [], {}, "", 5, {"size": size}])),
        "polygon": [[0, 0, width, 0, width, height, 0, height]], "character": {"size": size, "counts": "!" + text.decode()},
    }
    if what == "polygon": value = np.ones((height, width), bool)
    if what in ("counts", "text", "bytes", "polygon"): refuse = ()
    return Case(
        lambda: annotation_mask({"id": 9, "segmentation": shapes[what]}, height, width, 4).numpy(), value, refuse,
        lambda found, wanted: found.shape == wanted.shape and bool((found == wanted).all()), what,
    )


@st.composite
def array_cases(draw):
    "Images as arrays of any shape and kind, through a processor that only normalises."
    shape = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 4, 5, 7]), min_size=1, max_size=4)))
    kind = draw(st.sampled_from(["uint8", "uint16", "int32", "int64", "float32", "float64", "bool", "complex64", "nan", "over"]))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    array = rng.integers(0, 256, shape)
    array = {
        "nan": lambda: np.where(rng.random(shape) < 2, NAN, 0.0), "over": lambda: array.astype(np.int32) + 300,
        "uint16": lambda: (array * 257).astype(np.uint16),
    }.get(kind, lambda: array.astype(kind))()
    processor = DetrImageProcessor(do_resize=False, image_mean=0.0, image_std=1.0)
    refuse: tuple[str, ...] = ()
    if len(shape) in (1, 4) or len(shape) == 3 and not {shape[0], shape[2]} & {1, 3, 4}: refuse = ("want",)
    elif len(shape) == 3 and shape[0] in (1, 3) and shape[2] in (1, 3, 4): refuse = ("say which",)
    if kind in ("bool", "complex64") and len(shape) < 4: refuse = ("array of", "want")
    elif not refuse and kind == "nan": refuse = ("NaN",)
    elif not refuse and kind == "over": refuse = ("whole numbers from", "0 … 255")
    value = None
    if not refuse:
        eight = array // 257 if kind == "uint16" else array
        planes = [eight] * 3 if len(shape) == 2 else eight if shape[0] in (1, 3) or shape[2] not in (1, 3, 4) else eight.transpose(2, 0, 1)
        planes = np.stack([planes[0]] * 3) if len(planes) == 1 else np.stack(planes[:3])
        value = planes.astype(np.float32) / 255
    if len(shape) == 4:  # a batch of images: as if each were given by itself
        return Case(lambda: processor([5], return_tensors="pt"), None, ("want",), about="no image")
    return Case(
        lambda: processor(array, return_tensors="pt").pixel_values[0].numpy(), value, refuse,
        lambda found, wanted: found.shape == wanted.shape and np.allclose(found, wanted, atol=1e-5), f"{kind} {shape}",
    )


SMALL = dict(use_pretrained_backbone=False, backbone="resnet18", d_model=32, encoder_layers=1, decoder_layers=1, num_queries=5)
COUNTS, SHARES, WEIGHTS = [0, -1, 1.5, "3", None, True, NAN, []], [1.0, -0.1, "0.1", None, NAN, True], [-1, "1", None, NAN, INF, []]
CONFIG_BAD = {
    **{n: COUNTS for n in ("num_queries", "d_model", "encoder_ffn_dim", "decoder_ffn_dim", "num_channels", "decoder_layers", "encoder_attention_heads")},
    **{n: SHARES for n in ("dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop", "decoder_layerdrop")},
    **{n: WEIGHTS for n in ("class_cost", "bbox_cost", "giou_cost", "eos_coefficient", "dice_loss_coefficient", "init_std")},
    "position_embedding_type": ["sinus", None, 5, ""], "activation_function": ["RELU", None, 5], "backbone": ["", 5, None],
    "backbone_kwargs": ["x", 5, [1], {"checkpoint_path": "a"}, {"cache_dir": "b"}], "dilation": ["yes", 2, 0.5],
    "id2label": [True, 5, "x", {}, {"a": "b"}, {-1: "b"}, {1: 5}, {10**7: "far"}, {"9" * 30: "far"}], "num_labels": [0, -3, "3", 1.5, True, 10**7],
}


@st.composite
def config_cases(draw):
    "A config with one field that cannot be, or with good ones, which come back from a file."
    if draw(st.integers(0, 4)):
        name = draw(st.sampled_from(sorted(CONFIG_BAD)))
        value = draw(st.sampled_from(CONFIG_BAD[name]))
        return Case(lambda: DetrConfig(**SMALL | {name: value}), None, (f"{name}={shown(value)}"[:50], "want"), about=name)
    good = dict(
        num_queries=draw(st.integers(1, 50)), d_model=32 * draw(st.integers(1, 4)), dropout=draw(st.floats(0, 0.99)),
        class_cost=draw(st.floats(0, 9)), eos_coefficient=draw(st.floats(0, 1)), auxiliary_loss=draw(st.booleans()),
        position_embedding_type=draw(st.sampled_from(["sine", "learned"])), id2label={draw(st.integers(0, 60)): draw(st.text(min_size=1, max_size=5))},
    )
    def again():
        config = DetrConfig(**SMALL | good)
        return DetrConfig.from_dict(json.loads(config.to_json_string())).to_dict() == config.to_dict()
    return Case(again, True, about=str(good))


RECIPE_BAD = {
    **{n: [0, -1, NAN, INF, "1", True, None] for n in ("epochs", "lr", "clip")}, "backbone_lr": [-1, NAN, "0", None], "weight_decay": [-1, NAN, "0"],
    **{n: [0, -1, 1.5, "3", True, NAN] for n in ("batch_size", "query_groups", "evaluations", "steps", "stop", "patience")},
    "ema": [1, -0.1, NAN, "0.9"], "warmup": [1.0, -1, NAN], "drop": [-0.1, 1.1, NAN, "x"], "schedule": ["linear", None, 3], "augment": [1, "yes", None],
    "seed": [-1, 0.5, "1", None],
}


@st.composite
def recipe_cases(draw):
    if draw(st.integers(0, 4)):
        name = draw(st.sampled_from(sorted(RECIPE_BAD)))
        value = draw(st.sampled_from(RECIPE_BAD[name]))
        return Case(lambda: Recipe(**{name: value}), None, (f"{name}={value!r}", "want"), about=name)
    lr, steps = draw(st.floats(1e-6, 10)), draw(st.integers(1, 10**6))
    return Case(lambda: (Recipe(lr=lr, steps=steps).lr, Recipe(steps=steps).steps), (lr, steps))


@st.composite
def post_cases(draw):
    "Post-processing of random outputs against loops, and of outputs, thresholds and sizes that cannot be."
    batch, queries, classes = draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    logits, boxes = rng.normal(0, 3, (batch, queries, classes + 1)), rng.random((batch, queries, 4))
    threshold, sizes = draw(st.sampled_from([0.0, 0.3, 0.5, 0.9])), rng.integers(1, 900, (batch, 2)).tolist()
    what = draw(st.sampled_from(["good", "good", "logits", "pred_boxes", "threshold", "sizes", "count"]))
    refuse: tuple[str, ...] = ()
    if what in ("logits", "pred_boxes"):
        part = logits if what == "logits" else boxes
        image = int(rng.integers(batch))
        part[image, rng.integers(queries), 0] = draw(st.sampled_from([NAN, INF, -INF]))
        refuse = (f"outputs.{what} of image {image}", "want")
    elif what == "threshold":
        threshold = draw(st.sampled_from([NAN, "0.5", None, True]))
        refuse = (f"threshold={threshold!r}", "want")
    elif what == "sizes":
        sizes[0][draw(st.integers(0, 1))] = draw(st.sampled_from([0, -4, NAN, INF, None, "9"]))
        refuse = ("target_sizes", "want")
    elif what == "count":
        sizes = [*sizes, [3, 3]]
        refuse = ("target_sizes", "want")
    outputs = SimpleNamespace(logits=torch.from_numpy(logits).float(), pred_boxes=torch.from_numpy(boxes).float())
    def by_loops():
        rows = []
        for b in range(batch):
            for q in range(queries):
                e = np.exp(logits[b, q] - logits[b, q].max())
                p = (e / e.sum())[:-1]
                if abs(p.max() - threshold) < 1e-6: return None  # too near to call
                if p.max() > threshold:
                    x, y, w, h = boxes[b, q] * np.array([sizes[b][1], sizes[b][0]] * 2)
                    rows.append((b, int(p.argmax()), x - w / 2, y - h / 2, x + w / 2, y + h / 2))
        return rows
    def found():
        result = DetrImageProcessor().post_process_object_detection(outputs, threshold, sizes)
        return [(b, int(c), *map(float, box)) for b, one in enumerate(result) for c, box in zip(one["labels"], one["boxes"])]
    return Case(found, None if refuse else by_loops(), refuse, lambda a, b: b is None or len(a) == len(b) and np.allclose(a, b, atol=1e-2), what)


@cache
def checkpoint() -> Path:
    place = folder() / "model"
    torch.manual_seed(0)
    DetrForObjectDetection(DetrConfig(**SMALL, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=32, decoder_ffn_dim=32)).save_pretrained(place)
    return place


@st.composite
def checkpoint_cases(draw):
    "A checkpoint with one thing wrong: its files, names, shapes or config."
    what = draw(st.sampled_from(["good", "cut", "gone", "lacks", "has", "shape", "config", "not json", "key"]))
    where = draw(st.floats(0.01, 0.99))
    key, value = draw(st.sampled_from([("num_queries", 6), ("d_model", 30), ("dropout", 2), ("id2label", True), ("backbone_kwargs", {"checkpoint_path": "x"}), ("encoder_layers", "two")]))
    def opened():
        from safetensors.torch import load_file, save_file
        place = folder() / "spoilt"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(checkpoint(), place)
        weights, config = place / "model.safetensors", place / "config.json"
        if what == "cut": weights.write_bytes(weights.read_bytes()[: int(where * weights.stat().st_size)])
        if what == "gone": weights.unlink()
        if what in ("lacks", "has", "shape"):
            state = load_file(weights)
            if what == "lacks": state.pop("bbox_predictor.layers.0.weight")
            if what == "has": state["something.else"] = torch.zeros(1)
            if what == "shape": state["bbox_predictor.layers.0.weight"] = torch.zeros(2, 2)
            save_file(state, weights)
        if what == "not json": config.write_text(config.read_text()[: int(where * 500)])
        if what == "key": config.write_text(json.dumps(json.loads(config.read_text()) | {key: value}))
        if what == "config": config.unlink()
        return sorted(DetrForObjectDetection.from_pretrained(place).state_dict())[:1]
    refuse = {
        "good": (), "cut": ("model.safetensors", "not a whole"), "gone": ("model.safetensors",), "lacks": ("lacks 1", "bbox_predictor.layers.0.weight"),
        "has": ("has 1", "something.else"), "shape": ("bbox_predictor.layers.0.weight", "(2, 2)"), "config": ("config.json",),
        "not json": ("config.json",), "key": (key if key != "num_queries" else "query_position_embeddings",),
    }[what]
    return Case(opened, ["bbox_predictor.layers.0.bias"], refuse, about=f"{what} {key}")


@st.composite
def table_cases(draw):
    "A CSV of boxes with one cell changed."
    cells = ["a.png", "ball", "1", "2", "30", "40"]
    column = draw(st.integers(0, 6))
    bad = {0: ["", " "][:1], 1: [""], 2: ["x", "", "nan", "inf", "1,5"], 3: ["x", "", "nan"], 4: ["--", "", "inf"], 5: ["x", "", "1e"]}
    refuse: tuple[str, ...] = ()
    if column < 6:
        value = draw(st.sampled_from(bad[column]))
        cells[column] = value
        refuse = ("line 2", "want" if column != 1 else "without a label")
    mark = draw(st.sampled_from(["", "\ufeff"]))
    text = f"{mark}file,label,x0,y0,x1,y1\n" + ",".join(cells) + "\n"
    def read():
        (folder() / "table.csv").write_text(text, encoding="utf-8")
        return read_table(folder() / "table.csv")
    return Case(read, {"a.png": [("ball", 1, 2, 30, 40)]}, refuse, about=str(cells))


MODES = {  # of PIL → how numbers are laid out in an array, for `Image.fromarray`; what is right is computed from it
    "1": 1, "L": 1, "P": 1, "LA": 2, "PA": 2, "La": 2, "RGB": 3, "RGBA": 4, "RGBX": 4, "RGBa": 4, "CMYK": 4, "YCbCr": 3, "HSV": 3, "LAB": 3,
    "I": "<i4", "I;16": "<u2", "I;16B": ">u2", "F": "<f4",
}


@st.composite
def mode_cases(draw):
    "PIL images of every mode, with and without an orientation, through a processor that only rescales."
    mode = draw(st.sampled_from(sorted(MODES)))
    width, height = draw(st.integers(0, 9)), draw(st.integers(0, 9))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    eight = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
    grey, colour = np.stack([eight[..., 0]] * 3), eight[..., :3].transpose(2, 0, 1)
    palette = rng.integers(0, 256, (256, 3), dtype=np.uint8)
    layout = MODES[mode]
    if isinstance(layout, str):  # one channel of more than eight bits
        sixteen = rng.integers(0, 65536, (height, width))
        image = Image.frombytes(mode, (width, height), sixteen.astype(layout).tobytes())
        value = np.stack([sixteen // 257] * 3)
    elif mode == "1":
        image = Image.fromarray(eight[..., 0], "L").convert("1", dither=Image.Dither.NONE) if width and height else Image.new("1", (width, height))
        value = np.stack([(eight[..., 0] >= 128) * 255] * 3)
    else:
        image = Image.frombytes(mode, (width, height), np.ascontiguousarray(eight[..., :layout]).tobytes())
        value = grey if layout < 3 else colour
        if mode in ("P", "PA"):
            image.putpalette(palette.tobytes())
            value = palette[eight[..., 0]].transpose(2, 0, 1)
            if draw(st.booleans()): image.info["transparency"] = draw(st.sampled_from([0, 7, bytes(range(256))]))
        elif mode in ("La", "RGBa"):  # numbers that are multiplied by their alpha
            alpha = eight[..., layout - 1 : layout] // 2 + 128
            whole = (eight[..., : layout - 1] * (alpha / 255)).astype(np.uint8)
            image = Image.frombytes(mode, (width, height), np.concatenate([whole, alpha], 2).tobytes())
            value = (np.concatenate([whole] * (5 - layout), 2)[..., :3] * (255 / alpha)).transpose(2, 0, 1)
        elif mode == "LAB": value = np.asarray(image.convert("RGB")).transpose(2, 0, 1)  # through the profile that Pillow has
        elif mode == "CMYK": value = ((255 - eight[..., :3].astype(int)) * (255 - eight[..., 3:].astype(int)) / 255).transpose(2, 0, 1)
        elif mode == "YCbCr":
            y, cb, cr = eight[..., :3].astype(float).transpose(2, 0, 1) - np.array([0, 128, 128])[:, None, None]
            value = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb]).clip(0, 255)
        elif mode == "HSV":
            import colorsys
            flat = [colorsys.hsv_to_rgb(*(pixel / 255)) for pixel in eight[..., :3].reshape(-1, 3)]
            value = np.array(flat).reshape(height, width, 3).transpose(2, 0, 1) * 255
    turn = draw(st.sampled_from([None, 1, 2, 3, 4, 5, 6, 7, 8, 0, 9, 77]))
    if turn is not None:
        image.getexif()[0x0112] = turn
        back = {2: lambda a: a[:, :, ::-1], 3: lambda a: a[:, ::-1, ::-1], 4: lambda a: a[:, ::-1], 5: lambda a: a.transpose(0, 2, 1),
                6: lambda a: a.transpose(0, 2, 1)[:, :, ::-1], 7: lambda a: a[:, ::-1, ::-1].transpose(0, 2, 1),
                8: lambda a: a.transpose(0, 2, 1)[:, ::-1]}
        if value is not None: value = back.get(turn, lambda a: a)(value)
    refuse: tuple[str, ...] = ()
    if not width or not height: refuse = ("pixels", "want at least one")
    if mode == "F": refuse = ("mode F", "want")
    processor = DetrImageProcessor(do_resize=False, do_normalize=False)
    return Case(
        lambda: processor(image, return_tensors="pt").pixel_values[0].numpy() * 255, value, refuse,
        lambda found, wanted: found.shape == wanted.shape and np.allclose(found, wanted, atol=2.01), f"{mode} {width}×{height} turned {turn}",
    )


PROCESSOR_BAD = {
    "size": [0, -1, 1.5, "x", [1, 2, 3], {}, {"shortest_edge": 0}, {"width": 3}, {"height": 3, "width": NAN}, True, NAN, {"edge": 4}, [], {"height": "3", "width": 3}],
    "max_size": [-1, "x", 1.5, NAN, [], True], **{n: ["yes", 2, 0.5, [], "false", NAN] for n in ("do_resize", "do_rescale", "do_normalize", "do_pad", "do_convert_annotations")},
    "rescale_factor": [0, -1, NAN, INF, "1", True, []], "image_mean": ["x", [1, 2], [1, 2, "3"], [1, NAN, 2], {}, True, []],
    "image_std": [0, [1, 0, 1], [1, 2], "x", [1, 2, INF], True], "pad_size": [0, [4, 4, 4], [4, 0], {"height": 3}, {"height": "3", "width": 3}, {"height": 0, "width": 3}, {"height": 1.5, "width": 3}, "x"],
    "format": ["coco", 5, ""], "box_frame": ["padded", 5, ""], "resample": [0, 1, "bilinear", NAN],
}
CALL_BAD = {
    "return_tensors": ["tf", 5, "jax"], "input_data_format": ["hwc", 5, "HWC"], "data_format": ["channels_last", "x", 7], "images": [None, 5, {}, "no such file", [], [None], [5], object],
    "annotations": [5, [5], [{}], {"image_id": 1}, {"image_id": 1, "annotations": 5}, {"image_id": 1, "annotations": [5]}, [], [{"image_id": 1, "annotations": []}] * 2],
}


@st.composite
def processor_cases(draw):
    "A processor with a setting or a call with an argument that cannot be; or good ones: the size of what comes out."
    what = draw(st.sampled_from(["setting", "setting", "call", "good"]))
    image = Image.new("RGB", (draw(st.integers(1, 60)), draw(st.integers(1, 60))), (draw(st.integers(0, 255)), 20, 200))
    if what == "setting":
        name = draw(st.sampled_from(sorted(PROCESSOR_BAD)))
        value = draw(st.sampled_from(PROCESSOR_BAD[name]))
        given = {name: value} | ({"size": 100} if name == "max_size" else {})
        way = draw(st.sampled_from(["made", "called", "read"]))
        def called():
            if way == "made": return DetrImageProcessor(**given)
            if way == "read": return DetrImageProcessor.from_dict(given)
            return DetrImageProcessor()(image, **given)
        return Case(called, None, (name, "want"), about=f"{way} {given}")
    if what == "call":
        name = draw(st.sampled_from(sorted(CALL_BAD)))
        value = draw(st.sampled_from(CALL_BAD[name]))
        given = {"images": image} | {name: value}
        return Case(lambda: DetrImageProcessor()(**given), None, (name.rstrip("s"), "want"), about=f"{name}={value!r}")
    edge, limit = draw(st.integers(1, 80)), draw(st.integers(80, 90))
    small, large = sorted(image.size)
    short = edge if large / small * edge <= limit else limit * small / large
    mean, std = draw(st.floats(0, 1)), draw(st.floats(0.1, 2))
    processor = DetrImageProcessor(size={"shortest_edge": edge, "longest_edge": limit}, image_mean=mean, image_std=std)
    def ratio_and_colour():
        pixels = processor(image, return_tensors="pt").pixel_values[0]
        return min(pixels.shape[1:]), pixels.mean((1, 2)).tolist()
    value = max(1, round(short)), [(c / 255 - mean) / std for c in image.getpixel((0, 0))]
    return Case(
        ratio_and_colour, value, (), lambda a, b: a[0] == b[0] and np.allclose(a[1], b[1], atol=1e-3), f"{image.size} to {edge}, {limit}",
    )


@st.composite
def nested_cases(draw):
    "JSON files that are nested more deeply than anybody reads, or not at all; lists, objects, or a field of a config."
    depth = draw(st.sampled_from([1, 3, 50, 100, 50_000]))
    inner = draw(st.sampled_from(["[", '{"a":']))
    value = inner * depth + "1" + {"[": "]", '{"a":': "}"}[inner] * depth
    reader = draw(st.sampled_from(["config", "kwargs", "processor", "coco", "panoptic"]))
    def read():
        place = folder() / "nested"
        place.mkdir(exist_ok=True)
        if reader in ("config", "kwargs"):
            name = "backbone_kwargs" if reader == "kwargs" else "something_else"
            (place / "config.json").write_text(f'{{"model_type": "detr", "{name}": {value}}}')
            config = DetrConfig.from_pretrained(place)
            config.save_pretrained(place / "again")
            return DetrConfig.from_pretrained(place / "again").to_dict() == config.to_dict()
        if reader == "processor":
            (place / "preprocessor_config.json").write_text(f'{{"size": 8, "something_else": {value}}}')
            processor = DetrImageProcessor.from_pretrained(place)
            processor.save_pretrained(place / "again")
            return DetrImageProcessor.from_pretrained(place / "again").to_dict() == processor.to_dict()
        good = COCO_FILE if reader == "coco" else PANOPTIC_FILE
        path = place / "truth.json"
        path.write_text(json.dumps(good)[:-1] + f', "info": {value}}}')
        return len(CocoDetection(folder(), path)) == 2 if reader == "coco" else len(read_panoptic_file(path)["annotations"]) == 2
    refuse: tuple[str, ...] = ()
    if reader == "kwargs" and inner == "[": refuse = ("backbone_kwargs", "want")
    if depth > 100: refuse = (".json", "nested", "want")
    return Case(read, True, refuse, about=f"{reader} {inner} × {depth}")


KINDS = {
    "coco": json_cases(False), "panoptic": json_cases(True), "masks": mask_cases(), "arrays": array_cases(), "configs": config_cases(),
    "recipes": recipe_cases(), "post-processing": post_cases(), "checkpoints": checkpoint_cases(), "tables": table_cases(),
    "modes": mode_cases(), "processors": processor_cases(), "nesting": nested_cases(),
}
WEIGHTS_OF_KINDS = {"checkpoints": 0.3, "nesting": 0.3}  # they take longer
