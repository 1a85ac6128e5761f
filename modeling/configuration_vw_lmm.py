"""Configuration of VW-LMM (arXiv 2403.07720), with the released models and a small one as presets."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES

from .configuration_base import CompositeConfig, check_positive
from .vision_towers import own_tower_config


def vocabulary_with_placeholder(words: int) -> int:
    """Rows of a vocabulary that has the placeholder behind its words, rounded up to what matrix units multiply fastest."""
    return -(-(words + 1) // 64) * 64


@strict
class VwLmmConfig(CompositeConfig):
    r"""Configuration of [`VwLmmModel`] and [`VwLmmForCausalLM`]: a vision tower, an adapter, and a causal language model.

    Args:
        vision_config (`dict` or `PreTrainedConfig`, *optional*): Any vision tower of transformers, or of this package.
        text_config (`dict` or `PreTrainedConfig`, *optional*): Any causal language model of transformers.
        image_token_id (`int`, *optional*):
            Placeholder of an image patch in `input_ids`, a row of the vocabulary. Default: the last one.
        num_reserved_tokens (`int`, defaults to 1):
            Ids from `image_token_id` on that are no words: the placeholder, and rows behind it that round the vocabulary up.
            Their logits are the lowest number there is, so no softmax knows of them and none is ever generated.
        image_seq_length (`int`, *optional*): Placeholders of one image. Default: patches of the tower.
        vision_feature_layer (`int`, defaults to -2): Hidden state of the tower that the adapter reads.
        vision_feature_select_strategy (`str`, defaults to `"default"`):
            `"default"` drops the first (class) token of the tower, `"full"` keeps all.
        projector_type (`str`, defaults to `"mlp2x_gelu"`): The adapter: two linear layers with a GELU, or one, `"linear"`.
        multimodal_projector_bias (`bool`, defaults to `True`): Whether its layers have biases.
        pseudo_image_features (`bool`, defaults to `False`):
            The "pif" variant: the language model reads the mixture of token embeddings that the visual word stands for
            instead of the adapter's features, in training and inference.
        visual_loss (`str`, defaults to `"visual_words"`):
            What training on `labels` adds to the language loss: `"visual_words"` (the last stage: the language model predicts
            the visual words), `"fit_vm_head"` (the stage before: the VM head is fitted to the language model's predictions)
            or `"none"`.
        visual_loss_weight (`float`, defaults to 1.0): Its weight; 1.0 as released.
        detach_visual_target (`bool`, defaults to `False`):
            Let no gradient reach the distribution that serves as target. As released it does; with a trainable VM head both
            distributions may then collapse onto one another.
        visual_loss_temperature (`float`, defaults to 1.0):
            Divides the logits of both distributions inside the loss. Not part of the released model.
        tie_word_embeddings (`bool`, *optional*): The LM head is the token embedding. Default: as `text_config` says.
    """

    model_type = "vw_lmm"
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig}  # noqa: RUF012

    image_token_id: int | None = None
    num_reserved_tokens: int = 1
    image_seq_length: int | None = None
    vision_feature_layer: int = -2
    vision_feature_select_strategy: Literal["default", "full"] = "default"
    projector_type: Literal["mlp2x_gelu", "linear"] = "mlp2x_gelu"
    multimodal_projector_bias: bool = True
    pseudo_image_features: bool = False
    visual_loss: Literal["visual_words", "fit_vm_head", "none"] = "visual_words"
    visual_loss_weight: float | int = 1.0
    detach_visual_target: bool = False
    visual_loss_temperature: float | int = 1.0
    tie_word_embeddings: bool | None = None

    def __post_init__(self, **kwargs):
        for name, model_type in (("vision_config", "clip_vision_model"), ("text_config", "llama")):
            if not isinstance(getattr(self, name), PreTrainedConfig):
                setattr(self, name, {"model_type": model_type, **(getattr(self, name) or {})})
        if isinstance(self.vision_config, dict):
            self.vision_config = own_tower_config(self.vision_config) or self.vision_config
        super().__post_init__(**kwargs)
        # The class that ties reads this configuration; language models say it in theirs.
        if self.tie_word_embeddings is None:
            self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))
        self.text_config.tie_word_embeddings = self.tie_word_embeddings
        if self.image_token_id is None:
            self.image_token_id = self.text_config.vocab_size - 1
        if self.image_seq_length is None:
            self.image_seq_length = (self.vision_config.image_size // self.vision_config.patch_size) ** 2

    @property
    def reserved(self) -> slice:
        """Ids that are no words."""
        return slice(self.image_token_id, self.image_token_id + self.num_reserved_tokens)

    def validate_vw_lmm(self):
        """Check that numbers make sense."""
        check_positive(self, "image_seq_length", "num_reserved_tokens")
        if self.visual_loss_temperature <= 0:
            raise ValueError(f"`visual_loss_temperature` must be above 0, got {self.visual_loss_temperature}.")
        if self.image_token_id < 0:
            raise ValueError(
                f"`image_token_id` must be at least 0, got {self.image_token_id}. (The original's -200 stands for a whole "
                "image; here every patch has its placeholder, which the processor writes.)"
            )
        if self.image_token_id + self.num_reserved_tokens > self.text_config.vocab_size:
            raise ValueError(
                f"`image_token_id` {self.image_token_id} with {self.num_reserved_tokens} `num_reserved_tokens` lies behind the "
                f"vocabulary of {self.text_config.vocab_size} tokens, in which it needs a row: resize the language model."
            )

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """What transformers does with a configuration whose code it took from a checkpoint."""
        super().register_for_auto_class(auto_class)
        # `transformers serve` asks this table and no registry, after it has read the configuration.
        MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES.setdefault(cls.model_type, "VwLmmForCausalLM")


__all__ = ["VwLmmConfig", "vocabulary_with_placeholder"]
