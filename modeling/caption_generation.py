"""`generate` for captioners whose images enter through cross-attention: encoded once, cached, prompts of any length."""

import torch
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.generation import GenerationMixin

from .inputs import align_prompts
from .transformers_versions import CACHE_NAME, named_cache, takes_cache


def has_cached_image(cache) -> bool:
    """Whether the keys and values of the image are already in the cache."""
    return isinstance(cache, EncoderDecoderCache) and cache.is_updated.get(0, False)


class ImageCache(DynamicCache):
    """Keys and values of images, each there once: its beams and samples share them, and none ever leaves its image."""

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        pass

    def batch_repeat_interleave(self, repeats: int) -> None:
        pass


def select_images(image_tokens: torch.Tensor, image_index: torch.LongTensor) -> torch.Tensor:
    """Tokens of the image that every text belongs to; of shape `(num_texts, num_tokens, hidden_size)`.

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


class CaptionGenerationMixin(GenerationMixin):  # transformers looks for "GenerationMixin" in the name
    """For models with `get_image_features(...).image_tokens`, the memory of their text decoder."""

    def _check_cache(self, cache) -> None:
        if cache is not None and not isinstance(cache, EncoderDecoderCache):
            raise ValueError(
                f"`{CACHE_NAME}` must be an `EncoderDecoderCache` (text and image keys are kept apart), got "
                f"{type(cache).__name__}."
            )

    def _prepare_cache_for_generation(self, generation_config, model_kwargs: dict, *args, **kwargs) -> None:
        if generation_config.max_length > self.config.max_position_embeddings:
            raise ValueError(
                f"Prompt and new tokens may reach {generation_config.max_length} tokens, the context is "
                f"{self.config.max_position_embeddings} tokens. Lower `max_new_tokens` (or `max_length`)."
            )
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        cache = model_kwargs.get(CACHE_NAME)
        if isinstance(cache, EncoderDecoderCache):  # somebody's, who goes on to use it
            images = ImageCache()
            images.layers = cache.cross_attention_cache.layers
            cache.cross_attention_cache = images
        elif cache is not None:
            model_kwargs[CACHE_NAME] = EncoderDecoderCache(cache, ImageCache())

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids=None, **model_kwargs
    ) -> tuple[torch.LongTensor, dict]:
        image_tokens = model_kwargs.pop("image_tokens", None)  # stay as many as there are images
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        if image_tokens is not None:
            model_kwargs |= {"image_tokens": image_tokens, "texts_per_image": expand_size}
        return input_ids, model_kwargs

    def _prompt_inputs(self, attention_mask: torch.LongTensor) -> dict[str, torch.Tensor]:
        """What `forward` wants to know about prompts, beside their tokens; none by default.

        Args:
            attention_mask (`torch.LongTensor` of shape `(batch_size, prompt_length)`): Of the aligned prompts.
        """
        return {}

    def _add_prompt_inputs(self, kwargs: dict, attention_mask: torch.LongTensor) -> None:
        prompt_inputs = self._prompt_inputs(attention_mask)
        settings = kwargs.get("generation_config") or self.generation_config
        if prompt_inputs and kwargs.get("prefill_chunk_size", getattr(settings, "prefill_chunk_size", None)):
            raise ValueError(
                "`prefill_chunk_size` parts a prompt whose tokens see one another (`bidirectional_prefix`)."
            )
        kwargs |= prompt_inputs

    @takes_cache
    @torch.no_grad()
    def generate(
        self,
        inputs: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_tokens: torch.Tensor | None = None,
        image_index: torch.LongTensor | None = None,
        interpolate_pos_encoding: bool = False,
        cache: EncoderDecoderCache | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """Caption images with transformers' `generate`: greedy, beam, sampling, assisted, any cache.

        Every image is encoded once, before beams multiply the batch (an `assistant_model` encodes it with its own vision
        tower). Prompts may be tokenised as texts are: an EOS at their end is dropped and padding moves to the left;
        without an `attention_mask`, `pad_token_id` at either end is padding.

        Args:
            inputs or input_ids (`torch.LongTensor` of shape `(batch_size, prompt_length)`, *optional*): Prompts, one
                per image (or as `image_index` says). Default: BOS.
            pixel_values, image_tokens, image_index, interpolate_pos_encoding: As in [`ContrastiveCaptioner.forward`].
            cache (`EncoderDecoderCache`, *optional*):
                Of an earlier call, whose texts are continued; `past_key_values` before transformers 5.24.
            kwargs: Everything else that `GenerationMixin.generate` accepts.

        Returns:
            `torch.LongTensor` of shape `(batch_size, prompt_length + new_tokens)` with the prompts in front, padded on the
            left, or what `return_dict_in_generate` asks for.

        Raises:
            ValueError: If there is no image or another one is cached, images and prompts differ in number, or the request exceeds
                the context.
        """
        if pixel_values is not None and image_tokens is not None:
            raise ValueError("Pass either `pixel_values` or `image_tokens`, got both.")
        if has_cached_image(cache) and getattr(kwargs.get("generation_config"), "is_assistant", False):
            pixel_values = None  # transformers hands an assistant its image again in every round
        if has_cached_image(cache) and (pixel_values is not None or image_tokens is not None):
            raise ValueError(
                f"`{CACHE_NAME}` holds the image that its texts were begun with; pass no other with it, or begin anew without it."
            )
        if pixel_values is None and image_tokens is None and not has_cached_image(cache):
            raise ValueError("`pixel_values` (or `image_tokens`) is missing: a caption needs an image.")
        if kwargs.get("assistant_model") is not None and pixel_values is not None:
            if image_index is not None:
                raise ValueError("`assistant_model` reads `pixel_values` alone, no `image_index`.")
            kwargs["pixel_values"] = pixel_values  # the assistant has a vision tower of its own
        elif pixel_values is not None:
            if self.device.type != "meta":  # where weights are offloaded, hooks move the inputs
                pixel_values = pixel_values.to(self.device)
            features = self.get_image_features(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)
            image_tokens = features.image_tokens
        if image_index is not None and image_tokens is not None:
            image_tokens = select_images(image_tokens, image_index)
        input_ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        width, text_config = 0, self.config.text_config
        settings = kwargs.get("generation_config") or self.generation_config
        filler = kwargs.get("pad_token_id", settings.pad_token_id)
        if filler is None:
            filler = text_config.pad_token_id or 0
        if input_ids is not None:
            input_ids = torch.as_tensor(input_ids)
            width = input_ids.shape[1]
            images = pixel_values if image_tokens is None else image_tokens
            if images is not None and len(input_ids) != len(images):
                raise ValueError(
                    f"`input_ids` must hold one prompt per image, got {len(input_ids)} prompts and {len(images)} images."
                )
            if cache is None or cache.get_seq_length() == 0:
                pad, eos = text_config.pad_token_id, text_config.eos_token_id
                input_ids, kwargs["attention_mask"] = align_prompts(
                    input_ids, kwargs.get("attention_mask"), pad, eos, filler
                )
                self._add_prompt_inputs(kwargs, kwargs["attention_mask"])
            else:
                # An earlier call has put columns in front, which its cache does not know.
                mask = kwargs.get("attention_mask")
                # Without a mask transformers would take every padding id for padding, also within what was written so far.
                mask = ((input_ids != filler).cumsum(-1) > 0).long() if mask is None else mask
                kwargs["attention_mask"] = mask
                if mask.shape == input_ids.shape:
                    start = width - int((mask.cumsum(-1) > 0).any(0).sum())
                    input_ids, kwargs["attention_mask"] = input_ids[:, start:], mask[:, start:]
        elif (embeds := kwargs.get("inputs_embeds")) is not None:
            mask = kwargs.get("attention_mask")
            self._add_prompt_inputs(kwargs, embeds.new_ones(embeds.shape[:2]).long() if mask is None else mask)
        if image_tokens is not None:
            kwargs["image_tokens"] = image_tokens
        if cache is not None:
            kwargs |= named_cache(cache)
        outputs = super().generate(input_ids, **kwargs)
        # As wide as the prompts were: what follows them begins where they ended.
        lost = 0 if input_ids is None else width - input_ids.shape[1]
        sequences = outputs if isinstance(outputs, torch.Tensor) else outputs.sequences
        sequences = torch.nn.functional.pad(sequences, (lost, 0), value=filler)
        if isinstance(outputs, torch.Tensor):
            return sequences
        outputs.sequences = sequences
        return outputs


__all__ = ["CaptionGenerationMixin", "ImageCache", "has_cached_image", "select_images"]
