"""Are the tests awake? `python tools/mutations.py [words]` puts one fault after another into a copy
of the library and runs the test that must see it. Exit code 1 if one survives, 2 if a row of the
table is out of date."""
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
TESTS = ROOT / "tests" / "test_quiet_faults.py"
FAULTS = [  # what is wrong, module, test that must fail, text that stands there once, and what stands there instead
    (
        "query groups see each other", "training", "groups_of_queries_are_detectors_side_by_side",
        "own_group if self.groups > 1 else None", "None",
    ),
    (
        "groups and images change places", "training", "groups_of_queries_are_detectors_side_by_side",
        "states.transpose(1, 2).flatten(1, 2)", "states.flatten(1, 2)",
    ),
    (
        "every earlier layer is the first", "detector", "every_earlier_layer_predicts_from_its_own_states",
        "torch.cat([earlier[:-1], last])", "torch.cat([earlier[:1].expand_as(earlier[:-1]), last])",
    ),
    (
        "the step never comes", "training", "rates_of_the_paper",
        "return 0.1 if step >= steps * recipe.drop else 1.0", "return 1.0",
    ),
    (
        "the step comes a step late", "training", "rates_of_the_paper", "step >= steps * recipe.drop",
        "step > steps * recipe.drop",
    ),
    (
        "the backbone has everyone else's rate, and they its", "training", "rates_of_the_paper",
        '{"params": rest, "lr": recipe.lr}, {"params": backbone, "lr": recipe.backbone_lr}',
        '{"params": rest, "lr": recipe.backbone_lr}, {"params": backbone, "lr": recipe.lr}',
    ),
    (
        "the backbone has no rate of its own", "training", "rates_of_the_paper", '"lr": recipe.backbone_lr',
        '"lr": recipe.lr',
    ),
    (
        "warming up begins at a rate of 0", "training", "cosine_after_warming_up", "return (step + 1) / warmup",
        "return step / warmup",
    ),
    (
        "warming up takes a step too many", "training", "cosine_after_warming_up", "step < warmup: return",
        "step <= warmup: return",
    ),
    (
        "the cosine ends half-way", "training", "cosine_after_warming_up", "math.cos(math.pi * step / steps)",
        "math.cos(math.pi * step / steps / 2)",
    ),
    ("weights do not decay", "training", "weights_decay", "weight_decay=recipe.weight_decay,", "weight_decay=0.0,"),
    (
        "the backbone's gradient is not clipped", "training", "gradient_of_all_weights_is_clipped_together",
        "clip_grad_norm_(model.parameters(), state.recipe.clip)",
        "clip_grad_norm_(optimizer.param_groups[0]['params'], state.recipe.clip)",
    ),
    ("gradients of all steps add up", "training", "steps_do_not_share_a_gradient",
     "    optimizer.zero_grad()\n    for number, part", "    for number, part"),
    (
        "the average is one step behind",
        "training",
        "average_follows_the_new_weights",
        "    optimizer.step()\n    if state.average is not None:\n        "
        "state.average.update_parameters(state.detector)\n",
        "    if state.average is not None:\n        state.average.update_parameters(state.detector)\n    "
        "optimizer.step()\n",
    ),
    (
        "a row of the log says what the last step was", "training", "numbers_of_a_row_are_means",
        "self.sums[name] = self.sums.get(name, 0.0) + float(value)", "self.sums[name] = self.count * float(value)",
    ),
    (
        "no dropout while training", "training", "training_trains_and_stops_where_the_recipe_says",
        "state.learner.train()", "state.learner.eval()",
    ),
    (
        "the recipe's stop is passed over", "training", "training_trains_and_stops_where_the_recipe_says",
        "min(steps, stop_after or steps, recipe.stop or steps)", "min(steps, stop_after or steps)",
    ),
    (
        "the last step before the stop is not saved", "training", "training_trains_and_stops_where_the_recipe_says",
        "or state.step % 500 == 0 or state.step == last:", "or state.step % 500 == 0:",
    ),
    (
        "the last images of an epoch are left out", "training", "an_epoch_is_a_whole_one",
        "math.ceil(recipe.epochs * images / recipe.batch_size)",
        "math.floor(recipe.epochs * images / recipe.batch_size)",
    ),
    (
        "processes take the same images", "runs", "two_processes_share_what_one_would_take",
        "(step * self.world + self.rank) * self.batch_size", "step * self.world * self.batch_size + self.rank",
    ),
    (
        "every pass has the order of the first", "runs", "every_pass_has_an_order_of_its_own",
        "shuffled(self.length, self.seed + turn), self.batch", "shuffled(self.length, self.seed), self.batch",
    ),
    (
        "the order does not depend on the seed", "runs", "every_pass_has_an_order_of_its_own",
        "shuffled(self.length, self.seed + turn), self.batch", "shuffled(self.length, turn), self.batch",
    ),
    (
        "the processor's longest edge is not asked", "training", "augmented_images_have_the_sizes_of_their_processor",
        'size.get("longest_edge", 1333)', "1333",
    ),
    (
        "the average is never young", "training", "young_average_forgets",
        "(1 + int(count)) / (10 + int(count))", "1.0",
    ),
    (
        "the processor's shortest edge is not asked", "training", "augmented_images_have_the_sizes_of_their_processor",
        'size.get("shortest_edge", 800)', "800",
    ),
    (
        "augmented images are resized again", "training", "augmented_images_have_the_sizes_of_their_processor",
        "processor.do_resize and recipe.augment is not True", "processor.do_resize",
    ),
    (
        "augmentation does not depend on the seed", "training", "augmentation_depends_on_the_seed",
        "random.Random(self.recipe.seed * 1_000_003 + number)", "random.Random(number)",
    ),
    (
        "crowds are learned", "training", "crowds_of_segments_are_left_out",
        "target = drop_crowds(", "target = (",
    ),
    (
        "flip leaves masks as they are", "transforms", "flip_turns_image_boxes_and_masks",
        'target["masks"].flip(axis)', 'target["masks"]',
    ),
    (
        "a flipped box ends before it begins", "transforms", "flip_turns_image_boxes_and_masks",
        "[:, [high, low]]", "[:, [low, high]]",
    ),
    (
        "boxes are flipped by the height", "transforms", "flip_turns_image_boxes_and_masks",
        "if upside_down else (-1, 0, 2)", "if upside_down else (-2, 0, 2)",
    ),
    (
        "masks are cropped with rows for columns", "transforms", "crop_cuts_rows_as_rows",
        'target["masks"][keep, top : top + height, left : left + width]',
        'target["masks"][keep, left : left + width, top : top + height]',
    ),
    (
        "a cut object keeps its area", "transforms", "crop_cuts_rows_as_rows",
        "(boxes[:, 2:] - boxes[:, :2]).prod(1)[keep]", 'target["area"][keep]',
    ),
    (
        "areas are not resized", "transforms", "resize_scales_each_axis_by_its_own_ratio",
        'target["area"] * (ratio_x * ratio_y)', 'target["area"]',
    ),
    (
        "each axis is resized by the other's ratio", "transforms", "resize_scales_each_axis_by_its_own_ratio",
        "torch.tensor([ratio_x, ratio_y, ratio_x, ratio_y])", "torch.tensor([ratio_y, ratio_x, ratio_y, ratio_x])",
    ),
    (
        "masks are resized by corners of pixels", "transforms", "masks_are_resized_by_the_centres_of_pixels",
        'mode="nearest-exact"', 'mode="nearest"',
    ),
    (
        "the largest size never comes", "transforms", "augmentation_takes_the_originals_sizes", "range(480, 801, 32)",
        "range(480, 800, 32)",
    ),
    (
        "nothing is flipped", "transforms", "augmentation_flips_and_crops_every_other_image",
        "    if rng.random() < 0.5:\n        image, target = flip",
        "    if rng.random() < 0:\n        image, target = flip",
    ),
    (
        "nothing is cropped", "transforms", "augmentation_flips_and_crops_every_other_image",
        "    if rng.random() < 0.5:\n        image, target = scale",
        "    if rng.random() < 0:\n        image, target = scale",
    ),
    (
        "crops may be of one pixel", "transforms", "crops_lie_anywhere_and_are_not_small",
        "rng.randint(min(share(384), n), min(share(600), n))", "rng.randint(1, min(share(600), n))",
    ),
    (
        "all crops begin at the top", "transforms", "crops_lie_anywhere_and_are_not_small",
        "rng.randint(0, image.shape[1] - height)", "0",
    ),
    (
        "no longest edge",
        "transforms",
        "augmentation_keeps_the_longest_edge",
        "share(rng.choice(range(480, 801, 32))), longest)",
        "share(rng.choice(range(480, 801, 32))), None)",
    ),
    (
        "a box's area stands for the object's", "data", "area_of_an_annotation_is_its_own",
        '{"iscrowd": 0, "area": a["bbox"][2] * a["bbox"][3]} | a',
        'a | {"iscrowd": 0, "area": a["bbox"][2] * a["bbox"][3]}',
    ),
    ("white of sixteen bits is black", "files", "sixteen_bits_become_eight", "// 257", "// 256 % 255"),
    (
        "only what all polygons cover is an object", "data", "an_object_of_two_polygons_is_both",
        "coco_mask.merge(shape)",
        "coco_mask.merge(shape, True)",
    ),
    (
        "objects have the category before theirs", "datasets", "table_is_written_as_coco_has_it",
        '"category_id": labels.index(label) + 1', '"category_id": labels.index(label)',
    ),
    (
        "boxes are written as corners", "datasets", "table_is_written_as_coco_has_it",
        '"bbox": [x0, y0, x1 - x0, y1 - y0]', '"bbox": [x0, y0, x1, y1]',
    ),
    (
        "width and height change places", "datasets", "table_is_written_as_coco_has_it",
        "width, height = sizes[name] = stored if",
        "height, width = sizes[name] = stored if",
    ),
    (
        "images without objects are lost", "datasets", "table_is_written_as_coco_has_it",
        'boxes = found.setdefault(row["file"], [])\n',
        'boxes = found.setdefault(row["file"], []) if row["label"] else []\n',
    ),
    (
        "x and y of the table change places",
        "datasets",
        "table_comes_back_as_boxes",
        "float(row[name]) for name in COLUMNS[2:])",
        'float(row[name]) for name in ("y0", "x0", "y1", "x1"))',
    ),
    (
        "boxes belong to the image before", "datasets", "table_comes_back_as_boxes",
        "(image[\"id\"], label, *map(float, corners))", "(image[\"id\"] - 1, label, *map(float, corners))",
    ),
    (
        "names belong to the category before", "datasets", "table_comes_back_as_boxes",
        '{"id": i + 1, "name": label}', '{"id": i, "name": label}',
    ),
    (
        "folders called 2017 are not found", "datasets", "folders_of_coco_are_found",
        'for name in SPLITS.get(split, (split,)) for', "for name in (split,) for",
    ),
    (
        "PNGs among the annotations are not found", "datasets", "folders_of_coco_are_found",
        "next((folder for folder in folders if folder.is_dir()), folders[0])", "folders[0]",
    ),
    ("things are called stuff", "own_data", "stuff_is_what_is_no_thing", 'if not c["isthing"]]', 'if c["isthing"]]'),
    (
        "nothing begins as class 0", "own_data", "new_classes_begin_as_the_mean_of_the_old_things",
        "new[-1] = values[-1]", "new[-1] = values[0]",
    ),
    (
        "ids without a category count as things", "own_data", "new_classes_begin_as_the_mean_of_the_old_things",
        'named = [i for i, name in known.items() if name != "N/A"]', "named = list(known)",
    ),
    (
        "stuff counts as things", "own_data", "new_classes_begin_as_the_mean_of_the_old_things",
        " if i not in (old.config.stuff_ids or ())", "",
    ),
    (
        "new classes begin as the sum", "own_data", "new_classes_begin_as_the_mean_of_the_old_things",
        "values[things].mean(0)", "values[things].sum(0)",
    ),
    (
        "ids without a category begin as things", "own_data", "new_classes_begin_as_the_mean_of_the_old_things",
        'nobody if name == "N/A" else values[same[name]] if name in same else mean',
        "values[same[name]] if name in same else mean",
    ),
    (
        "classes are compared by number", "own_data", "as_many_classes_but_others",
        "(known.num_labels != len(names) or named and known.id2label != names)", "known.num_labels != len(names)",
    ),
    (
        "a class of the same name begins anew", "own_data", "classes_of_the_same_name_keep_their_weights",
        "values[same[name]] if name in same else mean", "mean",
    ),
    (
        "biases begin anew", "own_data", "new_classes_begin_as_the_mean_of_the_old_things",
        "((new_head.weight, old_head.weight, 0), (new_head.bias, old_head.bias, 10))",
        "((new_head.weight, old_head.weight, 0),)",
    ),
    (
        "new classes begin with random numbers", "own_data", "own_classes_begin_with_what_the_checkpoint_knows",
        "    if renamed: init", "    if not network: init",
    ),
    (
        "a frozen detector gets other classes", "own_data", "frozen_detector_keeps_its_classes",
        "    if frozen:", "    if False:",
    ),
    (
        "the original's rows and columns change places", "checkpoints", "learned_positions_of_the_original",
        "'row' if m[1] == 'row' else 'column'", "'column' if m[1] == 'row' else 'row'",
    ),
    (
        "half a head is no fault", "checkpoints", "a_part_is_lacking_altogether_or_not_at_all",
        "if fresh and not any(k.startswith(optional_parts) for k in state):", "if fresh:",
    ),
    (
        "a missing tensor is no fault",
        "checkpoints",
        "a_part_is_lacking_altogether_or_not_at_all",
        "tensors\"] if missing else []",
        "tensors\"] if False else []",
    ),
    (
        "numbers are stored as float16 unasked",
        "checkpoints",
        "dtype_of_the_file_is_as_asked",
        "        if dtype is not None:\n            if not dtype",
        "        dtype = dtype or torch.float16\n        if True:\n            if not dtype",
    ),
    (
        "the type that is asked for is not taken", "checkpoints", "dtype_of_the_file_is_as_asked",
        "v.to(dtype) if v.is_floating_point() else v for", "v for",
    ),
    (
        "only the owner may read a model", "checkpoints", "files_can_be_read_by_others", "part.chmod(0o644)",
        "part.chmod(0o600)",
    ),
    (
        "a pickle is opened before safetensors", "checkpoints", "safetensors_come_before_a_pickle",
        '    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",',
        '    "pytorch_model.bin", "model.safetensors", "model.safetensors.index.json",',
    ),
    (
        "shards of a pickle are not found", "checkpoints", "shards_of_a_pickle",
        '    "pytorch_model.bin.index.json",\n', "",
    ),
    (
        "changes to a given configuration are lost", "checkpoints", "changes_to_a_configuration_hold",
        "kind.from_dict(config.to_dict(), **changes)", "kind.from_dict(config.to_dict())",
    ),
    (
        "changes to the file's configuration are lost", "checkpoints", "changes_to_a_configuration_hold",
        "config_class.from_pretrained(config or name, **hub, **changes)",
        "config_class.from_pretrained(config or name, **hub)",
    ),
    (
        "colours are those of the category after", "visualization", "colours_of_the_categories",
        "(category_id - 1) % len(PALETTE)", "category_id % len(PALETTE)",
    ),
]


def run_tests(folder, *names):
    """Whether the named tests (none: all) pass with the library in a folder. `RuntimeError` if they
    cannot run."""
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    targets = [f"{TESTS}::test_{name}" for name in names] or [str(TESTS)]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *targets]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if result.returncode not in (0, 1): raise RuntimeError(result.stdout + result.stderr)
    return result.returncode == 0


def check_rows():
    "`ValueError` for a row whose text is not there exactly once, or whose test is not there."
    tests = TESTS.read_text(encoding="utf-8")
    for fault, module, test, old, new in FAULTS:
        text = (ROOT / "detr_nb" / f"{module}.py").read_text(encoding="utf-8")
        count = text.count(old)
        if count != 1: raise ValueError(f"{fault}: {module}.py has this {count} times, want once: {old!r}")
        if f"def test_{test}(" not in tests: raise ValueError(f"{fault}: {TESTS.name} has no test_{test}")
        compile(text.replace(old, new), module, "exec")


def main(words):
    try:
        check_rows()
    except (OSError, ValueError, SyntaxError) as error:
        print(f"A row is out of date. {error}", file=sys.stderr)
        return 2
    chosen = [row for row in FAULTS if words in " ".join(row[:3])]
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "detr_nb"
        shutil.copytree(ROOT / "detr_nb", library, ignore=shutil.ignore_patterns("__pycache__"))
        if not run_tests(folder):
            print(f"{TESTS.name} fails without any fault", file=sys.stderr)
            return 2
        for number, (fault, module, test, old, new) in enumerate(chosen, 1):
            path = library / f"{module}.py"
            text = path.read_text(encoding="utf-8")
            path.write_text(text.replace(old, new), encoding="utf-8")
            survived = run_tests(folder, test)
            path.write_text(text, encoding="utf-8")
            if survived: survivors.append(fault)
            outcome = "SURVIVED" if survived else "caught  "
            print(f"{number:3} of {len(chosen)}  {outcome}  {module}: {fault} (test_{test})", flush=True)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} faults caught")
    return 1 if survivors or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(" ".join(sys.argv[1:])))
