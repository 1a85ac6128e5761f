"""What the configurations of this package share: parts of their own, presets by name, and checks of sizes."""

from pathlib import Path
from typing import Any, ClassVar

import yaml
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig


def check_positive(config: PreTrainedConfig, *names: str) -> None:
    """Refuse fields that are below 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"`{name}` must be at least 1, got {getattr(config, name)}.")


def check_heads(hidden_size: int, num_heads: int, size_name: str, heads_name: str) -> None:
    """Refuse a width that attention heads cannot share equally."""
    if hidden_size % num_heads != 0:
        raise ValueError(f"`{size_name}` must be a multiple of `{heads_name}`, got {hidden_size} and {num_heads}.")


def check_patches(image_size: int, patch_size: int) -> None:
    """Refuse images that patches cannot tile."""
    if image_size % patch_size != 0:
        raise ValueError(f"`image_size` must be a multiple of `patch_size`, got {image_size} and {patch_size}.")


class CompositeConfig(PreTrainedConfig):
    """A configuration with configurations of parts, named in `sub_configs`; a field may hold one, its fields, or nothing.

    transformers has two ways to build and save parts, one up to 5.19 and one since. This is a third, which both accept.
    """

    # What transformers' `Trainer` leaves out of its predictions: all that these models return but loss and logits.
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        *("cache", "past_key_values", "hidden_states", "attentions", "cross_attentions"),
        *("contrastive_loss", "caption_loss", "language_loss", "visual_loss"),
        *("logits_per_image", "logits_per_text", "text_embeds", "image_embeds", "image_tokens", "image_hidden_states"),
        *("text_model_output", "vision_model_output"),
    ]
    optional_sub_configs: ClassVar[tuple[str, ...]] = ()  # where nothing means that there is no such part

    def __post_init__(self, **kwargs):
        for name, config_class in self.sub_configs.items():
            fields = getattr(self, name)
            if isinstance(fields, PreTrainedConfig) or (fields is None and name in self.optional_sub_configs):
                continue
            build = AutoConfig.for_model if config_class is AutoConfig else config_class
            setattr(self, name, build(**(fields or {})))
        super().__post_init__(**kwargs)

    @classmethod
    def presets(cls) -> dict[str, dict[str, Any]]:
        """Fields of every preset by its name: what `presets/<model type>.yaml` says. Empty in a checkpoint, which carries no presets."""
        path = Path(__file__).parent / "presets" / f"{cls.model_type}.yaml"
        if not path.exists():
            return {}
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        return {name: fields for name, fields in found.items() if not name.startswith(".")}  # .name: a part of some

    @classmethod
    def from_preset(cls, name: str, **overrides) -> "CompositeConfig":
        """Build the configuration of a named preset.

        Args:
            name (`str`): One of [`CompositeConfig.presets`].
            overrides: Fields to change; dicts of parts are merged into the preset's.

        Raises:
            ValueError: If no preset has this name, or an override is not a field of the configuration.
        """
        presets = cls.presets()
        if name not in presets:
            raise ValueError(f"Unknown preset {name!r}. Available: {', '.join(sorted(presets))}.")
        return cls(**merge_fields(cls, presets[name], overrides))

    def to_diff_dict(self) -> dict[str, Any]:
        """What `save_pretrained` writes: of every part, too, only what its class does not say."""
        fields = super().to_diff_dict()
        for name in self.sub_configs:
            if getattr(self, name) is not None:
                fields[name] = getattr(self, name).to_diff_dict()
                fields[name].pop("transformers_version", None)
        return fields


def merge_fields(config_class: type[PreTrainedConfig], fields: dict, overrides: dict) -> dict:
    """Fields of a configuration with some of them changed; dicts of sub-configurations are merged.

    Raises:
        ValueError: If an override is not a field of the configuration.
    """
    merged = {key: dict(value) if isinstance(value, dict) else value for key, value in fields.items()}
    for key, value in overrides.items():
        target = config_class.sub_configs.get(key)
        if target is AutoConfig:  # any model: the fields name it
            target = type(AutoConfig.for_model({**merged.get(key, {}), **value}["model_type"]))
        known = target.__dataclass_fields__ if target else config_class.__dataclass_fields__
        for field in value if target else (key,):
            if field not in known:
                raise ValueError(f"`{field}` is not a field of {(target or config_class).__name__}.")
        merged[key] = {**merged.get(key, {}), **value} if target else value
    return merged


__all__ = ["CompositeConfig", "check_heads", "check_patches", "check_positive", "merge_fields"]
