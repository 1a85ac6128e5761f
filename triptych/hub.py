"""A finished Hub repository: weights, code, processor, generation config, model card. Written whole or not at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import torch
import transformers
from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedModel, ProcessorMixin
from transformers.models.auto import modeling_auto


def auto_classes_of(config_class: type) -> dict[str, type[PreTrainedModel]]:
    """The Auto classes under which models of this configuration are registered, and the model class of each."""
    found = {}
    for name in modeling_auto.__dict__:
        mapping = getattr(getattr(transformers, name, None), "_model_mapping", None)
        if name.startswith("AutoModel") and mapping is not None and config_class in mapping:
            found[name] = mapping[config_class]
    return found


@contextmanager
def _exported_code(model: PreTrainedModel, processor: ProcessorMixin | None) -> Iterator[None]:
    """While active, `save_pretrained` copies the source files and writes a complete `auto_map`.

    transformers remembers one Auto class per model class, copies code at every later save, and leaves an `auto_map` on
    config and processor; all of that is undone.
    """
    config_class = type(model.config)
    auto_classes = auto_classes_of(config_class)
    own_name = next((name for name, cls in auto_classes.items() if cls is type(model)), None)
    if own_name is None:
        raise ValueError(
            f"`model` is a {type(model).__module__}.{type(model).__name__}, which is registered with no Auto class. Load "
            "it with triptych imported (not through the code of a repository), and merge adapters first."
        )
    previous_auto_map = getattr(model.config, "auto_map", None)
    model.config.auto_map = {
        name: f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}" for name, cls in auto_classes.items()
    }
    exported: list[Any] = [config_class, type(model)] + ([type(processor)] if processor is not None else [])
    config_class.register_for_auto_class()
    type(model).register_for_auto_class(own_name)
    if processor is not None:
        type(processor).register_for_auto_class()
    try:
        yield
    finally:
        for cls in exported:
            cls._auto_class = None
        if processor is not None:
            for part in (processor, *(getattr(processor, name) for name in processor.get_attributes())):
                part.__dict__.pop("auto_map", None)
        if previous_auto_map is None:
            del model.config.auto_map
        else:
            model.config.auto_map = previous_auto_map


def write_model_card(folder: Path, **fields: Any) -> None:
    """Fill the card template (`model_cards/template.md`) and write it as the folder's README.

    Args:
        folder: Of the repository.
        fields: What the template asks for: `name`, `license`, `dataset_name`, `metrics`, and so on; see the template.
    """
    metadata = ModelCardData(
        license=fields.get("license"),
        library_name="transformers",
        pipeline_tag=fields.get("pipeline_tag", "image-to-text"),
        tags=["triptych", *fields.get("tags", ("image-captioning", "image-text-retrieval"))],
        language=fields.get("language"),
        datasets=fields.get("dataset_ids"),
    )
    template = files("triptych.model_cards").joinpath("template.md").read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    content = environment.from_string(template).render(card_data=metadata.to_yaml(), **fields)
    ModelCard(content).save(folder / "README.md")


def save_repository(
    folder: str | os.PathLike,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    card: dict[str, Any],
    extra_files: dict[str, Any] | None = None,
) -> Path:
    """Write a complete Hub repository that loads on a machine without triptych (`trust_remote_code=True`).

    Everything is written to a temporary folder beside the target first. `config.json`, without which nothing loads,
    arrives last; other files of an existing target folder are kept.

    Args:
        folder (`str` or `PathLike`): Target.
        model (`PreTrainedModel`): With a generation config if it generates.
        processor (`ProcessorMixin`): Of the model.
        card (`dict`): Fields of the model card; see [`write_model_card`].
        extra_files (`dict`, *optional*): File name to content: text as it is, anything else as JSON.

    Returns:
        `Path`: The folder.

    Raises:
        ValueError: If `folder` is an existing file.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`folder` must be a folder to write to, but {folder} is a file.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with _exported_code(model, processor):
            model.save_pretrained(staging)
            processor.save_pretrained(staging)
        for name, content in (extra_files or {}).items():
            text = content if isinstance(content, str) else json.dumps(content, indent=2) + "\n"
            (staging / name).write_text(text, encoding="utf-8")
        write_model_card(staging, **card)

        folder.mkdir(exist_ok=True)
        (folder / "config.json").unlink(missing_ok=True)
        for path in sorted(staging.iterdir(), key=lambda path: path.name == "config.json"):
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def describe_machine() -> str:
    """One line on what a number was measured with, for model cards."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"
    return f"{device}, torch {torch.__version__}, transformers {transformers.__version__}"


__all__ = ["auto_classes_of", "describe_machine", "save_repository", "write_model_card"]
