"""What contrastive captioners share: two towers that meet in one embedding space, and a captioner around them.

Read from top to bottom: outputs, dual encoder, captioner. A model's own file says how its towers are built, how its texts are
read, and which contrastive loss it is trained with.
"""

import re
from dataclasses import dataclass

import torch
from torch import distributed as dist
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutputWithPooling, CausalLMOutputWithCrossAttentions
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple, maybe_autocast

from .caption_generation import CaptionGenerationMixin, ImageCache, has_cached_image, select_images
from .contrastive_losses import processes_with_other_rows
from .inputs import check_training_has_labels, padding_mask, supervised_labels
from .layers import PatchEmbeddings, slice_logits_to_keep
from .losses import captioning_loss
from .self_contained import SelfContainedModel
from .transformers_versions import CACHE_NAME, takes_cache


@dataclass
class VisionTowerOutput(BaseModelOutputWithPooling):
    """Output of a vision tower, and of `get_image_features`.

    Args:
        last_hidden_state (`torch.Tensor` of shape `(batch_size, num_tokens, hidden_size)`): States of all tokens.
        pooler_output (`torch.Tensor` of shape `(batch_size, pooled_size)`):
            The image as one vector. From `get_image_features`: projected to the joint space, not normalised.
        image_tokens (`torch.Tensor` of shape `(batch_size, num_image_tokens, text_hidden_size)`, *optional*):
            What the text decoder attends to. A tower whose tokens are still to be projected leaves it out.
        hidden_states, attentions: Per layer, when asked for.
    """

    image_tokens: torch.Tensor | None = None


@dataclass
class DualEncoderOutput(ModelOutput):
    """Images compared with texts.

    Args:
        loss (`torch.Tensor` of shape `()`, returned with `return_loss=True`): Contrastive loss.
        logits_per_image (`torch.Tensor` of shape `(num_images, num_texts)`): Scaled cosine similarities.
        logits_per_text (`torch.Tensor` of shape `(num_texts, num_images)`): The same, transposed.
        text_embeds (`torch.Tensor` of shape `(num_texts, projection_dim)`): L2-normalised text embeddings, fp32.
        image_embeds (`torch.Tensor` of shape `(num_images, projection_dim)`): L2-normalised image embeddings, fp32.
        text_model_output (`BaseModelOutputWithPooling`): Output of the text side.
        vision_model_output (`VisionTowerOutput`): Output of the vision tower.
    """

    loss: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: VisionTowerOutput | None = None

    def to_tuple(self) -> tuple:
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


@dataclass
class CaptionerOutput(CausalLMOutputWithCrossAttentions):
    """Texts scored given images.

    Args:
        loss (`torch.Tensor` of shape `()`, returned with `labels`):
            `contrastive_loss_weight * contrastive_loss + caption_loss_weight * caption_loss`; CoCa eq. (4).
        logits (`torch.Tensor` of shape `(batch_size, sequence_length, vocab_size)`):
            Next-token scores; absent while training with `labels` unless `skip_logits=False`.
        cache (`EncoderDecoderCache`):
            Keys and values of the text and of the image; `past_key_values` before transformers 5.24.
        hidden_states, attentions, cross_attentions: Of the decoder that sees the image, per layer, when asked for.
        contrastive_loss (`torch.Tensor` of shape `()`, returned with `labels`): Unweighted contrastive part.
        caption_loss (`torch.Tensor` of shape `()`, returned with `labels`): Unweighted captioning part, nats per token.
        logits_per_image, logits_per_text, text_embeds, image_embeds:
            As in [`DualEncoderOutput`], where texts were compared (`image_embeds`: whenever images were encoded).
        image_tokens (`torch.Tensor` of shape `(batch_size, num_image_tokens, hidden_size)`):
            Memory of the decoder; pass it to `generate` or `forward` to save another image pass.
        text_model_output, vision_model_output: Outputs of the towers.
    """

    contrastive_loss: torch.Tensor | None = None
    caption_loss: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    image_tokens: torch.Tensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: VisionTowerOutput | None = None

    @property
    def image_outputs(self) -> VisionTowerOutput | None:
        """What transformers' multimodal models call `vision_model_output`."""
        return self.vision_model_output


def unit_vectors(features: torch.Tensor) -> torch.Tensor:
    """L2-normalised, in fp32 whatever the model computes in: at a scale of 100, rounding to bf16 moves logits by 0.5."""
    return nn.functional.normalize(features.float(), dim=-1)


class ContrastiveCaptionerPreTrainedModel(SelfContainedModel):
    """What transformers wants to know of every part of such a model."""

    _skip_keys_device_placement = ["cache", "past_key_values", "layer_past"]  # noqa: RUF012
    _can_compile_fullgraph = True

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights; learned scalars, which stay in fp32, do not count."""
        return next(p.dtype for p in self.parameters() if p.is_floating_point() and p.numel() > 1)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        # Only modules that own a tensor are visited for code outside transformers.
        if isinstance(module, PatchEmbeddings) and module.class_embedding is not None:
            init.normal_(module.class_embedding, std=module.config.initializer_range)
        elif isinstance(module, DualEncoder):
            init.constant_(module.logit_scale, module.config.logit_scale_init_value)

    def init_parallel_plans(self) -> None:
        """What transformers splits over `tp_size` processes: heads and inner widths, as the layers themselves say.

        No `base_model_tp_plan` of a configuration, because the two text decoders of GRR-CoCa share one.
        """
        super().init_parallel_plans()
        for name, module in self.named_modules():
            pattern = re.sub(r"\.\d+\.", ".*.", name)
            plan = getattr(module, "tp_plan", {}) if not isinstance(module, PreTrainedModel) else {}
            self._tp_plan |= {f"{pattern}.{part}": style for part, style in plan.items()}


class DualEncoder(ContrastiveCaptionerPreTrainedModel):
    """Image and text embeddings in one space. A subclass has `vision_model`, `text_model` and `logit_scale`."""

    _keys_to_ignore_on_load_unexpected = [r"^lm_head\."]  # noqa: RUF012  (a captioner's checkpoint)
    _keep_in_fp32_modules_strict = ["logit_scale"]  # noqa: RUF012

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.embed_tokens = value

    def resize_positions(self, image_size: int, max_position_embeddings: int) -> None:
        """Take images and texts of other sizes from now on.

        Args:
            image_size (`int`): Height and width in pixels. A learned table of positions is resized (bicubic).
            max_position_embeddings (`int`): Longest text in tokens. A learned table keeps its rows; further ones are fresh.

        Raises:
            ValueError: If images are no whole number of patches, or a size is not positive.
        """
        if max_position_embeddings < 1 or image_size < 1:
            raise ValueError(
                f"`image_size` and `max_position_embeddings` must be at least 1, got {image_size} and {max_position_embeddings}."
            )
        if image_size != self.config.vision_config.image_size:
            self.vision_model.embeddings.resize_positions(image_size)
            self.config.vision_config.image_size = image_size
        if max_position_embeddings != self.config.text_config.max_position_embeddings:
            self.text_model.resize_positions(max_position_embeddings)
            self.config.text_config.max_position_embeddings = max_position_embeddings

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """Encode texts for retrieval.

        Args:
            input_ids (`torch.LongTensor` of shape `(num_texts, sequence_length)`): Token ids.
            attention_mask (`torch.Tensor` of shape `(num_texts, sequence_length)`, *optional*):
                1 for tokens, 0 for padding. Default: `pad_token_id` at either end is padding.
            position_ids (`torch.LongTensor` of shape `(num_texts, sequence_length)`, *optional*): Token positions.

        Returns:
            [`BaseModelOutputWithPooling`] whose `pooler_output` of shape `(num_texts, projection_dim)` (of MaMMUT, which has
            no projection on the text side, `text_hidden_size`) is not normalised.
        """
        return self._encode_texts(
            input_ids, attention_mask=attention_mask, position_ids=position_ids, return_dict=True, **kwargs
        )

    def _encode_texts(self, *args, **kwargs) -> BaseModelOutputWithPooling:
        """The side of the model that reads texts, whose pooled states are brought to the joint space."""
        raise NotImplementedError

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
        **kwargs,
    ) -> DualEncoderOutput:
        """Compare every image with every text; their numbers may differ unless a loss is asked for.

        Args:
            input_ids, attention_mask, position_ids, inputs_embeds: As in `get_text_features`.
            pixel_values, interpolate_pos_encoding: As in `get_image_features`.
            return_loss (`bool`, *optional*): Return the contrastive loss of pairs (image i, text i).

        Raises:
            ValueError: If images or texts are missing, or a loss is asked for unequal numbers of them.

        Example:

        ```python
        >>> inputs = processor(images=images, text=["a red heart", "a green apple"], return_tensors="pt")
        >>> probabilities = model(**inputs).logits_per_image.softmax(dim=-1)
        ```
        """
        images = {"pixel_values": pixel_values, "interpolate_pos_encoding": interpolate_pos_encoding}
        texts = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        texts["inputs_embeds"] = inputs_embeds
        return self._compare(images, texts, return_loss, **kwargs)

    def _compare(self, images: dict, texts: dict, return_loss: bool | None, **kwargs) -> DualEncoderOutput:
        if not _has_pixels(images):
            raise ValueError(
                f"{_names_of_pixels(images)} is missing; for text embeddings alone call `get_text_features`."
            )
        if texts["input_ids"] is None and texts["inputs_embeds"] is None:
            raise ValueError("`input_ids` is missing; for image embeddings alone call `get_image_features`.")
        if self.training and return_loss:
            self.clamp_logit_scale()
        vision_outputs = self.get_image_features(**images, return_dict=True, **kwargs)
        text_outputs = self.get_text_features(**texts, return_dict=True, **kwargs)
        image_embeds = unit_vectors(vision_outputs.pooler_output)
        text_embeds = unit_vectors(text_outputs.pooler_output)
        logits_per_text = self.similarity(text_embeds, image_embeds)
        return DualEncoderOutput(
            loss=self.contrastive_loss(image_embeds, text_embeds) if return_loss else None,
            logits_per_image=logits_per_text.T,
            logits_per_text=logits_per_text,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=text_outputs,
            vision_model_output=vision_outputs,
        )

    def similarity(self, text_embeds: torch.Tensor, image_embeds: torch.Tensor) -> torch.Tensor:
        """Scaled (and, where the model has one, biased) cosine similarities in fp32, `(num_texts, num_images)`."""
        with maybe_autocast(text_embeds.device.type, enabled=False):
            logits = self.logit_scale.exp().float() * text_embeds.float() @ image_embeds.float().T
        bias = getattr(self, "logit_bias", None)
        return logits if bias is None else logits + bias.float()

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Keep the learned log inverse temperature in [0, `logit_scale_max`] (CLIP, arXiv 2103.00020, section 2.5), in place.

        Every training step that compares begins with it, whoever steps the optimiser: no loss sees a larger scale.
        """
        self.logit_scale.clamp_(0.0, self.config.logit_scale_max)

    def contrastive_losses(
        self, image_embeds: torch.Tensor, text_embeds: torch.Tensor, per_pair: bool = True
    ) -> torch.Tensor:
        """Contrastive loss of every pair of this batch, or their mean; while training, negatives come from all processes. Each model
        has its own."""
        raise NotImplementedError

    def contrastive_loss(self, image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
        """Contrastive loss of this batch: the mean of [`contrastive_losses`]."""
        return self.contrastive_losses(image_embeds, text_embeds, per_pair=False)

    def contrastive_gradients(
        self, image_embeds: torch.Tensor, text_embeds: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Contrastive loss of a batch that is too large to be embedded with gradient, and the loss's own gradients.

        With them every part of the batch finds its gradients alone (gradient caching, Gao et al. 2021, arXiv 2101.06983).

        Args:
            image_embeds (`torch.Tensor` of shape `(num_pairs, projection_dim)`): Normalised embeddings, without gradient.
            text_embeds (`torch.Tensor` of shape `(num_pairs, projection_dim)`): Likewise, of their texts.

        Returns:
            The loss, and its gradients by `image_embeds`, `text_embeds` and the learned scalars, by their names.
        """
        if self.training:
            self.clamp_logit_scale()
        with torch.enable_grad():
            by = {"image_embeds": image_embeds.detach(), "text_embeds": text_embeds.detach()}
            loss = self.contrastive_loss(*(embeds.requires_grad_() for embeds in by.values()))
            by |= self._contrastive_scalars()
            gradients = torch.autograd.grad(loss, list(by.values()))
        return loss.detach(), dict(zip(by, gradients, strict=True))

    def product_with_gradients(
        self, embeds: dict[str, torch.Tensor], gradients: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """What has, in place of the loss, the `gradients` of [`contrastive_gradients`] by `embeds` and the learned scalars."""
        factors = embeds | self._contrastive_scalars()
        return torch.stack([(factors[name] * gradient).sum() for name, gradient in gradients.items()]).sum()

    def _contrastive_scalars(self) -> dict[str, nn.Parameter]:
        """Learned scalars of the loss that are trained."""
        scalars = {name: getattr(self, name, None) for name in ("logit_scale", "logit_bias")}
        return {name: each for name, each in scalars.items() if each is not None and each.requires_grad}

    def _processes_with_negatives(self) -> dist.ProcessGroup | None:
        tp_size = getattr(getattr(self.config, "distributed_config", None), "tp_size", None)
        return processes_with_other_rows(tp_size or 1) if self.training else None


def _has_pixels(images: dict) -> bool:
    return any(images.get(name) is not None for name in ("pixel_values", "pixel_values_videos"))


def _names_of_pixels(images: dict) -> str:
    return "`pixel_values` (or `pixel_values_videos`)" if "pixel_values_videos" in images else "`pixel_values`"


class ContrastiveCaptioner(ContrastiveCaptionerPreTrainedModel, CaptionGenerationMixin):
    """A [`DualEncoder`], `model`, with a vocabulary head, `lm_head`, trained with the joint loss (CoCa eq. 4)."""

    _tied_weights_keys = {"lm_head.weight": "model.text_model.embed_tokens.weight"}  # noqa: RUF012
    _tp_plan = {"lm_head": "colwise_gather_output"}  # noqa: RUF012

    def get_image_features(self, *args, **kwargs) -> VisionTowerOutput:
        """As that of `model`."""
        return self.model.get_image_features(*args, **kwargs)

    def get_text_features(self, *args, **kwargs) -> BaseModelOutputWithPooling:
        """As that of `model`."""
        return self.model.get_text_features(*args, **kwargs)

    @torch.no_grad()
    def embed_pairs(self, labels: torch.LongTensor | None = None, **batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised embeddings of the images and texts of a training batch, as a step on it would make them; without gradient."""
        outputs = self.model(**batch, return_dict=True)
        return outputs.image_embeds, outputs.text_embeds

    def contrastive_losses(self, *args, **kwargs) -> torch.Tensor:
        """[`DualEncoder.contrastive_losses`]."""
        return self.model.contrastive_losses(*args, **kwargs)

    def contrastive_gradients(self, *args, **kwargs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """As that of `model`."""
        return self.model.contrastive_gradients(*args, **kwargs)

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
        **kwargs,
    ) -> CaptionerOutput:
        """Score texts given images, and train.

        The image is encoded once. Without `labels` texts are only captions; with them, they are also compared with the
        images unless the contrastive loss has weight 0.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`): Captions or prompts.
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`, *optional*):
                Normalised images; needed at the first step only.
            attention_mask (`torch.Tensor` of shape `(batch_size, past_length + sequence_length)`, *optional*):
                1 for tokens, 0 for padding on either side. Default: every token is real; with `labels`, `pad_token_id` at
                either end is padding.
            position_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*): Token positions.
            cache (`EncoderDecoderCache`, *optional*):
                Cache of earlier tokens and of the image; `past_key_values` before transformers 5.24.
            inputs_embeds (`torch.Tensor` of shape `(batch_size, sequence_length, hidden_size)`, *optional*):
                Instead of `input_ids`.
            image_tokens (`torch.Tensor` of shape `(batch_size, num_image_tokens, hidden_size)`, *optional*):
                Instead of images: the field of that name of an earlier output.
            image_index (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                The image of every text, where several texts belong to one image: it is encoded once. Default: text i
                belongs to image i.
            labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Targets, aligned with `input_ids` (the shift happens here); -100 is ignored. Needed while training, unless
                `use_cache` is set, which says that the loss is somebody else's.
            use_cache (`bool`, *optional*): Return the cache. Default: the text config's, never with `labels`.
            logits_to_keep (`int` or `torch.Tensor`):
                Last positions (0: all) that get logits, or their indices, or a boolean mask.
            skip_logits (`bool`, *optional*):
                Leave the logits out (liger-kernel's switch). Default: while training with `labels`, because the loss
                itself never holds more than a chunk of them.
            interpolate_pos_encoding (`bool`): Accept another image size than the configured one.
            kwargs: Switches of transformers; and `shift_labels`, of the shape of `labels`, beside them: what the captioning loss
                takes instead, shifted already. (As an argument, `Trainer` would look for it in every batch.)
                `texts_per_image` (`int`): so many texts in a row belong to each image, whose keys and values they share. And of a
                part of a larger batch `contrastive_gradients`, those of [`contrastive_gradients`], whose product with what they
                belong to takes the place of the contrastive loss, and `num_caption_tokens`, which the captioning loss divides by.

        Raises:
            ValueError: If there is no image, images and texts differ in number, shapes and ids do not fit, or a training step
                has no `labels`.
        """
        images = {"pixel_values": pixel_values, "interpolate_pos_encoding": interpolate_pos_encoding}
        texts = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        texts["inputs_embeds"] = inputs_embeds
        return self._score(
            images, texts, cache, image_tokens, image_index, labels, use_cache, logits_to_keep, skip_logits, **kwargs
        )

    def _score(
        self,
        images: dict,
        texts: dict,
        cache: EncoderDecoderCache | None,
        image_tokens: torch.Tensor | None,
        image_index: torch.LongTensor | None,
        labels: torch.LongTensor | None,
        use_cache: bool | None,
        logits_to_keep: int | torch.Tensor,
        skip_logits: bool | None,
        shift_labels: torch.LongTensor | None = None,
        texts_per_image: int = 1,
        contrastive_gradients: dict[str, torch.Tensor] | None = None,
        num_caption_tokens: torch.Tensor | None = None,
        **kwargs,
    ) -> CaptionerOutput:
        """`forward`, whose arguments come sorted: `images` is for `get_image_features`, `texts` for `_read_texts`."""
        config, text_config = self.config, self.config.text_config
        if self.training:
            check_training_has_labels(labels, use_cache)
        use_cache = (text_config.use_cache if use_cache is None else use_cache) and labels is None
        self._check_cache(cache)
        if cache is None and use_cache:
            cache = EncoderDecoderCache(DynamicCache(config=text_config), ImageCache())
        if labels is not None:
            if cache is not None:
                raise ValueError(f"`labels` score whole captions; pass no `{CACHE_NAME}` with them.")
            if texts["attention_mask"] is None and texts["input_ids"] is not None:
                texts["attention_mask"] = padding_mask(texts["input_ids"], text_config.pad_token_id)
            labels = targets = supervised_labels(labels, texts["attention_mask"], text_config.vocab_size)
            if shift_labels is not None:
                targets = supervised_labels(
                    shift_labels, texts["attention_mask"], text_config.vocab_size, shifted=True
                )
        elif shift_labels is not None:
            raise ValueError("`shift_labels` need `labels`.")
        compares = labels is not None and config.contrastive_loss_weight != 0
        if contrastive_gradients is not None and not compares:
            raise ValueError("`contrastive_gradients` need `labels`, and a `contrastive_loss_weight` that is not 0.")
        if num_caption_tokens is not None and labels is None:
            raise ValueError("`num_caption_tokens` needs `labels`.")
        if self.training and compares:
            self.model.clamp_logit_scale()

        vision_outputs, image_tokens = self._see(images, cache, image_tokens, **kwargs)
        image_embeds = None if vision_outputs is None else unit_vectors(vision_outputs.pooler_output)
        if compares and image_embeds is None:
            raise ValueError("The contrastive loss needs `pixel_values`; `image_tokens` alone serve captioning only.")
        if compares and (image_index is not None or texts_per_image != 1):
            raise ValueError(
                f"`{'texts_per_image' if image_index is None else 'image_index'}` lets texts share images, which a contrastive "
                "loss would take for negatives: set `contrastive_loss_weight` to 0."
            )
        if image_index is not None and image_tokens is not None:
            image_tokens = select_images(image_tokens, image_index)
        given = texts["input_ids"] if texts["inputs_embeds"] is None else texts["inputs_embeds"]
        if image_tokens is not None and given is not None:
            expected = image_tokens.shape[0] * texts_per_image
            if given.shape[0] not in (0, expected):
                shared = "" if texts_per_image == 1 else f", of which `texts_per_image` = {texts_per_image} share one"
                raise ValueError(
                    f"Every text needs its image{shared}: got {len(image_tokens)} images and {len(given)} texts."
                )

        text_outputs, text_features, decoder_outputs = self._read_texts(
            texts, None if has_cached_image(cache) else image_tokens, cache, labels, compares, **kwargs
        )
        hidden_states = decoder_outputs.last_hidden_state
        logits = None
        if not ((self.training and labels is not None) if skip_logits is None else skip_logits):
            logits = self.lm_head(slice_logits_to_keep(hidden_states, logits_to_keep))
        loss = contrastive = caption = text_embeds = logits_per_text = None
        if labels is not None:
            shifted = shift_labels is not None
            caption = captioning_loss(
                hidden_states,
                targets,
                self.lm_head,
                gather=self.training,
                shifted=shifted,
                num_tokens=num_caption_tokens,
            )
            loss = config.caption_loss_weight * caption
        if compares:
            text_embeds = unit_vectors(text_features)
            logits_per_text = self.model.similarity(text_embeds, image_embeds)
            if contrastive_gradients is None:
                contrastive = self.model.contrastive_loss(image_embeds, text_embeds)
            else:
                embeds = {"image_embeds": image_embeds, "text_embeds": text_embeds}
                contrastive = self.model.product_with_gradients(embeds, contrastive_gradients)
            loss = loss + config.contrastive_loss_weight * contrastive
        return CaptionerOutput(
            loss,
            logits,
            cache,  # by its place, since its name depends on the version of transformers
            contrastive_loss=contrastive,
            caption_loss=caption,
            hidden_states=decoder_outputs.hidden_states,
            attentions=decoder_outputs.attentions,
            cross_attentions=decoder_outputs.get("cross_attentions"),
            logits_per_image=None if logits_per_text is None else logits_per_text.T,
            logits_per_text=logits_per_text,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            image_tokens=image_tokens,
            text_model_output=text_outputs,
            vision_model_output=vision_outputs,
        )

    def _see(
        self, images: dict, cache: EncoderDecoderCache | None, image_tokens: torch.Tensor | None, **kwargs
    ) -> tuple[VisionTowerOutput | None, torch.Tensor | None]:
        """The output of the vision tower, if it had to run, and the decoder's memory, unless its keys are cached."""
        if _has_pixels(images) and image_tokens is not None:
            raise ValueError("Pass either `pixel_values` or `image_tokens`, got both.")
        if _has_pixels(images) and has_cached_image(cache):
            raise ValueError(f"`{CACHE_NAME}` holds the image that its texts were begun with; pass no other with it.")
        if image_tokens is not None or has_cached_image(cache):
            return None, image_tokens
        if not _has_pixels(images):
            raise ValueError(f"{_names_of_pixels(images)} (or `image_tokens`) is missing: a caption needs an image.")
        outputs = self.model.get_image_features(**images, return_dict=True, **kwargs)
        return outputs, outputs.image_tokens

    def _read_texts(
        self,
        texts: dict,
        image_tokens: torch.Tensor | None,
        cache: EncoderDecoderCache | None,
        labels: torch.LongTensor | None,
        compares: bool,
        **kwargs,
    ) -> tuple[BaseModelOutputWithPooling | None, torch.Tensor | None, ModelOutput]:
        """Run the text side of the model.

        Args:
            texts (`dict`): `input_ids`, `attention_mask`, `position_ids`, `inputs_embeds`, and what else the model asks for.
            image_tokens (`torch.Tensor`, *optional*): Memory; not there once its keys and values are cached.
            cache (`EncoderDecoderCache`, *optional*): To read and extend.
            labels (`torch.LongTensor`, *optional*): Supervised tokens.
            compares (`bool`): Whether the texts are compared with the images, too.

        Returns:
            Output of the text side without images and its features of shape `(num_texts, projection_dim)`, not normalised,
            both where texts are compared; output of the decoder that sees the images.
        """
        raise NotImplementedError


__all__ = [
    "CaptionerOutput",
    "ContrastiveCaptioner",
    "ContrastiveCaptionerPreTrainedModel",
    "DualEncoder",
    "DualEncoderOutput",
    "VisionTowerOutput",
    "unit_vectors",
]
