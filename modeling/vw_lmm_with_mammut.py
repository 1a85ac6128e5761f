"""VW-LMM with the vision tower of MaMMUT: what a checkpoint of the two names, so that the files of both come along."""

from .configuration_vw_lmm import VwLmmConfig
from .modeling_mammut import MammutVisionModel
from .modeling_vw_lmm import VwLmmForCausalLM, VwLmmModel
from .vision_towers import register_tower


register_tower(MammutVisionModel, module=__name__)

__all__ = ["VwLmmConfig", "VwLmmForCausalLM", "VwLmmModel"]
