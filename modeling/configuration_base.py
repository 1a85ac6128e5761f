"""What the configurations of this package share: fields of towers and decoders, parts, presets by name, checks of sizes."""

from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig


def check_positive(config: Any, *names: str) -> None:
    """Refuse fields of a configuration, or of a dataclass of arguments, that are below 1; `None` may be."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")


def check_heads(hidden_size: int, num_heads: int, size_name: str, heads_name: str) -> None:
    """Refuse a width that attention heads cannot share equally."""
    if hidden_size % num_heads != 0:
        raise ValueError(f"`{size_name}` must be a multiple of `{heads_name}`, got {hidden_size} and {num_heads}.")


class TransformerConfig(PreTrainedConfig):
    r"""What the vision towers and text decoders of this package have in common.

    Args:
        hidden_size (`int`, defaults to 768): Width.
        intermediate_size (`int`, defaults to 3072): Inner width of the feed-forward layers (of each branch, if gated).
        num_attention_heads (`int`, defaults to 12): Attention heads per layer.
        norm_type (`"layernorm"` or `"rmsnorm"`): Normalisation.
        norm_eps (`float`, defaults to 1e-5): Added to the variance.
        mlp_type (`"gelu"`, `"geglu"` or `"quick_gelu"`):
            Plain or gated feed-forward layer with exact (erf) GELU, or plain with OpenAI's approximation.
        mlp_bias (`bool`, defaults to `True`): Biases in the feed-forward layers.
        attention_bias (`bool`, defaults to `True`): Biases of the query, key, value and output projections.
        attention_dropout (`float`, defaults to 0.0): Dropout of attention probabilities while training.
        hidden_dropout (`float`, defaults to 0.0): Dropout after attention and feed-forward layers while training.
        initializer_range (`float`, defaults to 0.02): Standard deviation of initial weights.
    """

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_attention_heads: int = 12
    norm_type: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_eps: float = 1e-5
    mlp_type: Literal["gelu", "geglu", "quick_gelu"] = "gelu"
    mlp_bias: bool = True
    attention_bias: bool = True
    attention_dropout: float | int = 0.0
    hidden_dropout: float | int = 0.0
    initializer_range: float = 0.02

    def validate_architecture(self):
        """Check that sizes are positive and divide as attention needs."""
        check_positive(self, "hidden_size", "intermediate_size", "num_attention_heads")
        check_heads(self.hidden_size, self.num_attention_heads, "hidden_size", "num_attention_heads")


class VisionTowerConfig(TransformerConfig):
    r"""What the vision towers of this package have in common, beside the fields of [`TransformerConfig`].

    Args:
        num_hidden_layers (`int`, defaults to 12): Number of ViT blocks.
        num_channels (`int`, defaults to 3): Channels of the images.
        image_size (`int`, defaults to 224): Height and width of images and frames, in pixels.
        patch_size (`int`, defaults to 16): Height and width of a patch, in pixels.
        use_cls_token (`bool`, defaults to `False`): Prepend a class token.
        pre_layernorm (`bool`, defaults to `False`): Normalise embeddings before the first block (open_clip).
        patch_bias (`bool`, defaults to `True`): Bias of the patch convolution. open_clip has none.
        patch_dropout (`float`, defaults to 0.0):
            Share of the patches that every image loses at random while training (FLIP, arXiv 2212.00794).
    """

    base_config_key = "vision_config"
    base_model_fsdp_plan = None

    num_hidden_layers: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 16
    use_cls_token: bool = False
    pre_layernorm: bool = False
    patch_bias: bool = True
    patch_dropout: float | int = 0.0

    def validate_architecture(self):
        """Check that sizes are positive and divide as attention and the patch grid need."""
        super().validate_architecture()
        check_positive(self, "image_size", "patch_size", "num_channels")
        if not 0 <= self.patch_dropout < 1:
            raise ValueError(f"`patch_dropout` must be at least 0 and below 1, got {self.patch_dropout}.")
        if self.image_size % self.patch_size != 0:
            raise ValueError(
                f"`image_size` must be a multiple of `patch_size`, got {self.image_size} and {self.patch_size}."
            )


class TextDecoderConfig(TransformerConfig):
    r"""What the text decoders of this package have in common, beside the fields of [`TransformerConfig`].

    Args:
        vocab_size (`int`, defaults to 49408): Size of the vocabulary (CLIP's BPE by default; open in the papers).
        max_position_embeddings (`int`, defaults to 64): Longest text in tokens, BOS and EOS included.
        use_cache (`bool`, defaults to `True`): Cache keys and values while generating.
        pad_token_id, bos_token_id, eos_token_id (`int`): Ids of the special tokens.
    """

    base_config_key = "text_config"

    vocab_size: int = 49408
    max_position_embeddings: int = 64
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 49406
    eos_token_id: int | list[int] | None = 49407

    def validate_architecture(self):
        """Check that sizes are positive and divide as attention needs."""
        super().validate_architecture()
        check_positive(self, "vocab_size", "max_position_embeddings")


class CompositeConfig(PreTrainedConfig):
    """A configuration with configurations of parts, named in `sub_configs`; a field may hold one, its fields, or nothing.

    transformers has two ways to build and save parts, one up to 5.19 and one since. This is a third, which both accept.
    """

    # What transformers' `Trainer` leaves out of its predictions: all that these models return but loss and logits.
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        *("cache", "past_key_values", "hidden_states", "attentions", "cross_attentions"),
        *("contrastive_loss", "caption_loss", "language_loss", "visual_loss"),
        *("logits_per_image", "logits_per_text", "text_embeds", "image_embeds", "image_tokens", "image_hidden_states"),
        *("text_model_output", "vision_model_output", "image_outputs"),
    ]
    optional_sub_configs: ClassVar[tuple[str, ...]] = ()  # where nothing means that there is no such part
    base_model_fsdp_plan = None

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None

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


class CaptionerConfig(CompositeConfig):
    """A configuration whose text part says how long texts may be."""

    @property
    def max_position_embeddings(self) -> int:
        """Longest text in tokens, where `generate` looks for it."""
        return self.text_config.max_position_embeddings

    @max_position_embeddings.setter
    def max_position_embeddings(self, value: int) -> None:
        self.text_config.max_position_embeddings = value


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


__all__ = [
    "CaptionerConfig", "CompositeConfig", "TextDecoderConfig", "VisionTowerConfig", "check_heads", "check_positive", "merge_fields",
]  # fmt: skip
