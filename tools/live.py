"""What the website's live figures show: the training record of the embedded model, as one script for browsers."""
import base64
import io
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.optimize import linear_sum_assignment

from detr_nb import DetrImageProcessor, SceneDetection
from detr_nb.data import detection_target
from detr_nb.explore import read_record
from detr_nb.matcher import matching_cost
from detr_nb.visualization import class_colour

SCENES = 0, 3, 7, 12  # of the sixteen that were recorded


def packed(values: np.ndarray) -> str:
    "Bytes as text."
    return base64.b64encode(np.ascontiguousarray(values, np.uint8).tobytes()).decode()


def as_png(image: np.ndarray) -> str:
    "An image that a page can hold."
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def hexadecimal(label: int) -> str:
    "The colour that a class has in all figures."
    return "#" + "".join(f"{round(255 * float(part)):02x}" for part in class_colour(label)[:3])


def live_data() -> dict:
    "Moments of the training: what each query answered on some scenes, where it looked, what it cost for each object."
    record, processor = read_record(), DetrImageProcessor.from_pretrained("scenes")
    names = record.config.id2label
    dataset, scenes = SceneDetection(16, seed=4, split="val"), []
    classes = record.probabilities.shape[-1] - 1
    for i in SCENES:
        image, annotation = dataset[i]
        target = processor.encode(image, detection_target(annotation, 128, 128))[1]
        boxes = torch.as_tensor(record.boxes[:, i]).float()  # (M, 25, 4)
        probabilities = torch.as_tensor(record.probabilities[:, i]).float().clamp(min=1 / 512)
        costs = [
            matching_cost(p.log(), b, target["class_labels"], target["boxes"].float())
            for p, b in zip(probabilities, boxes)
        ]
        pairs = [linear_sum_assignment(cost.T)[1].tolist() for cost in costs]
        attention = record.attention[:, i] / record.attention[:, i].max((-1, -2), keepdims=True)  # (M, 25, 16, 16)
        scenes.append({
            "number": i, "image": as_png(np.asarray(image)),
            "targets": [
                {"label": int(label), "box": [round(v, 4) for v in box.tolist()]}
                for label, box in zip(target["class_labels"], target["boxes"])
            ],
            "boxes": [[[round(v, 3) for v in box] for box in moment] for moment in boxes.tolist()],
            "probabilities": packed(np.round(255 * record.probabilities[:, i])),
            "attention": packed(np.round(255 * attention)),
            "costs": [[[round(v, 2) for v in row] for row in cost.tolist()] for cost in costs],
            "pairs": pairs,  # of each moment: the query of each target
        })
    return {
        "steps": [int(step) for step in record.step], "queries": record.boxes.shape[2],
        "grid": record.attention.shape[-1],
        "names": {**{str(k): str(names[k]) for k in range(classes) if k in names}, str(classes): "nothing"},
        "colours": {str(k): hexadecimal(k) for k in range(classes)}, "classes": classes + 1, "scenes": scenes,
    }


def write_live_data(path: Path) -> None:
    "A script that sets one name: pages read it from a disk as well as from a server."
    path.write_text(f"window.DETR_LIVE = {json.dumps(live_data(), separators=(',', ':'))};\n", encoding="utf-8")


if __name__ == "__main__":
    print({k: (v if len(str(v)) < 200 else "…") for k, v in live_data().items()})
