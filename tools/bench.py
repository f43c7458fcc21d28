"""Ratios against transformers, each pair measured in one run: `python tools/bench.py [loss]
[import] [scenes] [masks] [merge]`."""
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
    "Matching and loss, forward and backward: 8 images, 100 queries, 6 layers."
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
    labels = [
        {
            "class_labels": torch.randint(0, 91, (n,), generator=generator),
            "boxes": torch.rand(n, 4, generator=generator) * 0.4 + 0.2,
        }
        for n in counts
    ]
    parts = ["labels", "boxes", "cardinality"]
    mine, theirs = (
        DetrLoss(HungarianMatcher(1, 5, 2), 91, 0.1, parts), ImageLoss(TheirMatcher(1, 5, 2), 91, 0.1, parts),
    )

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
        return min(
            float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
            for _ in range(3)
        )

    alone = seconds("import detr_nb")
    names = "DetrForObjectDetection, DetrImageProcessor"
    ours, theirs = seconds(f"from detr_nb import {names}"), seconds(f"from transformers import {names}")
    print(
        f"import detr_nb: {alone:.3f} s beyond torch; with {names}: {ours:.2f} s against {theirs:.2f} s of "
        f"transformers ({ours / theirs:.0%})"
    )


def scenes():
    "Drawing, and drawing with everything that is written."
    import tempfile

    from detr_nb.scenes import draw_scene, make_scenes
    drawn = best(lambda: [draw_scene(0, i) for i in range(100)], 3) * 10
    written = best(lambda: make_scenes(tempfile.mkdtemp() + "/scenes", train=100), 3) * 10
    print(f"scenes: {drawn:.1f} ms an image to draw, {written:.1f} ms to draw and write, on one core")


def masks():
    "Mask head of a ResNet-50, 100 queries, 480 × 640 pixels: attention maps, pyramid, masks."
    import tempfile

    import torch
    import transformers

    from detr_nb import DetrForSegmentation
    from detr_nb.detector import image_tokens, transform
    from detr_nb.mask_head import draw_masks
    config = transformers.DetrConfig(
        use_pretrained_backbone=False, num_labels=250, encoder_layers=1, decoder_layers=1
    )
    theirs = transformers.DetrForSegmentation(config).eval()
    folder = tempfile.mkdtemp()
    theirs.save_pretrained(folder)
    ours = DetrForSegmentation.from_pretrained(folder)
    pixels, mask = torch.randn(1, 3, 480, 640), torch.ones(1, 480, 640)
    with torch.inference_mode():
        features, tokens = image_tokens(ours.detr.model, pixels, mask)
        hidden = transform(ours.detr.model, tokens)
        memory, states = hidden.encoder_last_hidden_state, hidden.last_hidden_state
        grid = lambda x: x.transpose(1, 2).unflatten(2, features[-1][0].shape[-2:])
        pyramid = [f for f, _ in features[-2:-5:-1]]
        sure = states[:, :20]

        def run():
            return draw_masks(ours, features, tokens, memory, states)[0]

        def run_theirs():
            maps = theirs.bbox_attention(states, grid(memory), attention_mask=None)
            return theirs.mask_head(features=grid(tokens.features), attention_masks=maps, fpn_features=pyramid)[:, 0]

        a, b, few = (
            best(run, 3), best(run_theirs, 3), best(lambda: draw_masks(ours, features, tokens, memory, sure), 3),
        )
        wanted = run_theirs()
        error = float((run() - wanted).abs().max() / wanted.abs().max())
    print(
        f"mask head, 100 queries: {a:.2f} s against {b:.2f} s of transformers: {b / a:.1f} times faster; masks equal "
        f"to {error:.0e} of their scale"
    )
    print(f"masks of 20 kept queries: {few:.2f} s: {b / few:.1f} times faster")


def merge():
    "Post-processing of 100 queries of which 20 are kept, to 480 × 640 pixels."
    from types import SimpleNamespace

    import torch
    import transformers

    from detr_nb import DetrImageProcessor
    generator = torch.Generator().manual_seed(0)
    logits = torch.zeros(1, 100, 251)
    logits[0, :, -1] = 8
    logits[0, :20, -1], logits[0, range(20), torch.randint(0, 250, (20,), generator=generator)] = 0, 8
    blobs = torch.nn.functional.interpolate(
        torch.randn(1, 100, 6, 8, generator=generator) * 6, (120, 160), mode="bicubic"
    )
    outputs = SimpleNamespace(logits=logits, pred_masks=blobs, pred_boxes=torch.rand(1, 100, 4))
    mine, theirs = DetrImageProcessor(), transformers.DetrImageProcessor()
    sizes, fuse = [(480, 640)], set(range(91, 250))
    panoptic = lambda p, **more: p.post_process_panoptic_segmentation(
        outputs, label_ids_to_fuse=fuse, target_sizes=sizes, **more
    )
    semantic = lambda p: p.post_process_semantic_segmentation(outputs, sizes)[0]
    a, b = best(lambda: panoptic(mine)), best(lambda: panoptic(theirs))
    same = torch.equal(panoptic(mine, compat="transformers")[0]["segmentation"], panoptic(theirs)[0]["segmentation"])
    print(
        f"panoptic post-processing: {a * 1e3:.0f} ms against {b * 1e3:.0f} ms of transformers: {b / a:.1f} times "
        f"faster; same map under compat: {same}"
    )
    a, b = best(lambda: semantic(mine), 3), best(lambda: semantic(theirs), 3)
    same = torch.equal(semantic(mine), semantic(theirs))
    print(
        f"semantic post-processing: {a * 1e3:.0f} ms against {b * 1e3:.0f} ms of transformers: {b / a:.1f} times "
        f"faster; same map: {same}"
    )


if __name__ == "__main__":
    benchmarks = {"loss": loss, "import": imports, "scenes": scenes, "masks": masks, "merge": merge}
    for name in sys.argv[1:] or benchmarks:
        benchmarks[name]()
