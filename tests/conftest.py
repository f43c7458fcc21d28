"What the tests share: weights drawn so that everything matters, models of both libraries with the same weights, the two real images."
import os
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(1)


@torch.no_grad()
def draw_weights(model, seed=0):
    "Matrices N(0, 2 / fan-in), queries N(0, 1); biases, norms and running statistics random: leaving any part out is seen."
    generator = torch.Generator().manual_seed(seed)
    normal = lambda t, std: t.copy_(torch.randn(t.shape, generator=generator) * std)
    uniform = lambda t, low, high: t.copy_(torch.rand(t.shape, generator=generator) * (high - low) + low)
    for name, tensor in sorted(model.state_dict().items()):
        if not tensor.is_floating_point():
            continue
        if "query_position_embeddings" in name:
            normal(tensor, 1.0)
        elif "row_embeddings" in name or "column_embeddings" in name:
            uniform(tensor, 0, 1)
        elif name.endswith("running_var"):
            uniform(tensor, 0.5, 2.0)
        elif name.endswith(("running_mean", "bias")):
            normal(tensor, 0.1)
        elif tensor.dim() == 1:
            uniform(tensor, 0.7, 1.3)
        else:
            normal(tensor, (2 / tensor[0].numel()) ** 0.5)
    return model


SMALL = dict(
    backbone="resnet18", use_pretrained_backbone=False, d_model=64, encoder_layers=2, decoder_layers=3, encoder_attention_heads=4,
    decoder_attention_heads=4, encoder_ffn_dim=96, decoder_ffn_dim=96, num_queries=12, num_labels=7,
)


def hf_model(seed=0, cls="DetrForObjectDetection", **changes):
    "transformers' model with drawn weights, in evaluation mode, float32."
    import transformers
    values = SMALL | changes
    backbone = values.pop("backbone")
    values.pop("use_pretrained_backbone")
    config = transformers.DetrConfig(backbone=backbone, use_timm_backbone=True, use_pretrained_backbone=False, **values)
    config._attn_implementation = "eager"
    return draw_weights(getattr(transformers, cls)(config), seed).eval()


def ours_from(hf, folder, cls=None):
    "Our model with the weights of transformers' one, through the files that it writes."
    from detr_nb import DetrForObjectDetection
    hf.save_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return (cls or DetrForObjectDetection).from_pretrained(folder)


def padded_batch(sizes=((96, 128), (64, 80)), seed=1):
    "Random images of different sizes on one canvas, and their mask."
    generator = torch.Generator().manual_seed(seed)
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    pixels, mask = torch.zeros(len(sizes), 3, height, width), torch.zeros(len(sizes), height, width, dtype=torch.int64)
    for i, (h, w) in enumerate(sizes):
        pixels[i, :, :h, :w] = torch.randn(3, h, w, generator=generator)
        mask[i, :h, :w] = 1
    return pixels, mask


def random_labels(counts=(3, 5), num_labels=7, seed=2):
    "Targets with boxes inside the image."
    generator = torch.Generator().manual_seed(seed)
    boxes = [torch.cat([torch.rand(n, 2, generator=generator) * 0.6 + 0.2, torch.rand(n, 2, generator=generator) * 0.3 + 0.05], 1) for n in counts]
    return [{"class_labels": torch.randint(0, num_labels, (len(b),), generator=generator), "boxes": b} for b in boxes]


def close_to_scale(actual, expected, tolerance, floor=1e-12):
    "Shape and dtype first; then the largest difference against the largest value, or `floor` where all should be 0."
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    assert actual.dtype == expected.dtype, (actual.dtype, expected.dtype)
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * max(float(expected.abs().max()), floor))


@pytest.fixture(scope="session")
def coco_sample():
    "The folder with the two real COCO images."
    folder = os.environ.get("DETR_NB_COCO_SAMPLE")
    if not folder:
        pytest.skip("DETR_NB_COCO_SAMPLE is not set: the two real COCO images are not here")
    return Path(folder)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    "`make floors` has no transformers: there, and only there, a test that imports it is skipped."
    try: return (yield)
    except ModuleNotFoundError as error:
        if os.environ.get("DETR_NB_FLOORS") and error.name == "transformers": pytest.skip("transformers is not installed")
        raise


END = """
import os, sys
import torch.distributed
torch.distributed.barrier()  # whoever ends first would pull the connection from under the other
torch.distributed.destroy_process_group()
sys.stdout.flush()
os._exit(0)  # its work is done; threads of gloo may abort a process that Python takes apart
"""


def run_processes(script: str, folder: Path, *arguments, count: int = 2) -> None:
    "A script on several processes of gloo, which end in order; it fails where one of them does, and shows where each was."
    path = folder / "processes.py"
    path.write_text(textwrap.dedent(script) + END)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}", str(path), *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=400, env=os.environ | {"PYTHONFAULTHANDLER": "1"})
    assert run.returncode == 0, run.stderr[:3000] + "\n…\n" + run.stderr[-2000:]
