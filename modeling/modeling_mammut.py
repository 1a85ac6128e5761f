"""PyTorch MaMMUT: a ViT and one text decoder that is run in two passes, for retrieval and for generation.

Read from top to bottom: outputs, vision tower (images and videos), text decoder, dual encoder, captioner.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_outputs import (
    BaseModelOutputWithPastAndCrossAttentions,
    BaseModelOutputWithPooling,
    CausalLMOutputWithCrossAttentions,
)
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple, is_flash_attention_requested, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .caption_generation import CaptionGenerationMixin, has_cached_image
from .configuration_mammut import MammutConfig, MammutTextConfig, MammutVisionConfig
from .cropped_positions import random_position_crops
from .inputs import check_pixel_values, check_texts, default_position_ids, padding_mask, supervised_labels
from .layers import (
    Attention,
    CrossAttentionBlock,
    SelfAttentionBlock,
    build_norm,
    resize_position_table,
    slice_logits_to_keep,
)
from .losses import captioning_loss, contrastive_loss, focal_contrastive_loss
from .self_contained import SelfContainedMixin
from .towers import TowerMixin
from .transformers_versions import CACHE_NAME, takes_cache
from .video_tubes import TubeEmbedding, fixed_positions, tube_centers


@dataclass
class MammutVisionOutput(BaseModelOutputWithPooling):
    """Output of [`MammutVisionModel`], and of `get_image_features`.

    Args:
        last_hidden_state (`torch.Tensor` of shape `(batch_size, num_tokens, hidden_size)`):
            Tokens for the text decoder: class token (if there is one), patches of all kept frames, tubes. Normalised
            where the configuration says so.
        pooler_output (`torch.Tensor` of shape `(batch_size, hidden_size)`):
            Mean of the tokens. From `get_image_features`: projected to the text width, not normalised.
        image_tokens (`torch.Tensor` of shape `(batch_size, num_tokens, text_hidden_size)`, from `get_image_features`):
            What the text decoder attends to: `last_hidden_state`, projected to the text width.
        hidden_states, attentions: Per layer, when asked for.
    """

    image_tokens: torch.Tensor | None = None


@dataclass
class MammutOutput(ModelOutput):
    """Output of [`MammutModel`].

    Args:
        loss (`torch.Tensor` of shape `()`, returned with `return_loss=True`): Contrastive loss.
        logits_per_image (`torch.Tensor` of shape `(num_images, num_texts)`): Scaled cosine similarities.
        logits_per_text (`torch.Tensor` of shape `(num_texts, num_images)`): The same, transposed.
        text_embeds (`torch.Tensor` of shape `(num_texts, text_hidden_size)`): L2-normalised text embeddings.
        image_embeds (`torch.Tensor` of shape `(num_images, text_hidden_size)`): L2-normalised image embeddings.
        text_model_output (`BaseModelOutputWithPooling`): Output of the contrastive pass.
        vision_model_output (`MammutVisionOutput`): Output of the vision tower.
    """

    loss: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: MammutVisionOutput | None = None

    def to_tuple(self) -> tuple:
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


@dataclass
class MammutConditionalGenerationOutput(CausalLMOutputWithCrossAttentions):
    """Output of [`MammutForConditionalGeneration`].

    Args:
        loss (`torch.Tensor` of shape `()`, returned with `labels`):
            `contrastive_loss_weight * contrastive_loss + caption_loss_weight * caption_loss` (section 3.2).
        logits (`torch.Tensor` of shape `(batch_size, sequence_length, vocab_size)`):
            Next-token scores of the captioning pass; absent while training with `labels` unless `skip_logits=False`.
        cache (`EncoderDecoderCache`): Keys and values of the text and of the image. `past_key_values` before transformers
            5.24.
        hidden_states, attentions, cross_attentions: Of the captioning pass, per layer, when asked for.
        contrastive_loss (`torch.Tensor` of shape `()`, returned with `labels`): Unweighted contrastive part.
        caption_loss (`torch.Tensor` of shape `()`, returned with `labels`): Unweighted captioning part, nats per token.
        logits_per_image, logits_per_text, text_embeds, image_embeds:
            As in [`MammutOutput`], where the contrastive pass was run (`image_embeds`: whenever images were encoded).
        image_tokens (`torch.Tensor` of shape `(batch_size, num_tokens, text_hidden_size)`):
            Memory of the decoder; pass it to `generate` or `forward` to save another image pass.
        text_model_output, vision_model_output: Outputs of the contrastive pass and of the vision tower.
    """

    contrastive_loss: torch.Tensor | None = None
    caption_loss: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    image_tokens: torch.Tensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: MammutVisionOutput | None = None


class MammutVisionEmbeddings(nn.Module):
    """Tokens of images and clips: class token, patches of every so-many-th frame, tubes; with their positions.

    An image is a clip of one frame whose tubes are off.
    """

    def __init__(self, config: MammutVisionConfig):
        super().__init__()
        self.config = config
        self.grid_size = config.image_size // config.patch_size
        self.patch_embedding = nn.Conv2d(
            config.num_channels,
            config.hidden_size,
            kernel_size=config.patch_size,
            stride=config.patch_size,
            bias=config.patch_bias,
        )
        self.class_embedding = nn.Parameter(torch.empty(config.hidden_size)) if config.use_cls_token else None
        self.position_embedding = nn.Embedding(self.grid_size**2 + config.use_cls_token, config.hidden_size)
        self.tube_embedding = None
        if config.use_tubes:
            self.tube_embedding = TubeEmbedding(
                config.num_channels,
                config.hidden_size,
                config.tube_kernel_size,
                config.tubes,
                config.initializer_range,
            )
        has_gate = config.use_fixed_positions and config.use_position_gate
        self.position_gate = nn.Parameter(torch.empty(())) if has_gate else None

    def _learned_positions(self, batch_size: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions of the class token, `(0 or 1, hidden_size)`, and of a frame's patches, `(batch_size or 1, patches, ...)`."""
        config, num_special = self.config, int(self.config.use_cls_token)
        table = self.position_embedding.weight
        if self.training and config.crop_positions and (height, width) == (self.grid_size, self.grid_size):
            patches = random_position_crops(
                table[num_special:], self.grid_size, config.crop_positions_grid, batch_size
            )
            return table[:num_special], patches
        table = resize_position_table(table, self.grid_size, height, width)
        return table[:num_special], table[None, num_special:]

    def _add_fixed_positions(self, tokens: torch.Tensor, centers: torch.Tensor) -> torch.Tensor:
        positions = fixed_positions(centers, self.config.hidden_size).to(tokens.dtype)
        return tokens + (positions if self.position_gate is None else self.position_gate * positions)

    def _patch_tokens(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Patches of `(batch, kept frames, channels, height, width)` with positions, and positions of the class token."""
        batch_size, num_frames = frames.shape[:2]
        dtype = self.patch_embedding.weight.dtype
        patches = self.patch_embedding(frames.flatten(0, 1).to(dtype))  # (batch * frames, hidden, rows, columns)
        height, width = patches.shape[-2:]
        # Under autocast the convolution answers in half precision; the residual stream stays in the weights' precision.
        tokens = patches.flatten(2).transpose(1, 2).to(dtype).unflatten(0, (batch_size, num_frames))
        class_position, positions = self._learned_positions(batch_size, height, width)
        tokens = (tokens + positions[:, None]).flatten(1, 2)  # the same positions in every frame
        if self.config.use_fixed_positions:
            patch = self.config.patch_size
            kernel, stride = [1, patch, patch], [self.config.frame_stride, patch, patch]
            grid = [num_frames, height, width]
            tokens = self._add_fixed_positions(tokens, tube_centers(grid, kernel, stride, [0, 0, 0], tokens.device))
        return tokens, class_position

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> torch.Tensor:
        config = self.config
        if (pixel_values is None) == (pixel_values_videos is None):
            raise ValueError("Pass exactly one of `pixel_values` and `pixel_values_videos`.")
        name, pixels = ("pixel_values", pixel_values)
        if pixel_values is None:
            name, pixels = ("pixel_values_videos", pixel_values_videos)
        check_pixel_values(
            pixels, config.num_channels, config.image_size, config.patch_size, interpolate_pos_encoding, name
        )
        clip = pixels[:, None] if pixel_values_videos is None else pixels  # (batch, frames, channels, height, width)
        tokens, class_position = self._patch_tokens(clip[:, :: config.frame_stride])
        parts = [tokens]
        if self.class_embedding is not None:
            parts.insert(0, (self.class_embedding + class_position).expand(len(tokens), 1, -1))
        if self.tube_embedding is not None and pixel_values_videos is not None:
            tubes, centers = self.tube_embedding(clip.to(self.tube_embedding.kernel.dtype))
            parts.append(self._add_fixed_positions(tubes, centers) if config.use_fixed_positions else tubes)
        return torch.cat(parts, dim=1) if len(parts) > 1 else tokens


class MammutPreTrainedModel(SelfContainedMixin, PreTrainedModel):
    """Weight initialisation, loading and saving."""

    config: MammutConfig
    base_model_prefix = "model"
    input_modalities = ("image", "video", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # a batch-contrastive loss cannot be divided by a token count of several batches
    _no_split_modules = ["SelfAttentionBlock", "CrossAttentionBlock", "MammutVisionEmbeddings"]  # noqa: RUF012
    _skip_keys_device_placement = ["cache", "past_key_values", "layer_past"]  # noqa: RUF012
    _keep_in_fp32_modules_strict = ["logit_scale", "logit_bias"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        # Only modules that own a tensor are visited for code outside transformers.
        if isinstance(module, MammutVisionEmbeddings):
            if module.class_embedding is not None:
                init.normal_(module.class_embedding, std=module.config.initializer_range)
            if module.position_gate is not None:
                init.constant_(module.position_gate, module.config.position_gate_init_value)
        elif isinstance(module, TubeEmbedding):
            module.reset_parameters()
        elif isinstance(module, MammutModel):
            init.constant_(module.logit_scale, module.config.logit_scale_init_value)
            if module.logit_bias is not None:
                init.constant_(module.logit_bias, module.config.logit_bias_init_value)


# Of a whole checkpoint from which one tower is loaded: its keys have lost their prefix by then, all others have not.
_OTHER_PARTS = [
    r"^(?:model\.)?(?:vision_model|text_model|visual_projection|vision_to_text_projection|logit_scale|logit_bias|lm_head)\b"
]


class MammutVisionModel(TowerMixin, MammutPreTrainedModel):
    """The image encoder: a plain ViT, through which images pass as patches and videos as patches and tubes, once."""

    config: MammutVisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image", "video")
    _input_embed_layer = "patch_embedding"
    _prefix_in_whole_model = "vision_model"
    _keys_to_ignore_on_load_unexpected = _OTHER_PARTS
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": SelfAttentionBlock,
        "attentions": OutputRecorder(Attention, index=1, layer_name="self_attn"),
    }

    def __init__(self, config: MammutVisionConfig):
        super().__init__(config)
        self.embeddings = MammutVisionEmbeddings(config)
        self.pre_layernorm = build_norm(config) if config.pre_layernorm else None
        self.layers = nn.ModuleList([SelfAttentionBlock(config) for _ in range(config.num_hidden_layers)])
        self.post_layernorm = build_norm(config)
        self.gradient_checkpointing = False
        self.post_init()

    @torch.no_grad()
    def inflate_tubes(self) -> None:
        """Start the tubes from the patch convolution of a trained image model, instead of from random weights.

        Raises:
            ValueError: If the model has no tubes.
        """
        if self.embeddings.tube_embedding is None:
            raise ValueError("`vision_config.use_tubes` is false: there are no tubes to start from the patches.")
        patches = self.embeddings.patch_embedding
        self.embeddings.tube_embedding.inflate(patches.weight, patches.bias)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs,
    ) -> MammutVisionOutput:
        """Encode images or videos.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`): Normalised images.
            pixel_values_videos (`torch.Tensor` of shape `(batch_size, num_frames, num_channels, height, width)`):
                Normalised clips, instead of images.
            interpolate_pos_encoding (`bool`): Accept another image size; the learned position table is resized.

        Raises:
            ValueError: If channels, size or number of images do not fit, or a clip is too short for a tube.
        """
        config = self.config
        hidden_states = self.embeddings(pixel_values, pixel_values_videos, interpolate_pos_encoding)
        if self.pre_layernorm is not None:
            hidden_states = self.pre_layernorm(hidden_states)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)

        normed = None
        if config.norm_before_pool or config.norm_decoder_tokens:
            normed = self.post_layernorm(hidden_states)
        pooled = normed if config.norm_before_pool else hidden_states
        has_cls = config.use_cls_token and config.image_pool == "patch_mean"
        pooled = (pooled[:, 1:] if has_cls else pooled).mean(dim=1)
        if not config.norm_before_pool:
            pooled = self.post_layernorm(pooled)
        tokens = normed if config.norm_decoder_tokens else hidden_states
        return MammutVisionOutput(last_hidden_state=tokens, pooler_output=pooled)


class MammutTextModel(TowerMixin, MammutPreTrainedModel):
    """The text decoder, run in one of two passes that share all weights but the cross-attention layers (section 3.1)."""

    config: MammutTextConfig
    input_modalities = ("text",)
    _input_embed_layer = "embed_tokens"
    _prefix_in_whole_model = "text_model"
    _keys_to_ignore_on_load_unexpected = _OTHER_PARTS
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": SelfAttentionBlock,
        "attentions": OutputRecorder(Attention, index=1, layer_name="self_attn"),
        "cross_attentions": OutputRecorder(Attention, index=1, layer_name="cross_attn"),
    }

    def __init__(self, config: MammutTextConfig):
        super().__init__(config)
        crossed = config.cross_attn_layers
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(
            [
                SelfAttentionBlock(
                    config,
                    is_causal=True,
                    layer_idx=index,
                    has_mlp=config.self_mlp_at_cross or index not in crossed,
                )
                for index in range(config.num_hidden_layers)
            ]
        )
        self.cross_layers = nn.ModuleList(
            [
                CrossAttentionBlock(config, layer_idx=index, norm_memory=config.norm_memory)
                for index in range(len(crossed))
            ]
        )
        self.final_layer_norm = build_norm(config)
        self.gradient_checkpointing = False
        self.post_init()

    def _full_length(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor
    ) -> tuple[torch.LongTensor, torch.Tensor]:
        """Tokens first, then `pad_token_id` up to the full context: the only form that LAION's weights have seen."""
        order = (1 - attention_mask.long()).argsort(dim=-1, stable=True)
        attention_mask = attention_mask.gather(-1, order)
        input_ids = input_ids.gather(-1, order).masked_fill(attention_mask == 0, self.config.pad_token_id)
        missing = self.config.max_position_embeddings - input_ids.shape[1]
        return (
            nn.functional.pad(input_ids, (0, missing), value=self.config.pad_token_id),
            nn.functional.pad(attention_mask, (0, missing)),
        )

    @merge_with_config_defaults
    @capture_outputs
    def encode(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """Contrastive pass: bidirectional, without any cross-attention layer, pooled to one vector per text.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`): Token ids.
            attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
                1 for tokens, 0 for padding on either side. Default: `pad_token_id` at either end is padding.
            position_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*): Token positions.
            inputs_embeds (`torch.Tensor` of shape `(batch_size, sequence_length, hidden_size)`, *optional*):
                Instead of `input_ids`.

        Returns:
            [`BaseModelOutputWithPooling`]: `last_hidden_state` of shape `(batch_size, sequence_length, hidden_size)`,
            over the full context where padding takes part; `pooler_output` of shape `(batch_size, hidden_size)`.

        Raises:
            ValueError: If a text is empty or longer than the context, or an id lies outside the vocabulary.
        """
        config = self.config
        check_texts(input_ids, inputs_embeds, config.vocab_size, config.max_position_embeddings)
        if attention_mask is None and input_ids is not None:
            attention_mask = padding_mask(input_ids, config.pad_token_id)
        if not config.mask_padding or config.text_pool == "all_mean":
            if input_ids is None or position_ids is not None:
                raise ValueError(
                    "`mask_padding=False` or `text_pool='all_mean'` bring texts to full length with padding tokens: pass "
                    "`input_ids`, and neither `inputs_embeds` nor `position_ids`."
                )
            input_ids, attention_mask = self._full_length(input_ids, attention_mask)
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if attention_mask is None:
            attention_mask = torch.ones(hidden_states.shape[:2], dtype=torch.long, device=hidden_states.device)
        seen = attention_mask if config.mask_padding else torch.ones_like(attention_mask)
        if position_ids is None:
            position_ids = default_position_ids(seen, 0, hidden_states.shape[1], hidden_states.device)
        hidden_states = hidden_states + self.position_embedding(position_ids)
        mask = create_bidirectional_mask(config=config, inputs_embeds=hidden_states, attention_mask=seen)
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask=mask, is_causal=False, **kwargs)
        hidden_states = self.final_layer_norm(hidden_states)
        weights = torch.ones_like(seen) if config.text_pool == "all_mean" else attention_mask
        weights = weights[..., None].to(hidden_states)  # (batch, length, 1)
        pooled = (hidden_states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=pooled)

    def _causal_mask(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.LongTensor,
        cache: EncoderDecoderCache | None,
        prefix_mask: torch.Tensor | None,
    ):
        """Mask of the captioning pass; `prefix_mask` of shape `(batch, prefix length)` opens the prefix to itself."""
        both_in_prefix = None
        if prefix_mask is not None:
            if is_flash_attention_requested(self.config):
                raise ValueError(
                    '`bidirectional_prefix` needs a mask, which flash attention cannot take: call `model.set_attn_implementation("sdpa")`.'
                )
            # Static caches are as long as the generation may become.
            missing = self.config.max_position_embeddings - prefix_mask.shape[1]
            in_prefix = nn.functional.pad(prefix_mask.bool(), (0, missing))

            def both_in_prefix(batch_idx, head_idx, query_idx, key_idx):
                return in_prefix[batch_idx, query_idx] & in_prefix[batch_idx, key_idx]

        return create_causal_mask(
            self.config, hidden_states, attention_mask, cache, position_ids, or_mask_function=both_in_prefix
        )

    @takes_cache
    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: EncoderDecoderCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        prefix_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Captioning pass: causal, with a cross-attention layer behind every so-many-th layer.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`): Token ids.
            encoder_hidden_states (`torch.Tensor` of shape `(batch_size, num_image_tokens, hidden_size)`, *optional*):
                Image tokens; not needed once their keys and values are cached.
            attention_mask (`torch.Tensor` of shape `(batch_size, past_length + sequence_length)`, *optional*):
                1 for tokens, 0 for padding on either side. Default: every token is real.
            position_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*): Token positions.
            cache (`EncoderDecoderCache`, *optional*): Cache to read and extend; `past_key_values` before transformers 5.24.
            inputs_embeds (`torch.Tensor` of shape `(batch_size, sequence_length, hidden_size)`, *optional*):
                Instead of `input_ids`.
            prefix_mask (`torch.Tensor` of shape `(batch_size, prefix_length)`, *optional*):
                1 for tokens (from the left) that see one another both ways. Only without past.

        Returns:
            Normalised states of shape `(batch_size, sequence_length, hidden_size)` and the cache.

        Raises:
            ValueError: If the image is missing, a text is empty or longer than the context, or an id lies outside the
                vocabulary.
        """
        check_texts(input_ids, inputs_embeds, self.config.vocab_size, self.config.max_position_embeddings)
        if encoder_hidden_states is None and not has_cached_image(cache):
            raise ValueError("`encoder_hidden_states` is missing; for texts without an image call `encode`.")
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if position_ids is None:
            past_length = 0 if cache is None else cache.get_seq_length()
            position_ids = default_position_ids(
                attention_mask, past_length, hidden_states.shape[1], hidden_states.device
            )
        hidden_states = hidden_states + self.position_embedding(position_ids)
        mask = self._causal_mask(hidden_states, attention_mask, position_ids, cache, prefix_mask)
        cross_layers = dict(zip(self.config.cross_attn_layers, self.cross_layers, strict=True))
        for index, layer in enumerate(self.layers):
            hidden_states = layer(hidden_states, attention_mask=mask, layer_past=cache, **kwargs)
            if index in cross_layers:
                hidden_states = cross_layers[index](hidden_states, encoder_hidden_states, layer_past=cache, **kwargs)
        return BaseModelOutputWithPastAndCrossAttentions(self.final_layer_norm(hidden_states), cache)


class MammutModel(MammutPreTrainedModel):
    """The dual encoder: image (or video) and text embeddings in one space, from the vision tower and the contrastive pass.

    The cross-attention layers are loaded and saved with the model so that every checkpoint serves
    [`MammutForConditionalGeneration`] too.
    """

    _keys_to_ignore_on_load_unexpected = [r"^lm_head\."]  # noqa: RUF012  (a captioner's checkpoint)

    def __init__(self, config: MammutConfig):
        super().__init__(config)
        width = config.text_config.hidden_size
        self.vision_model = MammutVisionModel._from_config(config.vision_config)
        self.text_model = MammutTextModel._from_config(config.text_config)
        self.vision_to_text_projection = nn.Linear(config.vision_config.hidden_size, width, bias=False)
        self.visual_projection = None
        if not config.shared_image_projection:
            self.visual_projection = nn.Linear(config.vision_config.hidden_size, width, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
        self.logit_bias = None
        if config.use_logit_bias:
            self.logit_bias = nn.Parameter(torch.tensor(float(config.logit_bias_init_value)))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.embed_tokens = value

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs,
    ) -> MammutVisionOutput:
        """Encode images or videos for retrieval (`pooler_output`) and for the decoder (`image_tokens`) in one pass.

        Args:
            pixel_values (`torch.Tensor` of shape `(num_images, num_channels, height, width)`): Normalised images.
            pixel_values_videos (`torch.Tensor` of shape `(num_videos, num_frames, num_channels, height, width)`):
                Normalised clips, instead of images.
            interpolate_pos_encoding (`bool`): Accept another image size than the configured one.

        Returns:
            [`MammutVisionOutput`] whose `pooler_output` of shape `(num_images, text_hidden_size)` is projected but not
            normalised.
        """
        outputs = self.vision_model(
            pixel_values, pixel_values_videos, interpolate_pos_encoding, return_dict=True, **kwargs
        )
        projection = self.vision_to_text_projection if self.visual_projection is None else self.visual_projection
        outputs.pooler_output = projection(outputs.pooler_output)
        outputs.image_tokens = self.vision_to_text_projection(outputs.last_hidden_state)
        return outputs

    def get_video_features(self, pixel_values_videos: torch.Tensor, **kwargs) -> MammutVisionOutput:
        """As `get_image_features`, for videos of shape `(num_videos, num_frames, num_channels, height, width)`."""
        return self.get_image_features(pixel_values_videos=pixel_values_videos, **kwargs)

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """Encode texts for retrieval: the contrastive pass of the decoder.

        Args:
            input_ids (`torch.LongTensor` of shape `(num_texts, sequence_length)`): Token ids.
            attention_mask (`torch.Tensor` of shape `(num_texts, sequence_length)`, *optional*):
                1 for tokens, 0 for padding. Default: `pad_token_id` at either end is padding.
            position_ids (`torch.LongTensor` of shape `(num_texts, sequence_length)`, *optional*): Token positions.

        Returns:
            [`BaseModelOutputWithPooling`] whose `pooler_output` of shape `(num_texts, text_hidden_size)` is not
            normalised; there is no projection on the text side.
        """
        return self.text_model.encode(
            input_ids, attention_mask=attention_mask, position_ids=position_ids, return_dict=True, **kwargs
        )

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        return_loss: bool | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs,
    ) -> MammutOutput:
        """Compare every image (or video) with every text; their numbers may differ unless a loss is asked for.

        Args:
            input_ids, attention_mask, position_ids: As in `get_text_features`.
            pixel_values, pixel_values_videos, interpolate_pos_encoding: As in `get_image_features`.
            return_loss (`bool`, *optional*): Return the contrastive loss of pairs (image i, text i).

        Raises:
            ValueError: If images or texts are missing, or a loss is asked for unequal numbers of them.

        Example:

        ```python
        >>> inputs = processor(images=images, text=["a red heart", "a green apple"], return_tensors="pt")
        >>> similarities = model(**inputs).logits_per_image
        ```
        """
        if pixel_values is None and pixel_values_videos is None:
            raise ValueError(
                "`pixel_values` (or `pixel_values_videos`) is missing; for text embeddings alone call "
                "`get_text_features`."
            )
        if input_ids is None and kwargs.get("inputs_embeds") is None:
            raise ValueError("`input_ids` is missing; for image embeddings alone call `get_image_features`.")
        text_kwargs = {"inputs_embeds": kwargs.pop("inputs_embeds", None)}
        vision_outputs = self.get_image_features(
            pixel_values, pixel_values_videos, interpolate_pos_encoding, return_dict=True, **kwargs
        )
        text_outputs = self.get_text_features(
            input_ids, attention_mask, position_ids, return_dict=True, **text_kwargs, **kwargs
        )
        image_embeds = nn.functional.normalize(vision_outputs.pooler_output, dim=-1)
        text_embeds = nn.functional.normalize(text_outputs.pooler_output, dim=-1)
        logits_per_text = self.similarity(text_embeds, image_embeds)
        loss = self.contrastive_loss(image_embeds, text_embeds) if return_loss else None
        return MammutOutput(
            loss=loss,
            logits_per_image=logits_per_text.T,
            logits_per_text=logits_per_text,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=text_outputs,
            vision_model_output=vision_outputs,
        )

    def similarity(self, text_embeds: torch.Tensor, image_embeds: torch.Tensor) -> torch.Tensor:
        """Scaled (and, where the model has one, biased) cosine similarities in fp32, `(num_texts, num_images)`."""
        with torch.autocast(text_embeds.device.type, enabled=False):
            logits = self.logit_scale.exp().float() * text_embeds.float() @ image_embeds.float().T
        return logits if self.logit_bias is None else logits + self.logit_bias.float()

    def contrastive_loss(self, image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
        """Contrastive loss of this batch; while training, negatives come from all processes."""
        scale, gather = self.logit_scale.exp(), self.training
        if self.config.contrastive_loss_type == "softmax":
            return contrastive_loss(image_embeds, text_embeds, scale, gather=gather)
        return focal_contrastive_loss(
            image_embeds, text_embeds, scale, self.logit_bias, gamma=self.config.focal_gamma, gather=gather
        )


def select_images(image_tokens: torch.Tensor, image_index: torch.LongTensor) -> torch.Tensor:
    """Tokens of the image that every text asks about; of shape `(num_texts, num_tokens, hidden_size)`.

    Raises:
        ValueError: If an index names no image.
    """
    if image_index.device.type == "cpu" and not torch.compiler.is_compiling():  # elsewhere it would stall the queue
        smallest, largest = image_index.min().item(), image_index.max().item()
        if smallest < 0 or largest >= len(image_tokens):
            raise ValueError(
                f"`image_index` must lie between 0 and {len(image_tokens) - 1}, the last image; got indices from {smallest} "
                f"to {largest}."
            )
    return image_tokens[image_index.to(image_tokens.device)]


class MammutForConditionalGeneration(MammutPreTrainedModel, CaptionGenerationMixin):
    """Captions, answers and video answers: [`MammutModel`] with a vocabulary head, trained with the joint loss.

    Example:

    ```python
    >>> inputs = processor(images=image, questions="what colour is the shape?", return_tensors="pt")
    >>> ids = model.generate(**inputs, max_new_tokens=8)
    >>> processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    ```
    """

    _tied_weights_keys = {"lm_head.weight": "model.text_model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: MammutConfig):
        super().__init__(config)
        self.model = MammutModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_image_features(self, *args, **kwargs) -> MammutVisionOutput:
        """See [`MammutModel.get_image_features`]."""
        return self.model.get_image_features(*args, **kwargs)

    def get_video_features(self, pixel_values_videos: torch.Tensor, **kwargs) -> MammutVisionOutput:
        """See [`MammutModel.get_video_features`]."""
        return self.model.get_video_features(pixel_values_videos, **kwargs)

    def get_text_features(self, *args, **kwargs) -> BaseModelOutputWithPooling:
        """See [`MammutModel.get_text_features`]."""
        return self.model.get_text_features(*args, **kwargs)

    @takes_cache
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: EncoderDecoderCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        image_tokens: torch.Tensor | None = None,
        image_index: torch.LongTensor | None = None,
        prefix_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        skip_logits: bool | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs,
    ) -> MammutConditionalGenerationOutput:
        """Score texts given images or videos, and train.

        The image is encoded once. Without `labels` only the captioning pass is run; with them, the contrastive pass too
        unless its weight is 0.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`): Captions, prompts, or questions with
                answers.
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`, *optional*):
                Normalised images; needed at the first step only.
            pixel_values_videos (`torch.Tensor` of shape `(batch_size, num_frames, num_channels, height, width)`,
                *optional*): Normalised clips, instead of images.
            attention_mask (`torch.Tensor` of shape `(batch_size, past_length + sequence_length)`, *optional*):
                1 for tokens, 0 for padding on either side. Default: every token is real; with `labels`, `pad_token_id` at
                either end is padding.
            position_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*): Token positions.
            cache (`EncoderDecoderCache`, *optional*):
                Cache of earlier tokens and of the image; `past_key_values` before transformers 5.24.
            inputs_embeds (`torch.Tensor` of shape `(batch_size, sequence_length, hidden_size)`, *optional*):
                Instead of `input_ids`.
            image_tokens (`torch.Tensor` of shape `(batch_size, num_image_tokens, text_hidden_size)`, *optional*):
                Instead of images: the field of that name of an earlier output.
            image_index (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                The image of every text, where several questions ask about one image: it is encoded once. Default: text i
                belongs to image i.
            prefix_mask (`torch.Tensor` of shape `(batch_size, prefix_length)`, *optional*):
                1 for tokens of a prompt that see one another both ways. Default: none; where the configuration's
                `bidirectional_prefix` is true and `labels` are given, the tokens before the first supervised one.
            labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Targets, aligned with `input_ids` (the shift happens here); -100 (a question) is ignored.
            use_cache (`bool`, *optional*): Return the cache. Default: the text config's, never with `labels`.
            logits_to_keep (`int` or `torch.Tensor`):
                Last positions (0: all) that get logits, or their indices, or a boolean mask.
            skip_logits (`bool`, *optional*):
                Leave the logits out. Default: while training with `labels`, because the loss itself never holds more
                than a chunk of them.
            interpolate_pos_encoding (`bool`): Accept another image size than the configured one.

        Raises:
            ValueError: If there is no image, images and texts differ in number, or shapes and ids do not fit.
        """
        config = self.config
        if use_cache is None:
            use_cache = config.text_config.use_cache
        use_cache = use_cache and labels is None
        self._check_cache(cache)
        if cache is None and use_cache:
            cache = EncoderDecoderCache(DynamicCache(config=config.text_config), DynamicCache())
        if labels is not None and cache is not None:
            raise ValueError(f"`labels` score whole captions; pass no `{CACHE_NAME}` with them.")
        has_pixels = pixel_values is not None or pixel_values_videos is not None
        if has_pixels and image_tokens is not None:
            raise ValueError("Pass either `pixel_values` or `image_tokens`, got both.")
        if labels is not None and attention_mask is None and input_ids is not None:
            attention_mask = padding_mask(input_ids, config.text_config.pad_token_id)

        # The image, once
        vision_outputs = image_embeds = None
        is_cached = has_cached_image(cache)
        if image_tokens is None and not is_cached:
            if not has_pixels:
                raise ValueError(
                    "`pixel_values` (or `pixel_values_videos`, or `image_tokens`) is missing: a caption needs an image."
                )
            vision_outputs = self.model.get_image_features(
                pixel_values, pixel_values_videos, interpolate_pos_encoding, return_dict=True, **kwargs
            )
            image_tokens = vision_outputs.image_tokens
            image_embeds = nn.functional.normalize(vision_outputs.pooler_output, dim=-1)
        with_contrastive = labels is not None and config.contrastive_loss_weight != 0
        if image_index is not None and image_tokens is not None:
            if with_contrastive:
                raise ValueError(
                    "`image_index` lets texts share images, which a contrastive loss would take for negatives: set "
                    "`contrastive_loss_weight` to 0."
                )
            image_tokens = select_images(image_tokens, image_index)
        texts = input_ids if inputs_embeds is None else inputs_embeds
        if image_tokens is not None and texts is not None and len(texts) != len(image_tokens):
            raise ValueError(f"Every text needs its image: got {len(image_tokens)} images and {len(texts)} texts.")

        # Contrastive pass
        text_outputs = text_embeds = logits_per_text = contrastive = None
        if with_contrastive:
            if image_embeds is None:
                raise ValueError(
                    "The contrastive loss needs `pixel_values`; `image_tokens` alone serve captioning only."
                )
            text_outputs = self.model.get_text_features(
                input_ids, attention_mask, position_ids, inputs_embeds=inputs_embeds, return_dict=True, **kwargs
            )
            text_embeds = nn.functional.normalize(text_outputs.pooler_output, dim=-1)
            logits_per_text = self.model.similarity(text_embeds, image_embeds)
            contrastive = self.model.contrastive_loss(image_embeds, text_embeds)

        # Captioning pass
        if labels is not None:
            labels = supervised_labels(labels, attention_mask, config.text_config.vocab_size)
            if prefix_mask is None and config.text_config.bidirectional_prefix:
                prefix_mask = (labels != -100).long().cumsum(-1) == 0
        decoder_outputs = self.model.text_model(
            input_ids,
            encoder_hidden_states=None if is_cached else image_tokens,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            prefix_mask=prefix_mask,
            return_dict=True,
            **kwargs,
        )
        hidden_states = decoder_outputs.last_hidden_state
        logits = None
        if skip_logits is None:
            skip_logits = self.training and labels is not None
        if not skip_logits:
            logits = self.lm_head(slice_logits_to_keep(hidden_states, logits_to_keep))

        loss = caption = None
        if labels is not None:
            caption = captioning_loss(hidden_states, labels, self.lm_head, gather=self.training)
            loss = config.caption_loss_weight * caption
            if contrastive is not None:
                loss = loss + config.contrastive_loss_weight * contrastive
        return MammutConditionalGenerationOutput(
            loss,
            logits,
            cache,  # by its place, since its name depends on the version of transformers
            contrastive_loss=contrastive,
            caption_loss=caption,
            hidden_states=decoder_outputs.hidden_states,
            attentions=decoder_outputs.attentions,
            cross_attentions=decoder_outputs.cross_attentions,
            logits_per_image=None if logits_per_text is None else logits_per_text.T,
            logits_per_text=logits_per_text,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            image_tokens=image_tokens,
            text_model_output=text_outputs,
            vision_model_output=vision_outputs,
        )

    def _prompt_inputs(self, attention_mask: torch.LongTensor) -> dict[str, torch.Tensor]:
        return {"prefix_mask": attention_mask} if self.config.text_config.bidirectional_prefix else {}

    def prepare_inputs_for_generation(
        self, input_ids, is_first_iteration: bool = False, use_cache: bool = True, attention_mask=None, **kwargs
    ) -> dict:
        model_inputs = super().prepare_inputs_for_generation(
            input_ids,
            is_first_iteration=is_first_iteration,
            use_cache=use_cache,
            attention_mask=attention_mask,
            **kwargs,
        )
        if model_inputs.get("prefix_mask") is not None:
            if use_cache and not is_first_iteration:
                del model_inputs["prefix_mask"]  # its keys and values are cached
            else:
                model_inputs["attention_mask"] = (
                    attention_mask  # not a finished mask without the prefix (static caches)
                )
        return model_inputs

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        image_tokens: torch.Tensor | None = None,
        image_index: torch.LongTensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs,
    ) -> torch.Tensor:
        """Caption images or videos, or answer questions about them; see [`CaptionGenerationMixin.generate`].

        Args:
            pixel_values_videos (`torch.Tensor` of shape `(batch_size, num_frames, num_channels, height, width)`,
                *optional*): Normalised clips, instead of `pixel_values`. Encoded once, as images are.
            image_index (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                The image of every prompt, where several ask about one image. Default: prompt i belongs to image i.
            inputs, pixel_values, image_tokens, interpolate_pos_encoding, kwargs: As there. Where the configuration's
                `bidirectional_prefix` is true, the tokens of a prompt see one another both ways.
        """
        if sum(given is not None for given in (pixel_values, pixel_values_videos, image_tokens)) > 1:
            raise ValueError("Pass one of `pixel_values`, `pixel_values_videos` and `image_tokens`.")
        if pixel_values_videos is not None or (image_index is not None and pixel_values is not None):
            if kwargs.get("assistant_model") is not None:
                raise ValueError("`assistant_model` reads `pixel_values` alone, no videos and no `image_index`.")
            visual = {"pixel_values": pixel_values, "pixel_values_videos": pixel_values_videos}
            if self.device.type != "meta":  # where weights are offloaded, hooks move the inputs
                visual = {
                    name: pixels if pixels is None else pixels.to(self.device) for name, pixels in visual.items()
                }
            features = self.get_image_features(**visual, interpolate_pos_encoding=interpolate_pos_encoding)
            pixel_values, image_tokens = None, features.image_tokens
        if image_index is not None and image_tokens is not None:
            image_tokens = select_images(image_tokens, image_index)
        return super().generate(inputs, pixel_values, image_tokens, interpolate_pos_encoding, **kwargs)


__all__ = [
    "MammutConditionalGenerationOutput",
    "MammutForConditionalGeneration",
    "MammutModel",
    "MammutOutput",
    "MammutPreTrainedModel",
    "MammutTextModel",
    "MammutVisionModel",
    "MammutVisionOutput",
]
