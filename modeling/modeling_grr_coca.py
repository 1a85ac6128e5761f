"""PyTorch GRR-CoCa, Baseline CoCa and CoCa: contrastive captioners with a vision tower and a split text decoder.

Read from top to bottom: vision tower, the two halves of the text decoder, the dual encoder, the captioner. Outputs, and what these
models share with others, are in `contrastive_captioner.py`.
"""

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import EncoderDecoderCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple, is_flash_attention_requested, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_grr_coca import GrrCocaConfig, GrrCocaTextConfig, GrrCocaVisionConfig
from .contrastive_captioner import (
    ContrastiveCaptioner,
    ContrastiveCaptionerPreTrainedModel,
    DualEncoder,
    VisionTowerOutput,
)
from .contrastive_losses import contrastive_losses
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
    rotary_embedding,
)
from .towers import TowerMixin
from .transformers_versions import takes_cache


class GrrCocaVisionEmbeddings(PatchEmbeddings):
    """Patches, the optional class token in front, and (original ViT only) the absolute position table."""

    def __init__(self, config: GrrCocaVisionConfig):
        super().__init__(config)
        self.position_embedding = None
        if config.position_embedding_type == "learned":
            self.position_embedding = nn.Embedding(self.grid_size**2 + config.use_cls_token, config.hidden_size)

    def forward(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        check_pixel_values(pixel_values, self.config, any_size=interpolate_pos_encoding)
        embeddings, height, width = self.embed_patches(pixel_values)
        if self.class_embedding is not None:
            class_embeddings = self.class_embedding.expand(embeddings.shape[0], 1, -1)
            embeddings = torch.cat([class_embeddings, embeddings], dim=1)
        if self.position_embedding is not None:
            table = resize_position_table(self.position_embedding.weight, self.grid_size, height, width)
            embeddings = embeddings + table
        return embeddings

    def rotary_positions(self, pixel_values: torch.Tensor) -> torch.Tensor | None:
        """Position of every token for RoPE: its index (1-D), or its row and column with 0 for the class token (2-D)."""
        if self.position_embedding is not None:
            return None
        height, width = (side // self.config.patch_size for side in pixel_values.shape[-2:])
        num_special, device = int(self.config.use_cls_token), pixel_values.device
        if self.config.position_embedding_type == "rope_1d":
            return torch.arange(num_special + height * width, device=device)[None]
        rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
        grid = torch.cartesian_prod(rows, columns)  # (patches, 2)
        return torch.cat([grid.new_zeros(num_special, 2), grid])[None]


class GrrCocaPooler(nn.Module):
    """Attentional pooling with learned queries (CoCa section 3.2): one attention layer, no residual, no feed-forward."""

    def __init__(self, config: GrrCocaVisionConfig, num_queries: int, key_value_size: int):
        super().__init__()
        width = config.pooler_hidden_size
        self.query = nn.Parameter(torch.empty(num_queries, width))
        self.layer_norm_q = build_norm(config, width)
        self.layer_norm_kv = build_norm(config, key_value_size)
        self.cross_attn = Attention(
            config, hidden_size=width, num_heads=config.num_pooler_heads, key_value_size=key_value_size
        )
        self.layer_norm_out = build_norm(config, width)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        query = self.layer_norm_q(self.query).expand(hidden_states.shape[0], -1, -1)
        memory = self.layer_norm_kv(hidden_states)
        pooled, _ = self.cross_attn(query, key_value_states=memory, is_cross_attention=True, **kwargs)
        return self.layer_norm_out(pooled.to(query.dtype))


class GrrCocaMultimodalLayer(nn.Module):
    """One layer of the multimodal decoder.

    `coca`: self-attention, cross-attention, feed-forward. `open_clip`: a feed-forward layer after the self-attention too,
    and a norm on the image tokens.
    """

    def __init__(self, config: GrrCocaTextConfig, layer_idx: int):
        super().__init__()
        is_open_clip = config.multimodal_layer_type == "open_clip"
        self.self_block = SelfAttentionBlock(
            config, is_causal=True, layer_idx=config.num_unimodal_layers + layer_idx, has_mlp=is_open_clip
        )
        self.cross_block = CrossAttentionBlock(config, layer_idx=layer_idx, norm_memory=is_open_clip)

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None,
        attention_mask: torch.Tensor | None = None,
        rotary: tuple[torch.Tensor, torch.Tensor] | None = None,
        layer_past: EncoderDecoderCache | None = None,
        **kwargs,
    ) -> torch.Tensor:
        hidden_states = self.self_block(
            hidden_states, attention_mask=attention_mask, rotary=rotary, layer_past=layer_past, **kwargs
        )
        return self.cross_block(hidden_states, encoder_hidden_states, layer_past=layer_past, **kwargs)


class GrrCocaPreTrainedModel(ContrastiveCaptionerPreTrainedModel):
    """Weight initialisation, loading and saving."""

    config: GrrCocaConfig
    _no_split_modules = ["SelfAttentionBlock", "CrossAttentionBlock", "GrrCocaVisionEmbeddings", "GrrCocaPooler"]  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, GrrCocaPooler):
            # Unit scale: queries that start alike would all pool the same average of the patches.
            init.normal_(module.query, std=1.0)
        elif isinstance(module, GrrCocaTextModel):
            init.normal_(module.cls_token, std=module.config.initializer_range)


class GrrCocaVisionModel(TowerMixin, GrrCocaPreTrainedModel):
    """ViT with caption and contrastive poolers (CoCa section 3.2; GRR-CoCa replaces norm, feed-forward and positions)."""

    config: GrrCocaVisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _input_embed_layer = "patch_embedding"
    _prefix_in_whole_model = "vision_model"

    def __init__(self, config: GrrCocaVisionConfig):
        super().__init__(config)
        width, pooled_width = config.hidden_size, config.pooler_hidden_size
        self.embeddings = GrrCocaVisionEmbeddings(config)
        self.pre_layernorm = build_norm(config) if config.pre_layernorm else None
        self.layers = nn.ModuleList([SelfAttentionBlock(config) for _ in range(config.num_hidden_layers)])
        # open_clip normalises after the pooler only, which the pooler's own output norm does.
        self.post_layernorm = None if config.pooler_type == "open_clip" else build_norm(config)
        self.caption_pooler = self.contrastive_pooler = None
        if config.pooler_type != "class_token":
            self.caption_pooler = GrrCocaPooler(config, config.num_caption_queries, key_value_size=width)
        if config.pooler_type in ("cascade", "parallel"):
            key_value_size = pooled_width if config.pooler_type == "cascade" else width
            self.contrastive_pooler = GrrCocaPooler(config, 1, key_value_size=key_value_size)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs
    ) -> VisionTowerOutput:
        """Encode images.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`): Normalised images.
            interpolate_pos_encoding (`bool`): Accept another image size; a learned position table is resized.

        Raises:
            ValueError: If channels, size or number of images do not fit.
        """
        hidden_states = self.embeddings(pixel_values, interpolate_pos_encoding)
        if self.pre_layernorm is not None:
            hidden_states = self.pre_layernorm(hidden_states)
        positions = self.embeddings.rotary_positions(pixel_values)
        if self.training and self.config.patch_dropout > 0:
            kept = kept_patches(hidden_states, self.config.patch_dropout, int(self.config.use_cls_token))
            hidden_states = hidden_states.take_along_dim(kept[..., None], dim=1)
            positions = positions if positions is None else positions[0][kept]
        rotary = None
        if positions is not None:
            rotary = rotary_embedding(positions, self.layers[0].self_attn.head_dim, self.config.rope_theta)
        for layer in self.layers:
            hidden_states = layer(hidden_states, rotary=rotary, **kwargs)
        if self.post_layernorm is not None:
            hidden_states = self.post_layernorm(hidden_states)

        image_tokens = hidden_states if self.caption_pooler is None else self.caption_pooler(hidden_states, **kwargs)
        if self.contrastive_pooler is None:
            pooled, image_tokens = image_tokens[:, 0], image_tokens[:, 1:]
        else:
            memory = image_tokens if self.config.pooler_type == "cascade" else hidden_states
            pooled = self.contrastive_pooler(memory, **kwargs)[:, 0]
        return VisionTowerOutput(last_hidden_state=hidden_states, pooler_output=pooled, image_tokens=image_tokens)


class GrrCocaTextModel(TowerMixin, GrrCocaPreTrainedModel):
    """Unimodal text decoder: causal, without cross-attention; a learned CLS token at the end pools the text."""

    config: GrrCocaTextConfig
    input_modalities = ("text",)
    _prefix_in_whole_model = "text_model"
    _tp_plan = {"embed_tokens": "embedding_rowwise"}  # noqa: RUF012

    def __init__(self, config: GrrCocaTextConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.cls_token = nn.Parameter(torch.empty(config.hidden_size))
        self.position_embedding = None
        if config.position_embedding_type == "learned":
            # The last row belongs to the CLS token.
            self.position_embedding = nn.Embedding(config.max_position_embeddings + 1, config.hidden_size)
        self.layers = nn.ModuleList(
            SelfAttentionBlock(config, is_causal=True, layer_idx=index) for index in range(config.num_unimodal_layers)
        )
        self.final_layer_norm = build_norm(config)
        self.gradient_checkpointing = False
        self.post_init()

    def resize_positions(self, max_position_embeddings: int) -> None:
        """Read texts of up to so many tokens; further rows of a learned table are fresh, and the CLS token keeps its own, the last."""
        if self.position_embedding is not None:
            tokens, cls_token = self.position_embedding.weight.detach().tensor_split([-1])
            tokens = first_rows(tokens, max_position_embeddings, self.config.initializer_range)
            resize_embedding(self.position_embedding, torch.cat([tokens, cls_token]))
        self.config.max_position_embeddings = max_position_embeddings

    def _refuse_what_the_legacy_mask_cannot(
        self, input_ids: torch.Tensor | None, position_ids: torch.Tensor | None
    ) -> None:
        if input_ids is None or position_ids is not None:
            raise ValueError(
                '`cls_mask_mode="legacy"` puts padding tokens behind texts: pass `input_ids`, and neither '
                "`inputs_embeds` nor `position_ids`."
            )
        if is_flash_attention_requested(self.config):
            raise ValueError(
                '`cls_mask_mode="legacy"` masks single keys of one row, which flash attention cannot: call '
                '`model.set_attn_implementation("sdpa")`, or "eager" or "flex_attention".'
            )

    @takes_cache
    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: EncoderDecoderCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        append_cls: bool = True,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """Encode texts.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`): Token ids, without the CLS token.
            attention_mask (`torch.Tensor` of shape `(batch_size, past_length + sequence_length)`, *optional*):
                1 for tokens, 0 for padding on either side. Default: every token is real; for a pooled text (`append_cls`)
                `pad_token_id` at its ends is padding.
            position_ids, cache, inputs_embeds: As in [`ContrastiveCaptioner.forward`].
            append_cls (`bool`): Append the CLS token and return its normalised state; off while generating.

        Returns:
            [`BaseModelOutputWithPooling`]: `last_hidden_state` of the tokens, not normalised, of shape
            `(batch_size, sequence_length, hidden_size)`; `pooler_output` of shape `(batch_size, hidden_size)`.

        Raises:
            ValueError: If a text is empty or longer than the context, or an id lies outside the vocabulary.
        """
        config, longest = self.config, self.config.max_position_embeddings
        check_texts(input_ids, inputs_embeds, config.vocab_size, longest)
        num_tokens = (input_ids if inputs_embeds is None else inputs_embeds).shape[1]
        if append_cls and attention_mask is None and input_ids is not None:
            attention_mask = padding_mask(input_ids, config.pad_token_id)
        places = cls_sees = None
        if append_cls and config.cls_mask_mode == "legacy":
            self._refuse_what_the_legacy_mask_cannot(input_ids, position_ids)
            places = default_position_ids(input_ids, attention_mask)
            num_real = attention_mask.sum(dim=1, keepdim=True)
            # Behind its tokens a text needs the first padding only, which the CLS row sees.
            cls_index = min(num_tokens + 1, longest)
            input_ids, attention_mask = tokens_first(input_ids, attention_mask, cls_index, config.pad_token_id)
            # Shifted by one: whether a token is padding decides if the CLS row sees the key behind it.
            cls_sees = nn.functional.pad(input_ids != config.pad_token_id, (1, 0), value=True)
            attention_mask = torch.ones_like(attention_mask)  # no other row looks to the right

        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if append_cls and attention_mask is None:
            attention_mask = torch.ones(hidden_states.shape[:2], dtype=torch.long, device=hidden_states.device)
        if position_ids is None:
            position_ids = default_position_ids(hidden_states, attention_mask, cache)
        if append_cls:
            if cls_sees is None:
                num_real = attention_mask.sum(dim=1, keepdim=True)  # (batch, 1)
            cls_position = torch.full_like(num_real, longest) if config.cls_position == "fixed" else num_real
            cls_states = self.cls_token.to(hidden_states.dtype).expand(hidden_states.shape[0], 1, -1)
            hidden_states = torch.cat([hidden_states, cls_states], dim=1)
            attention_mask = nn.functional.pad(attention_mask, (0, 1), value=1)
            position_ids = torch.cat([position_ids.expand(hidden_states.shape[0], -1), cls_position], dim=1)
        if self.position_embedding is not None:
            hidden_states = hidden_states + self.position_embedding(position_ids)
            rotary = None
        else:
            rotary = rotary_embedding(position_ids, self.layers[0].self_attn.head_dim, config.rope_theta)

        def row_sees(batch_idx, head_idx, query_idx, key_idx):
            return (query_idx != cls_index) | cls_sees[batch_idx, key_idx]

        causal_mask = create_causal_mask(
            config,
            hidden_states,
            attention_mask,
            cache,
            position_ids,
            and_mask_function=None if cls_sees is None else row_sees,
        )
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask=causal_mask, rotary=rotary, layer_past=cache, **kwargs)
        pooled = self.final_layer_norm(hidden_states[:, -1]) if append_cls else None
        if places is None:
            tokens = hidden_states[:, :num_tokens]
        else:
            places = places[..., None].expand(-1, -1, hidden_states.shape[-1])
            tokens = hidden_states.gather(1, places)  # back to where the caller has them
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=pooled)


class GrrCocaMultimodalDecoder(GrrCocaPreTrainedModel):
    """Multimodal half of the text decoder: causal self-attention over token states, cross-attention to image tokens."""

    config: GrrCocaTextConfig
    main_input_name = "inputs_embeds"
    input_modalities = ("text",)
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": GrrCocaMultimodalLayer,
        "attentions": OutputRecorder(Attention, index=1, layer_name="self_attn"),
        "cross_attentions": OutputRecorder(Attention, index=1, layer_name="cross_attn"),
    }

    def __init__(self, config: GrrCocaTextConfig):
        super().__init__(config)
        self.layers = nn.ModuleList(
            [GrrCocaMultimodalLayer(config, layer_idx=index) for index in range(config.num_multimodal_layers)]
        )
        self.final_layer_norm = build_norm(config)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> None:
        """There are none: this half reads the states of the other one."""
        return None

    @takes_cache
    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        inputs_embeds: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: EncoderDecoderCache | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Mix token states with image tokens.

        Args:
            inputs_embeds (`torch.Tensor` of shape `(batch_size, sequence_length, hidden_size)`): Unimodal token states.
            encoder_hidden_states (`torch.Tensor` of shape `(batch_size, num_image_tokens, hidden_size)`, *optional*):
                Image tokens; not needed once their keys and values are cached.
            attention_mask, position_ids, cache: As in [`GrrCocaTextModel`].

        Returns:
            [`BaseModelOutputWithPast`]: normalised states of shape `(batch_size, sequence_length, hidden_size)`.
        """
        hidden_states = inputs_embeds
        # The unimodal half has already extended its layers of the cache by this step's tokens; past lengths must be read
        # from a layer that has not seen them yet.
        own_layer_idx = self.config.num_unimodal_layers
        if position_ids is None:
            position_ids = default_position_ids(hidden_states, attention_mask, cache, own_layer_idx)
        rotary = None
        if self.config.position_embedding_type == "rope_1d":
            head_dim = self.config.hidden_size // self.config.num_attention_heads
            rotary = rotary_embedding(position_ids, head_dim, self.config.rope_theta)
        causal_mask = create_causal_mask(
            self.config, hidden_states, attention_mask, cache, position_ids, layer_idx=own_layer_idx
        )
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                encoder_hidden_states,
                attention_mask=causal_mask,
                rotary=rotary,
                layer_past=cache,
                **kwargs,
            )
        return BaseModelOutputWithPast(self.final_layer_norm(hidden_states), cache)


class GrrCocaModel(DualEncoder, GrrCocaPreTrainedModel):
    """The dual encoder: image and text embeddings in one space, with the multimodal decoder's weights at hand.

    Texts are read by the unimodal decoder alone; the multimodal decoder is loaded and saved with the model so that every
    checkpoint serves [`GrrCocaForConditionalGeneration`] too.
    """

    def __init__(self, config: GrrCocaConfig):
        super().__init__(config)
        self.vision_model = GrrCocaVisionModel._from_config(config.vision_config)
        self.text_model = GrrCocaTextModel._from_config(config.text_config)
        self.multimodal_decoder = GrrCocaMultimodalDecoder._from_config(config.text_config)
        self.visual_projection = nn.Linear(config.vision_config.pooler_hidden_size, config.projection_dim, bias=False)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim, bias=False)
        self.logit_scale = learned_scalar(config.logit_scale_init_value)
        self.post_init()

    @can_return_tuple
    def get_image_features(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs
    ) -> VisionTowerOutput:
        """Encode images for retrieval (`pooler_output`) and for captioning (`image_tokens`) in one pass.

        Args:
            pixel_values, interpolate_pos_encoding: As in [`GrrCocaVisionModel.forward`].

        Returns:
            [`VisionTowerOutput`] whose `pooler_output` of shape `(num_images, projection_dim)` is projected but not
            normalised.
        """
        outputs = self.vision_model(
            pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, return_dict=True, **kwargs
        )
        outputs.pooler_output = self.visual_projection(outputs.pooler_output)
        return outputs

    def _encode_texts(self, *args, **kwargs) -> BaseModelOutputWithPooling:
        outputs = self.text_model(*args, **kwargs)
        outputs.pooler_output = self.text_projection(outputs.pooler_output)
        return outputs

    def contrastive_losses(
        self, image_embeds: torch.Tensor, text_embeds: torch.Tensor, per_pair: bool = True
    ) -> torch.Tensor:
        """InfoNCE of every pair of this batch (CoCa eq. 2); while training, negatives come from all processes."""
        return contrastive_losses(
            image_embeds,
            text_embeds,
            self.logit_scale.exp(),
            reduction=self.config.contrastive_reduction,
            group=self._processes_with_negatives(),
            per_pair=per_pair,
        )


class GrrCocaForConditionalGeneration(ContrastiveCaptioner, GrrCocaPreTrainedModel):
    """The captioner: [`GrrCocaModel`] with a vocabulary head, trained with the joint loss (CoCa eq. 4).

    Example:

    ```python
    >>> inputs = processor(images=image, return_tensors="pt")
    >>> ids = model.generate(**inputs, num_beams=4, max_new_tokens=20)
    >>> processor.batch_decode(ids, skip_special_tokens=True)
    ```
    """

    def __init__(self, config: GrrCocaConfig):
        super().__init__(config)
        self.model = GrrCocaModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def _read_texts(
        self,
        texts: dict,
        image_tokens: torch.Tensor | None,
        cache: EncoderDecoderCache | None,
        labels: torch.LongTensor | None,
        compares: bool,
        **kwargs,
    ) -> tuple[BaseModelOutputWithPooling, torch.Tensor | None, ModelOutput]:
        # One pass: the multimodal half goes on from the states of the unimodal one.
        text_outputs = self.model.text_model(**texts, cache=cache, append_cls=compares, return_dict=True, **kwargs)
        decoder_outputs = self.model.multimodal_decoder(
            text_outputs.last_hidden_state,
            image_tokens,
            attention_mask=texts["attention_mask"],
            position_ids=texts["position_ids"],
            cache=cache,
            return_dict=True,
            **kwargs,
        )
        features = self.model.text_projection(text_outputs.pooler_output) if compares else None
        return text_outputs, features, decoder_outputs


__all__ = [
    "GrrCocaForConditionalGeneration",
    "GrrCocaModel",
    "GrrCocaMultimodalDecoder",
    "GrrCocaPreTrainedModel",
    "GrrCocaTextModel",
    "GrrCocaVisionModel",
]
