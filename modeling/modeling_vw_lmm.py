"""PyTorch VW-LMM: a language model that reads images as tokens, and also predicts them as "visual words".

Read from top to bottom: outputs, adapter, model, language model with both heads.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint
from transformers import AutoModel, AutoModelForCausalLM
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_vw_lmm import VwLmmConfig, vocabulary_with_placeholder
from .inputs import check_training_has_labels, of_encoders, refuse_unknown, supervised_labels
from .layers import slice_logits_to_keep
from .losses import captioning_loss, visual_modeling_loss
from .self_contained import SelfContainedModel
from .transformers_versions import CACHE_NAME, SHARES_IMAGES_OUT, named_cache, takes_cache
from .vision_towers import build_tower, load_tower, module_with_tower


@dataclass
class VwLmmModelOutputWithPast(BaseModelOutputWithPast):
    """Output of [`VwLmmModel`].

    Args:
        image_hidden_states (`torch.Tensor` of shape `(num_images, image_seq_length, hidden_size)`, *optional*):
            What the language model read at the placeholders.
        image_outputs (`BaseModelOutputWithPooling`, *optional*): Of [`VwLmmModel.get_image_features`].
    """

    image_hidden_states: torch.Tensor | None = None
    image_outputs: BaseModelOutputWithPooling | None = None


@dataclass
class VwLmmCausalLMOutputWithPast(CausalLMOutputWithPast):
    """Output of [`VwLmmForCausalLM`].

    Args:
        loss (`torch.Tensor` of shape `()`, *optional*): Language loss plus weighted visual loss.
        logits (`torch.Tensor` of shape `(batch_size, sequence_length, vocab_size)`, *optional*): Of the LM head.
        cache (`Cache`, *optional*): Keys and values of earlier tokens; `past_key_values` before transformers 5.24.
        hidden_states, attentions (`tuple(torch.Tensor)`, *optional*): Of the language model, as asked for.
        language_loss (`torch.Tensor` of shape `()`, *optional*): Mean cross-entropy of the supervised tokens.
        visual_loss (`torch.Tensor` of shape `()`, *optional*): Mean divergence over image patches; 0 without images.
        image_hidden_states (`torch.Tensor` of shape `(num_images, image_seq_length, hidden_size)`, *optional*):
            Outputs of the adapter, from which `vm_head` makes visual words.
        image_outputs (`BaseModelOutputWithPooling`, *optional*): Of [`VwLmmModel.get_image_features`].
    """

    language_loss: torch.Tensor | None = None
    visual_loss: torch.Tensor | None = None
    image_hidden_states: torch.Tensor | None = None
    image_outputs: BaseModelOutputWithPooling | None = None


@dataclass
class VisualWords(ModelOutput):
    """Output of [`VwLmmForCausalLM.get_visual_words`]: the most probable words of every patch.

    Args:
        ids (`torch.LongTensor` of shape `(num_images, image_seq_length, top_k)`): Token ids, most probable first.
        probabilities (`torch.Tensor` of shape `(num_images, image_seq_length, top_k)`): Their probabilities, fp32.
    """

    ids: torch.LongTensor | None = None
    probabilities: torch.Tensor | None = None


class VwLmmProjector(nn.Module):
    """The adapter: from the width of the vision tower to that of the language model (LLaVA-1.5's `mlp2x_gelu`)."""

    def __init__(self, config: VwLmmConfig):
        super().__init__()
        width, bias = config.text_config.hidden_size, config.multimodal_projector_bias
        self.linear_1 = nn.Linear(config.vision_config.hidden_size, width, bias=bias)
        self.act = self.linear_2 = None
        if config.projector_type == "mlp2x_gelu":
            self.act = ACT2FN["gelu"]
            self.linear_2 = nn.Linear(width, width, bias=bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        features = self.linear_1(features)
        return features if self.linear_2 is None else self.linear_2(self.act(features))


class VwLmmPreTrainedModel(SelfContainedModel):
    config: VwLmmConfig
    _skip_keys_device_placement = ["cache", "past_key_values"]  # noqa: RUF012
    _can_compile_fullgraph = True

    @property
    def _code_module(self) -> str:
        return module_with_tower(self.config.vision_config) or type(self).__module__

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Towers and language models nested here keep their own initialisation.
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, std=getattr(self.config.get_text_config(), "initializer_range", 0.02))
            if module.bias is not None:
                init.zeros_(module.bias)


class VwLmmModel(VwLmmPreTrainedModel):
    """Vision tower, adapter and decoder: everything but the two heads."""

    def __init__(self, config: VwLmmConfig):
        super().__init__(config)
        self.vision_tower = build_tower(config.vision_config)
        self.multi_modal_projector = VwLmmProjector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    @can_return_tuple
    def get_image_features(self, pixel_values: torch.Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """Features of image patches in the language model's width.

        Args:
            pixel_values (`torch.Tensor` of shape `(num_images, num_channels, height, width)`): Normalised images.
            kwargs: For the tower: `output_hidden_states`, `output_attentions`.

        Returns:
            [`~transformers.modeling_outputs.BaseModelOutputWithPooling`]: `pooler_output` of shape `(num_images,
            image_seq_length, hidden_size)` holds the adapter's outputs; the rest is the tower's, of whose hidden states only the
            one that is read is kept (since transformers 5.24) unless all are asked for.

        Raises:
            ValueError: If the images are no batch, or the tower makes another number of tokens than `image_seq_length`.
        """
        refuse_unknown(kwargs)
        config = self.config
        if pixel_values.ndim != 4 or 0 in pixel_values.shape[:1]:
            raise ValueError(
                "`pixel_values` must have shape (num_images, num_channels, height, width) with at least one image, got "
                f"{tuple(pixel_values.shape)}."
            )
        all_states = kwargs.pop("output_hidden_states", None)
        if all_states is None:
            all_states = config.vision_config.output_hidden_states
        wanted = all_states is True or [*(all_states or []), config.vision_feature_layer]
        kwargs |= {"output_hidden_states": wanted, "return_dict": True}
        outputs = self.vision_tower(pixel_values.to(self.vision_tower.dtype), **kwargs)
        features = outputs.hidden_states[config.vision_feature_layer]  # (num_images, tokens, vision_hidden_size)
        if config.vision_feature_select_strategy == "default":
            features = features[:, 1:]
        if features.shape[1] != config.image_seq_length:
            raise ValueError(
                f"The vision tower made {features.shape[1]} tokens of an image, `image_seq_length` is "
                f"{config.image_seq_length}. Check `vision_feature_select_strategy` "
                f"({config.vision_feature_select_strategy!r}) and the size of the images {tuple(pixel_values.shape[-2:])}."
            )
        outputs.pooler_output = self.multi_modal_projector(features)
        return outputs

    def get_placeholder_mask(
        self, input_ids: torch.LongTensor | None, inputs_embeds: torch.Tensor | None = None
    ) -> torch.BoolTensor:
        """Where image patches stand: a mask of shape `(batch_size, sequence_length)`."""
        if input_ids is not None:
            return input_ids == self.config.image_token_id
        placeholder = torch.full((1, 1), self.config.image_token_id, device=inputs_embeds.device)
        return (inputs_embeds == self.get_input_embeddings()(placeholder)).all(-1)

    def _check_ids(self, input_ids: torch.LongTensor) -> None:
        """On an accelerator this check would stall the queue; there the embedding's own assertion fires."""
        reserved, size = self.config.reserved, self.config.text_config.vocab_size
        unknown = ((input_ids > reserved.start) & (input_ids < reserved.stop)) | (input_ids < 0) | (input_ids >= size)
        if unknown.any():
            raise ValueError(
                f"`input_ids` hold {input_ids[unknown][0].item()}, which is no token of this model. Was one added to its tokenizer "
                "without `resize_token_embeddings`?"
            )

    def _check_placeholders(self, mask: torch.BoolTensor, num_patches: int) -> None:
        counts, length = mask.sum(-1).tolist(), self.config.image_seq_length
        if sum(counts) == num_patches:
            return
        for index, count in enumerate(counts):
            if count % length != 0:
                raise ValueError(
                    f"`input_ids[{index}]` holds {count} image placeholders, no multiple of the {length} of one image. Was "
                    "the text truncated?"
                )
        per_sample = [count // length for count in counts]
        raise ValueError(
            f"`input_ids` hold placeholders for {sum(per_sample)} images (by sample: {per_sample}), got "
            f"{num_patches // length} images."
        )

    @takes_cache
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        **kwargs,
    ) -> VwLmmModelOutputWithPast:
        """Hidden states of a text with images.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`): Token ids; every image stands as
                `image_seq_length` placeholders.
            pixel_values (`torch.Tensor` of shape `(num_images, num_channels, height, width)`, *optional*): All images of the
                batch in reading order.
            attention_mask (`torch.Tensor` of shape `(batch_size, past_length + sequence_length)`, *optional*): 0 for padding.
            position_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*): Token positions. Default:
                counted over real tokens. Where they start anew in a row without `attention_mask`, another text begins, which does not
                see those before it (packing).
            cache (`Cache`, *optional*): Keys and values of earlier tokens; `past_key_values` before transformers 5.24.
            inputs_embeds (`torch.Tensor` of shape `(batch_size, sequence_length, hidden_size)`, *optional*):
                Instead of `input_ids`; images stand as the placeholder's embedding, or are already in place.
            image_features (`torch.Tensor` of shape `(num_images, image_seq_length, hidden_size)`, *optional*):
                Instead of `pixel_values`: what to read at the placeholders, in reading order.

        Raises:
            ValueError: If placeholders and images do not match, or inputs contradict one another.
        """
        refuse_unknown(kwargs)  # a language model of transformers would not
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass exactly one of `input_ids` and `inputs_embeds`.")
        if pixel_values is not None and image_features is not None:
            raise ValueError("Pass either `pixel_values` or `image_features`, got both.")
        encoded = None
        if pixel_values is not None:
            if self.config.pseudo_image_features:
                raise ValueError("Pseudo image features are made by the VM head: use `VwLmmForCausalLM`.")
            encoded = self.get_image_features(pixel_values, return_dict=True, **of_encoders(kwargs))
            image_features = encoded.pooler_output

        mask = self.get_placeholder_mask(input_ids, inputs_embeds)
        if not torch.compiler.is_compiling():
            if input_ids is not None and input_ids.device.type == "cpu":
                self._check_ids(input_ids)
            self._check_placeholders(mask, 0 if image_features is None else image_features[..., 0].numel())
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if image_features is not None:
            image_features = image_features.to(inputs_embeds.device, inputs_embeds.dtype)
            inputs_embeds = inputs_embeds.masked_scatter(mask[..., None], image_features)
        if position_ids is None and attention_mask is not None and attention_mask.ndim == 2:
            # Padding on either side must not move the rotary angles.
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -inputs_embeds.shape[1] :]
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            return_dict=True,
            **named_cache(cache),
            **kwargs,
        )
        return VwLmmModelOutputWithPast(
            outputs.last_hidden_state,
            outputs.get(CACHE_NAME),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=image_features,
            image_outputs=encoded,
        )


class VwLmmForCausalLM(VwLmmPreTrainedModel, GenerationMixin):
    """VW-LMM: answers questions about images, and models the images themselves.

    Two heads over the same vocabulary: `lm_head` (the paper's MM head) reads decoder states, `vm_head` the adapter's features.
    The latter's softmax is the patch's *visual word*.
    """

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012
    _tp_plan = {"lm_head": "colwise_gather_output", "vm_head": "colwise_gather_output"}  # noqa: RUF012

    def __init__(self, config: VwLmmConfig):
        super().__init__(config)
        self.model = VwLmmModel(config)
        text = config.text_config
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.vm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args, **kwargs) -> "VwLmmForCausalLM":
        """As in transformers.

        Raises:
            ValueError: If the VM head does not fit the vocabulary, or is missing where pseudo image features need it.
        """
        with_info = kwargs.pop("output_loading_info", False)
        may_mismatch = kwargs.pop("ignore_mismatched_sizes", False)
        model, info = super().from_pretrained(*args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs)
        if not may_mismatch and info["mismatched_keys"]:
            key, stored, expected = sorted(info["mismatched_keys"])[0]
            raise ValueError(
                f"`{key}` of the checkpoint has shape {tuple(stored)}, its configuration says {tuple(expected)}. Token "
                "embeddings, `lm_head` and `vm_head` must have as many rows as the text configuration's `vocab_size`."
            )
        # Whoever asks what is missing is told, and whoever brings the weights knows.
        is_known = with_info or kwargs.get("state_dict") is not None
        if not is_known and model.config.pseudo_image_features and "vm_head.weight" in info["missing_keys"]:
            raise ValueError(
                "The checkpoint has no `vm_head.weight`, but `pseudo_image_features` make every image of it: nothing sensible "
                "would come out."
            )
        return (model, info) if with_info else model

    @classmethod
    def from_vision_text_pretrained(
        cls,
        vision: str,
        text: str,
        vision_kwargs: dict | None = None,
        text_kwargs: dict | None = None,
        **config_fields,
    ) -> "VwLmmForCausalLM":
        """A model from two checkpoints, with a fresh adapter and a fresh VM head.

        Args:
            vision (`str`): Folder or Hub name of a vision tower, or of a model that has one (CLIP, SigLIP, GRR-CoCa, MaMMUT).
            text (`str`): Folder or Hub name of a causal language model.
            vision_kwargs, text_kwargs (`dict`, *optional*): For the two `from_pretrained`, e.g. `{"gguf_file": ...}`.
            config_fields: Fields of [`VwLmmConfig`]. `image_token_id` is the processor's, and the vocabulary's size by default:
                the id that a tokenizer without unused ids gives to a token added to it. The vocabulary grows where it has to.

        Raises:
            ValueError: If the vision checkpoint has no tower of patches.
        """
        tower = load_tower(vision, **(vision_kwargs or {}))
        language_model = AutoModelForCausalLM.from_pretrained(text, **(text_kwargs or {}))
        if "gguf_file" in (text_kwargs or {}):  # its weights are expanded by now, which the configuration does not say
            vars(language_model.config).pop("quantization_config", None)
            vars(language_model).pop("hf_quantizer", None)
        has_class_token = tower.config.model_type.startswith("clip") or getattr(tower.config, "use_cls_token", False)
        words = language_model.config.vocab_size
        placeholder = config_fields.get("image_token_id", words)
        if placeholder >= words:
            size = vocabulary_with_placeholder(placeholder)
            language_model.resize_token_embeddings(size, mean_resizing=False)
            config_fields = {"num_reserved_tokens": size - placeholder, **config_fields}
            with torch.no_grad():  # in place of random rows; unlike the padding token's, which is zero
                for table in (language_model.get_input_embeddings(), language_model.get_output_embeddings()):
                    table.weight[words:] = table.weight[:words].mean(0)
        fields = {
            "image_token_id": placeholder,
            "vision_feature_select_strategy": "default" if has_class_token else "full",
            "vision_feature_layer": -2 if tower.config.model_type.startswith("clip") else -1,
            **config_fields,
        }
        if getattr(tower.config, "patch_dropout", 0):  # every patch has its place among the words
            tower.config.patch_dropout = 0.0
        config = VwLmmConfig(vision_config=tower.config, text_config=language_model.config, **fields)
        with torch.device("meta"):  # towers come with their weights; only what is fresh is allocated
            model = cls(config)
        model.model.vision_tower, model.model.language_model = tower, language_model.base_model
        model.lm_head = language_model.get_output_embeddings()
        for module in (model.model.multi_modal_projector, model.vm_head):
            module.to_empty(device=language_model.device).to(language_model.dtype)
            module.apply(model._init_weights)
        model.tie_weights()
        model.generation_config = language_model.generation_config
        return model.eval()

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs) -> BaseModelOutputWithPooling:
        return self.model.get_image_features(pixel_values, **kwargs)

    def word_logits(self, head: nn.Module, states: torch.Tensor) -> torch.Tensor:
        """Logits of one of the heads, the lowest number there is for ids that are no words."""
        logits, reserved = head(states), self.config.reserved
        ids = torch.arange(reserved.start, reserved.stop, device=logits.device)
        # With gradients not in place: where processes share a head, its output is a view of a custom function.
        fill = logits.index_fill if torch.is_grad_enabled() else logits.index_fill_
        return fill(-1, ids, torch.finfo(logits.dtype).min)

    def get_visual_words(self, pixel_values: torch.Tensor, top_k: int = 1) -> VisualWords:
        """The most probable words of every image patch (section 3.2): softmax(vm_head(adapter feature)).

        Patches are in reading order. No decoder pass is needed.

        Args:
            pixel_values (`torch.Tensor` of shape `(num_images, num_channels, height, width)`): Normalised images.
            top_k (`int`): Words per patch.

        Raises:
            ValueError: If `top_k` is below 1 or above the vocabulary.
        """
        words = self.vm_head.out_features - self.config.num_reserved_tokens
        if not 1 <= top_k <= words:
            raise ValueError(f"`top_k` must lie between 1 and {words}, got {top_k}.")
        adapted = self.get_image_features(pixel_values, return_dict=True).pooler_output
        # Image by image: distributions over the vocabulary are large.
        top = [self.word_logits(self.vm_head, features).float().softmax(-1).topk(top_k) for features in adapted]
        return VisualWords(torch.stack([row.indices for row in top]), torch.stack([row.values for row in top]))

    def get_pseudo_image_features(self, image_features: torch.Tensor) -> torch.Tensor:
        """The token embedding that a visual word stands for on average: the "pif" variant's input to the decoder.

        Args:
            image_features (`torch.Tensor` of shape `(num_images, image_seq_length, hidden_size)`): Outputs of the adapter.

        Returns:
            `torch.Tensor` of the same shape: every patch's distribution over words times the token embeddings.
        """
        table = self.get_input_embeddings().weight  # (vocab_size, hidden_size)
        if isinstance(table, DTensor):  # of which a tensor-parallel process has some rows
            table = table.full_tensor()

        def mixture(features: torch.Tensor) -> torch.Tensor:
            return self.word_logits(self.vm_head, features).float().softmax(-1).to(table.dtype) @ table

        # Some patches at a time: their distributions are as large as a hundred times their features.
        chunks = image_features.flatten(0, 1).split(512)
        if torch.is_grad_enabled():
            mixtures = [checkpoint(mixture, chunk, use_reentrant=False) for chunk in chunks]
        else:
            mixtures = [mixture(chunk) for chunk in chunks]
        return torch.cat(mixtures).view_as(image_features)

    @takes_cache
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        skip_logits: bool | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs,
    ) -> VwLmmCausalLMOutputWithPast:
        """Continue texts with images, and train.

        With `labels`, the loss is next-token cross-entropy plus, where there are images, the visual loss that the
        configuration names: the patch at position j against the prediction at position j - 1.

        Args:
            input_ids, pixel_values, attention_mask, position_ids, cache, inputs_embeds: As in [`VwLmmModel`].
            labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Targets, aligned with `input_ids` (the shift happens here); -100 is ignored, and so are placeholders.
                Needed while training, unless `use_cache` is set, which says that the loss is somebody else's.
            use_cache (`bool`, *optional*): Return the cache. Default: the text config's, never with `labels`.
            logits_to_keep (`int` or `torch.Tensor`):
                Last positions (0: all) that get logits, or their indices, or a boolean mask.
            skip_logits (`bool`, *optional*):
                Leave the logits out. Default: while training with `labels`, because no loss holds more than a chunk of them.
            mm_encoder_outputs (`dict`, *optional*): `{"image": output of get_image_features}` instead of `pixel_values`.
            kwargs: Switches of transformers; and `shift_labels`, of the shape of `labels`, beside them: what the language loss
                takes instead, shifted already. (As an argument, `Trainer` would look for it in every batch.)

        Raises:
            ValueError: If placeholders and images do not match, inputs contradict one another, or a training step has no
                `labels`.
        """
        config = self.config
        if self.training:
            check_training_has_labels(labels, use_cache)
        shift_labels = kwargs.pop("shift_labels", None)
        if shift_labels is not None and labels is None:
            raise ValueError("`shift_labels` need `labels`.")
        encoded = (mm_encoder_outputs or {}).get("image")
        if encoded is not None and pixel_values is not None:
            raise ValueError("Pass either `pixel_values` or `mm_encoder_outputs`, got both.")
        if encoded is None and pixel_values is not None:
            encoded = self.get_image_features(pixel_values, return_dict=True, **of_encoders(kwargs))
        adapted = read = blank = None
        if encoded is None and self._waits_for_images(cache):
            blank = self._blank_features()
        if encoded is not None:
            adapted = read = encoded.pooler_output  # (num_images, image_seq_length, hidden_size)
            if config.pseudo_image_features:
                read = self.get_pseudo_image_features(adapted)
        if use_cache is None:
            use_cache = getattr(config.text_config, "use_cache", True)
        outputs = self.model(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            image_features=read,
            use_cache=use_cache and labels is None,
            return_dict=True,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        if skip_logits is None:
            skip_logits = self.training and labels is not None
        logits = None
        if not skip_logits:
            logits = self.word_logits(self.lm_head, slice_logits_to_keep(hidden_states, logits_to_keep))

        loss = language_loss = visual_loss = None
        if labels is not None:
            is_patch = self.model.get_placeholder_mask(input_ids, inputs_embeds)
            # Nothing predicts the first token of a text: of a packed row, the end of the text before would.
            is_first = torch.zeros_like(is_patch) if position_ids is None else position_ids.to(is_patch.device) == 0
            shifted = shift_labels is not None
            targets, ignored = shift_labels if shifted else labels, is_patch | is_first
            ignored = nn.functional.pad(ignored[:, 1:], (0, 1)) if shifted else ignored
            targets = targets.masked_fill(ignored.to(targets.device), -100)
            targets = supervised_labels(targets, attention_mask, config.text_config.vocab_size, shifted)
            loss = language_loss = captioning_loss(
                hidden_states, targets, self.lm_head, gather=self.training, shifted=shifted, reserved=config.reserved
            )
            if config.visual_loss != "none":
                visual_loss = self._visual_loss(hidden_states, adapted, is_patch, is_first, attention_mask)
                loss = loss + config.visual_loss_weight * visual_loss
            if self.training:
                loss = loss + self._unused_parameters(has_images=adapted is not None)
                loss = loss if blank is None else loss + 0.0 * blank.sum().to(loss.dtype)
        return VwLmmCausalLMOutputWithPast(
            loss,
            logits,
            outputs.get(CACHE_NAME),
            language_loss=language_loss,
            visual_loss=visual_loss,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=adapted,
            image_outputs=encoded,
        )

    def _visual_loss(
        self,
        hidden_states: torch.Tensor,
        image_features: torch.Tensor | None,
        is_patch: torch.BoolTensor,
        is_first: torch.BoolTensor,
        attention_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        config = self.config
        before, features = hidden_states[:0, 0], hidden_states[:0, 0]
        if image_features is not None:
            # The first patch is predicted by the token before the image; a patch with nothing before it, by nothing.
            predicted = is_patch & ~is_first
            predicted[:, 0] = False
            if attention_mask is not None:
                predicted[:, 1:] &= attention_mask[:, :-1].bool()
            before = hidden_states[:, :-1][predicted[:, 1:]]
            features = image_features.flatten(0, 1)[predicted[is_patch]]
        # Also without a patch: other processes may have some, and all of them add up how many there are.
        return visual_modeling_loss(
            before,
            features,
            self.lm_head,
            self.vm_head,
            kind=config.visual_loss,
            detach_target=config.detach_visual_target,
            temperature=config.visual_loss_temperature,
            reserved=config.reserved,
            gather=self.training,
        )

    def _waits_for_images(self, cache: Cache | None) -> bool:
        """Whether another process may have images where this one has none, and needs this one for every layer of the tower (FSDP)."""
        distributed = torch.distributed
        if not (distributed.is_available() and distributed.is_initialized()) or (
            cache is not None and cache.get_seq_length()
        ):
            return False
        from torch.distributed.fsdp import FSDPModule  # which takes a while, and is there by now if anybody uses it

        return any(isinstance(module, FSDPModule) for module in self.model.vision_tower.modules())

    def _blank_features(self) -> torch.Tensor:
        """Features of a blank image, which nobody reads."""
        tower, config = self.model.vision_tower, self.config.vision_config
        height, width = config.image_size if isinstance(config.image_size, (list, tuple)) else (config.image_size,) * 2
        pixels = torch.zeros(1, getattr(config, "num_channels", 3), height, width, device=tower.device)
        return self.get_image_features(pixels, return_dict=True).pooler_output

    def _unused_parameters(self, has_images: bool) -> torch.Tensor | float:
        """Zero, whose gradients are zero for the parameters that this batch did not use: DDP waits for gradients of all."""
        modules = [self.model.vision_tower]  # which has layers behind the one that is read
        if not has_images:
            modules.append(self.model.multi_modal_projector)
        if not has_images or (self.config.visual_loss == "none" and not self.config.pseudo_image_features):
            modules.append(self.vm_head)
        trained = [p for module in modules for p in module.parameters() if p.requires_grad]
        # Of a sharded one this process's part, which keeps the loss an ordinary tensor
        return sum(0.0 * (p.to_local() if isinstance(p, DTensor) else p).sum() for p in trained)

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args, **kwargs) -> nn.Module:
        """Both heads and the token embeddings share the vocabulary: new rows for all of them. All but the placeholder become words.

        Raises:
            ValueError: If the placeholder would be cut off.
        """
        placeholder = self.config.image_token_id
        if new_num_tokens is not None and new_num_tokens <= placeholder:
            raise ValueError(f"`new_num_tokens` must be above `image_token_id` ({placeholder}), got {new_num_tokens}.")
        embeddings = super().resize_token_embeddings(new_num_tokens, *args, **kwargs)
        rows = self.lm_head.weight.shape[0]
        if new_num_tokens is not None:
            self.config.num_reserved_tokens = 1
        if self.vm_head.weight.shape[0] != rows:
            self.vm_head = self._get_resized_lm_head(self.vm_head, rows)
        return embeddings

    def _prepare_cache_for_generation(self, generation_config, model_kwargs: dict, *args, **kwargs) -> None:
        has_images = model_kwargs.get("pixel_values") is not None or model_kwargs.get("mm_encoder_outputs")
        if generation_config.prefill_chunk_size is not None and has_images and not SHARES_IMAGES_OUT:
            raise ValueError("`prefill_chunk_size` of prompts with images needs a newer transformers (5.24 does it).")
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)

    def prepare_inputs_for_generation(
        self, input_ids, inputs_embeds=None, is_first_iteration=False, use_cache=True, **kwargs
    ) -> dict:
        if use_cache and not is_first_iteration:
            # Images were read with the prompt. Placeholders now are a guess of prompt lookup, which will be rejected, or stand in
            # the prompt of an assistant, which transformers lets guess without images.
            input_ids = input_ids.masked_fill(input_ids == self.config.image_token_id, 0)
        options = {"inputs_embeds": inputs_embeds, "is_first_iteration": is_first_iteration, "use_cache": use_cache}
        return super().prepare_inputs_for_generation(input_ids, **options, **kwargs)

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids=None, **model_kwargs
    ) -> tuple[torch.LongTensor, dict]:
        # Since transformers 5.18 images are encoded by now. Before, they come here, and repeated one by one they would get to
        # other prompts than their own.
        images = {}
        if input_ids is not None and model_kwargs.get("pixel_values") is not None:
            given = (input_ids, None) if input_ids.shape[1] else (None, model_kwargs.get("inputs_embeds"))
            per_prompt = self.model.get_placeholder_mask(*given).sum(-1) // self.config.image_seq_length
            groups = model_kwargs.pop("pixel_values").split(per_prompt.tolist())
            images["pixel_values"] = torch.cat([group.repeat(expand_size, 1, 1, 1) for group in groups])
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        return input_ids, {**model_kwargs, **images}


__all__ = [
    "VisualWords",
    "VwLmmCausalLMOutputWithPast",
    "VwLmmForCausalLM",
    "VwLmmModel",
    "VwLmmModelOutputWithPast",
    "VwLmmPreTrainedModel",
]
