"""Convert foreign checkpoints into Hub repositories of ours, shard by shard: memory holds about one shard."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, split_torch_state_dict_into_shards
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import save_file
from tqdm.auto import tqdm
from transformers import (
    AddedToken,
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPTokenizer,
    LlavaImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)

from triptych.convert import open_clip_coca, open_clip_layout, openmammut, vw_lmm
from triptych.convert.origin import Origin, exported
from triptych.convert.source import Source
from triptych.hub import staged
from triptych.modeling.configuration_grr_coca import GrrCocaConfig
from triptych.modeling.configuration_mammut import MammutConfig
from triptych.modeling.configuration_vw_lmm import VwLmmConfig
from triptych.modeling.modeling_grr_coca import GrrCocaForConditionalGeneration
from triptych.modeling.modeling_mammut import MammutForConditionalGeneration
from triptych.modeling.modeling_vw_lmm import VwLmmForCausalLM
from triptych.processing.processing_grr_coca import GrrCocaProcessor
from triptych.processing.processing_mammut import MammutProcessor
from triptych.processing.processing_vw_lmm import IMAGE_TOKEN, VwLmmProcessor


CLIP_TOKENIZER = "openai/clip-vit-base-patch32"


@dataclass(frozen=True)
class Layout:
    """A family of foreign checkpoints.

    Args:
        title (`str`): Whose they are.
        card (`str`): Card in `model_cards/`.
        model_class, processor_class (`type`): Ours.
        presets (`tuple`): Our presets with such a layout.
        convert_config (`Callable`): Their JSON to our configuration.
        image_options (`Callable`): Their JSON to options of an image processor.
        origins (`Callable`): Names of our parameters to their places.
        is_unused (`Callable`): Whether a foreign tensor is nowhere used.
    """

    title: str
    card: str
    model_class: type[PreTrainedModel]
    processor_class: type[ProcessorMixin]
    presets: tuple[str, ...]
    convert_config: Callable[..., PreTrainedConfig]
    image_options: Callable[[dict], dict[str, Any]]
    origins: Callable[[Iterable[str]], dict[str, Origin]]
    is_unused: Callable[[str], bool]


LAYOUTS = {
    "open-clip-coca": Layout(
        title="open_clip's CoCa",
        card="coca-open-clip",
        model_class=GrrCocaForConditionalGeneration,
        processor_class=GrrCocaProcessor,
        presets=tuple(name for name in GrrCocaConfig.presets() if name.startswith("coca-vit")),
        convert_config=open_clip_coca.convert_config,
        image_options=open_clip_layout.image_options,
        origins=open_clip_coca.COCA.origins,
        is_unused=open_clip_coca.COCA.ignored.__contains__,
    ),
    "open-mammut": Layout(
        title="LAION's openMaMMUT",
        card="openmammut",
        model_class=MammutForConditionalGeneration,
        processor_class=MammutProcessor,
        presets=tuple(name for name in MammutConfig.presets() if name.startswith("openmammut")),
        convert_config=openmammut.convert_config,
        image_options=open_clip_layout.image_options,
        origins=openmammut.OPENMAMMUT.origins,
        is_unused=openmammut.OPENMAMMUT.ignored.__contains__,
    ),
    "vw-lmm": Layout(
        title="the VW-LMM of its authors",
        card="vw-lmm-vicuna",
        model_class=VwLmmForCausalLM,
        processor_class=VwLmmProcessor,
        presets=tuple(name for name in VwLmmConfig.presets() if name.endswith(("7b", "pif"))),
        convert_config=vw_lmm.convert_config,
        image_options=vw_lmm.image_options,
        origins=vw_lmm.origins,
        is_unused=vw_lmm.is_buffer,
    ),
}


def find_config(
    layout: Layout, source: Source, preset: str | None = None, config: str | None = None, pif: bool | None = None
) -> tuple[PreTrainedConfig, dict[str, Any]]:
    """Our configuration of a foreign checkpoint, and options of its image processor.

    Args:
        layout, source: What is converted.
        preset (`str`, *optional*): One of our presets.
        config (`str`, *optional*): The foreign project's own JSON file. Default: the one beside the weights.
        pif (`bool`, *optional*): Of VW-LMM: pseudo image features. Default: what the source's name says.

    Raises:
        ValueError: If there is no configuration; the preset that fits best is named. If it has a key that we do not know, or a value
            that our models cannot do.
    """
    if preset is not None and config is not None:
        raise ValueError("Pass either `preset` or `config`, got both.")
    if pif is None:
        pif = "pif" in Path(source.location).name.lower()
    if preset is not None:
        found = layout.model_class.config_class.from_preset(preset)  # type: ignore[union-attr]
        if isinstance(found, VwLmmConfig):
            found.pseudo_image_features = pif or found.pseudo_image_features
        return fit_to_source(found, source), {}
    path = config or source.config_file()
    content = _read_config(path) if path else {}
    extra = {"pseudo_image_features": pif} if layout.model_class.config_class is VwLmmConfig else {}
    try:
        found = layout.convert_config(content.get("model_cfg", content), **extra)
        return fit_to_source(found, source), layout.image_options(content)
    except (ArithmeticError, AttributeError, StrictDataclassError, TypeError) as error:
        raise ValueError(f"{path} describes no model of ours: {error}") from error
    except KeyError as error:
        where = f"{path} lacks {error}" if path else f"{source.folder} holds none"
        raise ValueError(
            f"The configuration of {layout.title} is missing ({where}). Pass `config`, its JSON file, or `preset`; the one that "
            f"fits best is {nearest_preset(layout, source)!r}."
        ) from error


def _read_config(config: str | Path) -> dict:
    try:
        content = json.loads(Path(config).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"`config` {config} cannot be read as JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"`config` {config} must hold a JSON object, got {type(content).__name__}.")
    return content


def fit_to_source(config: PreTrainedConfig, source: Source) -> PreTrainedConfig:
    """Set the image size that the stored position table was made for, as after fine-tuning on larger images.

    Raises:
        ValueError: If the configuration has more layers than there are tensors: building them could take for ever.
    """
    for part in (config, *(getattr(config, name) for name in config.sub_configs)):
        for name, value in vars(part).items() if part is not None else ():
            if name.endswith("layers") and isinstance(value, int) and value > len(source.meta()):
                raise ValueError(
                    f"The configuration says `{name}` {value}, but {source.location} has {len(source.meta())} tensors."
                )
    table = source.meta().get("visual.positional_embedding")
    if table is not None:
        grid = round((table.shape[0] - 1) ** 0.5)  # one row is the class token's
        config.vision_config.image_size = grid * config.vision_config.patch_size  # type: ignore[attr-defined]
    return config


def empty_model(layout: Layout, config: PreTrainedConfig) -> PreTrainedModel:
    """A model without values, on the meta device."""
    try:
        with torch.device("meta"):
            model = layout.model_class(config).eval()
    except (ArithmeticError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"The configuration describes no model of ours: {error!r}") from error
    if layout.model_class is not VwLmmForCausalLM:  # whose tokenizer knows its padding; the others' would read a word
        model.generation_config.pad_token_id = model.generation_config.eos_token_id
    return model


def differences(layout: Layout, model: PreTrainedModel, source: Source) -> list[str]:
    """What of a foreign checkpoint does not fit a model, a line each: nothing, if it can be converted."""
    stored, ours = source.meta(), model.state_dict()
    found, origins = [], layout.origins(ours)
    for name, origin in origins.items():
        tensor, expected = stored.get(origin.key), tuple(ours[name].shape)
        if tensor is None or not origin.can_take(tensor) or tuple(origin.take(tensor).shape) != expected:
            shape = None if tensor is None else tuple(tensor.shape)
            found.append(f"{origin.key} -> {name}: stored {shape}, expected {expected}")
    unused = stored.keys() - {origin.key for origin in origins.values()}
    return found + [
        f"{name}: stored {tuple(tensor.shape)}, expected None"
        for name, tensor in stored.items()
        if name in unused and not layout.is_unused(name)
    ]


def nearest_preset(layout: Layout, source: Source) -> str:
    """The preset with the fewest differences."""

    def distance(name: str) -> int:
        config = layout.model_class.config_class.from_preset(name)  # type: ignore[union-attr]
        return len(differences(layout, empty_model(layout, fit_to_source(config, source)), source))

    return min(layout.presets, key=distance)


def check(layout: Layout, model: PreTrainedModel, source: Source) -> None:
    """Refuse a checkpoint that does not fill a model exactly.

    Raises:
        ValueError: With the first differences and the preset that fits best.
    """
    found = differences(layout, model, source)
    if found:
        rows = "\n".join(f"  {row}" for row in found[:8])
        raise ValueError(
            f"{source.location} does not fit this configuration of {layout.title}: {len(found)} differences.\n{rows}\n"
            f"The preset that fits best is {nearest_preset(layout, source)!r}."
        )


def make_processor(
    layout: Layout, config: Any, source: Source, tokenizer: str | None, image_options: dict[str, Any]
) -> ProcessorMixin:
    """The processor that the checkpoint was trained with.

    Args:
        layout, config, source, image_options: What is converted; see [`find_config`].
        tokenizer (`str`, *optional*): Folder or Hub name. Default: CLIP's, or of VW-LMM the one beside the weights.

    Raises:
        ValueError: If the tokenizer's ids are not those of the model.
    """
    size = config.vision_config.image_size
    square: dict[str, Any] = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    square |= image_options
    if layout.model_class.config_class is VwLmmConfig:
        text: Any = AutoTokenizer.from_pretrained(tokenizer or str(source.folder))
        text.add_tokens([AddedToken(IMAGE_TOKEN, special=True, normalized=False)])
        template = "mistral" if config.text_config.model_type == "mistral" else "vicuna_v1"
        processor = VwLmmProcessor(
            LlavaImageProcessor(**{"do_pad": True, **square}), text, template, image_seq_length=config.image_seq_length
        )
        names, ours, given = ["image_token_id"], config, processor
    else:
        context = config.text_config.max_position_embeddings
        # They pad with 0, which is also the token "!": as a padding token it would be cut out of every text. The model puts
        # its own padding where `attention_mask` says so, whatever stands there.
        text = CLIPTokenizer.from_pretrained(tokenizer or CLIP_TOKENIZER, model_max_length=context)
        processor = layout.processor_class(CLIPImageProcessor(**square), text)
        names, ours, given = ["bos_token_id", "eos_token_id"], config.text_config, text
    expected, found = ({name: getattr(each, name) for name in names} for each in (ours, given))
    if found != expected:
        raise ValueError(f"`tokenizer` does not belong to this model: its ids are {found}, expected {expected}.")
    return processor


def open_checkpoint(
    layout: str, source: str, *, revision: str | None = None, vision: str | None = None, **options: Any
) -> tuple[Layout, Source, PreTrainedModel, dict[str, Any]]:
    """Find a foreign checkpoint, and check that it can be converted.

    Args:
        layout (`str`): "open-clip-coca", "open-mammut" or "vw-lmm".
        source (`str`), revision (`str`, *optional*): A file, a folder, or a name on the Hub; see [`Source`].
        vision (`str`, *optional*): Of VW-LMM: take the vision tower from this CLIP, as the authors' code does, instead of the
            stored copy of it.
        options: `preset`, `config` and `pif`, as in [`find_config`].

    Returns:
        Its layout, its tensors, an empty model that they fill, and options of its image processor.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"Unknown `layout` {layout!r}. Known: {', '.join(LAYOUTS)}.")
    stored = Source(source, revision)
    if vision is not None:
        if layout != "vw-lmm":
            raise ValueError(f"`vision` goes with the layout 'vw-lmm', got {layout!r}.")
        stored.overlay(Source(vision), vw_lmm.VISION_PREFIX, "vision_model.")
    chosen = LAYOUTS[layout]
    found, image_options = find_config(chosen, stored, **options)
    model = empty_model(chosen, found)
    check(chosen, model, stored)
    return chosen, stored, model, image_options


def convert(
    layout: str,
    source: str,
    destination: str | Path,
    *,
    tokenizer: str | None = None,
    with_processor: bool = True,
    max_shard_size: str = "2GB",
    **options: Any,
) -> Path:
    """Write a foreign checkpoint as a complete Hub repository of ours. Values and types stay as they are.

    Everything is checked before anything is written, and the folder appears whole or not at all.

    Args:
        layout, source, options: As in [`open_checkpoint`].
        destination (`str` or `Path`): Folder to write.
        tokenizer (`str`, *optional*): As in [`make_processor`].
        with_processor (`bool`): Write a processor too.
        max_shard_size (`str`): Largest file of weights, and most of the memory that is needed.

    Raises:
        ValueError: If the checkpoint does not fit, or the disk is too small.
    """
    chosen, stored, model, image_options = open_checkpoint(layout, source, **options)
    processor = make_processor(chosen, model.config, stored, tokenizer, image_options) if with_processor else None
    origins, meta = chosen.origins(model.state_dict()), stored.meta()
    ours = {name: origin.take(meta[origin.key]) for name, origin in origins.items()}
    shards = split_torch_state_dict_into_shards(
        ours, filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_size
    )
    folder = Path(destination)
    _check_space(folder, sum(tensor.numel() * tensor.element_size() for tensor in ours.values()))
    sizes: Counter = Counter()
    for tensor in ours.values():
        sizes[tensor.dtype] += tensor.numel()
    model.to(sizes.most_common(1)[0][0])  # `save_pretrained` writes the model's type into the configuration
    with staged(folder, last="config.json") as staging:
        model.save_pretrained(staging, state_dict={})
        (staging / "model.safetensors").unlink(missing_ok=True)  # holds nothing: weights come shard by shard
        for name, names in tqdm(shards.filename_to_tensors.items(), desc="convert", unit="shard"):
            tensors = {key: origins[key].take(stored[origins[key].key]).contiguous() for key in names}
            save_file(tensors, staging / name, metadata={"format": "pt"})
            del tensors
            stored.release()
        if shards.is_sharded:
            index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
            (staging / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
        if processor is not None:
            processor.save_pretrained(staging)
        _write_card(chosen, model, stored, staging)
    return folder


def _check_space(folder: Path, needed: int) -> None:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise ValueError(f"{folder} needs {needed / 1e9:.1f} GB, but its disk has {free / 1e9:.1f} GB left.")


def _write_card(layout: Layout, model: Any, source: Source, folder: Path) -> None:
    name = layout.card
    if layout.model_class.config_class is VwLmmConfig:
        name = "vw-lmm-pif" if model.config.pseudo_image_features else name
        name = "vw-lmm-mistral" if model.config.text_config.model_type == "mistral" else name
    card = ModelCard(files("triptych.model_cards").joinpath(f"{name}.md").read_text(encoding="utf-8"))
    origin = source.location if not Path(source.location).exists() else Path(source.location).name
    rows = getattr(model.config, "num_reserved_tokens", 0)
    added = (
        f" {rows} rows for the image placeholder stand behind its words, which no probability knows of."
        if rows
        else ""
    )
    card.text += (
        f"\n## This copy\n\nConverted from `{origin}` ({model.num_parameters():,} parameters) with `triptych convert`; every value is "
        f"the original's.{added} Where the original states a licence of its own, that one holds.\n"
    )
    card.save(folder / "README.md")


def export_open_clip(layout: str, model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The way back: a model's parameters under open_clip's names, bit for bit.

    Args:
        layout (`str`): "open-clip-coca" or "open-mammut".
        model (`PreTrainedModel`): With that layout.
    """
    state = model.state_dict()
    return exported(state, LAYOUTS[layout].origins(state))


__all__ = [
    "LAYOUTS", "Layout", "check", "convert", "differences", "empty_model", "export_open_clip", "find_config",
    "make_processor", "nearest_preset", "open_checkpoint",
]  # fmt: skip
