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
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from filelock import FileLock
from tqdm.auto import tqdm

from triptych.files import write_whole


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
        versions (`dict`, *optional*): What results depend on beside the arguments, such as versions of data. Runs of other versions
            may be looked at, but not be gone on with.
    """

    def __init__(
        self,
        folder: Path,
        train: Callable[[Run, Path, threading.Event], None],
        num_parallel: int = 1,
        versions: dict[str, str] | None = None,
    ):
        self.folder, self.train, self.num_parallel, self.versions = folder, train, num_parallel, versions or {}
        self.is_main = PartialState().is_main_process  # of the processes that train one run together

    def folder_of(self, run: Run) -> Path:
        return self.folder / run.name

    def _known(self, run: Run) -> dict[str, Any]:
        path = self.folder_of(run) / _RUN
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def is_finished(self, run: Run) -> bool:
        """Whether the run has its results.

        Raises:
            ValueError: If its folder holds a run with other arguments.
        """
        known = self._known(run)
        if known:
            self._refuse_changed(run, "arguments", known["arguments"], json.loads(json.dumps(run.arguments)))
        return known.get("is_finished", False)

    def _refuse_changed(self, run: Run, what: str, known: dict[str, Any], now: dict[str, Any]) -> None:
        differing = sorted(key for key in {*known, *now} if known.get(key) != now.get(key))
        if differing:
            changes = ", ".join(f"{key} was {known.get(key)!r} and is {now.get(key)!r} now" for key in differing)
            raise ValueError(
                f"{self.folder_of(run)} holds a run with other {what}: {changes}. Give them as they were, choose another folder for the "
                "study, or delete this one."
            )

    def finish(self, runs: Iterable[Run], description: str = "study") -> None:
        """Train what is not finished yet, several at a time. Those beside one that fails are stopped; they can go on later.

        Raises:
            RuntimeError: If a run fails.
            ValueError: If a run's folder holds one with other arguments, or of other versions while something is left to train.
            FileNotFoundError: If a run starts from something that is not there.
            Timeout: If another process works on this study.
        """
        runs = list(runs)
        open_runs = [run for run in runs if not self.is_finished(run)]
        if open_runs:
            for run in runs:
                self._refuse_changed(run, "versions", self._known(run).get("versions", self.versions), self.versions)
        stopping = threading.Event()
        failures: list[BaseException] = []

        def train(run: Run) -> None:
            if stopping.is_set():
                return
            try:
                placed = {name: self._placed(run, value) for name, value in run.arguments.items()}
                self._mark(run, is_finished=False)
                self.train(replace(run, arguments=placed), self.folder_of(run), stopping)
                self.results(run)
            except BaseException as error:
                if not stopping.is_set():  # else it was told to stop
                    failures.append(error)
                    stopping.set()
                if not isinstance(error, Exception):
                    raise
                return
            self._mark(run, is_finished=True)
            progress.update()

        self.folder.mkdir(parents=True, exist_ok=True)
        with (
            FileLock(self.folder / ".lock", timeout=0) if open_runs and self.is_main else nullcontext(),
            tqdm(
                total=len(runs),
                initial=len(runs) - len(open_runs),
                desc=description,
                unit="run",
                disable=not self.is_main,
            ) as progress,
            ThreadPoolExecutor(self.num_parallel) as pool,
        ):
            try:
                list(map(train, open_runs) if self.num_parallel == 1 else pool.map(train, open_runs))
            finally:
                stopping.set()  # the pool waits for its threads, also when the study itself was told to stop
        if failures:
            raise failures[0]

    def _placed(self, run: Run, value: Any) -> Any:
        """An argument with the study's folder in it."""
        if not isinstance(value, str) or "{study}" not in value:
            return value
        path = value.replace("{study}", str(self.folder))
        if not Path(path).exists() or ((Path(path) / _RUN).exists() and not (Path(path) / "config.json").exists()):
            raise FileNotFoundError(
                f"{run.name} starts from {path}, where no model is. Delete that folder to train it again."
            )
        return path

    def _mark(self, run: Run, is_finished: bool) -> None:
        content = {**asdict(run), "versions": self.versions, "is_finished": is_finished}
        if self.is_main:
            write_whole(self.folder_of(run) / _RUN, json.dumps(content, indent=2) + "\n")

    def pack(self, archive: Path) -> None:
        """Pack what all finished runs left but their models: unpacked into the folder of another study, they are finished there.

        Args:
            archive (`Path`): A file that ends in `.tar.xz`.
        """
        files = [*sorted(self.folder.glob("groups/*.json")), *sorted(self.folder.glob("tokenizer/*"))]
        for path in sorted(self.folder.rglob(_RUN)):
            if not json.loads(path.read_text(encoding="utf-8"))["is_finished"]:
                continue
            files += [path.with_name(name) for name in _MEASURED if path.with_name(name).exists()]
        with tarfile.open(archive, "w:xz") as tar:
            for file in files:
                tar.add(file, file.relative_to(self.folder))

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
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": str(num_threads)},
                start_new_session=True,  # Ctrl-C is for the study, which then asks for a checkpoint
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
