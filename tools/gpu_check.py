"""What only a GPU can show, in one run of a few minutes: `python tools/gpu_check.py [--out FOLDER]`. The cases of
`detr-nb bench --device cuda` (float32, bfloat16, compiled, CUDA graphs; one image and eight; boxes, segments, training,
peak memory), how often the device is waited for, double precision, and the tests that want a GPU. `--dry` runs the
same on the CPU with a small network."""

import argparse
import json
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from detr_nb import DetrConfig, DetrForObjectDetection
from detr_nb.bench import ON_GPU, SMALL, Setting, describe_machine, random_labels, run_bench
from detr_nb.files import write_json

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


def watched(setting: Setting) -> list[dict]:
    "How often prediction and a training step ask the device for a number, and whether anything is float64."
    torch.manual_seed(0)
    config = DetrConfig(use_pretrained_backbone=False, num_labels=91, **(SMALL if setting.small else {}))
    model = DetrForObjectDetection(config).to(setting.device)
    image, labels = torch.randn(2, 3, *setting.size, device=setting.device), random_labels(2, 10, setting.device)
    rows = []
    for name, run in {
        "forward": lambda: model.eval()(image),
        "forward with loss": lambda: model.train()(image, labels=labels).loss.backward(),
    }.items():
        with Watch() as watch: run()
        rows.append({"what": "watched", "model": name, **dict(watch.seen)})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("gpu_check"))
    parser.add_argument("--dry", action="store_true", help="on the CPU, with a small network")
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    setting = Setting("cpu", small=True) if arguments.dry else Setting("cuda")
    if not arguments.dry and not torch.cuda.is_available():
        print("no GPU here: --dry runs the same on the CPU", file=sys.stderr)
        return 2
    machine, rows = describe_machine(setting.device), watched(setting)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for row in rows: print(json.dumps(row), flush=True)
    rounds = 2 if arguments.dry else arguments.rounds
    for case in ON_GPU:  # the file grows with every case, in case that time runs out
        rows += run_bench([case], rounds, setting, lambda line: print(line, flush=True))
        write_json({"machine": machine, "rows": rows}, arguments.out / "gpu_check.json", pretty=True)
    if arguments.dry: return 0
    return subprocess.run([sys.executable, "-m", "pytest", "-q", "tests", "-k", "gpu or cuda"]).returncode


if __name__ == "__main__":
    raise SystemExit(main())
