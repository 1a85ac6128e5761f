"""Triptych: GRR-CoCa, MaMMUT and VW-LMM as transformers models. Importing it makes the Auto classes know them."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForPreTraining,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
)

from triptych.modeling.configuration_grr_coca import (
    GRR_COCA_PRESETS,
    GrrCocaConfig,
    GrrCocaTextConfig,
    GrrCocaVisionConfig,
)
from triptych.modeling.modeling_grr_coca import (
    GrrCocaForConditionalGeneration,
    GrrCocaModel,
    GrrCocaTextModel,
    GrrCocaVisionModel,
)
from triptych.processing.processing_grr_coca import GrrCocaProcessor


__version__ = "0.1.0"

AutoConfig.register("grr_coca", GrrCocaConfig, exist_ok=True)
AutoConfig.register("grr_coca_text_model", GrrCocaTextConfig, exist_ok=True)
AutoConfig.register("grr_coca_vision_model", GrrCocaVisionConfig, exist_ok=True)
AutoModel.register(GrrCocaConfig, GrrCocaModel, exist_ok=True)
AutoModel.register(GrrCocaTextConfig, GrrCocaTextModel, exist_ok=True)
AutoModel.register(GrrCocaVisionConfig, GrrCocaVisionModel, exist_ok=True)
AutoModelForZeroShotImageClassification.register(GrrCocaConfig, GrrCocaModel, exist_ok=True)
AutoModelForImageTextToText.register(GrrCocaConfig, GrrCocaForConditionalGeneration, exist_ok=True)
AutoModelForPreTraining.register(GrrCocaConfig, GrrCocaForConditionalGeneration, exist_ok=True)
AutoProcessor.register(GrrCocaConfig, GrrCocaProcessor, exist_ok=True)

__all__ = [
    "GRR_COCA_PRESETS",
    "GrrCocaConfig",
    "GrrCocaForConditionalGeneration",
    "GrrCocaModel",
    "GrrCocaProcessor",
    "GrrCocaTextConfig",
    "GrrCocaTextModel",
    "GrrCocaVisionConfig",
    "GrrCocaVisionModel",
]
