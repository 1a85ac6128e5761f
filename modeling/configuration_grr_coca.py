"""GRR-CoCa configuration and its presets.

One code base covers three families:

- **GRR-CoCa** (arXiv 2507.18009): GEGLU, RMSNorm and RoPE in the ViT and in both text decoders.
- **Baseline CoCa**, the paper's comparison: the same decoders with CoCa's original ViT.
- **CoCa** (arXiv 2205.01917) in open_clip's layout, for which public weights exist.

The abstract of GRR-CoCa is public knowledge; its dimensions and recipe are not known to us. Every such open point is a
field below, with our default; `docs/grr_coca.md` lists them.
"""

import math
from typing import Literal

from huggingface_hub.dataclasses import strict

from .configuration_base import CaptionerConfig, TextDecoderConfig, VisionTowerConfig, check_heads, check_positive


def _check_rope(head_dim: int, position_embedding_type: str) -> None:
    # 1-D RoPE rotates pairs of channels; the axial form splits a head into a row half and a column half first.
    divisor = {"rope_1d": 2, "rope_2d": 4}.get(position_embedding_type, 1)
    if head_dim % divisor != 0:
        raise ValueError(
            f'`position_embedding_type="{position_embedding_type}"` needs a head size that is a multiple of {divisor}, '
            f"got {head_dim}. Change `hidden_size` or `num_attention_heads`."
        )


@strict
class GrrCocaVisionConfig(VisionTowerConfig):
    r"""Configuration of [`GrrCocaVisionModel`]: a ViT and the attentional poolers on top of it.

    All fields of [`VisionTowerConfig`], of which `mlp_bias` and `use_cls_token` are open in the paper (pooling is attentional), and:

    Args:
        norm_type, mlp_type (default to `"rmsnorm"` and `"geglu"`): As there. GRR-CoCa: RMSNorm and GEGLU.
        norm_eps (`float`, defaults to 1e-6): Added to the variance. Open in the paper.
        position_embedding_type (`"rope_1d"`, `"rope_2d"` or `"learned"`):
            RoPE over the flattened patch sequence, axial RoPE over rows and columns, or an absolute table added once
            (the original ViT). Which RoPE GRR-CoCa uses is open; 1-D is the default.
        rope_theta (`float`, defaults to 10000.0): Base of the rotary frequencies.
        rope_placement (`"post_proj"` or `"pre_proj"`):
            Rotate queries and keys after their projections (standard), or the normed hidden states before them (what a
            predecessor project of the authors did). Open in the paper.
        pooler_type (`"cascade"`, `"parallel"`, `"open_clip"` or `"class_token"`):
            `cascade` (CoCa's default): the contrastive pooler reads the output of the caption pooler. `parallel`: it
            reads the patch states. `open_clip`: one pooler, whose token 0 is the image embedding, the others the
            memory of the text decoder. `class_token`: no pooler; the class token is the image embedding, the patches are
            the memory (open_clip's `coca_base`).
        num_caption_queries (`int`, defaults to 256): Queries of the caption pooler (CoCa section 3.2).
        pooler_hidden_size (`int`, *optional*): Width of the poolers, equal to the text width. Default: `hidden_size`.
        num_pooler_heads (`int`, *optional*): Heads of the poolers. Default: `num_attention_heads`.
    """

    model_type = "grr_coca_vision_model"

    norm_type: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    norm_eps: float = 1e-6
    mlp_type: Literal["geglu", "gelu", "quick_gelu"] = "geglu"
    position_embedding_type: Literal["rope_1d", "rope_2d", "learned"] = "rope_1d"
    rope_theta: float | int = 10000.0
    rope_placement: Literal["post_proj", "pre_proj"] = "post_proj"
    pooler_type: Literal["cascade", "parallel", "open_clip", "class_token"] = "cascade"
    num_caption_queries: int = 256
    pooler_hidden_size: int | None = None
    num_pooler_heads: int | None = None

    def __post_init__(self, **kwargs):
        if self.pooler_hidden_size is None:
            self.pooler_hidden_size = self.hidden_size
        if self.num_pooler_heads is None:
            self.num_pooler_heads = self.num_attention_heads
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Check that sizes divide as attention, RoPE and the patch grid need."""
        super().validate_architecture()
        check_positive(self, "pooler_hidden_size", "num_pooler_heads", "num_caption_queries")
        check_heads(self.pooler_hidden_size, self.num_pooler_heads, "pooler_hidden_size", "num_pooler_heads")
        _check_rope(self.hidden_size // self.num_attention_heads, self.position_embedding_type)
        if self.pooler_type == "class_token" and not (
            self.use_cls_token and self.pooler_hidden_size == self.hidden_size
        ):
            raise ValueError(
                '`pooler_type="class_token"` needs `use_cls_token`, and `pooler_hidden_size` equal to `hidden_size`, got '
                f"{self.use_cls_token}, {self.pooler_hidden_size} and {self.hidden_size}."
            )
        if self.pooler_type == "open_clip" and self.num_caption_queries < 2:
            raise ValueError(
                '`pooler_type="open_clip"` spends one query on the image embedding, so `num_caption_queries` must be '
                f"at least 2, got {self.num_caption_queries}."
            )


@strict
class GrrCocaTextConfig(TextDecoderConfig):
    r"""Configuration of the unimodal and the multimodal text decoder, which share width and layer type.

    All fields of [`TextDecoderConfig`], and:

    Args:
        num_unimodal_layers (`int`, defaults to 12): Layers without cross-attention.
        num_multimodal_layers (`int`, defaults to 12): Layers with cross-attention to the image tokens.
        max_position_embeddings (`int`, defaults to 76): Longest text in tokens, BOS and EOS included, CLS not.
        norm_type, norm_eps, mlp_type, rope_theta, rope_placement: as in [`GrrCocaVisionConfig`].
        position_embedding_type (`"rope_1d"` or `"learned"`): RoPE, or an absolute table (original CoCa).
        cls_position (`"num_tokens"` or `"fixed"`):
            Position of the appended CLS token: the number of real tokens, or always `max_position_embeddings`.
        cls_mask_mode (`"correct"` or `"legacy"`):
            `legacy` reproduces the mask that open_clip's released weights were trained with: shifted by one, the CLS
            row sees the first padding position and not itself.
        multimodal_layer_type (`"coca"` or `"open_clip"`):
            `coca`: self-attention, cross-attention, feed-forward. `open_clip`: two complete blocks, each with a
            feed-forward layer of its own, and a norm on the image tokens.
    """

    model_type = "grr_coca_text_model"

    num_unimodal_layers: int = 12
    num_multimodal_layers: int = 12
    max_position_embeddings: int = 76
    norm_type: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    norm_eps: float = 1e-6
    mlp_type: Literal["geglu", "gelu", "quick_gelu"] = "geglu"
    position_embedding_type: Literal["rope_1d", "learned"] = "rope_1d"
    rope_theta: float | int = 10000.0
    rope_placement: Literal["post_proj", "pre_proj"] = "post_proj"
    cls_position: Literal["num_tokens", "fixed"] = "num_tokens"
    cls_mask_mode: Literal["correct", "legacy"] = "correct"
    multimodal_layer_type: Literal["coca", "open_clip"] = "coca"

    @property
    def num_hidden_layers(self) -> int:
        """Layers with self-attention: what a key-value cache must hold."""
        return self.num_unimodal_layers + self.num_multimodal_layers

    def validate_architecture(self):
        """Check that sizes divide as attention and RoPE need, and that there is a layer of each kind."""
        super().validate_architecture()
        check_positive(self, "num_unimodal_layers", "num_multimodal_layers")
        _check_rope(self.hidden_size // self.num_attention_heads, self.position_embedding_type)
        if self.cls_mask_mode == "legacy" and self.pad_token_id is None:
            raise ValueError('`cls_mask_mode="legacy"` looks at a padding token, but `pad_token_id` is None.')


@strict
class GrrCocaConfig(CaptionerConfig):
    r"""Configuration of [`GrrCocaModel`] and [`GrrCocaForConditionalGeneration`].

    Args:
        vision_config (`GrrCocaVisionConfig` or `dict`, *optional*): The image side.
        text_config (`GrrCocaTextConfig` or `dict`, *optional*): The text side.
        projection_dim (`int`, *optional*): Width of the joint embedding. Default: the text width.
        logit_scale_init_value (`float`): Initial log of the inverse temperature; ln(1/0.07), CoCa section 4.1.
        logit_scale_max (`float`): Training clamps the log scale to [0, this]; ln 100.
        contrastive_loss_weight (`float`, defaults to 1.0): Weight of the contrastive loss; CoCa eq. (4).
        caption_loss_weight (`float`, defaults to 2.0): Weight of the captioning loss; CoCa eq. (4).
        contrastive_reduction (`"mean"` or `"sum"`):
            How the image-to-text and text-to-image terms combine. CoCa eq. (2) sums them, open_clip takes the mean.
        tie_word_embeddings (`bool`, defaults to `False`): Share the token embedding with the output layer.

    Example:

    ```python
    >>> from triptych import GrrCocaConfig, GrrCocaForConditionalGeneration

    >>> config = GrrCocaConfig.from_preset("grr-coca-tiny")
    >>> model = GrrCocaForConditionalGeneration(config)
    ```
    """

    model_type = "grr_coca"
    sub_configs = {"vision_config": GrrCocaVisionConfig, "text_config": GrrCocaTextConfig}  # noqa: RUF012

    projection_dim: int | None = None
    logit_scale_init_value: float | int = math.log(1 / 0.07)
    logit_scale_max: float | int = math.log(100)
    contrastive_loss_weight: float | int = 1.0
    caption_loss_weight: float | int = 2.0
    contrastive_reduction: Literal["mean", "sum"] = "mean"
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.projection_dim is None:
            self.projection_dim = self.text_config.hidden_size

    def validate_widths(self):
        """The text decoder reads the pooled image tokens, so both must be equally wide."""
        if self.vision_config.pooler_hidden_size != self.text_config.hidden_size:
            raise ValueError(
                "`vision_config.pooler_hidden_size` must equal `text_config.hidden_size`, got "
                f"{self.vision_config.pooler_hidden_size} and {self.text_config.hidden_size}."
            )


__all__ = ["GrrCocaConfig", "GrrCocaTextConfig", "GrrCocaVisionConfig"]
