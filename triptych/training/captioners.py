"""The captioner that a training starts from: a checkpoint, or a fresh one with a tokenizer of its own."""

import copy
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import AutoProcessor, CLIPImageProcessor, PreTrainedConfig, PreTrainedModel, ProcessorMixin

from triptych.arguments import argument
from triptych.data.splits import refuse_changed
from triptych.modeling.configuration_base import check_positive, merge_fields
from triptych.modeling.configuration_grr_coca import GrrCocaConfig
from triptych.modeling.configuration_mammut import MammutConfig
from triptych.modeling.modeling_grr_coca import GrrCocaForConditionalGeneration
from triptych.modeling.modeling_mammut import MammutForConditionalGeneration
from triptych.processing.processing_grr_coca import GrrCocaProcessor
from triptych.processing.processing_mammut import QUESTION_TEMPLATE, MammutProcessor
from triptych.training.tokenizer import load_tokenizer, train_tokenizer
from triptych.training.transfer import lock_image_tower


# configuration, model and processor of a family
FAMILIES: dict[str, tuple] = {
    "grr-coca": (GrrCocaConfig, GrrCocaForConditionalGeneration, GrrCocaProcessor),
    "mammut": (MammutConfig, MammutForConditionalGeneration, MammutProcessor),
}


@dataclass
class ModelArguments:
    """Where the model comes from."""

    model_name_or_path: str | None = argument(
        default=None, help="Go on from this checkpoint (weights and processor) instead of from scratch."
    )
    preset: str | None = argument(default=None, help="Preset of a model from scratch. Default: the family's tiny one.")
    config_overrides: str = argument(
        default="{}",
        help='JSON of configuration fields to change, e.g. \'{"text_config": {"num_hidden_layers": 8}}\'.',
    )
    tokenizer: str | None = argument(
        default=None, help="Tokenizer of a model from scratch. Default: one is trained on the training texts."
    )
    vocab_size: int = argument(default=2048, help="Largest vocabulary of a tokenizer trained here.")
    dropout: float = argument(default=0.0, help="Dropout after attention and feed-forward layers.")
    patch_dropout: float = argument(
        default=0.0, help="Share of the patches that every image loses while training (FLIP): faster steps."
    )
    image_size: int | None = argument(
        default=None,
        help="Height and width of images. Default: the preset's or checkpoint's, whose positions are resized.",
    )
    context_length: int | None = argument(
        default=None, help="Longest text in tokens, likewise; further positions of a checkpoint start untrained."
    )
    lock_image_tower: bool = argument(
        default=False, help="Freeze the image tower of the checkpoint, texts learn to fit it (LiT)."
    )
    unlock_layers: int | None = argument(
        default=None, help="Train the last so many layers of the locked tower, and what follows them."
    )
    layer_decay: float | None = argument(
        default=None, help="Factor of the learning rate from every layer to the one before it, e.g. 0.75."
    )

    def __post_init__(self) -> None:
        check_positive(self, "image_size", "context_length", "unlock_layers")
        if self.lock_image_tower and self.model_name_or_path is None:
            raise ValueError("`lock_image_tower` is for a tower that has learned: name it with `model_name_or_path`.")
        if self.unlock_layers is not None and not self.lock_image_tower:
            raise ValueError("`unlock_layers` is for `lock_image_tower`; without it all layers are trained.")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f"`layer_decay` must lie above 0 and not above 1, got {self.layer_decay}.")
        if self.model_name_or_path is not None:
            reason = (
                f"belongs to a model from scratch; `model_name_or_path` {self.model_name_or_path!r} brings its own"
            )
            refuse_changed(self, ("preset", "tokenizer", "vocab_size"), reason)
        elif self.tokenizer is not None:
            refuse_changed(self, ["vocab_size"], f"is of a tokenizer trained here; `tokenizer` is {self.tokenizer!r}")


def read_json(name: str, text: str) -> Any:
    """The value of the argument `name`, given as JSON."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"`{name}` is not JSON: {error}: {text!r}.") from error


def config_to_continue(family: str, source: str) -> PreTrainedConfig:
    """Configuration of a checkpoint to go on from; one of another family is refused."""
    config_class = FAMILIES[family][0]
    model_type = config_class.get_config_dict(source)[0].get("model_type")
    if model_type != config_class.model_type:
        raise ValueError(
            f"`model_name_or_path` must be a {config_class.__name__.removesuffix('Config')} checkpoint, but the `model_type` of "
            f"{source} is {model_type!r}. `examples/pretrain.py --model {family}` trains one."
        )
    return config_class.from_pretrained(source)


def config_of(family: str, args: ModelArguments, overrides: dict[str, Any] | None = None) -> PreTrainedConfig:
    """Configuration of the model to train.

    Args:
        family (`str`): "grr-coca" or "mammut".
        args (`ModelArguments`): What was asked for.
        overrides (`dict`, *optional*): Configuration fields of the task; `args.config_overrides` win over them.

    Raises:
        ValueError: If the checkpoint is of another family, a configuration field does not exist, or the JSON cannot be read.
    """
    config_class = FAMILIES[family][0]
    asked: dict[str, dict[str, Any]] = {
        part: {"hidden_dropout": args.dropout} for part in ("text_config", "vision_config")
    }
    asked["vision_config"]["patch_dropout"] = args.patch_dropout
    if args.image_size is not None:
        asked["vision_config"]["image_size"] = args.image_size
    if args.context_length is not None:
        asked["text_config"]["max_position_embeddings"] = args.context_length
    changes = merge_fields(config_class, overrides or {}, asked)
    changes = merge_fields(config_class, changes, read_json("config_overrides", args.config_overrides))
    if args.model_name_or_path is None:
        args.preset = args.preset or f"{family}-tiny"
        return config_class.from_preset(args.preset, **changes)
    config = config_to_continue(family, args.model_name_or_path)
    return config_class.from_dict(merge_fields(config_class, config.to_dict(), changes))


def load_or_build(
    family: Literal["grr-coca", "mammut"], args: ModelArguments, config: PreTrainedConfig, texts: Iterable[str]
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The checkpoint to go on from, or a fresh model whose vocabulary follows its tokenizer; and the processor.

    Args:
        family, args: As of [`config_of`].
        config (`PreTrainedConfig`): From there.
        texts (`Iterable[str]`): What to train a tokenizer on.
    """
    _, model_class, processor_class = FAMILIES[family]
    source = args.model_name_or_path
    if source is not None:
        return _load(model_class, source, args, config)
    text, size = config.text_config, config.vision_config.image_size
    if args.tokenizer is not None:
        tokenizer = load_tokenizer(args.tokenizer, text.max_position_embeddings)
    else:
        if family == "mammut":
            texts = [*texts, QUESTION_TEMPLATE.format(question="")]
        tokenizer = train_tokenizer(texts, args.vocab_size, text.max_position_embeddings)
    text.vocab_size = len(tokenizer)
    text.pad_token_id, text.bos_token_id = tokenizer.pad_token_id, tokenizer.bos_token_id
    text.eos_token_id = tokenizer.eos_token_id
    image_processor = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    return model_class._from_config(config), processor_class(image_processor, tokenizer)


def _load(
    model_class: Any, source: str, args: ModelArguments, config: PreTrainedConfig
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A checkpoint and its processor, for images and texts of the sizes of a configuration."""
    stored = type(config).from_pretrained(source)
    config = copy.deepcopy(config)  # the caller's says what is asked for
    image_size, context_length = config.vision_config.image_size, config.text_config.max_position_embeddings
    config.vision_config.image_size = stored.vision_config.image_size
    config.text_config.max_position_embeddings = stored.text_config.max_position_embeddings
    model = model_class.from_pretrained(source, config=config, dtype=torch.float32)
    model.model.resize_positions(image_size, context_length)
    if getattr(config.vision_config, "use_tubes", False) and not getattr(stored.vision_config, "use_tubes", False):
        model.model.vision_model.inflate_tubes()
    if args.lock_image_tower:
        lock_image_tower(model, args.unlock_layers or 0)
    processor: Any = AutoProcessor.from_pretrained(source)
    if image_size != stored.vision_config.image_size:
        sides = processor.image_processor
        sides.size, sides.crop_size = {"shortest_edge": image_size}, {"height": image_size, "width": image_size}
    if context_length != stored.text_config.max_position_embeddings:
        processor.tokenizer.model_max_length = context_length
    return model, processor


__all__ = ["FAMILIES", "ModelArguments", "config_of", "config_to_continue", "load_or_build", "read_json"]
