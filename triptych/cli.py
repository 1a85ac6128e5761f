"""The `triptych` command. What takes long to import is imported where a command needs it: help and errors should not wait for it."""

import json
import logging
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Column, Table
from typer import Argument, Option

import triptych  # noqa: F401  (makes the models known)


if TYPE_CHECKING:
    from PIL.Image import Image

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Caption, question and find images, and things in them, with Triptych models; publish and convert models.",
)
console = Console()

progress = Console(stderr=True)  # so that what is printed can be piped

TaskName = Literal["classification", "retrieval", "captions", "questions", "yes-no", "choices", "detection"]
ImageArgument = Annotated[Path, Argument(help="Image file.")]
JsonOption = Annotated[bool, Option("--json", help="Print JSON.")]
ModelOption = Annotated[str, Option("--model", "-m", help="Folder or Hub name of a checkpoint.")]
OutputOption = Annotated[Path | None, Option("--output", "-o", help="PNG to write. Default: by the image's name.")]


def _fail(message: str) -> NoReturn:
    line = message.strip() if "\n  " in message else " ".join(message.split())  # a table keeps its rows
    Console(stderr=True).print(f"[red]error:[/red] {escape(line)}", highlight=False, soft_wrap=True)
    raise typer.Exit(2)


@contextmanager
def _failing_on(*errors: type[Exception], before: str = "") -> Iterator[None]:
    """Errors that are the user's to mend end the command with one line."""
    try:
        yield
    except errors as error:
        _fail(f"{before}{error}")


def _print(content: Any, lines: Iterable[Any], as_json: bool) -> None:
    """JSON, or plain lines: Rich would make spaces of their tabs."""
    typer.echo(json.dumps(content, indent=2, ensure_ascii=False) if as_json else "\n".join(map(str, lines)))


def _read(path: Path) -> "Image":
    from PIL import Image

    from triptych.processing.pictures import to_rgb

    try:
        with Image.open(path) as image:
            return to_rgb(image)
    except FileNotFoundError as error:
        raise ValueError(f"There is no image {path}.") from error
    except Exception as error:  # Pillow's plugins raise what they like
        raise ValueError(f"Image {path} cannot be read: {error}") from error


def _open(path: Path) -> "Image":
    with _failing_on(ValueError):
        return _read(path)


def _files(paths: list[Path]) -> list[Path]:
    """The files among some paths, and the images of the folders among them, hidden ones left out."""
    from PIL import Image

    Image.init()
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    found = []
    for path in paths:
        if path.is_dir():
            below = sorted(path.rglob("*"))
            found += [each for each in below if each.suffix.lower() in suffixes and not each.name.startswith(".")]
        else:
            found.append(path)
    return found


def _readable(paths: list[Path]) -> tuple[list[Path], list["Image"]]:
    """Files that hold an image, and the images; the others are named and left out."""
    kept, pictures = [], []
    for path in paths:
        try:
            pictures.append(_read(path))
            kept.append(path)
        except ValueError as error:
            progress.print(f"[yellow]left out:[/yellow] {escape(str(error))}", highlight=False, soft_wrap=True)
    return kept, pictures


def _load(auto_class: str, name: str) -> tuple:
    import transformers
    from safetensors import SafetensorError

    from triptych.hardware import default_device, prepare_for_inference

    errors = (ImportError, OSError, RuntimeError, SafetensorError, ValueError)
    with _failing_on(*errors, before=f"Model {name!r} cannot be loaded: "):
        model = getattr(transformers, auto_class).from_pretrained(name)
        # Models of transformers keep their layers: some look at the weights of those.
        is_ours = type(model).__module__.startswith("triptych.")
        model = prepare_for_inference(model) if is_ours else model.to(default_device()).eval()
        return model, transformers.AutoProcessor.from_pretrained(name)


def _run_bulk(task: Any, source: str, output: Path, engine: Any, num_workers: int | None, as_json: bool) -> None:
    """Do a task for a whole collection, with a bar of how many pictures a second."""
    from tqdm import tqdm

    from triptych.bulk import jobs_of, run_bulk

    counts, before = {"pictures": 0, "corrupt": 0}, None
    with _failing_on(ImportError, OSError, RuntimeError, ValueError):
        jobs = jobs_of(source, lambda folder: _files([folder]), output)
        with tqdm(desc=task.kind, unit=" pictures") as bar:
            for done, numbers in run_bulk(task, jobs, output, engine, num_workers):
                before = done - 1 if before is None else before
                counts = {name: counts[name] + numbers[name] for name in counts}
                bar.set_postfix(parts=f"{done}/{len(jobs)}", corrupt=counts["corrupt"], refresh=False)
                bar.update(numbers["pictures"])
    before = len(jobs) if before is None else before
    found = {"output": str(output), "parts": len(jobs), "parts_done_before": before, **counts}
    lines = [
        f"{output}: {counts['pictures']} pictures in {len(jobs) - before} parts, {counts['corrupt']} could not be read; {before} parts were done before"
    ]
    _print(found, lines, as_json)


OutputFolder = Annotated[
    Path | None,
    Option("--output", "-o", help="Folder for parquet files, a shard each; finished ones are left as they are."),
]
EngineOption = Annotated[
    Literal["local", "ray"], Option(help="With --output: this machine, or the cluster that Ray knows (Ray Data).")
]
WorkersOption = Annotated[
    int | None, Option(min=1, help="With --output: models at work at once. Default: one for every GPU, one without.")
]
ImageColumn = Annotated[str, Option(help="With --output: column of the images; of tar files, their ending.")]


@app.command()
def caption(
    images: Annotated[
        list[str],
        Argument(help="Image files, or folders, searched recursively; with --output one folder, shards or Hub name."),
    ],
    model: ModelOption,
    prompt: Annotated[str, Option(help="Beginning of every caption; what a model that chats is asked.")] = "",
    num_beams: Annotated[int, Option(min=1, help="Beams of the search; 1 is greedy.")] = 4,
    max_new_tokens: Annotated[int, Option(min=1, help="Longest continuation, in tokens.")] = 24,
    batch_size: Annotated[int, Option(min=1, help="Images captioned at once.")] = 16,
    output: OutputFolder = None,
    engine: EngineOption = "local",
    num_workers: WorkersOption = None,
    image_column: ImageColumn = "image",
    as_json: JsonOption = False,
) -> None:
    """Write a caption for every image; with --output for a whole collection."""
    from rich.progress import track

    from triptych.pipelines import pipeline

    if output is not None:
        from triptych.bulk import BulkTask

        if len(images) != 1:
            _fail(f"With `--output` there is one source, got {len(images)}.")
        options = {"prompt": prompt, "max_new_tokens": max_new_tokens, "num_beams": num_beams}
        task = BulkTask("caption", model, batch_size, options, image_column)
        _run_bulk(task, images[0], output, engine, num_workers, as_json)
        return
    for name, value, default in (
        ("engine", engine, "local"),
        ("num-workers", num_workers, None),
        ("image-column", image_column, "image"),
    ):
        if value != default:
            _fail(f"`--{name}` is for collections: say with `--output` where their captions go.")
    files = _files([Path(each) for each in images])
    paths, pictures = (files, [_open(files[0])]) if len(files) == 1 else _readable(files)
    if not paths:
        _fail(f"There is no image to read in {', '.join(images)}.")
    captioner, processor = _load("AutoModelForImageTextToText", model)
    options = {"max_new_tokens": max_new_tokens, "generate_kwargs": {"num_beams": num_beams, "do_sample": False}}
    if prompt:
        options["prompt"] = prompt
    with _failing_on(ValueError):
        pipe = pipeline("image-to-text", captioner, processor=processor, device=captioner.device)
        rows = pipe((picture for picture in pictures), batch_size=batch_size, **options)
        bar = track(rows, "caption", total=len(pictures), console=progress, transient=True)
        texts = [row[0]["generated_text"] for row in bar]
    found = [{"image": str(path), "caption": text} for path, text in zip(paths, texts, strict=True)]
    _print(found, ("\t".join(row.values()) for row in found), as_json)


@app.command()
def embed(
    source: Annotated[
        str, Argument(help="A folder of images; tar or parquet shards, as a pattern or folder; or a Hub name.")
    ],
    model: ModelOption,
    output: Annotated[
        Path,
        Option("--output", "-o", help="Folder for parquet files, a shard each; finished ones are left as they are."),
    ],
    batch_size: Annotated[int, Option(min=1, help="Images encoded at once.")] = 32,
    engine: EngineOption = "local",
    num_workers: WorkersOption = None,
    image_column: ImageColumn = "image",
    as_json: JsonOption = False,
) -> None:
    """Embed all images of a collection: vectors of length 1, as parquet beside their keys."""
    from triptych.bulk import BulkTask

    task = BulkTask("embed", model, batch_size, {}, image_column)
    _run_bulk(task, source, output, engine, num_workers, as_json)


@app.command()
def ask(
    image: ImageArgument,
    questions: Annotated[list[str], Argument(help="Questions about it.")],
    model: ModelOption,
    top: Annotated[int, Option(min=1, help="Answers per question.")] = 1,
    max_new_tokens: Annotated[int, Option(min=1, help="Longest answer, in tokens.")] = 16,
    as_json: JsonOption = False,
) -> None:
    """Answer questions about an image."""
    from triptych.pipelines import pipeline

    picture = _open(image)
    answerer, processor = _load("AutoModelForImageTextToText", model)
    with _failing_on(ValueError):
        pipe = pipeline("visual-question-answering", answerer, processor=processor, device=answerer.device)
        answers = pipe(picture, question=questions, top_k=top, max_new_tokens=max_new_tokens)
    found = [{"question": question, "answers": rows} for question, rows in zip(questions, answers, strict=True)]
    lines = (f"{item['question']}\t{row['answer']}\t{row['score']:.3f}" for item in found for row in item["answers"])
    _print(found, lines, as_json)


@app.command()
def retrieve(
    query: Annotated[str, Argument(help="What to look for.")],
    folder: Annotated[Path, Argument(help="Folder with images, searched recursively.")],
    model: ModelOption,
    top: Annotated[int, Option(min=1, help="Results to show.")] = 5,
    batch_size: Annotated[int, Option(min=1, help="Images encoded at once.")] = 32,
    as_json: JsonOption = False,
) -> None:
    """Find the images of a folder that fit a text best."""
    import torch
    from rich.progress import track

    if not folder.is_dir():
        _fail(f"{folder} is not a folder.")
    files = _files([folder])
    if not files:
        _fail(f"{folder} holds no image.")
    encoder, processor = _load("AutoModel", model)
    if not hasattr(encoder, "get_text_features"):
        _fail(f"Model {model!r} is a {encoder.config.model_type}, retrieval needs a grr_coca or mammut.")
    with _failing_on(ValueError):
        text = processor(text=[query], return_tensors="pt").to(encoder.device)
    with torch.no_grad():
        text_embeds = torch.nn.functional.normalize(encoder.get_text_features(**text).pooler_output, dim=-1)
        scores, paths = [], []
        for start in track(range(0, len(files), batch_size), "encode", console=progress, transient=True):
            kept, pictures = _readable(files[start : start + batch_size])
            if not kept:
                continue
            paths += kept
            pixel_values = processor(images=pictures, return_tensors="pt")["pixel_values"].to(encoder.device)
            features = encoder.get_image_features(pixel_values).pooler_output
            scores.append((torch.nn.functional.normalize(features, dim=-1) @ text_embeds.T)[:, 0])
    if not paths:
        _fail(f"{folder} holds no image that can be read.")
    best = torch.cat(scores).topk(min(top, len(paths)))
    rows = zip(best.values.tolist(), best.indices.tolist(), strict=True)
    found = [{"image": str(paths[index]), "cosine": score} for score, index in rows]
    if as_json:
        _print(found, [], as_json)
        return
    table = Table("cosine", Column("image", overflow="fold"))
    for row in found:
        table.add_row(f"{row['cosine']:.3f}", escape(row["image"]))
    console.print(table)


@app.command()
def detect(
    image: ImageArgument,
    model: ModelOption,
    classes: Annotated[
        str, Option(help="What to look for: names with commas between them, or a file with one per line.")
    ],
    output: OutputOption = None,
    threshold: Annotated[float, Option(min=0, max=1, help="Least score.")] = 0.1,
    top: Annotated[int, Option(min=1, help="Most objects.")] = 100,
    as_json: JsonOption = False,
) -> None:
    """Find objects of any classes, and draw boxes with names and scores."""
    from transformers import AutoConfig

    from triptych.detection import Detector, draw_detections

    picture = _open(image)
    try:
        names = Path(classes).read_text(encoding="utf-8-sig").splitlines()
    except OSError:  # names, which are no file and may be too long for the name of one
        if classes.endswith(".txt"):
            _fail(f"`--classes` {classes}: there is no such file.")
        names = classes.split(",")
    except UnicodeDecodeError:
        _fail(f"`--classes` {classes} is not text; expected one name per line.")
    names = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    if not names:
        _fail(f"`--classes` {classes!r} names nothing to look for.")
    if output is not None and not output.parent.is_dir():
        _fail(f"`--output` {output}: there is no folder {output.parent}.")
    if output is not None and output.suffix.lower() != ".png":
        _fail(f"`--output` {output} must end in .png.")
    with _failing_on(OSError, ValueError, before=f"Model {model!r} cannot be loaded: "):
        config = AutoConfig.from_pretrained(model)
    if getattr(config, "detection_config", None) is None:
        _fail(f"Model {model!r} is no detector; examples/finetune_detection.py makes one of a mammut.")
    finder, processor = _load("AutoModelForZeroShotObjectDetection", model)
    with _failing_on(ValueError):
        found = Detector(finder, processor)([picture], names, threshold, top)[0]
    target = output or Path(f"{image.stem}-detections.png")
    with _failing_on(OSError, before=f"`--output` {target} cannot be written: "):
        draw_detections(picture, found).save(target)
    rows = list(zip(found["text_labels"], found["scores"].tolist(), found["boxes"].tolist(), strict=True))
    lines = (f"{name}\t{score:.3f}\t{' '.join(str(round(side)) for side in box)}" for name, score, box in rows)
    _print([{"label": name, "score": score, "box": box} for name, score, box in rows], [*lines, target], as_json)


@app.command(name="visual-words")
def visual_words(
    image: ImageArgument,
    model: ModelOption,
    output: OutputOption = None,
    top_k: Annotated[int, Option(min=1, help="Words per patch in the page.")] = 5,
    num_heat_maps: Annotated[int, Option(min=1, help="Words with a heat map.")] = 8,
    as_json: JsonOption = False,
) -> None:
    """Draw the word of the vocabulary that every patch of an image stands for, and an HTML page beside it."""
    from triptych.visual_words import draw_html, draw_png, visual_word_map

    picture = _open(image)
    reader, processor = _load("AutoModelForImageTextToText", model)
    if not hasattr(reader, "get_visual_words"):
        _fail(f"Model {model!r} is a {reader.config.model_type}, visual words need a vw_lmm.")
    target = output or Path(f"{image.stem}-visual-words.png")
    with _failing_on(ImportError, OSError, ValueError):
        found = visual_word_map(reader, processor, picture, top_k, num_heat_maps)
        draw_png(found, target)
        draw_html(found, target.with_suffix(".html"), image.name)
    patches = zip(found.words, found.probabilities.tolist(), strict=True)
    rows = [{"words": words, "probabilities": values} for words, values in patches]
    _print(rows, [target, target.with_suffix(".html")], as_json)


@app.command()
def evaluate(
    model: Annotated[str, Argument(help="Folder or Hub name of a checkpoint, ours or of transformers.")],
    dataset: Annotated[
        str, Option(help="Folder in the layout of the task (docs/evaluation.md), parquet file, or Hub name.")
    ],
    output: Annotated[Path, Option("--output", "-o", help="Folder for results; a stopped evaluation goes on there.")],
    task: Annotated[TaskName, Option(help="What to do.")],
    split: Annotated[str, Option(help="Split to evaluate.")] = "test",
    class_names: Annotated[
        Path | None,
        Option(help="classification: file with the names of the classes, one per line. Default: those of the data."),
    ] = None,
    templates: Annotated[
        str | None,
        Option(help="classification: plain, imagenet (80), or a file. Default: those of the data, else plain."),
    ] = None,
    novel_classes: Annotated[
        Path | None, Option(help="detection: file with the classes that had no boxes in training, one per line.")
    ] = None,
    prompt: Annotated[
        str | None,
        Option(
            help="captions: their beginning, or what a model that chats is asked. questions, yes-no: with {} for the question."
        ),
    ] = None,
    max_new_tokens: Annotated[int | None, Option(min=1, help="captions, questions, yes-no: longest text.")] = None,
    image_column: Annotated[str | None, Option(help="Of tables. Default: by the usual names.")] = None,
    label_column: Annotated[str | None, Option(help="classification, likewise.")] = None,
    caption_column: Annotated[str | None, Option(help="captions and retrieval, likewise.")] = None,
    question_column: Annotated[str | None, Option(help="questions and yes-no, likewise.")] = None,
    answer_column: Annotated[str | None, Option(help="questions and yes-no, likewise.")] = None,
    batch_size: Annotated[int, Option(min=1, help="Rows at a time.")] = 32,
    num_workers: Annotated[int, Option(min=0, help="Processes that read rows.")] = 0,
    limit: Annotated[int | None, Option(min=1, help="Only so many rows, the first ones.")] = None,
    card: Annotated[
        bool, Option("--card", help="Write the numbers into the card of MODEL, if it is a folder, too.")
    ] = False,
    dataset_id: Annotated[
        str | None, Option(help="With --card: what the dataset is called on the Hub, for .eval_results/.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a checkpoint on a benchmark, as the field does."""
    with _failing_on(ImportError, before="`evaluate` needs the packages of `triptych[train]`: "):
        from accelerate import Accelerator

        from triptych.tasks.cards import write_to_repository
        from triptych.tasks.catalog import KINDS, make_task
        from triptych.tasks.runs import run_task

    options: dict[str, Any] = {
        "split": split, "class_names": class_names, "templates": templates, "novel_classes": novel_classes, "prompt": prompt,
        "max_new_tokens": max_new_tokens, "image_column": image_column, "label_column": label_column, "caption_column": caption_column,
        "question_column": question_column, "answer_column": answer_column,
    }  # fmt: skip
    if dataset_id is not None and not card:
        _fail("`--dataset-id` is for `--card`.")
    if card and not (Path(model) / "README.md").is_file():
        _fail(f"`--card`: {model} is no folder with a card (README.md).")
    accelerator = Accelerator()
    with _failing_on(OSError, ValueError):
        benchmark = make_task(task, dataset, options)
        worker = KINDS[task].adapt(*_load(KINDS[task].auto_class, model))
        given = {key: str(value) for key, value in options.items() if value is not None}
        facts = {"model": model, "dataset": dataset, **given}
        results = run_task(benchmark, worker, facts, output, accelerator, batch_size, num_workers, limit)
    if accelerator.is_main_process:
        if card:
            with _failing_on(OSError, ValueError):
                for path in write_to_repository(results, Path(model), dataset_id):
                    progress.print(f"wrote {path}", highlight=False)
        numbers = {name: value for name, value in results["metrics"].items() if isinstance(value, (int, float))}
        lines = [
            f"{name}\t{value:.4f}" if isinstance(value, float) else f"{name}\t{value}"
            for name, value in numbers.items()
        ]
        _print(results, [*lines, f"{results['num_samples']} samples\t{output / 'results.json'}"], as_json)


@app.command()
def report(
    folders: Annotated[
        list[Path], Argument(help="Folders of `triptych evaluate`. Others are compared with the first.")
    ],
    output: Annotated[Path, Option("--output", "-o", help="Folder of the report.")] = Path("report"),
) -> None:
    """Compare evaluations: tables with intervals and paired differences as Markdown and LaTeX, a page, and plots."""
    with _failing_on(ImportError, before="`report` needs the packages of `triptych[study]`: "):
        from triptych.task_report import compare_evaluations
    with _failing_on(OSError, ValueError):
        typer.echo(compare_evaluations(folders, output))
    progress.print(f"The same with plots: {output / 'report.html'}", highlight=False)


@app.command()
def push(
    folder: Annotated[Path, Argument(help="Repository to publish, such as outputs/demo.")],
    repo_id: Annotated[str, Argument(help="Where to: owner/name.")],
    private: Annotated[bool, Option("--private", help="Create the repository as a private one.")] = False,
    revision: Annotated[str, Option(help="Branch to commit to.")] = "main",
    pull_request: Annotated[bool, Option("--pull-request", help="Open a pull request instead.")] = False,
    message: Annotated[str | None, Option("--message", "-m", help="First line of the commit.")] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Check the folder and list its files; send nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Publish a trained model on the Hub: weights, code, processor and card in one commit."""
    from triptych.hub import files_to_publish, publish

    options: dict[str, Any] = {"private": private, "create_pr": pull_request, "commit_message": message}
    with _failing_on(RuntimeError, ValueError):
        files = files_to_publish(folder)
        if not as_json:
            table = Table("file", Column("size", justify="right"))
            for path in files:
                table.add_row(escape(path.name), decimal(path.stat().st_size))
            console.print(table)
        commit = publish(folder, repo_id, revision=revision, dry_run=dry_run, **options)
    url = None if commit is None else commit.pr_url or commit.commit_url
    if as_json or url is not None:
        _print({"files": {path.name: path.stat().st_size for path in files}, "url": url}, [url], as_json)


@app.command()
def convert(
    layout: Annotated[Literal["open-clip-coca", "open-mammut", "vw-lmm"], Argument(help="Whose checkpoint.")],
    source: Annotated[str, Argument(help="File, folder, or name on the Hub.")],
    destination: Annotated[Path, Argument(help="Folder to write.")],
    revision: Annotated[str | None, Option(help="Branch, tag or commit on the Hub.")] = None,
    preset: Annotated[str | None, Option(help="Configuration by name, where the source has none.")] = None,
    config: Annotated[str | None, Option(metavar="PATH", help="The source project's own JSON configuration.")] = None,
    tokenizer: Annotated[str | None, Option(help="Folder or Hub name. Default: the checkpoint's.")] = None,
    with_processor: Annotated[bool, Option("--processor/--no-processor", help="Write a processor.")] = True,
    pif: Annotated[
        bool | None,
        Option("--pif/--no-pif", help="VW-LMM with pseudo image features? Default: by the source's name."),
    ] = None,
    vision: Annotated[str | None, Option(help="VW-LMM: take the tower from this CLIP, not the stored copy.")] = None,
    verify: Annotated[
        Path | None,
        Option(help="Folder with inputs.safetensors and the original code's expected.safetensors, to compare."),
    ] = None,
    max_shard_size: Annotated[str, Option(help="Largest file, and most of the memory needed.")] = "2GB",
    dry_run: Annotated[bool, Option("--dry-run", help="Check, and print what becomes of what.")] = False,
) -> None:
    """Write somebody else's checkpoint as a complete repository of ours."""
    from safetensors import SafetensorError

    from triptych.convert import conversion
    from triptych.convert.verify import deviations

    if verify is not None and not (verify / "expected.safetensors").is_file():
        _fail(f"`--verify` {verify} must be a folder with inputs.safetensors and expected.safetensors.")
    options: dict[str, Any] = {"preset": preset, "config": config, "pif": pif, "vision": vision, "revision": revision}
    with _failing_on(OSError, SafetensorError, ValueError):
        if dry_run:
            chosen, _, model, _ = conversion.open_checkpoint(layout, source, **options)
            for name, origin in chosen.origins(model.state_dict()).items():
                part = f" [{origin.part + 1} of {origin.parts}]" if origin.parts > 1 else ""
                typer.echo(f"{origin.key}{part}\t{name}\t{' transposed' if origin.is_transposed else ''}".rstrip())
            return
        options |= {"tokenizer": tokenizer, "with_processor": with_processor, "max_shard_size": max_shard_size}
        folder = conversion.convert(layout, source, destination, **options)
        differences = {} if verify is None else deviations(folder, verify)
    typer.echo(folder)
    for name, difference in differences.items():
        typer.echo(f"{name}\t{difference:.1e}")


def main() -> None:
    """The command, in a process of its own: other libraries keep their warnings, none of which its user can mend."""
    warnings.simplefilter("ignore")
    os.environ.setdefault("TORCH_LOGS", "-all")  # torch sets its loggers' levels when it is imported
    logging.getLogger("transformers").setLevel(logging.ERROR)
    app()


if __name__ == "__main__":
    main()
