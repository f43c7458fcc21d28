"""DETR that you can read, run and build on. Names and modules are imported when they are first used."""
from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "RECIPES", "CocoDetection", "CocoEvaluator", "CocoPanoptic", "DetrConfig",
    "DetrFeatureExtractor", "DetrForObjectDetection", "DetrForSegmentation",
    "DetrHungarianMatcher", "DetrImageProcessor", "DetrLoss", "DetrModel", "DetrModelOutput",
    "DetrObjectDetectionOutput", "DetrSegmentationOutput", "HungarianMatcher", "PanopticEvaluator",
    "Recipe", "SceneDetection", "draw_scene", "evaluate", "make_scenes", "predict",
    "register_backbones", "train",
]

if TYPE_CHECKING:
    from . import (
        backbone, bench, boxes, checkpoints, config, data, datasets, detector, evaluation, explore, files,
        integrations, losses, mask_head, mask_losses, matcher, napkin, own_data, panoptic, position, post_processing,
        pretraining, processor, runs, scaling, scenes, speed, training, transformer, transforms, visualization,
    )
    from .backbone import register_backbones
    from .config import DetrConfig
    from .data import CocoDetection, CocoPanoptic, SceneDetection
    from .detector import DetrForObjectDetection, DetrModel, DetrModelOutput, DetrObjectDetectionOutput
    from .evaluation import CocoEvaluator, PanopticEvaluator, evaluate
    from .losses import DetrLoss
    from .mask_head import DetrForSegmentation, DetrSegmentationOutput
    from .matcher import DetrHungarianMatcher, HungarianMatcher
    from .processor import DetrFeatureExtractor, DetrImageProcessor
    from .scenes import draw_scene, make_scenes
    from .speed import predict
    from .training import RECIPES, Recipe, train

_HOMES = {  # module → the public names that live in it; the same as above, for when the program runs
    "backbone": "register_backbones", "bench": "", "boxes": "", "checkpoints": "", "config": "DetrConfig",
    "data": "CocoDetection CocoPanoptic SceneDetection", "datasets": "",
    "detector": "DetrForObjectDetection DetrModel DetrModelOutput DetrObjectDetectionOutput",
    "evaluation": "CocoEvaluator PanopticEvaluator evaluate", "explore": "", "files": "", "integrations": "",
    "losses": "DetrLoss",
    "mask_head": "DetrForSegmentation DetrSegmentationOutput", "mask_losses": "",
    "matcher": "DetrHungarianMatcher HungarianMatcher", "napkin": "", "own_data": "", "panoptic": "", "position": "",
    "post_processing": "", "pretraining": "", "processor": "DetrFeatureExtractor DetrImageProcessor", "runs": "",
    "scaling": "", "scenes": "draw_scene make_scenes", "speed": "predict", "training": "RECIPES Recipe train",
    "transformer": "", "transforms": "", "visualization": "",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str):
    if name not in _HOME and name not in _HOMES:
        raise AttributeError(f"module 'detr_nb' has no attribute {name!r}; it has {', '.join(sorted(__all__))}")
    from importlib import import_module
    module = import_module(f"detr_nb.{_HOME.get(name, name)}")
    globals()[name] = module if name in _HOMES else getattr(module, name)
    return globals()[name]


def __dir__():
    return sorted({*globals(), *__all__})
