"""transformers' own common tests, out of the source distribution of the installed version; `python -m tests.common` fetches it.

They are imported as the package `transformers_tests`, because `tests` is ours. The distribution holds the files on the top of their
tests and no folder below, so what these import from there is replaced here: generation and export tests do not come along.
"""

import importlib
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
import transformers
from PIL import Image

from tests.conftest import write_clip
from tests.processes import run_in_processes


SOURCE = Path(sys.prefix) / "transformers-source" / f"transformers-{version('transformers')}"
_TESTS = "transformers_tests"
_FOLDER = tempfile.TemporaryDirectory(prefix="triptych-common-")  # pictures and clips, as long as this process lives


class GenerationTesterMixin:
    """Stands where transformers' tests of `generate` would."""


class ExportTesterMixin:
    """Stands where transformers' tests of `torch.export` would."""


def url_to_local_path(url: str) -> str:
    """A file of our own instead of one of the Hub's: a picture or a clip by the ending, nothing for a sound."""
    path = Path(_FOLDER.name) / url.rpartition("/")[2]
    if not path.exists() and path.suffix == ".mp4":
        write_clip(path)
    elif not path.exists() and path.suffix in (".png", ".jpg"):
        Image.new("RGB", (64, 48), "orange").save(path)
    return str(path)


def _call(rank: int, world_size: int, name: str, *arguments: Any) -> None:
    module, _, function = name.rpartition(".")
    getattr(importlib.import_module(module), function)(rank, *arguments)


def run_distributed(world_size: int) -> Callable:
    """A function of their tests in several processes, which import this module and so find it."""
    return lambda function: (
        lambda *arguments: run_in_processes(
            _call, world_size, f"{function.__module__}.{function.__name__}", *arguments
        )
    )


def _place(name: str, **contents: Any) -> None:
    sys.modules[name] = module = ModuleType(name)
    vars(module).update(contents)


def _prepare() -> None:
    if not SOURCE.exists():
        raise ImportError(f"{SOURCE} is missing: run `make test-common`, which fetches it.")
    _place(_TESTS, __path__=[str(SOURCE / "tests")])
    for folder in ("exporters", "generation", "utils"):
        _place(f"{_TESTS}.{folder}", __path__=[])
    _place(f"{_TESTS}.generation.test_utils", GenerationTesterMixin=GenerationTesterMixin)
    _place(f"{_TESTS}.exporters.test_export", ExportTesterMixin=ExportTesterMixin)
    fields = {
        "dtype": "float16",
        "output_hidden_states": True,
        "chunk_size_feed_forward": 5,
        "problem_type": "regression",
    }
    _place(f"{_TESTS}.utils.test_configuration_utils", config_common_kwargs=fields)
    _place(f"{_TESTS}.distributed_testing_utils", run_distributed=run_distributed)
    _place("fetch_hub_objects_for_ci", url_to_local_path=url_to_local_path)


_prepare()
# What is tested is the installed transformers, not the one of the source distribution.
with patch("transformers.utils.direct_transformers_import", lambda *args, **kwargs: transformers):
    ConfigTester = importlib.import_module(f"{_TESTS}.test_configuration_common").ConfigTester
modeling = importlib.import_module(f"{_TESTS}.test_modeling_common")
ModelTesterMixin = modeling.ModelTesterMixin
ProcessorTesterMixin = importlib.import_module(f"{_TESTS}.test_processing_common").ProcessorTesterMixin
TensorParallelTesterMixin = importlib.import_module(f"{_TESTS}.test_tensor_parallel_mixin").TensorParallelTesterMixin
TrainingTesterMixin = importlib.import_module(f"{_TESTS}.test_training_mixin").TrainingTesterMixin
torch.manual_seed(0)

__all__ = [
    "SOURCE",
    "ConfigTester",
    "GenerationTesterMixin",
    "ModelTesterMixin",
    "ProcessorTesterMixin",
    "TensorParallelTesterMixin",
    "TrainingTesterMixin",
    "modeling",
]
