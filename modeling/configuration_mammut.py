"""MaMMUT configuration and its presets.

Two sets of defaults: the paper's (arXiv 2303.16839), which the fields start from, and that of LAION's openMaMMUT
checkpoints, which the `openmammut-*` presets set. What the paper leaves open is a field with our default and a word that
says so; `docs/mammut.md` lists all of it.
"""

import itertools
import math
from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

from .configuration_base import CaptionerConfig, TextDecoderConfig, VisionTowerConfig, check_positive


# TubeViT's tubes (arXiv 2212.03229), as kernel, stride and offset in frames x pixels x pixels
TUBEVIT_TUBES = [
    [[8, 8, 8], [16, 32, 32], [0, 0, 0]],
    [[16, 4, 4], [6, 32, 32], [4, 8, 8]],
    [[4, 12, 12], [16, 32, 32], [0, 16, 16]],
]


@strict
class MammutVisionConfig(VisionTowerConfig):
    r"""Configuration of [`MammutVisionModel`]: a plain ViT for images and, by sparse tubes, for videos.

    All fields of [`VisionTowerConfig`], of which `patch_size` and `use_cls_token` are not printed in the paper, while LAION has a
    class token, a norm before the blocks, and no `patch_bias`; and:

    Args:
        image_pool (`"patch_mean"` or `"all_mean"`):
            Image embedding: mean over patch (and tube) tokens, or over the class token too (LAION).
        norm_before_pool (`bool`, defaults to `True`): Normalise tokens, then pool; LAION pools, then normalises.
        norm_decoder_tokens (`bool`, defaults to `True`):
            The text decoder reads normalised tokens; LAION's reads those of the last block as they are.
        crop_positions (`bool`, defaults to `False`):
            Cropped Positional Embedding (section 3.2; RO-ViT): while training, every image gets a random crop of the
            enlarged position table, so that the model learns to see parts. For the stage before detection.
        crop_positions_grid (`int`, defaults to 64): Size to which the table is enlarged before, in patches.
        use_tubes (`bool`, defaults to `False`): Videos also pass through sparse tubes (section 4, after TubeViT).
        tubes (`list`, *optional*):
            `[kernel, stride, offset]` of every tube, each in frames x pixels x pixels. Default: TubeViT's three.
        tube_kernel_size (`list[int]`, defaults to `[8, 8, 8]`):
            Shape of the one learned kernel; every tube's is interpolated from it.
        frame_stride (`int`, defaults to 32): Every so-many-th frame passes through the image's own patches.
        use_fixed_positions (`bool`, defaults to `False`):
            Add fixed 3-D sine-cosine positions to the learned ones. Images are clips of one frame.
        use_position_gate (`bool`, defaults to `True`): Scale the fixed positions with a learned gate.
        position_gate_init_value (`float`, defaults to 0.0):
            Initial gate. 0 starts from exactly the image model. Form and value are not printed in the paper.
    """

    model_type = "mammut_vision_model"

    image_pool: Literal["patch_mean", "all_mean"] = "patch_mean"
    norm_before_pool: bool = True
    norm_decoder_tokens: bool = True
    crop_positions: bool = False
    crop_positions_grid: int = 64
    use_tubes: bool = False
    tubes: list[list[list[int]]] | None = None
    tube_kernel_size: list[int] | tuple[int, ...] = (8, 8, 8)
    frame_stride: int = 32
    use_fixed_positions: bool = False
    use_position_gate: bool = True
    position_gate_init_value: float | int = 0.0

    def __post_init__(self, **kwargs):
        if self.tubes is None:
            self.tubes = [[list(part) for part in tube] for tube in TUBEVIT_TUBES]
        self.tube_kernel_size = list(self.tube_kernel_size)
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Check that sizes divide as attention and patches need, and that tubes are triples of triples."""
        super().validate_architecture()
        check_positive(self, "frame_stride", "crop_positions_grid")
        if self.use_tubes and not self.tubes:
            raise ValueError("`use_tubes` needs at least one entry of `tubes`.")
        for index, tube in enumerate(self.tubes):
            if [len(part) for part in tube] != [3, 3, 3] or min(tube[0] + tube[1]) < 1 or min(tube[2]) < 0:
                raise ValueError(
                    f"`tubes[{index}]` must be [kernel, stride, offset], each in frames, pixels, pixels, with kernel and "
                    f"stride of at least 1, got {tube}."
                )
        if len(self.tube_kernel_size) != 3 or min(self.tube_kernel_size) < 1:
            raise ValueError(f"`tube_kernel_size` must be three positive integers, got {self.tube_kernel_size}.")


@strict
class MammutTextConfig(TextDecoderConfig):
    r"""Configuration of the text decoder, which reads texts alone (contrastive pass) or with an image (captioning pass).

    All fields of [`TextDecoderConfig`], and:

    Args:
        hidden_size (`int`, defaults to 1024): Width, also that of the joint embedding.
        intermediate_size (`int`, defaults to 4096): Inner width of the feed-forward layers.
        num_hidden_layers (`int`, defaults to 8): Self-attention layers N.
        num_attention_heads (`int`, defaults to 16): Attention heads per layer. Not printed in the paper.
        cross_attn_every (`int`, defaults to 2):
            A cross-attention layer follows every so-many-th layer; together M = N / this (section 3.1).
        cross_attn_offset (`int`, defaults to 0):
            Index of the first layer that one follows. Not printed in the paper; 0 is LAION's.
        self_mlp_at_cross (`bool`, defaults to `True`):
            Layers that a cross-attention layer follows have a feed-forward layer of their own; false in LAION's small
            models, where only the cross-attention layer has one.
        norm_memory (`bool`, defaults to `True`): Every cross-attention layer normalises the image tokens itself.
        text_pool (`"masked_mean"` or `"all_mean"`):
            Text embedding: mean over tokens, or over all `max_position_embeddings` positions, padding included (LAION).
        mask_padding (`bool`, defaults to `True`):
            Tokens do not see padding in the contrastive pass. LAION's do. Whatever the padding of the input, the text is
            then brought to full length with `pad_token_id` on the right, as those weights were trained.
        bidirectional_prefix (`bool`, defaults to `False`):
            In the captioning pass, let the tokens of a prompt (a question) see one another both ways. Ours; off in the
            paper as far as it is known.
    """

    model_type = "mammut_text_model"

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 8
    num_attention_heads: int = 16
    cross_attn_every: int = 2
    cross_attn_offset: int = 0
    self_mlp_at_cross: bool = True
    norm_memory: bool = True
    text_pool: Literal["masked_mean", "all_mean"] = "masked_mean"
    mask_padding: bool = True
    bidirectional_prefix: bool = False

    @property
    def cross_attn_layers(self) -> list[int]:
        """Indices of the self-attention layers that a cross-attention layer follows."""
        return list(range(self.cross_attn_offset, self.num_hidden_layers, self.cross_attn_every))

    def validate_architecture(self):
        """Check that sizes divide as attention needs, and that there is a cross-attention layer."""
        super().validate_architecture()
        check_positive(self, "num_hidden_layers", "cross_attn_every")
        if not 0 <= self.cross_attn_offset < self.num_hidden_layers:
            raise ValueError(
                f"`cross_attn_offset` must be the index of one of {self.num_hidden_layers} layers, got "
                f"{self.cross_attn_offset}: without cross-attention the decoder never sees the image."
            )
        if self.pad_token_id is None and not (self.mask_padding and self.text_pool == "masked_mean"):
            raise ValueError(
                '`mask_padding=False` and `text_pool="all_mean"` read padding tokens, but `pad_token_id` is None.'
            )


@strict
class MammutDetectionConfig(PreTrainedConfig):
    r"""Configuration of the detector's parts in [`MammutForObjectDetection`].

    MaMMUT prints a simple feature pyramid, windowed attention and class-agnostic heads (section 3.2). The numbers are those of the
    authors' F-VLM, RO-ViT and DITO code; where they are ours, it says so. Sizes are in pixels of the model's input.

    Args:
        image_size (`int`, defaults to 1024): Height and width of the padded input.
        window_size (`int`, *optional*, defaults to 16):
            Most ViT blocks attend within windows of so many patches each way, which must tile the input. `None`: all blocks see the
            whole image.
        num_global_layers (`int`, defaults to 4):
            Blocks that see the whole image: the last one of so many equal parts of the ViT (ViTDet).
        pyramid_scales (`list[float]`): Sizes of the pyramid's maps relative to the ViT's; powers of two, halving.
        channels (`int`, defaults to 256): Channels of the pyramid, the proposal head, the box head and the mask head.
        anchor_scale (`float`, defaults to 8.0): Side of the one anchor of every location, in strides of its map. Ours.
        rpn_conv_layers (`int`, defaults to 2): 3 x 3 convolutions before centerness and box.
        rpn_positive_iou, rpn_negative_iou (`float`, default to 0.3 and 0.1): Anchors above the one learn an object, those below the
            other are background (OLN).
        rpn_samples (`int`, defaults to 256): Anchors per image that the proposal losses read.
        rpn_background_fraction (`float`, defaults to 0.0):
            Least share of background (with a centerness of 0) among them. OLN has none, because objects without a label may lie
            there; where every object of a base class has a box and there are no others, background helps.
        rpn_nms_threshold (`float`, defaults to 0.7): IoU above which proposals are dropped while training; all are kept otherwise.
        num_proposals (`int`, defaults to 1000): Best proposals per image.
        box_pool_size (`int`, defaults to 7), box_conv_layers (`int`, defaults to 4), box_hidden_size (`int`, defaults to 1024):
            Box head: RoIAlign, convolutions, one linear layer.
        box_coder_weights (`list[float]`): Scales of the four box codes.
        box_samples (`int`, defaults to 512), box_positive_fraction (`float`, defaults to 0.25), box_positive_iou (`float`, defaults
            to 0.5): Regions per image that the box head learns from. Mask R-CNN's.
        background_weight (`float`, defaults to 0.9): Weight of the background in the classification loss.
        temperature (`float`, defaults to 0.01): Of the classifier, at the start; a factor is learned.
        keep_image_text_tower (`bool`, defaults to `False`):
            Keep a frozen copy of the image-text model's ViT for the image-text scores (DITO), where the ViT itself is trained. It
            costs a second pass at inference, all of it in windows. See [`MammutForObjectDetection.copy_image_text_tower`].
        image_text_pool_size (`int`, defaults to 14): RoIAlign on the last map of the ViT.
        image_text_temperature (`float`, *optional*, defaults to 0.01):
            Of the image-text scores. `None`: the one that the image-text model has learned.
        base_exponent, novel_exponent (`float`, default to 0.35 and 0.65):
            Weight of the image-text scores in the geometric mean, for classes with boxes in training and for others.
        objectness_exponent (`float`, defaults to 3.0): Final score = objectness ** this * class score.
        nms_threshold (`float`, defaults to 0.5): IoU with a better box of the same class above which a box goes. Mask R-CNN's.
        max_detections (`int`, defaults to 300): Boxes per image in the output.
        use_mask_head (`bool`, defaults to `False`): Predict class-agnostic masks too.
        mask_pool_size (`int`, defaults to 14), mask_conv_layers (`int`, defaults to 4): Mask head; masks are twice as fine.
    """

    model_type = "mammut_detection"
    base_config_key = "detection_config"

    image_size: int = 1024
    window_size: int | None = 16
    num_global_layers: int = 4
    pyramid_scales: list[float | int] | tuple[float | int, ...] = (4.0, 2.0, 1.0, 0.5)
    channels: int = 256
    anchor_scale: float | int = 8.0
    rpn_conv_layers: int = 2
    rpn_positive_iou: float = 0.3
    rpn_negative_iou: float = 0.1
    rpn_samples: int = 256
    rpn_background_fraction: float | int = 0.0
    rpn_nms_threshold: float | int = 0.7
    num_proposals: int = 1000
    box_pool_size: int = 7
    box_conv_layers: int = 4
    box_hidden_size: int = 1024
    box_coder_weights: list[float | int] | tuple[float | int, ...] = (10.0, 10.0, 5.0, 5.0)
    box_samples: int = 512
    box_positive_fraction: float = 0.25
    box_positive_iou: float = 0.5
    background_weight: float | int = 0.9
    temperature: float = 0.01
    keep_image_text_tower: bool = False
    image_text_pool_size: int = 14
    image_text_temperature: float | None = 0.01
    base_exponent: float | int = 0.35
    novel_exponent: float | int = 0.65
    objectness_exponent: float | int = 3.0
    nms_threshold: float = 0.5
    max_detections: int = 300
    use_mask_head: bool = False
    mask_pool_size: int = 14
    mask_conv_layers: int = 4

    def __post_init__(self, **kwargs):
        self.pyramid_scales = [float(scale) for scale in self.pyramid_scales]
        self.box_coder_weights = [float(weight) for weight in self.box_coder_weights]
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Check sizes, shares and exponents."""
        check_positive(self, "image_size", "num_global_layers", "channels", "rpn_samples", "num_proposals")
        check_positive(
            self, "box_samples", "box_pool_size", "box_hidden_size", "image_text_pool_size", "max_detections"
        )
        if not self.pyramid_scales or any(math.frexp(scale)[0] != 0.5 for scale in self.pyramid_scales):
            raise ValueError(f"`pyramid_scales` must be powers of two, got {self.pyramid_scales}.")
        if any(after != before / 2 for before, after in itertools.pairwise(self.pyramid_scales)):
            raise ValueError(f"`pyramid_scales` must halve from one to the next, got {self.pyramid_scales}.")
        for name in ("base_exponent", "novel_exponent", "rpn_background_fraction", "box_positive_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must lie between 0 and 1, got {getattr(self, name)}.")
        for name in ("temperature", "image_text_temperature"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"`{name}` must be above 0, got {getattr(self, name)}.")
        if len(self.box_coder_weights) != 4 or min(self.box_coder_weights) <= 0:
            raise ValueError(f"`box_coder_weights` must be four positive numbers, got {self.box_coder_weights}.")


@strict
class MammutConfig(CaptionerConfig):
    r"""Configuration of [`MammutModel`], [`MammutForConditionalGeneration`] and [`MammutForObjectDetection`].

    Args:
        vision_config (`MammutVisionConfig` or `dict`, *optional*): The image side.
        text_config (`MammutTextConfig` or `dict`, *optional*): The text side.
        detection_config (`MammutDetectionConfig` or `dict`, *optional*): The parts of a detector. Only a detector has them.
        shared_image_projection (`bool`, defaults to `True`):
            One linear layer brings both the image embedding and the decoder's image tokens to the text width (section
            3.1); LAION has two.
        contrastive_loss_type (`"focal"` or `"softmax"`): Focal sigmoid (section 3.2) or InfoNCE (LAION).
        focal_gamma (`float`, defaults to 1.0): Focusing exponent; not printed, 1.0 in the authors' RO-ViT code.
        use_logit_bias (`bool`, defaults to `False`): Learn a bias of the similarities (SigLIP); the paper has none.
        logit_bias_init_value (`float`, defaults to -10.0): Its initial value.
        logit_scale_init_value (`float`, defaults to 0.0): Initial log of the inverse temperature; temperature 1.
        logit_scale_max (`float`): Training clamps the log scale to [0, this]; ln 100.
        contrastive_loss_weight, caption_loss_weight (`float`, default to 1.0): Weights of the two losses.
        tie_word_embeddings (`bool`, defaults to `False`): Share the token embedding with the output layer. Open.

    Example:

    ```python
    >>> from triptych import MammutConfig, MammutForConditionalGeneration

    >>> config = MammutConfig.from_preset("mammut-tiny")
    >>> model = MammutForConditionalGeneration(config)
    ```
    """

    model_type = "mammut"
    sub_configs = {  # noqa: RUF012
        "vision_config": MammutVisionConfig,
        "text_config": MammutTextConfig,
        "detection_config": MammutDetectionConfig,
    }
    optional_sub_configs = ("detection_config",)

    detection_config: dict | PreTrainedConfig | None = None
    shared_image_projection: bool = True
    contrastive_loss_type: Literal["focal", "softmax"] = "focal"
    focal_gamma: float | int = 1.0
    use_logit_bias: bool = False
    logit_bias_init_value: float | int = -10.0
    logit_scale_init_value: float | int = 0.0
    logit_scale_max: float | int = math.log(100)
    contrastive_loss_weight: float | int = 1.0
    caption_loss_weight: float | int = 1.0
    tie_word_embeddings: bool = False

    def validate_losses(self):
        """Check what no type can say."""
        if self.focal_gamma < 0:
            raise ValueError(f"`focal_gamma` must not be negative, got {self.focal_gamma}.")
        if self.use_logit_bias and self.contrastive_loss_type == "softmax":
            raise ValueError("`use_logit_bias` belongs to the focal loss; a softmax does not see it.")
        if self.detection_config is not None and self.vision_config.patch_dropout:
            raise ValueError("`patch_dropout` is not for a detector, which makes a map of all patches.")


__all__ = ["TUBEVIT_TUBES", "MammutConfig", "MammutDetectionConfig", "MammutTextConfig", "MammutVisionConfig"]
