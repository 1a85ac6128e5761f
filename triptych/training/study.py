"""Studies: trainings of several variants with several seeds, each a folder, of which finished ones are not repeated.

A study compares variants that differ in one thing. So all variants of a seed see the same rows in the same order, which the
orders and crops of `data/` guarantee, and what differs stands in the arguments of a run.
"""

import json
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from triptych.data.picture_sets import load_picture_set


RESULTS = "eval_results.json"
_RUN = "study_run.json"
_MEASURED = (_RUN, RESULTS, "eval_samples.json", "training_log.jsonl")


@dataclass(frozen=True)
class Run:
    """One training of a study.

    Args:
        part (`str`): Of the study, e.g. "pretraining".
        variant (`str`): What is compared.
        seed (`int`): Of weights, order and augmentation.
        arguments (`dict`): Of the training, by name; its folder and the seed come from here. `{study}` in one stands for the folder of
            the study, so that a run can start from what another one left.
    """

    part: str
    variant: str
    seed: int
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its folder within the study's."""
        variant = self.variant.replace(",", "").replace(" ", "-")
        return f"{self.part}/{variant}/seed-{self.seed}"


class Study:
    """Runs, their folders and what they found.

    Args:
        folder (`Path`): Of the study; every run has its own below it.
        train (`Callable`): Trains a run into a folder, which then holds `eval_results.json`, or goes on with an interrupted one: from
            a run, its folder, and an event that tells it to stop. [`script_trainer`] makes one of a script.
        num_parallel (`int`): Runs at a time. One at a time is trained in the thread that asks for it.
    """

    def __init__(self, folder: Path, train: Callable[[Run, Path, threading.Event], None], num_parallel: int = 1):
        self.folder, self.train, self.num_parallel = folder, train, num_parallel

    def folder_of(self, run: Run) -> Path:
        return self.folder / run.name

    def is_finished(self, run: Run) -> bool:
        """Whether the run has its results.

        Raises:
            ValueError: If its folder holds a run with other arguments.
        """
        path = self.folder_of(run) / _RUN
        if path.exists():
            known = json.loads(path.read_text(encoding="utf-8"))["arguments"]
            now = json.loads(json.dumps(run.arguments))
            differing = sorted(key for key in {*known, *now} if known.get(key) != now.get(key))
            if differing:
                changes = ", ".join(f"{key} was {known.get(key)!r} and is {now.get(key)!r} now" for key in differing)
                raise ValueError(
                    f"{path.parent} holds a run with other arguments: {changes}. Give them as they were, choose another folder for "
                    "the study, or delete this one."
                )
        return (self.folder_of(run) / RESULTS).exists()

    def finish(self, runs: Iterable[Run], description: str = "study") -> None:
        """Train what is not finished yet, several at a time. Those beside one that fails are stopped; they can go on later.

        Raises:
            RuntimeError: If a run fails.
        """
        runs = list(runs)
        open_runs = [run for run in runs if not self.is_finished(run)]
        stopping = threading.Event()

        def train(run: Run) -> None:
            if stopping.is_set():
                return
            folder = self.folder_of(run)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / _RUN).write_text(json.dumps(asdict(run), indent=2) + "\n", encoding="utf-8")
            placed = {
                name: value.replace("{study}", str(self.folder)) if isinstance(value, str) else value
                for name, value in run.arguments.items()
            }
            try:
                self.train(replace(run, arguments=placed), folder, stopping)
            except BaseException:
                stopping.set()
                raise
            progress.update()

        with (
            tqdm(total=len(runs), initial=len(runs) - len(open_runs), desc=description, unit="run") as progress,
            ThreadPoolExecutor(self.num_parallel) as pool,
        ):
            try:
                list(map(train, open_runs) if self.num_parallel == 1 else pool.map(train, open_runs))
            finally:
                stopping.set()  # the pool waits for its threads, also when the study itself was told to stop

    def pack(self, archive: Path) -> None:
        """Pack what all finished runs left but their models: unpacked into the folder of another study, they are finished there.

        Args:
            archive (`Path`): A file that ends in `.tar.xz`.
        """
        files = [*sorted(self.folder.glob("groups/*.json")), *sorted(self.folder.glob("tokenizer/*"))]
        for path in sorted(self.folder.rglob(RESULTS)):
            files += [path.with_name(name) for name in _MEASURED if path.with_name(name).exists()]
        with tarfile.open(archive, "w:xz") as tar:
            for file in files:
                tar.add(file, file.relative_to(self.folder))

    def groups(self, dataset: str, split: str) -> list[str]:
        """Groups of the pairs of a split, for statistics; kept with the study, so that they need no data set."""
        path = self.folder / "groups" / f"{dataset}-{split}.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(list(load_picture_set(dataset)[split]["group"])), encoding="utf-8")
        return json.loads(path.read_text(encoding="utf-8"))

    def results(self, run: Run) -> dict[str, float]:
        """What the run measured at its end."""
        return json.loads((self.folder_of(run) / RESULTS).read_text(encoding="utf-8"))

    def samples(self, run: Run) -> dict[str, list[float]]:
        """What it measured of every held-out pair, if it was asked to log that."""
        return json.loads((self.folder_of(run) / "eval_samples.json").read_text(encoding="utf-8"))

    def log(self, run: Run) -> list[dict[str, float]]:
        """Its training log."""
        lines = (self.folder_of(run) / "training_log.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]


def script_trainer(
    script: Path, num_threads: int, common: dict[str, Any] | None = None
) -> Callable[[Run, Path, threading.Event], None]:
    """Trains a run with a script, in a process of its own, whose output goes to `log.txt` in the run's folder.

    Args:
        script (`Path`): Takes `--output_dir`, `--seed`, `--resume` and the arguments of runs.
        num_threads (`int`): Threads of a process, so that runs at a time share the cores.
        common (`dict`, *optional*): Arguments of all runs that change no result, such as the number of workers.

    Raises:
        RuntimeError: If the script fails, with its last lines.
    """

    def train(run: Run, folder: Path, stopping: threading.Event) -> None:
        arguments = {**(common or {}), **run.arguments, "seed": run.seed, "output_dir": folder}
        arguments["resume"] = any(folder.glob("checkpoints/step-*"))
        command = [sys.executable, str(script), *command_line(arguments)]
        with (folder / "log.txt").open("a", encoding="utf-8") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": str(num_threads)}
            )
            try:
                while process.poll() is None and not stopping.wait(0.5):
                    pass
            finally:
                if process.poll() is None:
                    process.terminate()  # the engine saves a checkpoint
                    process.wait()
        if code := process.returncode:
            last = (
                (folder / "log.txt")
                .read_text(encoding="utf-8", errors="replace")
                .replace("\r", "\n")
                .splitlines()[-5:]
            )
            raise RuntimeError(
                f"{run.name} ended with code {code}; {folder / 'log.txt'} ends with:\n" + "\n".join(last)
            )

    return train


def command_line(arguments: dict[str, Any]) -> list[str]:
    """Arguments by name as a script reads them: true ones are flags, false and absent ones are left out, dictionaries are JSON."""
    words: list[str] = []
    for name, value in arguments.items():
        if value is True:
            words.append(f"--{name}")
        elif value is not None and value is not False:
            words += [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return words


__all__ = ["RESULTS", "Run", "Study", "command_line", "script_trainer"]
