"""PyTorch MaMMUT: a ViT and one text decoder that is run in two passes, for retrieval and for generation.

Read from top to bottom: vision tower (images and videos), text decoder, dual encoder, captioner. Outputs, and what this model shares
with others, are in `contrastive_captioner.py`.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import EncoderDecoderCache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions, BaseModelOutputWithPooling
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple, is_flash_attention_requested, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .caption_generation import has_cached_image
from .configuration_mammut import MammutConfig, MammutTextConfig, MammutVisionConfig
from .contrastive_captioner import (
    CaptionerOutput,
    ContrastiveCaptioner,
    ContrastiveCaptionerPreTrainedModel,
    DualEncoder,
    DualEncoderOutput,
    VisionTowerOutput,
)
from .contrastive_losses import contrastive_losses, focal_contrastive_losses
from .cropped_positions import random_position_crops
from .inputs import check_pixel_values, check_texts, default_position_ids, padding_mask, tokens_first
from .layers import (
    Attention,
    CrossAttentionBlock,
    PatchEmbeddings,
    SelfAttentionBlock,
    build_norm,
    first_rows,
    kept_patches,
    learned_scalar,
    resize_embedding,
    resize_position_table,
)
from .towers import TowerMixin
from .transformers_versions import takes_cache
from .video_tubes import TubeEmbedding, fixed_positions, tube_centers


class MammutVisionEmbeddings(PatchEmbeddings):
    """Tokens of images and clips: class token, patches of every so-many-th frame, tubes; with their positions.

    An image is a clip of one frame whose tubes are off.
    """

    def __init__(self, config: MammutVisionConfig):
        super().__init__(config)
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
        self.position_gate = nn.Parameter(torch.empty(1)) if has_gate else None

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
        tokens, height, width = self.embed_patches(frames.flatten(0, 1))
        class_position, positions = self._learned_positions(batch_size, height, width)
        tokens = tokens.unflatten(0, (batch_size, num_frames)) + positions[:, None]  # the same in every frame
        tokens = tokens.flatten(1, 2)
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
        if pixel_values is None:
            check_pixel_values(pixel_values_videos, config, interpolate_pos_encoding, "pixel_values_videos")
            clip = pixel_values_videos  # (batch, frames, channels, height, width)
        else:
            check_pixel_values(pixel_values, config, interpolate_pos_encoding)
            clip = pixel_values[:, None]
        tokens, class_position = self._patch_tokens(clip[:, :: config.frame_stride])
        parts = [tokens]
        if self.class_embedding is not None:
            parts.insert(0, (self.class_embedding + class_position).expand(tokens.shape[0], 1, -1))
        if self.tube_embedding is not None and pixel_values_videos is not None:
            tubes, centers = self.tube_embedding(clip.to(self.tube_embedding.kernel.dtype))
            parts.append(self._add_fixed_positions(tubes, centers) if config.use_fixed_positions else tubes)
        return torch.cat(parts, dim=1) if len(parts) > 1 else tokens


class MammutPreTrainedModel(ContrastiveCaptionerPreTrainedModel):
    """Weight initialisation, loading and saving."""

    config: MammutConfig
    input_modalities = ("image", "video", "text")
    _no_split_modules = ["SelfAttentionBlock", "CrossAttentionBlock", "MammutVisionEmbeddings"]  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MammutVisionEmbeddings) and module.position_gate is not None:
            init.constant_(module.position_gate, module.config.position_gate_init_value)
        elif isinstance(module, TubeEmbedding):
            module.reset_parameters()
        elif isinstance(module, MammutModel) and module.logit_bias is not None:
            init.constant_(module.logit_bias, module.config.logit_bias_init_value)


class MammutVisionModel(TowerMixin, MammutPreTrainedModel):
    """The image encoder: a plain ViT, through which images pass as patches and videos as patches and tubes, once."""

    config: MammutVisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image", "video")
    _input_embed_layer = "patch_embedding"
    _prefix_in_whole_model = "vision_model"

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
    ) -> VisionTowerOutput:
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
        if self.training and config.patch_dropout > 0:  # tubes count as patches
            kept = kept_patches(hidden_states, config.patch_dropout, int(config.use_cls_token))
            hidden_states = hidden_states.take_along_dim(kept[..., None], dim=1)
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
        return VisionTowerOutput(last_hidden_state=tokens, pooler_output=pooled)


class MammutTextModel(TowerMixin, MammutPreTrainedModel):
    """The text decoder, run in one of two passes that share all weights but the cross-attention layers (section 3.1)."""

    config: MammutTextConfig
    input_modalities = ("text",)
    _prefix_in_whole_model = "text_model"
    _tp_plan = {"embed_tokens": "embedding_rowwise"}  # noqa: RUF012
    _can_record_outputs = {  # noqa: RUF012
        **TowerMixin._can_record_outputs,
        "cross_attentions": OutputRecorder(Attention, index=1, layer_name="cross_attn"),
    }

    def __init__(self, config: MammutTextConfig):
        super().__init__(config)
        crossed = config.cross_attn_layers
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(
            SelfAttentionBlock(
                config, is_causal=True, layer_idx=index, has_mlp=config.self_mlp_at_cross or index not in crossed
            )
            for index in range(config.num_hidden_layers)
        )
        self.cross_layers = nn.ModuleList(
            CrossAttentionBlock(config, layer_idx=index, norm_memory=config.norm_memory)
            for index in range(len(crossed))
        )
        self.final_layer_norm = build_norm(config)
        self.gradient_checkpointing = False
        self.post_init()

    def resize_positions(self, max_position_embeddings: int) -> None:
        """Read texts of up to so many tokens; further rows of the table are fresh."""
        table = self.position_embedding.weight.detach()
        rows = first_rows(table, max_position_embeddings, self.config.initializer_range)
        resize_embedding(self.position_embedding, rows)
        self.config.max_position_embeddings = max_position_embeddings

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
            input_ids, attention_mask, position_ids: As in [`DualEncoder.get_text_features`].
            inputs_embeds: As in [`ContrastiveCaptioner.forward`].

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
            input_ids, attention_mask = tokens_first(
                input_ids, attention_mask, config.max_position_embeddings, config.pad_token_id
            )
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if attention_mask is None:
            attention_mask = torch.ones(hidden_states.shape[:2], dtype=torch.long, device=hidden_states.device)
        seen = attention_mask if config.mask_padding else torch.ones_like(attention_mask)
        if position_ids is None:
            position_ids = default_position_ids(hidden_states, seen)
        hidden_states = hidden_states + self.position_embedding(position_ids)
        mask = create_bidirectional_mask(config=config, inputs_embeds=hidden_states, attention_mask=seen)
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask=mask, is_causal=False, **kwargs)
        hidden_states = self.final_layer_norm(hidden_states)
        weights = torch.ones_like(seen) if config.text_pool == "all_mean" else attention_mask
        weights = weights[..., None].to(hidden_states)  # (batch, length, 1)
        pooled = (hidden_states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=pooled)

    def _within_prefix(self, prefix_mask: torch.Tensor | None) -> Callable | None:
        """What opens a prefix, given as `(batch, prefix length)`, to itself in the causal mask of the captioning pass."""
        if prefix_mask is None:
            return None
        if is_flash_attention_requested(self.config):
            raise ValueError(
                '`bidirectional_prefix` needs a mask, which flash attention cannot take: call `model.set_attn_implementation("sdpa")`.'
            )
        # Static caches are as long as the generation may become.
        missing = self.config.max_position_embeddings - prefix_mask.shape[1]
        in_prefix = nn.functional.pad(prefix_mask.bool(), (0, missing))

        def both_in_prefix(batch_idx, head_idx, query_idx, key_idx):
            return in_prefix[batch_idx, query_idx] & in_prefix[batch_idx, key_idx]

        return both_in_prefix

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
            input_ids, attention_mask, position_ids, cache, inputs_embeds: As in [`ContrastiveCaptioner.forward`] without `labels`.
            encoder_hidden_states (`torch.Tensor` of shape `(batch_size, num_image_tokens, hidden_size)`, *optional*):
                Image tokens; not needed once their keys and values are cached.
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
            position_ids = default_position_ids(hidden_states, attention_mask, cache)
        hidden_states = hidden_states + self.position_embedding(position_ids)
        both = self._within_prefix(prefix_mask)
        mask = create_causal_mask(
            self.config, hidden_states, attention_mask, cache, position_ids, or_mask_function=both
        )
        cross_layers = dict(zip(self.config.cross_attn_layers, self.cross_layers, strict=True))
        for index, layer in enumerate(self.layers):
            hidden_states = layer(hidden_states, attention_mask=mask, layer_past=cache, **kwargs)
            if index in cross_layers:
                hidden_states = cross_layers[index](hidden_states, encoder_hidden_states, layer_past=cache, **kwargs)
        return BaseModelOutputWithPastAndCrossAttentions(self.final_layer_norm(hidden_states), cache)


class MammutModel(DualEncoder, MammutPreTrainedModel):
    """The dual encoder: image (or video) and text embeddings in one space, from the vision tower and the contrastive pass.

    The cross-attention layers are loaded and saved with the model so that every checkpoint serves
    [`MammutForConditionalGeneration`] too.
    """

    def __init__(self, config: MammutConfig):
        super().__init__(config)
        width = config.text_config.hidden_size
        self.vision_model = MammutVisionModel._from_config(config.vision_config)
        self.text_model = MammutTextModel._from_config(config.text_config)
        self.vision_to_text_projection = nn.Linear(config.vision_config.hidden_size, width, bias=False)
        self.visual_projection = None
        if not config.shared_image_projection:
            self.visual_projection = nn.Linear(config.vision_config.hidden_size, width, bias=False)
        self.logit_scale = learned_scalar(config.logit_scale_init_value)
        self.logit_bias = None
        if config.use_logit_bias:
            self.logit_bias = learned_scalar(config.logit_bias_init_value)
            self._keep_in_fp32_modules_strict = ["logit_scale", "logit_bias"]
        self.post_init()

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs,
    ) -> VisionTowerOutput:
        """Encode images or videos for retrieval (`pooler_output`) and for the decoder (`image_tokens`) in one pass.

        Args:
            pixel_values, pixel_values_videos, interpolate_pos_encoding: As in [`MammutVisionModel.forward`].

        Returns:
            [`VisionTowerOutput`] whose `pooler_output` of shape `(num_images, text_hidden_size)` is projected but not
            normalised.
        """
        outputs = self.vision_model(
            pixel_values, pixel_values_videos, interpolate_pos_encoding, return_dict=True, **kwargs
        )
        projection = self.vision_to_text_projection if self.visual_projection is None else self.visual_projection
        outputs.pooler_output = projection(outputs.pooler_output)
        outputs.image_tokens = self.vision_to_text_projection(outputs.last_hidden_state)
        return outputs

    def get_video_features(self, pixel_values_videos: torch.Tensor, **kwargs) -> VisionTowerOutput:
        """As `get_image_features`, for videos of shape `(num_videos, num_frames, num_channels, height, width)`."""
        return self.get_image_features(pixel_values_videos=pixel_values_videos, **kwargs)

    def _encode_texts(self, *args, **kwargs) -> BaseModelOutputWithPooling:
        return self.text_model.encode(*args, **kwargs)  # whose pooled states are in the joint space

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        return_loss: bool | None = None,
        interpolate_pos_encoding: bool = False,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        **kwargs,
    ) -> DualEncoderOutput:
        """Compare every image or video with every text, as [`DualEncoder.forward`].

        Args:
            pixel_values_videos (*optional*): As in [`MammutVisionModel.forward`].
        """
        images = {"pixel_values": pixel_values, "pixel_values_videos": pixel_values_videos}
        texts = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        images["interpolate_pos_encoding"], texts["inputs_embeds"] = interpolate_pos_encoding, inputs_embeds
        return self._compare(images, texts, return_loss, **kwargs)

    def contrastive_losses(
        self, image_embeds: torch.Tensor, text_embeds: torch.Tensor, per_pair: bool = True
    ) -> torch.Tensor:
        """Focal or InfoNCE loss of every pair of this batch (section 3.2); while training, negatives come from all processes."""
        scale = self.logit_scale.exp()
        options = {"group": self._processes_with_negatives(), "per_pair": per_pair}
        if self.config.contrastive_loss_type == "softmax":
            return contrastive_losses(image_embeds, text_embeds, scale, **options)
        gamma = self.config.focal_gamma
        return focal_contrastive_losses(image_embeds, text_embeds, scale, self.logit_bias, gamma, **options)


class MammutForConditionalGeneration(ContrastiveCaptioner, MammutPreTrainedModel):
    """Captions, answers and video answers: [`MammutModel`] with a vocabulary head, trained with the joint loss.

    Example:

    ```python
    >>> inputs = processor(images=image, questions="what colour is the shape?", return_tensors="pt")
    >>> ids = model.generate(**inputs, max_new_tokens=8)
    >>> processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    ```
    """

    def __init__(self, config: MammutConfig):
        super().__init__(config)
        self.model = MammutModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_video_features(self, pixel_values_videos: torch.Tensor, **kwargs) -> VisionTowerOutput:
        """See [`MammutModel.get_video_features`]."""
        return self.model.get_video_features(pixel_values_videos, **kwargs)

    @takes_cache
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: EncoderDecoderCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        image_tokens: torch.Tensor | None = None,
        image_index: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        skip_logits: bool | None = None,
        interpolate_pos_encoding: bool = False,
        pixel_values_videos: torch.Tensor | None = None,
        prefix_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> CaptionerOutput:
        """Score texts given images or videos, and train, as [`ContrastiveCaptioner.forward`].

        Without `labels` only the captioning pass is run; with them, the contrastive pass too unless its weight is 0.

        Args:
            pixel_values_videos (*optional*): As in [`MammutVisionModel.forward`].
            prefix_mask (`torch.Tensor` of shape `(batch_size, prefix_length)`, *optional*):
                1 for tokens of a prompt that see one another both ways. Default: none; where the configuration's
                `bidirectional_prefix` is true and `labels` are given, the tokens before the first supervised one.
        """
        images = {"pixel_values": pixel_values, "pixel_values_videos": pixel_values_videos}
        texts = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        images["interpolate_pos_encoding"] = interpolate_pos_encoding
        texts |= {"inputs_embeds": inputs_embeds, "prefix_mask": prefix_mask}
        return self._score(
            images, texts, cache, image_tokens, image_index, labels, use_cache, logits_to_keep, skip_logits, **kwargs
        )

    def _read_texts(
        self,
        texts: dict,
        image_tokens: torch.Tensor | None,
        cache: EncoderDecoderCache | None,
        labels: torch.LongTensor | None,
        compares: bool,
        **kwargs,
    ) -> tuple[BaseModelOutputWithPooling | None, torch.Tensor | None, ModelOutput]:
        prefix_mask = texts.pop("prefix_mask")
        text_outputs = features = None
        if compares:
            text_outputs = self.model.get_text_features(**texts, return_dict=True, **kwargs)
            features = text_outputs.pooler_output
        if labels is not None and prefix_mask is None and self.config.text_config.bidirectional_prefix:
            prefix_mask = (labels != -100).long().cumsum(-1) == 0
        decoder_outputs = self.model.text_model(
            **texts,
            encoder_hidden_states=image_tokens,
            cache=cache,
            prefix_mask=prefix_mask,
            return_dict=True,
            **kwargs,
        )
        return text_outputs, features, decoder_outputs

    def _prompt_inputs(self, attention_mask: torch.LongTensor) -> dict[str, torch.Tensor]:
        return {"prefix_mask": attention_mask} if self.config.text_config.bidirectional_prefix else {}

    def prepare_inputs_for_generation(self, input_ids, inputs_embeds=None, **kwargs) -> dict:
        # transformers looks for `inputs_embeds` among the parameters before it lets a prompt be given so
        model_inputs = super().prepare_inputs_for_generation(input_ids, inputs_embeds=inputs_embeds, **kwargs)
        if model_inputs.get("prefix_mask") is not None:
            if kwargs.get("use_cache", True) and not kwargs.get("is_first_iteration", False):
                del model_inputs["prefix_mask"]  # its keys and values are cached
            else:  # not a finished mask without the prefix (static caches)
                model_inputs["attention_mask"] = kwargs.get("attention_mask")
        return model_inputs

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_tokens: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs,
    ) -> torch.Tensor:
        """Caption images or videos, or answer questions about them; see [`CaptionGenerationMixin.generate`].

        Args:
            pixel_values_videos (*optional*): As in [`MammutVisionModel.forward`]. Encoded once, as images are.
            inputs, pixel_values, image_tokens, interpolate_pos_encoding, kwargs: As there. Where the configuration's
                `bidirectional_prefix` is true, the tokens of a prompt see one another both ways.
        """
        if pixel_values_videos is not None:
            if pixel_values is not None or image_tokens is not None:
                raise ValueError("Pass one of `pixel_values`, `pixel_values_videos` and `image_tokens`.")
            if kwargs.get("assistant_model") is not None:
                raise ValueError("`assistant_model` reads `pixel_values` alone, no videos.")
            if self.device.type != "meta":  # where weights are offloaded, hooks move the inputs
                pixel_values_videos = pixel_values_videos.to(self.device)
            features = self.get_video_features(pixel_values_videos, interpolate_pos_encoding=interpolate_pos_encoding)
            image_tokens = features.image_tokens
        return super().generate(
            inputs, pixel_values, image_tokens, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs
        )


__all__ = [
    "MammutForConditionalGeneration",
    "MammutModel",
    "MammutPreTrainedModel",
    "MammutTextModel",
    "MammutVisionModel",
]
