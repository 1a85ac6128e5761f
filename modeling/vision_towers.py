"""Vision towers that a language model may look through: any of transformers', and those of this package's own models."""

from transformers import MODEL_MAPPING, AutoConfig, AutoModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from .configuration_grr_coca import GrrCocaVisionConfig
from .configuration_mammut import MammutVisionConfig
from .modeling_grr_coca import GrrCocaVisionModel
from .modeling_mammut import MammutVisionModel


# By name, not by registration: in a repository that carries these files, the Auto classes do not know them.
_OWN_TOWERS: dict[str, tuple[type[PreTrainedConfig], type[PreTrainedModel]]] = {
    GrrCocaVisionConfig.model_type: (GrrCocaVisionConfig, GrrCocaVisionModel),
    MammutVisionConfig.model_type: (MammutVisionConfig, MammutVisionModel),
}


def own_tower_config(fields: dict) -> PreTrainedConfig | None:
    """Configuration of a tower of this package; None for the towers of transformers."""
    if fields.get("model_type") not in _OWN_TOWERS:
        return None
    return _OWN_TOWERS[fields["model_type"]][0].from_dict(fields)


def load_tower(name_or_path: str, **kwargs) -> PreTrainedModel:
    """A pretrained tower: of a checkpoint that is one, or of one that has one.

    Raises:
        ValueError: If the checkpoint is neither.
    """
    config = AutoConfig.from_pretrained(name_or_path)
    config = getattr(config, "vision_config", config)
    own = _OWN_TOWERS.get(config.model_type)
    tower_class = own[1] if own else MODEL_MAPPING.get(type(config), None)
    if tower_class is None or not hasattr(config, "patch_size"):
        raise ValueError(f"`vision` must name a vision tower of patches, {name_or_path} is a {config.model_type!r}.")
    return tower_class.from_pretrained(name_or_path, **kwargs)


def build_tower(config: PreTrainedConfig) -> PreTrainedModel:
    """A tower with fresh weights."""
    if config.model_type in _OWN_TOWERS:
        return _OWN_TOWERS[config.model_type][1]._from_config(config)
    return AutoModel.from_config(config)


__all__ = ["build_tower", "load_tower", "own_tower_config"]
