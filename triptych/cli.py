"""The `triptych` command."""

from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch
import typer
from PIL import Image, ImageOps
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

import triptych  # noqa: F401  (registers the models)


app = typer.Typer(no_args_is_help=True, add_completion=False, help="Caption and find images with Triptych models.")
console = Console()

ModelOption = Annotated[str, typer.Option("--model", "-m", help="Folder or Hub name of a checkpoint.")]
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"}


def _fail(message: str) -> NoReturn:
    Console(stderr=True).print(f"[red]error:[/red] {escape(message)}", highlight=False, soft_wrap=True)
    raise typer.Exit(2)


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError:
        _fail(f"There is no image {path}.")
    except Exception as error:  # Pillow's plugins raise what they like
        _fail(f"Image {path} cannot be read: {error}")


def _load(auto_class: Any, name: str) -> tuple:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model = auto_class.from_pretrained(name)
        return model.to(device).eval(), AutoProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        _fail(f"Model {name!r} cannot be loaded: {error}")


@app.command()
def caption(
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    model: ModelOption,
    prompt: Annotated[str, typer.Option(help="Beginning of every caption.")] = "",
    num_beams: Annotated[int, typer.Option(min=1, help="Beams of the search; 1 is greedy.")] = 4,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest continuation, in tokens.")] = 24,
) -> None:
    """Write a caption for every image."""
    pictures = [_open(path) for path in images]
    captioner, processor = _load(AutoModelForImageTextToText, model)
    try:
        inputs = processor(images=pictures, text=[prompt] * len(pictures) if prompt else None, return_tensors="pt")
        ids = captioner.generate(**inputs.to(captioner.device), num_beams=num_beams, max_new_tokens=max_new_tokens)
    except ValueError as error:
        _fail(str(error))
    for path, text in zip(images, processor.batch_decode(ids, skip_special_tokens=True), strict=True):
        console.print(f"{path}\t{text.strip()}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def retrieve(
    query: Annotated[str, typer.Argument(help="What to look for.")],
    folder: Annotated[Path, typer.Argument(help="Folder with images, searched recursively.")],
    model: ModelOption,
    top: Annotated[int, typer.Option(min=1, help="Results to show.")] = 5,
    batch_size: Annotated[int, typer.Option(min=1, help="Images encoded at once.")] = 32,
) -> None:
    """Find the images of a folder that fit a text best."""
    if not folder.is_dir():
        _fail(f"{folder} is not a folder.")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not paths:
        _fail(f"{folder} holds no image ({', '.join(sorted(_SUFFIXES))}).")
    encoder, processor = _load(AutoModel, model)
    try:
        text = processor(text=[query], return_tensors="pt").to(encoder.device)
    except ValueError as error:
        _fail(str(error))
    with torch.no_grad():
        text_embeds = torch.nn.functional.normalize(encoder.get_text_features(**text).pooler_output, dim=-1)
        scores = []
        for start in range(0, len(paths), batch_size):
            pictures = [_open(path) for path in paths[start : start + batch_size]]
            pixel_values = processor(images=pictures, return_tensors="pt")["pixel_values"].to(encoder.device)
            features = encoder.get_image_features(pixel_values).pooler_output
            scores.append((torch.nn.functional.normalize(features, dim=-1) @ text_embeds.T)[:, 0])
    best = torch.cat(scores).topk(min(top, len(paths)))
    table = Table("cosine", Column("image", overflow="fold"))
    for score, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        table.add_row(f"{score:.3f}", escape(str(paths[index])))
    console.print(table)


@app.command(name="visual-words")
def visual_words(
    image: Annotated[Path, typer.Argument(help="Image file.")],
    model: ModelOption,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="PNG to write, with an HTML page beside it. Default: by the image's name."
        ),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Words per patch in the page.")] = 5,
    num_heat_maps: Annotated[int, typer.Option(min=1, help="Words with a heat map.")] = 8,
) -> None:
    """Draw the word of the vocabulary that every patch of an image stands for."""
    from triptych.visual_words import draw_html, draw_png, visual_word_map

    picture = _open(image)
    reader, processor = _load(AutoModelForImageTextToText, model)
    if not hasattr(reader, "get_visual_words"):
        _fail(f"Model {model!r} is a {reader.config.model_type}, visual words need a vw_lmm.")
    target = output or Path(f"{image.stem}-visual-words.png")
    try:
        found = visual_word_map(reader, processor, picture, top_k, num_heat_maps)
        draw_png(found, target)
        draw_html(found, target.with_suffix(".html"), image.name)
    except (ImportError, OSError, ValueError) as error:
        _fail(str(error))
    console.print(f"{target}\n{target.with_suffix('.html')}", highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    app()
