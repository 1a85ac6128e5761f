# What the package brings, and where it is: type checkers read this file, and `__init__.py` does.
from .modeling.configuration_grr_coca import GrrCocaConfig as GrrCocaConfig
from .modeling.configuration_grr_coca import GrrCocaTextConfig as GrrCocaTextConfig
from .modeling.configuration_grr_coca import GrrCocaVisionConfig as GrrCocaVisionConfig
from .modeling.configuration_mammut import MammutConfig as MammutConfig
from .modeling.configuration_mammut import MammutDetectionConfig as MammutDetectionConfig
from .modeling.configuration_mammut import MammutTextConfig as MammutTextConfig
from .modeling.configuration_mammut import MammutVisionConfig as MammutVisionConfig
from .modeling.configuration_vw_lmm import VwLmmConfig as VwLmmConfig
from .modeling.modeling_grr_coca import GrrCocaForConditionalGeneration as GrrCocaForConditionalGeneration
from .modeling.modeling_grr_coca import GrrCocaModel as GrrCocaModel
from .modeling.modeling_grr_coca import GrrCocaTextModel as GrrCocaTextModel
from .modeling.modeling_grr_coca import GrrCocaVisionModel as GrrCocaVisionModel
from .modeling.modeling_mammut import MammutForConditionalGeneration as MammutForConditionalGeneration
from .modeling.modeling_mammut import MammutModel as MammutModel
from .modeling.modeling_mammut import MammutTextModel as MammutTextModel
from .modeling.modeling_mammut import MammutVisionModel as MammutVisionModel
from .modeling.modeling_mammut_detection import MammutForObjectDetection as MammutForObjectDetection
from .modeling.modeling_vw_lmm import VwLmmForCausalLM as VwLmmForCausalLM
from .modeling.modeling_vw_lmm import VwLmmModel as VwLmmModel
from .pipelines import pipeline as pipeline
from .processing.processing_grr_coca import GrrCocaProcessor as GrrCocaProcessor
from .processing.processing_mammut import MammutProcessor as MammutProcessor
from .processing.processing_vw_lmm import VwLmmProcessor as VwLmmProcessor

__version__: str
