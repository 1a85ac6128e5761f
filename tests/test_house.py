"""The layout's promises: what travels to the Hub may import only its own folder, and every script has help."""

import ast
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
SCRIPTS = [
    path
    for folder in ("examples", "benchmarks")
    for path in sorted((ROOT / folder).glob("*.py"))
    if "__main__" in path.read_text(encoding="utf-8")
]
TRAVELLING = sorted(path for folder in ("modeling", "processing") for path in (ROOT / folder).glob("*.py"))
# What transformers itself needs; anything else must be optional, in a `try`.
ALLOWED = {"torch", "transformers", "huggingface_hub", "PIL", "numpy"} | sys.stdlib_module_names


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
    names = [path.name for path in TRAVELLING if path.name != "__init__.py"]
    assert len(names) == len(set(names))
    for folder in ("modeling", "processing"):
        assert not [path for path in (ROOT / folder).iterdir() if path.is_dir() and path.name != "__pycache__"]


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


def test_configuration_files_keep_their_field_checks():
    # Postponed annotations would silently switch all field validation off.
    for path in TRAVELLING:
        if path.name.startswith("configuration_"):
            assert "from __future__" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_every_script_explains_itself(path):
    result = subprocess.run(
        [sys.executable, str(path), "--help"], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "--" in result.stdout


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
    expected |= {str(path.relative_to(ROOT)) for path in (ROOT / "triptych").rglob("*.py")}
    assert expected | {"triptych/model_cards/template.md", "triptych/py.typed"} <= held
    assert not [name for name in held if not name.startswith(("triptych/", "triptych-"))]
