__version__ = "0.1.0"

_HOMES = {  # public name → the module it lives in; imported when it is first asked for
    "config": ["DetrConfig"],
    "mask_head": ["DetrForSegmentation", "DetrSegmentationOutput"],
    "panoptic": ["CocoPanoptic"],
    "detector": ["DetrForObjectDetection", "DetrModel", "DetrModelOutput", "DetrObjectDetectionOutput"],
    "matcher": ["DetrHungarianMatcher", "HungarianMatcher"],
    "losses": ["DetrLoss"],
    "processor": ["DetrFeatureExtractor", "DetrImageProcessor"],
    "evaluation": ["CocoEvaluator", "PanopticEvaluator", "evaluate"],
    "data": ["CocoDetection", "SceneDetection"],
    "scenes": ["draw_scene", "make_scenes"],
    "backbone": ["register_backbones"],
    "training": ["RECIPES", "Recipe", "train"],
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module 'detr_nb' has no attribute {name!r}; it has {', '.join(__all__)}")
    from importlib import import_module
    value = getattr(import_module(f"detr_nb.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted([*globals(), *__all__])
