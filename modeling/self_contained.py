"""Checkpoints that carry their code: `save_pretrained` writes the source files and names them in `config.json`.

Loaded with `trust_remote_code=True`, such a checkpoint needs no installed package but transformers.
"""

import importlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers
from transformers.configuration_utils import PreTrainedConfig
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.modeling_utils import PreTrainedModel
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


def _travelling_files(model) -> list[Path]:
    """The files that a checkpoint carries: that of the model's code, and all it imports."""
    file = importlib.import_module(model._code_module).__file__
    return [Path(name) for name in (file, *get_relative_import_files(file))]


def _custom_pipelines(model) -> dict[str, dict]:
    """Pipelines of a checkpoint that transformers does not have, or not in the right form."""
    # Not at the top: importing transformers' pipelines takes as long as importing torch.
    from .image_pipelines import DROPPED_TASKS, SigmoidZeroShotImageClassificationPipeline

    found: dict[str, tuple[type, str]] = {}
    if model.can_generate():
        found = {task: (cls, "AutoModelForImageTextToText") for task, cls in DROPPED_TASKS.items()}
    if getattr(model.config, "contrastive_loss_type", None) == "focal":
        sigmoid = (SigmoidZeroShotImageClassificationPipeline, "AutoModelForZeroShotImageClassification")
        found["zero-shot-image-classification"] = sigmoid
    return {task: {"impl": _reference(cls), "pt": [auto], "type": "multimodal"} for task, (cls, auto) in found.items()}


def _auto_map(model) -> dict[str, str] | None:
    """Where the code of each Auto class stands in the checkpoint; None for a class that nobody could load.

    Args:
        model: Of this package, or loaded through the code of a repository, whose own table is then extended.
    """
    config, config_class, model_class = model.config, type(model.config), type(model)
    # "someone/repository--module.Class" would need that repository for ever
    auto_map = {key: value.rpartition("--")[2] for key, value in (getattr(config, "auto_map", None) or {}).items()}
    auto_map |= {name: _reference(cls) for name, cls in auto_classes_of(config_class).items()}
    auto_map["AutoConfig"] = _reference(config_class)
    if model._code_module != model_class.__module__:  # that module has all classes, and brings more along than they do
        entry = model._code_module.rpartition(".")[2]
        auto_map = {name: f"{entry}.{reference.rpartition('.')[2]}" for name, reference in auto_map.items()}
    # A detector needs more files than the model within it, which names only classes that come along
    modules = {path.stem for path in _travelling_files(model)}
    auto_map = {name: reference for name, reference in auto_map.items() if reference.partition(".")[0] in modules}
    # A tower of a model that was loaded through a repository's code
    if len(auto_map) == 1 and model_class.__module__.startswith("transformers_modules."):
        auto_map["AutoModel"] = _reference(model_class)
    # A class of the user's own, or a part that no Auto class loads, has no code to name.
    names = {reference.rpartition(".")[2] for reference in auto_map.values()}
    return auto_map if model_class.__name__ in names else None


@contextmanager
def _declared_code(model, auto_map: dict[str, str] | None) -> Iterator[None]:
    """While active, the configuration says where the code is, and transformers leaves copying it to us."""
    config, classes = model.config, (type(model.config), type(model))
    fields = {"auto_map": auto_map, "custom_pipelines": (_custom_pipelines(model) or None) if auto_map else None}
    before = {name: getattr(config, name, None) for name in fields}
    auto_names = [(cls, cls._auto_class) for cls in classes]
    try:
        for cls in classes:
            cls._auto_class = None
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


class SelfContainedModel(PreTrainedModel):
    """A model whose every checkpoint carries its code, and which may use any attention of transformers."""

    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    # Contrastive losses of a batch and means over patches cannot be divided by a token count of several batches.
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def post_init(self):
        """As transformers' own; of the layers that stay in one piece, those are named that are there.

        Accelerate shares weights out by these names (FSDP) and refuses one that it does not find. A tower names what its whole family has.
        """
        super().post_init()
        self._no_split_modules &= {type(module).__name__ for module in self.modules()}

    def smart_apply(self, initialize, is_custom_code: bool):
        """What transformers initialises weights with that a checkpoint lacks.

        For code outside of it, it skips modules that own no tensor, in case this code writes over loaded ones. Ours does not,
        and CLIP and SigLIP towers initialise their layers from such modules.
        """
        return torch.nn.Module.smart_apply(self, initialize, False)

    @property
    def _code_module(self) -> str:
        """Name of the module from which the code of a checkpoint starts."""
        return type(self).__module__

    def save_pretrained(self, save_directory, is_main_process: bool = True, **kwargs):
        """As transformers' own, with the source files and a complete `auto_map`."""
        auto_map = _auto_map(self)
        if auto_map is not None and is_main_process and not os.path.isfile(save_directory):
            os.makedirs(save_directory, exist_ok=True)
            for path in _travelling_files(self):
                shutil.copy(path, save_directory)
        with _declared_code(self, auto_map):
            return super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)


__all__ = ["SelfContainedModel", "auto_classes_of"]
