"Ratios against transformers, each pair measured in one run: `python tools/bench.py [loss] [import] [scenes]`."
import subprocess
import sys
import time
import warnings

warnings.simplefilter("ignore")


def best(f, repeats=7):
    f()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        f()
        times.append(time.perf_counter() - start)
    return min(times)


def loss():
    "Matching and loss, forward and backward: 8 pictures, 100 queries, 6 layers."
    import torch
    from transformers.loss.loss_for_object_detection import HungarianMatcher as TheirMatcher
    from transformers.loss.loss_for_object_detection import ImageLoss

    from detr_nb import DetrLoss, HungarianMatcher
    generator = torch.Generator().manual_seed(0)
    layers = [
        {
            "logits": torch.randn(8, 100, 92, generator=generator, requires_grad=True),
            "pred_boxes": (torch.rand(8, 100, 4, generator=generator) * 0.5 + 0.1).requires_grad_(),
        }
        for _ in range(6)
    ]
    outputs = layers[-1] | {"auxiliary_outputs": layers[:-1]}
    counts = (3, 7, 12, 1, 20, 5, 9, 7)
    labels = [{"class_labels": torch.randint(0, 91, (n,), generator=generator), "boxes": torch.rand(n, 4, generator=generator) * 0.4 + 0.2} for n in counts]
    parts = ["labels", "boxes", "cardinality"]
    mine, theirs = DetrLoss(HungarianMatcher(1, 5, 2), 91, 0.1, parts), ImageLoss(TheirMatcher(1, 5, 2), 91, 0.1, parts)

    def run(criterion):
        result = criterion(outputs, labels)
        total = sum(v for k, v in result.items() if "cardinality" not in k)
        total.backward()
        return total.item()

    a, b = best(lambda: run(mine)), best(lambda: run(theirs))
    difference = abs(run(mine) / run(theirs) - 1)
    times = f"{a * 1e3:.1f} ms against {b * 1e3:.1f} ms of transformers: {b / a:.2f} times faster"
    print(f"loss + matching, forward and backward: {times}; same loss to {difference:.0e}")


def imports():
    "Time that an import takes beyond `import torch`."
    def seconds(statement):
        code = f"import torch, time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
        return min(float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) for _ in range(3))

    alone = seconds("import detr_nb")
    names = "DetrForObjectDetection, DetrImageProcessor"
    ours, theirs = seconds(f"from detr_nb import {names}"), seconds(f"from transformers import {names}")
    print(f"import detr_nb: {alone:.3f} s beyond torch; with {names}: {ours:.2f} s against {theirs:.2f} s of transformers ({ours / theirs:.0%})")


def scenes():
    "Drawing, and drawing with everything that is written."
    import tempfile

    from detr_nb.scenes import draw_scene, make_scenes
    drawn = best(lambda: [draw_scene(0, i) for i in range(100)], 3) * 10
    written = best(lambda: make_scenes(tempfile.mkdtemp() + "/scenes", train=100), 3) * 10
    print(f"scenes: {drawn:.1f} ms a picture to draw, {written:.1f} ms to draw and write, on one core")


if __name__ == "__main__":
    for name in sys.argv[1:] or ["loss", "import", "scenes"]:
        {"loss": loss, "import": imports, "scenes": scenes}[name]()
