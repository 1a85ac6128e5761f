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
from triptych.modeling.configuration_grr_coca import GrrCocaConfig, GrrCocaTextConfig, GrrCocaVisionConfig
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

_CONFIGS = (
    GrrCocaConfig, GrrCocaTextConfig, GrrCocaVisionConfig,
    MammutConfig, MammutTextConfig, MammutVisionConfig, MammutDetectionConfig,
    VwLmmConfig,
)  # fmt: skip
_PROCESSORS = {GrrCocaConfig: GrrCocaProcessor, MammutConfig: MammutProcessor, VwLmmConfig: VwLmmProcessor}
_AUTO_CLASSES = {
    GrrCocaModel: (AutoModel, AutoModelForZeroShotImageClassification),
    GrrCocaTextModel: (AutoModel,),
    GrrCocaVisionModel: (AutoModel,),
    GrrCocaForConditionalGeneration: (AutoModelForImageTextToText, AutoModelForPreTraining),
    MammutModel: (AutoModel, AutoModelForZeroShotImageClassification),
    MammutTextModel: (AutoModel,),
    MammutVisionModel: (AutoModel,),
    MammutForConditionalGeneration: (AutoModelForImageTextToText, AutoModelForPreTraining),
    MammutForObjectDetection: (AutoModelForZeroShotObjectDetection,),
    VwLmmModel: (AutoModel,),
    VwLmmForCausalLM: (AutoModelForImageTextToText, AutoModelForCausalLM, AutoModelForMultimodalLM),
}

for _config in _CONFIGS:
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
for _config, _processor in _PROCESSORS.items():
    AutoProcessor.register(_config, _processor, exist_ok=True)
for _model, _auto_classes in _AUTO_CLASSES.items():
    for _auto_class in _auto_classes:
        _auto_class.register(_model.config_class, _model, exist_ok=True)

__all__ = [
    "GrrCocaConfig", "GrrCocaForConditionalGeneration", "GrrCocaModel", "GrrCocaProcessor", "GrrCocaTextConfig", "GrrCocaTextModel",
    "GrrCocaVisionConfig", "GrrCocaVisionModel", "MammutConfig", "MammutDetectionConfig", "MammutForConditionalGeneration",
    "MammutForObjectDetection", "MammutModel", "MammutProcessor", "MammutTextConfig", "MammutTextModel", "MammutVisionConfig",
    "MammutVisionModel", "VwLmmConfig", "VwLmmForCausalLM", "VwLmmModel", "VwLmmProcessor", "pipeline",
]  # fmt: skip
