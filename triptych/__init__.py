"""Triptych: GRR-CoCa, MaMMUT and VW-LMM as transformers models. Importing it makes the Auto classes know them."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoModelForPreTraining,
    AutoModelForZeroShotImageClassification,
    AutoModelForZeroShotObjectDetection,
    AutoProcessor,
)

from triptych.modeling import vw_lmm_with_grr_coca, vw_lmm_with_mammut  # noqa: F401  (make our towers known to VW-LMM)
from triptych.modeling.configuration_grr_coca import (
    GrrCocaConfig,
    GrrCocaTextConfig,
    GrrCocaVisionConfig,
)
from triptych.modeling.configuration_mammut import (
    MammutConfig,
    MammutDetectionConfig,
    MammutTextConfig,
    MammutVisionConfig,
)
from triptych.modeling.configuration_vw_lmm import VwLmmConfig
from triptych.modeling.modeling_grr_coca import (
    GrrCocaForConditionalGeneration,
    GrrCocaModel,
    GrrCocaTextModel,
    GrrCocaVisionModel,
)
from triptych.modeling.modeling_mammut import (
    MammutForConditionalGeneration,
    MammutModel,
    MammutTextModel,
    MammutVisionModel,
)
from triptych.modeling.modeling_mammut_detection import MammutForObjectDetection
from triptych.modeling.modeling_vw_lmm import VwLmmForCausalLM, VwLmmModel
from triptych.pipelines import pipeline
from triptych.processing.processing_grr_coca import GrrCocaProcessor
from triptych.processing.processing_mammut import MammutProcessor
from triptych.processing.processing_vw_lmm import VwLmmProcessor


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

AutoConfig.register("mammut", MammutConfig, exist_ok=True)
AutoConfig.register("mammut_detection", MammutDetectionConfig, exist_ok=True)
AutoConfig.register("mammut_text_model", MammutTextConfig, exist_ok=True)
AutoConfig.register("mammut_vision_model", MammutVisionConfig, exist_ok=True)
AutoModel.register(MammutConfig, MammutModel, exist_ok=True)
AutoModel.register(MammutTextConfig, MammutTextModel, exist_ok=True)
AutoModel.register(MammutVisionConfig, MammutVisionModel, exist_ok=True)
AutoModelForZeroShotImageClassification.register(MammutConfig, MammutModel, exist_ok=True)
AutoModelForZeroShotObjectDetection.register(MammutConfig, MammutForObjectDetection, exist_ok=True)
AutoModelForImageTextToText.register(MammutConfig, MammutForConditionalGeneration, exist_ok=True)
AutoModelForPreTraining.register(MammutConfig, MammutForConditionalGeneration, exist_ok=True)
AutoProcessor.register(MammutConfig, MammutProcessor, exist_ok=True)

AutoConfig.register("vw_lmm", VwLmmConfig, exist_ok=True)
AutoModel.register(VwLmmConfig, VwLmmModel, exist_ok=True)
AutoModelForImageTextToText.register(VwLmmConfig, VwLmmForCausalLM, exist_ok=True)
AutoModelForCausalLM.register(VwLmmConfig, VwLmmForCausalLM, exist_ok=True)
AutoModelForMultimodalLM.register(VwLmmConfig, VwLmmForCausalLM, exist_ok=True)
AutoProcessor.register(VwLmmConfig, VwLmmProcessor, exist_ok=True)

__all__ = [
    "GrrCocaConfig",
    "GrrCocaForConditionalGeneration",
    "GrrCocaModel",
    "GrrCocaProcessor",
    "GrrCocaTextConfig",
    "GrrCocaTextModel",
    "GrrCocaVisionConfig",
    "GrrCocaVisionModel",
    "MammutConfig",
    "MammutDetectionConfig",
    "MammutForConditionalGeneration",
    "MammutForObjectDetection",
    "MammutModel",
    "MammutProcessor",
    "MammutTextConfig",
    "MammutTextModel",
    "MammutVisionConfig",
    "MammutVisionModel",
    "VwLmmConfig",
    "VwLmmForCausalLM",
    "VwLmmModel",
    "VwLmmProcessor",
    "pipeline",
]
