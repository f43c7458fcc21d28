"""What only a GPU can show, in one run of a few minutes: `python tools/gpu_check.py [--out FOLDER]`. Speed against
transformers (float32, bfloat16, compiled, CUDA graphs; one image and eight; boxes and segments), a training step, peak
memory, waiting for the device, double precision. `--dry` runs the same on the CPU with a small network."""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from statistics import median

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from detr_nb import DetrForObjectDetection, DetrForSegmentation, DetrImageProcessor
from detr_nb.files import write_json
from detr_nb.speed import take_turns

warnings.simplefilter("ignore")


class Watch(TorchDispatchMode):
    "Counts tensors of float64, and numbers that Python asked a tensor for: on a GPU each of these waits."

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = str(function)
        if "_local_scalar_dense" in name or "nonzero" in name:
            self.seen[f"waits: {name}"] += 1
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64:
                self.seen[f"float64: {name}"] += 1
        return result


def labels_of(count: int, device: str, masks: tuple[int, int] | None = None) -> list[dict]:
    "Ten objects for each image."
    generator = torch.Generator().manual_seed(0)
    result = []
    for _ in range(count):
        target = {
            "class_labels": torch.randint(0, 91, (10,), generator=generator).to(device),
            "boxes": (torch.rand(10, 4, generator=generator) * 0.4 + 0.2).to(device),
        }
        if masks:
            target["masks"] = (torch.rand(10, *masks, generator=generator) < 0.3).to(device)
        result.append(target)
    return result


def speed(
    settings: dict, device: str, size: tuple[int, int], batches: list[int], rounds: int, graphs: bool
) -> list[dict]:
    "Detection: seconds of every candidate for every batch, taking turns; and the largest difference of a box."
    import transformers

    folder = tempfile.mkdtemp()
    torch.manual_seed(0)
    theirs = transformers.DetrForObjectDetection(transformers.DetrConfig(**settings)).eval()
    theirs.save_pretrained(folder)
    theirs = theirs.to(device)
    theirs_half = transformers.DetrForObjectDetection.from_pretrained(folder, dtype=torch.bfloat16).eval().to(device)
    ours = DetrForObjectDetection.from_pretrained(folder).eval().to(device)
    half = ours.optimize(torch.bfloat16)
    models = {
        "transformers": theirs,
        "transformers bf16": theirs_half,
        "transformers bf16 compiled": torch.compile(theirs_half),
        "as it is": ours,
        "optimize()": ours.optimize(),
        "optimize(bf16)": half,
        "optimize(bf16, compile)": ours.optimize(torch.bfloat16, compile=True),
    }
    if graphs:
        models["optimize(bf16), CUDA graphs"] = torch.compile(half, mode="reduce-overhead")
    rows = []
    for count in batches:
        image = torch.randn(count, 3, *size, device=device)
        mask = torch.ones(count, *size, device=device, dtype=torch.int64)
        inputs = {name: image.bfloat16() if "bf16" in name else image for name in models}
        call = lambda model, x, mask=mask: lambda: model(pixel_values=x, pixel_mask=mask)
        cases = {name: call(model, inputs[name]) for name, model in models.items()}
        with torch.no_grad():
            wanted = cases["transformers"]().pred_boxes
            apart = {name: (case().pred_boxes.float() - wanted).abs().max().item() for name, case in cases.items()}
            seconds = take_turns(cases, rounds, torch.cuda.synchronize if device == "cuda" else lambda: None)
        rows += [
            {
                "what": "detection",
                "model": name,
                "batch": count,
                "seconds": median(own),
                "images a second": count / median(own),
                "boxes differ by": apart[name],
            }
            for name, own in seconds.items()
        ]
    return rows


def panoptic(settings: dict, device: str, size: tuple[int, int], rounds: int) -> list[dict]:
    "From pixels to segments, about twenty queries kept; peak memory of both."
    import transformers

    folder = tempfile.mkdtemp()
    torch.manual_seed(0)
    theirs = transformers.DetrForSegmentation(transformers.DetrConfig(**settings)).eval()
    theirs.save_pretrained(folder)
    theirs, processor = theirs.to(device), DetrImageProcessor()
    ours = DetrForSegmentation.from_pretrained(folder).eval().to(device).optimize()
    their_processor = transformers.DetrImageProcessor()
    image = torch.randn(1, 3, *size, device=device)
    with torch.no_grad():
        best = ours(image).logits.float().softmax(-1)[0, :, :-1].amax(-1).sort(descending=True).values
    threshold = float(best[20] if len(best) > 20 else best[-1])

    def of_ours():
        outputs = ours.predict(image, threshold=threshold)
        return processor.post_process_panoptic_segmentation(outputs, threshold, target_sizes=[size])

    def of_theirs():
        with torch.no_grad():
            outputs = theirs(pixel_values=image)
        return their_processor.post_process_panoptic_segmentation(outputs, threshold, target_sizes=[size])

    rows = []
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    for name, own in take_turns({"transformers": of_theirs, "ours": of_ours}, rounds, synchronize).items():
        row = {
            "what": "panoptic",
            "model": name,
            "batch": 1,
            "seconds": median(own),
            "images a second": 1 / median(own),
        }
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            (of_ours if name == "ours" else of_theirs)()
            row["peak GB"] = torch.cuda.max_memory_allocated() / 1e9
        rows.append(row)
    return rows


def training(settings: dict, device: str, size: tuple[int, int], count: int, steps: int) -> list[dict]:
    "Steps of AdamW in float32 and under bfloat16 autocast; the loss has to be a number."
    rows = []
    for dtype in (None, torch.bfloat16):
        from detr_nb import DetrConfig

        torch.manual_seed(0)
        model = DetrForObjectDetection(DetrConfig(**settings)).train().to(device)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-4)
        image, labels = torch.randn(count, 3, *size, device=device), labels_of(count, device)
        seconds = []
        for _ in range(steps + 1):
            start = time.perf_counter()
            with torch.autocast(device, dtype or torch.bfloat16, enabled=dtype is not None):
                loss = model(image, labels=labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
            if not loss.isfinite():
                raise SystemExit("the loss is not finite")
        name = "float32" if dtype is None else "bf16 autocast"
        rows.append(
            {
                "what": "training step",
                "model": name,
                "batch": count,
                "seconds": median(seconds[1:]),
                "loss": loss.item(),
            }
        )
    return rows


def watched(settings: dict, device: str, size: tuple[int, int]) -> list[dict]:
    "How often prediction and a training step ask the device for a number, and whether anything is float64."
    from detr_nb import DetrConfig

    model = DetrForObjectDetection(DetrConfig(**settings)).to(device)
    image, labels = torch.randn(2, 3, *size, device=device), labels_of(2, device)
    rows = []
    for name, run in {
        "forward": lambda: model.eval()(image),
        "forward with loss": lambda: model.train()(image, labels=labels).loss.backward(),
    }.items():
        with Watch() as watch:
            run()
        rows.append({"what": "watched", "model": name, **dict(watch.seen)})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("gpu_check"))
    parser.add_argument("--dry", action="store_true", help="on the CPU, with a small network")
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    device = "cpu" if arguments.dry else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        print("no GPU here: --dry runs the same on the CPU", file=sys.stderr)
        return 2
    settings = dict(use_pretrained_backbone=False, num_labels=91)
    if arguments.dry:
        settings |= dict(
            backbone="resnet18", d_model=64, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=64, decoder_ffn_dim=64
        )
    size, batches, rounds = ((96, 128), [1, 2], 2) if arguments.dry else ((800, 1066), [1, 8], arguments.rounds)
    machine = torch.cuda.get_device_name() if device == "cuda" else "CPU (dry run)"
    rows = []
    for part in (
        lambda: watched(settings, device, size),
        lambda: speed(settings, device, size, batches, rounds, device == "cuda"),
        lambda: panoptic(settings | {"num_labels": 201}, device, size, rounds),
        lambda: training(settings, device, size, batches[-1], 2 if arguments.dry else 8),
    ):
        found = part()
        rows += found
        for row in found:
            print(json.dumps(row), flush=True)
        arguments.out.mkdir(parents=True, exist_ok=True)
        write_json(
            {"machine": machine, "torch": torch.__version__, "rows": rows},
            arguments.out / "gpu_check.json",
            pretty=True,
        )
    if device == "cuda":
        return subprocess.run([sys.executable, "-m", "pytest", "-q", "tests", "-k", "gpu or cuda"]).returncode
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
