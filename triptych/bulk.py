"""Captions or embeddings of whole collections: shard by shard, on all devices, and on with what is missing after a stop.

A collection is a list of jobs, each a shard or some files of a folder. A worker has the model and does one job after another; it writes
`<job>.parquet` when the job is done, so that what is there is finished. Who runs the workers is all in which two engines differ.
"""

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from itertools import islice
from logging import WARNING, getLogger
from pathlib import Path
from typing import Any, Literal

import pyarrow
import pyarrow.parquet
import torch
from PIL import Image
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

from triptych.data.pictures import CorruptImageError, decode_image
from triptych.data.shards import ShardError, Shards, open_shards, shard_files
from triptych.hardware import prepare_for_inference


logger = logging.get_logger(__name__)

_FILES_PER_JOB = 1000
_RUN_FILE = "_run.json"  # with this first letter, readers of a folder of parquet files leave it out


@dataclass(frozen=True)
class BulkTask:
    """What is made of every picture.

    Args:
        kind (`"caption"` or `"embed"`): A text, or a vector of the joint space, of length 1.
        model (`str`): Folder or Hub name of a checkpoint.
        batch_size (`int`): Pictures at once.
        options (`dict`): Of the captions: `prompt`, `max_new_tokens`, `num_beams`.
        image_column (`str`): Where the pictures of shards are.
    """

    kind: Literal["caption", "embed"]
    model: str
    batch_size: int = 32
    options: dict[str, Any] = field(default_factory=dict)
    image_column: str = "image"


@dataclass(frozen=True)
class Job:
    """A part of a collection.

    Args:
        name (`str`): Of the file that it becomes.
        files (`tuple[str, ...]`): One shard, or pictures.
        is_shard (`bool`): Which of both.
    """

    name: str
    files: tuple[str, ...]
    is_shard: bool

    @property
    def digest(self) -> bytes:
        """Of the files, by which a result is known to be theirs."""
        return hashlib.sha256("\n".join(self.files).encode()).hexdigest().encode()

    def is_done(self, output: Path) -> bool:
        """Whether there is a result of these files.

        Raises:
            ValueError: If there is one of other files.
        """
        path = output / f"{self.name}.parquet"
        if not path.exists():
            return False
        if (pyarrow.parquet.read_schema(path).metadata or {}).get(b"files") != self.digest:
            raise ValueError(f"{path} is of other files than {self.files[0]}; take another `output`.")
        return True


def jobs_of(source: str, image_files: Callable[[Path], list[Path]], output: Path) -> list[Job]:
    """The parts of a collection.

    Args:
        source (`str`): What [`shard_files`] reads, all splits of it, or a folder of pictures.
        image_files (`Callable`): Finds the pictures below a folder.
        output (`Path`): Folder of the results, which are no part of the collection.

    Raises:
        ValueError: If there is nothing to read.
    """
    folder = Path(source)
    if not folder.is_dir():
        files = [file for split in shard_files(source).values() for file in split]
        return [Job(name, (file,), True) for name, file in zip(_names_of(files), files, strict=True)]
    for ending in ("*.tar", "*.parquet"):
        files = [str(path) for path in sorted(folder.rglob(ending)) if output.resolve() not in path.resolve().parents]
        if files:
            return [Job(name, (file,), True) for name, file in zip(_names_of(files), files, strict=True)]
    found = [str(path) for path in image_files(folder)]
    parts = [found[start : start + _FILES_PER_JOB] for start in range(0, len(found), _FILES_PER_JOB)]
    if not parts:
        raise ValueError(f"{source} holds neither shards nor pictures.")
    return [Job(f"pictures-{number:05d}", tuple(part), False) for number, part in enumerate(parts)]


def _names_of(files: Sequence[str]) -> list[str]:
    """What their addresses do not share, without the ending, as names of files; numbered where that is not enough."""
    parts = [file.partition("?")[0].split("/") for file in files]
    shared = 0
    while all(len(each) > shared + 1 and each[shared] == parts[0][shared] for each in parts):
        shared += 1
    names = [str(Path("-".join(each[shared:])).with_suffix("")) for each in parts]
    return [name if names.count(name) == 1 else f"{name}-{number}" for number, name in enumerate(names)]


class Worker:
    """Does jobs with a model that it loads once.

    Args:
        task ([`BulkTask`]): What to make.
        output (`str`): Folder of the results.
        device (`str`, *optional*): Of the model. Default: the GPU if there is one.
    """

    def __init__(self, task: BulkTask, output: str, device: str | None = None):
        self.task, self.output = task, Path(output)
        auto_class = AutoModelForImageTextToText if task.kind == "caption" else AutoModel
        model: Any = auto_class.from_pretrained(task.model)
        model = model.to(device).eval() if device is not None else prepare_for_inference(model)
        self.model: Any = model
        self.processor = AutoProcessor.from_pretrained(task.model)
        if task.kind == "embed" and not hasattr(self.model, "get_text_features"):
            raise ValueError(
                f"Model {task.model!r} is a {self.model.config.model_type}; embeddings need a grr_coca or mammut."
            )
        self.pipe: Any = None
        if task.kind == "caption":
            from triptych.pipelines import pipeline

            self.pipe = pipeline("image-to-text", self.model, processor=self.processor, device=self.model.device)

    def __call__(self, job: Job) -> dict[str, int]:
        """Do a job. Returns how many pictures there were, and how many of them could not be read."""
        rows: dict[str, list[Any]] = {"key": [], self.column: []}
        num_corrupt = 0
        with ThreadPoolExecutor() as threads:  # Pillow decodes outside of Python's lock
            for keys, pictures in self._batches(job, threads):
                kept = [index for index, picture in enumerate(pictures) if picture is not None]
                num_corrupt += len(pictures) - len(kept)
                if kept:
                    rows["key"] += [keys[index] for index in kept]
                    rows[self.column] += self._results([pictures[index] for index in kept])  # type: ignore[misc]
        self._write(job, rows)
        return {"pictures": len(rows["key"]), "corrupt": num_corrupt}

    @property
    def column(self) -> str:
        return "caption" if self.task.kind == "caption" else "embedding"

    def _batches(self, job: Job, threads: ThreadPoolExecutor) -> Iterator[tuple[list[str], list[Image.Image | None]]]:
        """Batches of pictures, `None` for what cannot be read; the next one is decoded while this one is worked on."""
        waiting: list[tuple[list[str], Any]] = []
        stored = _stored(job, self.task.image_column)
        while batch := list(islice(stored, self.task.batch_size)):
            waiting.append(([key for key, _ in batch], threads.map(_decode, batch)))
            if len(waiting) > 1:
                keys, pictures = waiting.pop(0)
                yield keys, list(pictures)
        for keys, pictures in waiting:
            yield keys, list(pictures)

    @torch.no_grad()
    def _results(self, pictures: list[Image.Image]) -> list[Any]:
        if self.pipe is None:
            inputs = self.processor(images=pictures, return_tensors="pt").to(self.model.device)
            features = self.model.get_image_features(inputs["pixel_values"].to(self.model.dtype)).pooler_output
            return list(torch.nn.functional.normalize(features.float(), dim=-1).cpu().numpy())
        options = dict(self.task.options)
        if not options.get("prompt"):
            options.pop("prompt", None)
        generate_kwargs = {"num_beams": options.pop("num_beams", 1), "do_sample": False}
        found = self.pipe(pictures, batch_size=len(pictures), generate_kwargs=generate_kwargs, **options)
        return [each[0]["generated_text"] for each in found]

    def _write(self, job: Job, rows: dict[str, list[Any]]) -> None:
        values = pyarrow.array(
            rows[self.column], None if self.task.kind == "caption" else pyarrow.list_(pyarrow.float32())
        )
        table = pyarrow.table({"key": pyarrow.array(rows["key"], pyarrow.string()), self.column: values})
        table = table.replace_schema_metadata({"files": job.digest})
        staging = self.output / f".{job.name}.incomplete-{os.getpid()}"
        pyarrow.parquet.write_table(table, staging)
        staging.replace(self.output / f"{job.name}.parquet")


def _stored(job: Job, image_column: str) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Key and stored picture of every row of a job."""
    if not job.is_shard:
        yield from ((file, {"bytes": None, "path": file}) for file in job.files)
        return
    shards: Shards = open_shards(job.files, image_column, None)
    try:
        for row in shards.rows(job.files[0]):
            yield row["key"], row["image"]
    except ShardError as error:  # what comes behind is lost, but not the other shards
        yield f"{error}", None


def _decode(stored: tuple[str, dict[str, Any] | None]) -> Image.Image | None:
    key, image = stored
    if image is None:
        logger.warning(f"No picture: {key}")
        return None
    try:
        return decode_image(image, key)
    except CorruptImageError as error:
        logger.warning(f"{error}")
        return None


def run_bulk(
    task: BulkTask,
    jobs: Sequence[Job],
    output: Path,
    engine: Literal["local", "ray"] = "local",
    num_workers: int | None = None,
) -> Iterator[tuple[int, dict[str, int]]]:
    """Do all jobs of a collection that are not done yet.

    Args:
        task ([`BulkTask`]): What to make.
        jobs (`Sequence[Job]`): Of [`jobs_of`].
        output (`Path`): Folder of the results, `<job>.parquet` with the columns `key` and `caption` or `embedding`.
        engine (`"local"` or `"ray"`): This machine, or a cluster that Ray knows, through Ray Data.
        num_workers (`int`, *optional*): Models at work at the same time. Default: one for every GPU, one without.

    Returns:
        Iterator of the jobs that are done so far, with `pictures` and `corrupt` of the last one.

    Raises:
        ValueError: If the folder holds results of something else, or of other files.
    """
    output.mkdir(parents=True, exist_ok=True)
    _same_run(task, output)
    left = [job for job in jobs if not job.is_done(output)]
    run = {"local": _on_this_machine, "ray": _on_ray}[engine]
    if left:
        yield from enumerate(run(task, left, output, num_workers), len(jobs) - len(left) + 1)


def _same_run(task: BulkTask, output: Path) -> None:
    """Write down what a folder's results are, or see that they are the same; the size of batches may change."""
    asked = {name: value for name, value in asdict(task).items() if name != "batch_size"}
    path = output / _RUN_FILE
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        for name, value in asked.items():
            if found.get(name) != value:
                raise ValueError(
                    f"`output` {output} holds results with `{name}` {found.get(name)!r}, now it is {value!r}."
                )
    elif any(output.glob("*.parquet")):
        raise ValueError(f"`output` {output} holds parquet files of something else.")
    path.write_text(json.dumps(asked) + "\n", encoding="utf-8")


_worker: Worker | None = None  # of this process


def _start_worker(task: BulkTask, output: str, devices: Any, num_processes: int) -> None:
    global _worker
    torch.set_num_threads(max(1, torch.get_num_threads() // num_processes))
    _worker = Worker(task, output, devices.get())


def _work(job: Job) -> dict[str, int]:
    assert _worker is not None
    return _worker(job)


def _on_this_machine(
    task: BulkTask, jobs: Sequence[Job], output: Path, num_workers: int | None
) -> Iterator[dict[str, int]]:
    num_devices = torch.cuda.device_count()
    count = num_workers or max(1, num_devices)
    if count == 1:
        worker = Worker(task, str(output))
        yield from (worker(job) for job in jobs)
        return
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        devices = manager.Queue()
        for number in range(count):
            devices.put(f"cuda:{number % num_devices}" if num_devices else None)
        with ProcessPoolExecutor(count, context, _start_worker, (task, str(output), devices, count)) as pool:
            for future in as_completed([pool.submit(_work, job) for job in jobs]):
                yield future.result()


def _on_ray(task: BulkTask, jobs: Sequence[Job], output: Path, num_workers: int | None) -> Iterator[dict[str, int]]:
    try:
        import ray.data
    except ImportError as error:
        raise ValueError('`engine` "ray" needs Ray: pip install "triptych[ray]".') from error

    class RayWorker:
        """A [`Worker`] whose jobs come as rows."""

        def __init__(self) -> None:
            import triptych  # noqa: F401  (a process of Ray's knows nothing yet)

            self.worker = Worker(task, str(output.resolve()))

        def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
            return self.worker(Job(row["name"], tuple(row["files"]), bool(row["is_shard"])))

    if not ray.is_initialized():  # else the caller's cluster; an address in RAY_ADDRESS is found, too
        ray.init(logging_level=WARNING, log_to_driver=False)
    getLogger("ray.data").setLevel(WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False
    num_gpus = int(ray.cluster_resources().get("GPU", 0))
    count = num_workers or max(1, num_gpus)
    rows = ray.data.from_items(
        [asdict(job) | {"files": list(job.files)} for job in jobs], override_num_blocks=len(jobs)
    )
    worker: Any = RayWorker
    yield from rows.map(worker, concurrency=count, num_gpus=1 if num_gpus else 0).iter_rows()


__all__ = ["BulkTask", "Job", "Worker", "jobs_of", "run_bulk"]
