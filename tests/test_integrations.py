"""What people do around a model with other libraries, as transformers' example scripts for object detection do it: Trainer
and a loop of one's own, albumentations before the processor, torchmetrics behind it; only the imports are ours."""
import sys
from functools import partial

import numpy as np
import pytest
import torch

from detr_nb import DetrForObjectDetection, DetrForSegmentation, DetrImageProcessor, SceneDetection, evaluate

LABELS = {0: "N/A"} | SceneDetection.id2label


class Rows(torch.utils.data.Dataset):
    "Scenes as a hub dataset has them: an image and its objects; items go through `transform`."
    def __init__(self, count, transform):
        self.scenes, self.transform = SceneDetection(count, seed=6), transform

    def __len__(self):
        return len(self.scenes)

    def __getitem__(self, index):
        image, target = self.scenes[index]
        objects = target["annotations"]
        row = {
            "image_id": target["image_id"], "image": image,
            "objects": {
                "bbox": [a["bbox"] for a in objects], "category": [a["category_id"] for a in objects],
                "area": [a["area"] for a in objects],
            },
        }
        return self.transform({key: [value] for key, value in row.items()})


def transform_batch(examples, augment, processor):
    "Augment with albumentations, then let the processor encode images and annotations."
    images, annotations = [], []
    for image_id, image, objects in zip(examples["image_id"], examples["image"], examples["objects"]):
        out = augment(image=np.array(image), bboxes=objects["bbox"], category=objects["category"])
        images.append(out["image"])
        annotations.append({
            "image_id": image_id,
            "annotations": [
                {"image_id": image_id, "category_id": category, "iscrowd": 0, "area": box[2] * box[3], "bbox": list(box)}
                for category, box in zip(out["category"], out["bboxes"])
            ],
        })
    found = processor(images=images, annotations=annotations, return_tensors="pt")
    return {"pixel_values": found["pixel_values"][0], "pixel_mask": found["pixel_mask"][0], "labels": found["labels"][0]}


def collate(batch):
    return {
        "pixel_values": torch.stack([x["pixel_values"] for x in batch]),
        "pixel_mask": torch.stack([x["pixel_mask"] for x in batch]), "labels": [x["labels"] for x in batch],
    }


def corners_in_pixels(boxes, size):
    "Centre and size as shares of the image → corners in pixels."
    (cx, cy, w, h), (height, width) = boxes.unbind(-1), size
    return torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], -1) * torch.tensor([width, height, width, height])


@torch.no_grad()
def compute_metrics(results, processor):
    "torchmetrics' mean average precision of what Trainer's evaluation collected batch by batch."
    from torchmetrics.detection.mean_ap import MeanAveragePrecision
    from transformers.modeling_outputs import ModelOutput
    metric = MeanAveragePrecision(box_format="xyxy")
    for predictions, targets in zip(results.predictions, results.label_ids):
        sizes = torch.tensor(np.array([target["orig_size"] for target in targets]))
        outputs = ModelOutput(logits=torch.tensor(predictions[1]), pred_boxes=torch.tensor(predictions[2]))
        found = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=sizes)
        wanted = [
            {
                "boxes": corners_in_pixels(torch.tensor(target["boxes"]), target["orig_size"]),
                "labels": torch.tensor(target["class_labels"]),
            } for target in targets
        ]
        metric.update(found, wanted)
    return {"map": metric.compute()["map"].item()}


@pytest.fixture
def rows():
    albumentations = pytest.importorskip("albumentations")
    boxes = albumentations.BboxParams(format="coco", label_fields=["category"], clip=True, min_area=1)
    processor = DetrImageProcessor.from_pretrained("scenes")
    augment = albumentations.Compose([albumentations.HorizontalFlip(p=0.5)], bbox_params=boxes, seed=0)
    plain = albumentations.Compose([albumentations.NoOp()], bbox_params=boxes)
    return processor, *(
        Rows(count, partial(transform_batch, augment=how, processor=processor)) for count, how in ((12, augment), (8, plain))
    )


def fresh():
    return DetrForObjectDetection.from_pretrained("scenes", id2label=LABELS, ignore_mismatched_sizes=True)


def test_torchmetrics_agrees_with_coco(rows):
    "An oracle for the whole way: the same predictions, judged by torchmetrics and by our evaluator."
    processor, _, val = rows
    model = fresh()
    with torch.inference_mode():
        outputs = [model(**{k: v[None] for k, v in val[i].items() if k != "labels"}) for i in range(8)]
    results = type("Results", (), {
        "predictions": [(None, o.logits.numpy(), o.pred_boxes.numpy()) for o in outputs],
        "label_ids": [[{k: np.asarray(v) for k, v in val[i]["labels"].items()}] for i in range(8)],
    })
    found = compute_metrics(results, processor)["map"]
    assert found > 0.5
    assert found == pytest.approx(evaluate(model, val.scenes, processor, progress=False)["all"]["AP"], abs=0.005)


@pytest.mark.slow
def test_the_trainer_pattern_saves_reopens_and_resumes(rows, tmp_path):
    import transformers

    from detr_nb.integrations import Trainer
    processor, train, val = rows

    def trainer(model, out):
        return Trainer(
            model=model, train_dataset=train, eval_dataset=val, processing_class=processor, data_collator=collate,
            compute_metrics=partial(compute_metrics, processor=processor),
            args=transformers.TrainingArguments(
                str(tmp_path / out), num_train_epochs=2, per_device_train_batch_size=4, per_device_eval_batch_size=4,
                learning_rate=1e-5, remove_unused_columns=False, eval_do_concat_batches=False, report_to=[], use_cpu=True,
                eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True, metric_for_best_model="eval_map",
                greater_is_better=True, disable_tqdm=True, seed=0,
            ),
        )

    first = trainer(fresh(), "run")
    assert isinstance(first, transformers.Trainer)
    first.train()
    numbers = first.evaluate()
    assert numbers["eval_map"] > 0.5
    first.save_model()
    checkpoint = tmp_path / "run" / "checkpoint-3"
    for folder in (checkpoint, tmp_path / "run"):
        model, read = DetrForObjectDetection.from_pretrained(folder), DetrImageProcessor.from_pretrained(folder)
        assert model.config.id2label == LABELS and read.to_dict() == processor.to_dict()
    best = first.model.state_dict()
    assert all(torch.equal(best[name], value) for name, value in model.state_dict().items())
    again = trainer(DetrForObjectDetection.from_pretrained(checkpoint).train(), "run")
    again.train(resume_from_checkpoint=str(checkpoint))
    assert again.state.global_step == 6 and [x["step"] for x in again.state.log_history if "eval_map" in x] == [3, 6]


@pytest.mark.slow
def test_the_pattern_without_a_trainer(rows, tmp_path):
    from accelerate import Accelerator
    from torch.utils.data import DataLoader
    from torchmetrics.detection.mean_ap import MeanAveragePrecision
    processor, train, val = rows
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = fresh()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    model, optimizer, loader, val_loader = accelerator.prepare(
        model, optimizer, DataLoader(train, 4, collate_fn=collate), DataLoader(val, 4, collate_fn=collate)
    )
    model.train()
    for batch in loader:
        with accelerator.accumulate(model):
            loss = model(**batch).loss
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
    assert loss.isfinite()
    accelerator.save_state(str(tmp_path / "step_3"))
    metric = MeanAveragePrecision(box_format="xyxy")
    model.eval()
    for batch in val_loader:
        with torch.no_grad(): outputs = model(**batch)
        sizes = torch.stack([label["orig_size"] for label in batch["labels"]])
        found = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=sizes)
        found, labels = accelerator.gather_for_metrics((found, batch["labels"]))
        metric.update(found, [
            {"boxes": corners_in_pixels(label["boxes"], label["orig_size"].tolist()), "labels": label["class_labels"]}
            for label in labels
        ])
    assert metric.compute()["map"] > 0.5
    accelerator.unwrap_model(model).save_pretrained(
        tmp_path / "out", is_main_process=accelerator.is_main_process, save_function=accelerator.save
    )
    processor.save_pretrained(tmp_path / "out")
    saved = {k: v.clone() for k, v in accelerator.unwrap_model(model).state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters(): parameter.zero_()
    accelerator.load_state(str(tmp_path / "step_3"))
    reopened = DetrForObjectDetection.from_pretrained(tmp_path / "out")
    for state in (accelerator.unwrap_model(model).state_dict(), reopened.state_dict()):
        assert all(torch.equal(state[name], value) for name, value in saved.items())


@pytest.mark.slow
def test_gradient_checkpointing_under_trainer(rows, tmp_path):
    "Trainer switches it on by a method; the weights after three steps are the same, to rounding."
    import transformers
    _, train, _ = rows
    weights, batches = [], [train[i] for i in range(8)]
    for on in (False, True):
        model = fresh()
        arguments = transformers.TrainingArguments(
            str(tmp_path / str(on)), max_steps=2, per_device_train_batch_size=4, remove_unused_columns=False, report_to=[],
            use_cpu=True, save_strategy="no", gradient_checkpointing=on, disable_tqdm=True, seed=0,
        )
        transformers.Trainer(model=model, args=arguments, train_dataset=batches, data_collator=collate).train()
        assert model.model.encoder.gradient_checkpointing is on and model.model.decoder.gradient_checkpointing is on
        weights.append(model.state_dict())
    for name, value in weights[0].items(): torch.testing.assert_close(weights[1][name], value, atol=1e-5, rtol=1e-4)
    model.gradient_checkpointing_disable()
    assert not model.model.encoder.gradient_checkpointing


def test_trainer_without_transformers(monkeypatch):
    import detr_nb.integrations as integrations
    integrations._make_trainer.cache_clear()
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match="pip install transformers"): _ = integrations.Trainer
    integrations._make_trainer.cache_clear()
    with pytest.raises(AttributeError, match="it has Trainer"): _ = integrations.Treiner


def test_a_trainer_that_is_not_main_writes_nothing(tmp_path):
    "`should_save` is False on every process but one."
    import transformers

    from detr_nb.integrations import Trainer
    model = fresh()
    trainer = Trainer(model=model, args=transformers.TrainingArguments(str(tmp_path / "out"), use_cpu=True, report_to=[]))
    trainer.args.__class__ = type("Other", (type(trainer.args),), {"should_save": property(lambda self: False)})
    trainer._save(str(tmp_path / "out"))
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("cls", [DetrForObjectDetection, DetrForSegmentation])
@pytest.mark.parametrize("invariant", [True, False])
def test_an_exported_graph_holds_for_every_size(cls, invariant):
    "Written down for two images of 131 × 157; batch, height and width are free, padding may be anywhere."
    torch.manual_seed(0)
    model, free = cls.from_pretrained("scenes", batch_invariant=invariant).eval(), torch.export.Dim.AUTO
    example = torch.randn(2, 3, 131, 157), torch.ones(2, 131, 157, dtype=torch.long)
    shapes = {0: free, 2: free, 3: free}, {0: free, 1: free, 2: free}
    program = torch.export.export(model, example, dynamic_shapes=shapes).module()
    for batch, height, width in ((1, 96, 96), (3, 128, 64), (5, 111, 77), (1, 32, 300)):
        pixels, mask = torch.randn(batch, 3, height, width), torch.ones(batch, height, width, dtype=torch.long)
        mask[0, 60:], mask[-1, :, 50:] = 0, 0
        with torch.no_grad(): wanted, found = model(pixels, mask), program(pixels, mask)
        assert type(found) is type(wanted) and found.keys() == wanted.keys()
        for key, value in wanted.items():
            assert found[key].shape == value.shape
            torch.testing.assert_close(found[key], value, atol=1e-3, rtol=1e-4)
