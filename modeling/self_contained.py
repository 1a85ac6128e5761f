"""Checkpoints that carry their code: `save_pretrained` writes the source files and names them in `config.json`.

Loaded with `trust_remote_code=True`, such a checkpoint needs no installed package but transformers.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import transformers
from transformers.configuration_utils import PreTrainedConfig
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.models.auto import modeling_auto


def auto_classes_of(config_class: type[PreTrainedConfig]) -> dict[str, type]:
    """The Auto classes under which models of this configuration are registered, and the model class of each."""
    found = {}
    for name in modeling_auto.__dict__:
        mapping = getattr(getattr(transformers, name, None), "_model_mapping", None)
        if name.startswith("AutoModel") and mapping is not None and config_class in mapping:
            found[name] = mapping[config_class]
    return found


def _reference(cls: type) -> str:
    return f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}"


def _travelling_modules(model_class: type) -> set[str]:
    """Names of the files that `save_pretrained` copies: that of the class, and all it imports."""
    file = sys.modules[model_class.__module__].__file__
    return {Path(name).stem for name in (file, *get_relative_import_files(file))}


def _custom_pipelines(model) -> dict[str, dict]:
    """Pipelines of a checkpoint that transformers does not have, or not in the right form."""
    # Not at the top: importing transformers' pipelines takes as long as importing torch.
    from .image_pipelines import (
        ImageToTextPipeline,
        SigmoidZeroShotImageClassificationPipeline,
        VisualQuestionAnsweringPipeline,
    )

    pipelines = {}
    if model.can_generate():
        for task, cls in (
            ("image-to-text", ImageToTextPipeline),
            ("visual-question-answering", VisualQuestionAnsweringPipeline),
        ):
            pipelines[task] = {"impl": _reference(cls), "pt": ["AutoModelForImageTextToText"], "type": "multimodal"}
    if getattr(model.config, "contrastive_loss_type", None) == "focal":
        pipelines["zero-shot-image-classification"] = {
            "impl": _reference(SigmoidZeroShotImageClassificationPipeline),
            "pt": ["AutoModelForZeroShotImageClassification"],
            "type": "multimodal",
        }
    return pipelines


@contextmanager
def _declared_code(model) -> Iterator[None]:
    """While active, transformers' `save_pretrained` copies the source files, and the configuration names all of them.

    transformers remembers one Auto class per model class; here the others come from its registry and, for a model loaded
    through the code of a repository, from that repository.
    """
    config, config_class, model_class = model.config, type(model.config), type(model)
    # "someone/repository--module.Class" would need that repository for ever
    auto_map = {key: value.rpartition("--")[2] for key, value in (getattr(config, "auto_map", None) or {}).items()}
    auto_map |= {name: _reference(cls) for name, cls in auto_classes_of(config_class).items()}
    # A detector needs more files than the model within it, which names only classes that come along
    modules = _travelling_modules(model_class)
    auto_map = {name: reference for name, reference in auto_map.items() if reference.partition(".")[0] in modules}
    if not auto_map and all(cls.__module__.startswith("transformers_modules.") for cls in (config_class, model_class)):
        # a tower of a model that was loaded through the code of a repository
        auto_map = {"AutoModel": _reference(model_class)}
    own_name = next((name for name, reference in auto_map.items() if reference == _reference(model_class)), None)
    # A class of the user's own, or a part that no Auto class loads, has no code to name.
    is_known = own_name is not None
    fields = {
        "auto_map": auto_map if is_known else None,
        "custom_pipelines": (_custom_pipelines(model) or None) if is_known else None,
    }
    before = {name: getattr(config, name, None) for name in fields}
    auto_names = [(cls, cls._auto_class) for cls in (config_class, model_class)]
    try:
        config_class._auto_class, model_class._auto_class = "AutoConfig" if is_known else None, own_name
        for name, value in fields.items():
            _set_or_delete(config, name, value)
        yield
    finally:
        for cls, name in auto_names:
            cls._auto_class = name
        for name, value in before.items():
            _set_or_delete(config, name, value)


def _set_or_delete(config: PreTrainedConfig, name: str, value) -> None:
    if value is not None:
        setattr(config, name, value)
    else:
        vars(config).pop(name, None)


class SelfContainedMixin:
    """For models whose every checkpoint carries its code."""

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As transformers' own, with the source files and a complete `auto_map`."""
        with _declared_code(self):
            return super().save_pretrained(save_directory, *args, **kwargs)


__all__ = ["SelfContainedMixin", "auto_classes_of"]
