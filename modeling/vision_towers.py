"""Vision towers that a language model may look through: any of transformers', and those of this package's own models."""

from transformers import MODEL_MAPPING, AutoConfig, AutoModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel


# Filled by the modules that bring a tower of this package together with a language model, so that only they, and the
# checkpoints that need them, carry another model's files.
_OWN_TOWERS: dict[str, tuple[type[PreTrainedModel], str]] = {}


def register_tower(tower_class: type[PreTrainedModel], module: str) -> None:
    """Make a tower of this package known.

    Args:
        tower_class (`type`): Its class.
        module (`str`): Name of the module that a checkpoint with this tower must name.
    """
    _OWN_TOWERS[tower_class.config_class.model_type] = (tower_class, module)


def module_with_tower(config: PreTrainedConfig) -> str | None:
    """The module that registered a tower; None for the towers of transformers."""
    return _OWN_TOWERS[config.model_type][1] if config.model_type in _OWN_TOWERS else None


def own_tower_config(fields: dict) -> PreTrainedConfig | None:
    """Configuration of a tower of this package; None for the towers of transformers."""
    if fields.get("model_type") not in _OWN_TOWERS:
        return None
    return _OWN_TOWERS[fields["model_type"]][0].config_class.from_dict(fields)


def load_tower(name_or_path: str, **kwargs) -> PreTrainedModel:
    """A pretrained tower: of a checkpoint that is one, or of one that has one.

    Args:
        name_or_path (`str`): Folder or Hub name.
        kwargs: For `from_pretrained` of configuration and model: `revision`, `token`, ...

    Raises:
        ValueError: If the checkpoint is neither, or its weights are not those of the tower.
    """
    hub = {name: kwargs[name] for name in ("revision", "token", "cache_dir", "local_files_only") if name in kwargs}
    config = AutoConfig.from_pretrained(name_or_path, **hub)
    config = getattr(config, "vision_config", config)
    own = _OWN_TOWERS.get(config.model_type)
    tower_class = own[0] if own else MODEL_MAPPING.get(type(config), None)
    if tower_class is None or not hasattr(config, "patch_size"):
        raise ValueError(f"`vision` must name a vision tower of patches, {name_or_path} is a {config.model_type!r}.")
    tower, info = tower_class.from_pretrained(name_or_path, output_loading_info=True, **kwargs)
    if info["missing_keys"]:
        names = sorted(info["missing_keys"])
        raise ValueError(
            f"`vision` {name_or_path} lacks {len(names)} of the tower's weights ({names[0]}, ...), which would stay random. If "
            "they have other names there, load the tower yourself and save it alone."
        )
    return tower


def build_tower(config: PreTrainedConfig) -> PreTrainedModel:
    """A tower with fresh weights."""
    if config.model_type in _OWN_TOWERS:
        return _OWN_TOWERS[config.model_type][0]._from_config(config)
    return AutoModel.from_config(config)


__all__ = ["build_tower", "load_tower", "module_with_tower", "own_tower_config", "register_tower"]
