"""The layout's promises: what travels to the Hub may import only its own folder, and every script has help."""

import ast
import importlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from difflib import SequenceMatcher
from pathlib import Path

import pytest
from torch.utils.flop_counter import FlopCounterMode

import triptych
from tests.conftest import PAIRS


ROOT = Path(__file__).parents[1]
SCRIPTS = [
    path
    for folder in ("examples", "benchmarks")
    for path in sorted((ROOT / folder).glob("*.py"))
    if "__main__" in path.read_text(encoding="utf-8")
]
TRAVELLING = sorted(path for folder in ("modeling", "processing") for path in (ROOT / folder).glob("[!_]*.py"))
# What transformers itself needs; anything else must be optional, in a `try`.
ALLOWED = {"torch", "transformers", "huggingface_hub", "PIL", "numpy", "yaml"} | sys.stdlib_module_names


@pytest.mark.parametrize("path", TRAVELLING, ids=lambda path: path.name)
def test_travelling_files_import_siblings_transformers_and_torch_only(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    optional = {id(node) for attempt in ast.walk(tree) if isinstance(attempt, ast.Try) for node in attempt.body}
    for node in ast.walk(tree):
        if id(node) in optional:
            continue
        if isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= ALLOWED
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module.split(".")[0] in ALLOWED
        elif isinstance(node, ast.ImportFrom):
            # transformers copies the target of `from .name import`, nothing else.
            assert node.level == 1
            assert node.module
            assert (path.parent / f"{node.module}.py").exists()


def test_travelling_file_names_are_unique_and_flat():
    names = [path.name for path in TRAVELLING]
    assert len(names) == len(set(names))
    for folder in ("modeling", "processing"):
        assert not [path for path in (ROOT / folder).rglob("*.py") if path.parent.name != folder]


def test_models_do_not_import_one_another():
    for path in TRAVELLING:
        if path.name.startswith("modeling_"):
            source = path.read_text(encoding="utf-8")
            # A detector is built on the model of its family
            family = next(
                name for name in ("grr_coca", "mammut", "vw_lmm") if path.stem.startswith(f"modeling_{name}")
            )
            modules = {
                node.module for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom) and node.level
            }
            assert {module for module in modules if module.startswith("modeling_")} <= {f"modeling_{family}"}
            assert {module for module in modules if module.startswith("configuration_")} == {f"configuration_{family}"}


def test_the_script_for_gpus_runs_without_one(tmp_path):
    """All but what compiles, which takes minutes. In a process of its own: it chooses a precision for all of Accelerate."""
    output = tmp_path / "checked.json"
    parts = ["decoding", "gradient_cache", "sharding", "vocabulary_losses"]
    script = [sys.executable, str(ROOT / "benchmarks" / "gpu_check.py"), "--output", str(output), "--rehearse"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*script, "--parts", *parts], check=True, capture_output=True, env=environment)
    results = json.loads(output.read_text())["results"]
    assert list(results) == ["machine", *parts]
    assert not [found["error"] for found in results.values() if "error" in found]
    assert all(results.values())


@pytest.mark.parametrize("preset", ["grr-coca-tiny", "mammut-tiny"])
def test_the_costs_of_a_step_are_those_that_torch_counts(preset, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    scaling, models = (importlib.import_module(name) for name in ("scaling", "random_models"))
    cost = scaling.cost_of(preset, 16)
    model = models.captioner(preset).train()
    operations = []
    for count in (2, 4):
        with FlopCounterMode(display=False) as counter:
            model(**models.pairs(model, count, 16)).loss.backward()
        operations.append(counter.get_total_flops())
    assert cost.flops == pytest.approx((operations[1] - operations[0]) / 2, rel=0.05)
    assert cost.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert cost.checkpointed < cost.activations / 3
    assert scaling.memory(cost, "none", 1, 8) == (16 + 2) * cost.parameters  # and bf16's copies
    assert scaling.memory(cost, "none", 8, 8) == (16 + 2 + 4) * cost.parameters  # and DDP's buckets
    assert scaling.memory(cost, "full", 8, 8) == pytest.approx(2 * cost.parameters + 4 * cost.largest_block)
    assert scaling.memory(cost, "hybrid", 64, 8) == scaling.memory(cost, "full", 8, 8)
    one, many = (scaling.communication(cost, "none", gpus, 8, 4) for gpus in (1, 64))
    assert one == {"within": 0.0, "between": 0.0}
    assert many["between"] > 7 * cost.trained  # twice four bytes of nearly all


# What a room of triptych may import of it; scripts may import all.
ROOMS = {
    "data": {"data", "processing", "arguments"},
    "evaluation": {"evaluation", "data", "processing", "modeling", "detection"},
    "training": {
        "training",
        "tasks",
        "evaluation",
        "data",
        "processing",
        "modeling",
        "hub",
        "arguments",
        "hardware",
        "files",
    },
    "tasks": {"tasks", "evaluation", "data", "detection", "files"},
    "harnesses": {"harnesses", "tasks", "evaluation", "processing", "hardware"},
    "convert": {"convert", "processing", "modeling", "hub"},
}


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_what_the_arrows_say(room):
    for path in (ROOT / "triptych" / room).glob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        found = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
        inside = {module.split(".")[1] for module in found if module.startswith("triptych.")}
        inside |= {
            alias.name
            for node in nodes
            if isinstance(node, ast.ImportFrom) and node.module == "triptych"
            for alias in node.names
            if alias.name in ROOMS
        }
        assert inside <= ROOMS[room], path.name


def test_nothing_travels_that_another_file_leaves_behind():
    """Files of the models and processors are reached from one of them: none is an orphan."""
    reached, sources = set(), {path.stem: path.read_text(encoding="utf-8") for path in TRAVELLING}
    todo = [
        name for name in sources if name.startswith(("configuration_", "modeling_", "processing_", "vw_lmm_with_"))
    ]
    todo.append("image_pipelines")
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            nodes = ast.walk(ast.parse(sources[name]))
            todo += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level]
    assert set(sources) == reached


def test_every_field_of_a_configuration_is_read():
    """A field that nothing reads is accepted and ignored."""
    from triptych.modeling import (
        configuration_base,
        configuration_grr_coca,
        configuration_mammut,
        configuration_vw_lmm,
    )

    files = [*TRAVELLING, *(ROOT / "triptych" / "convert").glob("*.py")]
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    read = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    for module in (configuration_base, configuration_grr_coca, configuration_mammut, configuration_vw_lmm):
        for kind in vars(module).values():
            if isinstance(kind, type) and kind.__module__ == module.__name__ and kind.__name__.endswith("Config"):
                own = {name for name in vars(kind).get("__annotations__", {}) if not name.startswith("_")}
                assert own - read - BY_TRANSFORMERS == set(), kind.__name__


# Read by transformers: special tokens in `generate`, and what makes it use a cache and tie weights.
BY_TRANSFORMERS = {"bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "tie_word_embeddings", "is_decoder"}
BY_TRANSFORMERS |= {"model_type", "sub_configs", "base_config_key", "keys_to_ignore_at_inference", "attribute_map"}
BY_TRANSFORMERS |= {"base_model_tp_plan"}


def test_what_two_models_share_has_one_home():
    """No run of more than 15 lines, names aside, stands in both model files."""
    files = [
        [
            re.sub(r"GrrCoca|Mammut", "", line.strip())
            for line in (ROOT / "modeling" / f"modeling_{name}.py").read_text(encoding="utf-8").splitlines()
            if line.strip()
        ]
        for name in ("grr_coca", "mammut")
    ]
    longest = SequenceMatcher(None, *files, autojunk=False).find_longest_match()
    assert longest.size <= 15, files[0][longest.a : longest.a + longest.size]
    for path in TRAVELLING:
        if path.name.startswith("modeling_"):
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 700, path.name


def test_configuration_files_keep_their_field_checks():
    # Postponed annotations would silently switch all field validation off.
    for path in TRAVELLING:
        if path.name.startswith("configuration_"):
            assert "from __future__" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_every_script_explains_itself(path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(path.parent)
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(path), run_name="__main__")
    assert stop.value.code == 0
    assert "--" in capsys.readouterr().out


# Of one process: help, and an error, without any of the models; then all of them by name alone.
LAZY = """
import sys
import triptych.cli
from typer.testing import CliRunner
for arguments, code in ((["--help"], 0), (["caption", "--help"], 0), (["caption", "--nope"], 2), (["nonsense"], 2)):
    assert CliRunner().invoke(triptych.cli.app, arguments).exit_code == code
assert not {"torch", "transformers", "numpy", "PIL"} & sys.modules.keys()
from transformers import AutoConfig, AutoModel, AutoProcessor
assert "triptych.modeling" not in sys.modules
configs = [AutoConfig.for_model(name) for name in sys.argv[1:3]]
assert type(AutoProcessor.from_pretrained(sys.argv[3])) is triptych.GrrCocaProcessor
assert type(configs[0]) is triptych.GrrCocaConfig
assert AutoModel._model_mapping[type(configs[1])] is triptych.MammutModel
"""
# transformers first, and a model by its file
LATE = """
import sys
from transformers import AutoModel, AutoProcessor
import triptych
assert type(AutoProcessor.from_pretrained(sys.argv[3])) is triptych.GrrCocaProcessor
"""
BY_FILE = """
from triptych.modeling.configuration_mammut import MammutConfig
from transformers import AutoModel
assert AutoModel._model_mapping[MammutConfig].__name__ == "MammutModel"
"""


@pytest.mark.parametrize("code", [LAZY, LATE, BY_FILE], ids=["lazy", "late", "by file"])
def test_classes_arrive_when_they_are_touched(code, tmp_path):
    PAIRS["grr_coca"]()[1].save_pretrained(tmp_path)
    subprocess.run([sys.executable, "-c", code, "grr_coca", "mammut", tmp_path], check=True, timeout=120)


def test_all_that_the_package_names_is_there():
    assert triptych.__all__ == sorted(triptych.__all__)
    assert {getattr(triptych, name).__name__ for name in triptych.__all__} == {*triptych.__all__}


def test_the_wheel_holds_every_room(tmp_path):
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(".*", "outputs", "build", "*.egg-info", "__pycache__", "tests", "docs")
    shutil.copytree(ROOT, source, ignore=ignored)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        ".",
    ]
    subprocess.run(command, cwd=source, check=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    expected = {f"triptych/{path.parent.name}/{path.name}" for path in TRAVELLING}
    resources = {".py", ".yaml", ".jinja", ".typed"}
    expected |= {str(path.relative_to(ROOT)) for path in (ROOT / "triptych").rglob("*") if path.suffix in resources}
    assert expected | {"triptych/model_cards/template.md", "triptych/__init__.pyi"} <= held
    assert not [name for name in held if not name.startswith(("triptych/", "triptych-"))]
