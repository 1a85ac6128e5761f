"""What transformers' Auto classes are told: first the names of our classes, which costs nothing, and the classes once one is touched."""

import importlib
import sys
from types import ModuleType

import wrapt


# As transformers keeps them: model types, and the names of their classes.
_CONFIGS = {
    "grr_coca": "GrrCocaConfig", "grr_coca_text_model": "GrrCocaTextConfig", "grr_coca_vision_model": "GrrCocaVisionConfig",
    "mammut": "MammutConfig", "mammut_text_model": "MammutTextConfig", "mammut_vision_model": "MammutVisionConfig",
    "mammut_detection": "MammutDetectionConfig",
    "vw_lmm": "VwLmmConfig",
}  # fmt: skip
_PROCESSORS = {"grr_coca": "GrrCocaProcessor", "mammut": "MammutProcessor", "vw_lmm": "VwLmmProcessor"}
_AUTO_CLASSES = {
    "GrrCocaModel": ("AutoModel", "AutoModelForZeroShotImageClassification"),
    "GrrCocaTextModel": ("AutoModel",),
    "GrrCocaVisionModel": ("AutoModel",),
    "GrrCocaForConditionalGeneration": ("AutoModelForImageTextToText", "AutoModelForPreTraining"),
    "MammutModel": ("AutoModel", "AutoModelForZeroShotImageClassification"),
    "MammutTextModel": ("AutoModel",),
    "MammutVisionModel": ("AutoModel",),
    "MammutForConditionalGeneration": ("AutoModelForImageTextToText", "AutoModelForPreTraining"),
    "MammutForObjectDetection": ("AutoModelForZeroShotObjectDetection",),
    "VwLmmModel": ("AutoModel",),
    "VwLmmForCausalLM": ("AutoModelForImageTextToText", "AutoModelForCausalLM", "AutoModelForMultimodalLM"),
}


def announce() -> None:
    """Let transformers find configurations and processors by name, now or whenever it is imported.

    transformers looks a class up in the module `transformers.models.TYPE`; for our types that is this package, whose classes arrive
    when they are touched. The first of them, or the first model that is imported by its file, brings `register` with it.
    """
    for model_type in _CONFIGS:
        sys.modules[f"transformers.models.{model_type}"] = sys.modules["triptych"]

    def name_configs(module: ModuleType) -> None:
        module.CONFIG_MAPPING_NAMES.update(_CONFIGS)

    def name_processors(module: ModuleType) -> None:
        module.PROCESSOR_MAPPING_NAMES.update(_PROCESSORS)

    wrapt.register_post_import_hook(name_configs, "transformers.models.auto.configuration_auto")
    wrapt.register_post_import_hook(name_processors, "transformers.models.auto.processing_auto")
    wrapt.register_post_import_hook(lambda module: register(), "triptych.modeling")  # before any file of it


def register() -> None:
    """Register all models and processors, which imports them."""
    import transformers

    import triptych

    for model_type, processor in _PROCESSORS.items():
        config_class = getattr(triptych, _CONFIGS[model_type])
        transformers.AutoProcessor.register(config_class, getattr(triptych, processor), exist_ok=True)
    for name, auto_classes in _AUTO_CLASSES.items():
        model_class = getattr(triptych, name)
        for auto_class in auto_classes:
            getattr(transformers, auto_class).register(model_class.config_class, model_class, exist_ok=True)
    for name in ("vw_lmm_with_grr_coca", "vw_lmm_with_mammut"):  # make our towers known to VW-LMM
        importlib.import_module(f"triptych.modeling.{name}")


__all__ = ["announce", "register"]
