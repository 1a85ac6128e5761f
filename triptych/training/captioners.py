"""The captioner that a training starts from: a checkpoint, or a fresh one with a tokenizer of its own."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import AutoProcessor, CLIPImageProcessor, PreTrainedConfig, PreTrainedModel, ProcessorMixin

from triptych.arguments import argument
from triptych.data.splits import refuse_changed
from triptych.modeling.configuration_base import merge_fields
from triptych.modeling.configuration_grr_coca import GrrCocaConfig
from triptych.modeling.configuration_mammut import MammutConfig
from triptych.modeling.modeling_grr_coca import GrrCocaForConditionalGeneration
from triptych.modeling.modeling_mammut import MammutForConditionalGeneration
from triptych.processing.processing_grr_coca import GrrCocaProcessor
from triptych.processing.processing_mammut import QUESTION_TEMPLATE, MammutProcessor
from triptych.training.tokenizer import load_tokenizer, train_tokenizer


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

    def __post_init__(self) -> None:
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
    dropout = {"hidden_dropout": args.dropout}
    changes = merge_fields(config_class, overrides or {}, {"text_config": dropout, "vision_config": dropout})
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
        model = model_class.from_pretrained(source, config=config, dtype=torch.float32)
        had_tubes = getattr(type(config).from_pretrained(source).vision_config, "use_tubes", False)
        if getattr(config.vision_config, "use_tubes", False) and not had_tubes:
            model.model.vision_model.inflate_tubes()
        return model, AutoProcessor.from_pretrained(source)
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


__all__ = ["FAMILIES", "ModelArguments", "config_of", "config_to_continue", "load_or_build", "read_json"]
