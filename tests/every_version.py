"""The whole suite in a fresh environment per version of transformers, and checkpoints from each to each: `make test-versions`.

Environments, logs and results lie in `outputs/versions/`; finished parts are not done again. The table goes to docs/hub.md.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from packaging.requirements import Requirement

from tests.checkpoints import compare, meet_a_stranger


ROOT = Path(__file__).parents[1]
WORK = ROOT / "outputs" / "versions"
DOCUMENT = ROOT / "docs" / "hub.md"
EXTRAS = ("train", "demo", "study", "video", "detection", "sft", "quantization", "serving", "dev")
PACKAGES = ("transformers", "torch", "huggingface-hub", "peft", "accelerate", "datasets", "trl")


@dataclass
class Row:
    """One environment.

    Args:
        name: Of its folder.
        python: The interpreter's command.
        pins: Requirements beside those of the package.
        others: What the remaining packages are: "lowest" (the lower bounds of pyproject.toml), "constraints" or "newest".
        without: Extras of the package that cannot be installed beside the pins.
    """

    name: str
    python: str
    pins: tuple[str, ...]
    others: str
    without: tuple[str, ...] = ()

    @property
    def extras(self) -> list[str]:
        return [name for name in EXTRAS if name not in self.without]

    @property
    def folder(self) -> Path:
        return WORK / self.name

    @property
    def interpreter(self) -> Path:
        return self.folder / "environment" / "bin" / "python"


# `===`: the index's own torch, beside which its torchvision loads.
ROWS = (
    # torchao 0.18 needs a newer torch
    Row("5.16.1", "python3.11", ("torch===2.8.0", "torchvision===0.23.0"), "lowest", without=("quantization",)),
    Row("5.19.0", "python3.11", ("transformers==5.19.0", "torch===2.11.0", "torchvision===0.26.0"), "constraints"),
    Row("5.21.1", "python3.12", ("transformers==5.21.1",), "constraints"),
    Row("5.23.0", "python3.11", ("transformers==5.23.0",), "constraints"),
    Row("newest", "python3.13", (), "newest"),
)


def lower_bounds(extras: list[str]) -> list[str]:
    """Every direct dependency at the version from which pyproject.toml admits it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = project["optional-dependencies"]
    asked = [*project["dependencies"], *(line for name in extras for line in groups[name])]
    bounds = {}
    for requirement in map(Requirement, asked):
        lowest = [part.version for part in requirement.specifier if part.operator == ">="]
        bounds[requirement.name] = f"{requirement.name}=={lowest[0]}"
    return list(bounds.values())


def constraints(row: Row) -> list[str]:
    """What pip may choose from, for packages that the row does not pin itself."""
    pinned = {Requirement(pin.replace("===", "==")).name for pin in row.pins}
    lines = {"newest": [], "lowest": lower_bounds(row.extras)}.get(row.others)
    if lines is None:
        text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [*row.pins, *(line for line in lines if Requirement(line).name not in pinned)]


def find_python(command: str) -> str:
    """An interpreter that runs: on the path, or one that pyenv has without having chosen it.

    Raises:
        FileNotFoundError: If there is none.
    """
    found = [shutil.which(command), *sorted(Path("~/.pyenv/versions").expanduser().glob(f"*/bin/{command}"))]
    for candidate in filter(None, found):
        if subprocess.run([candidate, "-c", ""], capture_output=True, check=False).returncode == 0:
            return str(candidate)
    raise FileNotFoundError(f"There is no {command} here; install it, or leave its row out with --only.")


def install(row: Row) -> None:
    """A fresh environment, unless it is there."""
    done = row.folder / "installed"
    if done.exists():
        return
    row.folder.mkdir(parents=True, exist_ok=True)
    file = row.folder / "constraints.txt"
    file.write_text("\n".join(constraints(row)) + "\n", encoding="utf-8")
    subprocess.run([find_python(row.python), "-m", "venv", "--clear", str(row.interpreter.parents[1])], check=True)
    command = [str(row.interpreter), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", str(file)]
    subprocess.run([*command, "-e", f"{ROOT}[{','.join(row.extras)}]"], check=True)
    done.touch()


def versions(row: Row) -> dict[str, str]:
    code = (
        "import json, platform, importlib.metadata as m; "
        f"print(json.dumps({{'python': platform.python_version(), **{{n: m.version(n) for n in {PACKAGES}}}}}))"
    )
    return json.loads(subprocess.run([row.interpreter, "-c", code], check=True, capture_output=True, text=True).stdout)


def run_suite(row: Row) -> dict[str, int]:
    """Counts of the whole suite; its output goes to a log."""
    with (row.folder / "suite.log").open("w", encoding="utf-8") as log:
        command = [row.interpreter, "-m", "pytest", "-q", "-n", "auto", "--dist", "worksteal"]
        subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=False)
    text = (row.folder / "suite.log").read_text(encoding="utf-8")
    summary = re.findall(r"^(?:=+ )?(\d+ (?:passed|failed|error).*) in [\d.]+s", text, re.MULTILINE)
    if not summary:
        raise RuntimeError(f"The suite of {row.name} came to no end; see {row.folder / 'suite.log'}.")
    counts = {kind.rstrip("s"): int(number) for number, kind in re.findall(r"(\d+) (\w+)", summary[-1])}
    return {kind: counts.get(kind, 0) for kind in ("passed", "failed", "error", "skipped")}


def save(row: Row) -> None:
    """The row's own checkpoints, and what it gets out of them."""
    if (row.folder / "own.pt").exists():
        return
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [str(row.interpreter), "-m", "tests.checkpoints", str(row.folder / "checkpoints")]
    subprocess.run(command, check=True, cwd=ROOT, env=environment)
    own = meet_a_stranger(row.interpreter, row.folder / "checkpoints", row.folder / "own")
    torch.save(own, row.folder / "own.pt")


def load_all(row: Row, savers: list[Row]) -> list[str]:
    """What goes wrong with the checkpoints that other versions saved; nothing, it is hoped."""
    wrong = []
    for saver in savers:
        try:
            found = meet_a_stranger(row.interpreter, saver.folder / "checkpoints", row.folder / f"from {saver.name}")
            compare(found, torch.load(saver.folder / "own.pt", weights_only=False))
        except AssertionError as error:
            wrong.append(f"{saver.name}: {error}")
    return wrong


def table(results: list[dict]) -> str:
    lines = [
        "| transformers | Python | torch | other packages | tests passed | failed | skipped | checkpoints of all these versions |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for result in results:
        found, counts, wrong = result["versions"], result["counts"], result["wrong"]
        others = {"lowest": "the lower bounds", "constraints": "`constraints.txt`", "newest": "the newest"}
        agree = "load, and agree" if not wrong else "; ".join(text.splitlines()[0] for text in wrong)
        lines.append(
            f"| {found['transformers']} | {found['python']} | {found['torch'].partition('+')[0]} | "
            f"{others[result['row']['others']]} | {counts['passed']} | {counts['failed'] + counts['error']} | "
            f"{counts['skipped']} | {agree} |"
        )
    return "\n".join(lines)


def write_table(text: str) -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    pattern = r"(<!-- versions: begin -->\n).*?(<!-- versions: end -->)"
    changed, count = re.subn(pattern, lambda match: f"{match[1]}{text}\n{match[2]}", document, flags=re.DOTALL)
    assert count == 1, f"{DOCUMENT} has no place for the table"
    DOCUMENT.write_text(changed, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=[row.name for row in ROWS], help="do these rows")
    parser.add_argument("--again", action="store_true", help="run suites and comparisons again")
    arguments = parser.parse_args()
    chosen = [row for row in ROWS if arguments.only is None or row.name in arguments.only]
    for row in chosen:
        print(f"installing {row.name}", flush=True)
        install(row)
        save(row)
    savers = [row for row in ROWS if (row.folder / "own.pt").exists()]
    for row in chosen:
        file = row.folder / "result.json"
        if file.exists() and not arguments.again:
            continue
        print(f"testing {row.name}", flush=True)
        wrong = load_all(row, savers)
        result = {"row": asdict(row), "versions": versions(row), "wrong": wrong, "counts": run_suite(row)}
        file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(json.dumps(result), flush=True)
    files = [row.folder / "result.json" for row in ROWS]
    results = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]
    print(table(results))
    if len(results) == len(ROWS):
        write_table(table(results))
    if any(result["wrong"] or result["counts"]["failed"] or result["counts"]["error"] for result in results):
        sys.exit("Not every version passes; the logs are in outputs/versions/.")


if __name__ == "__main__":
    main()
