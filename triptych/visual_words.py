"""Pictures of visual words: which word of the language model's vocabulary every image patch stands for."""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
from PIL import Image

from triptych.modeling.modeling_vw_lmm import VwLmmForCausalLM
from triptych.processing.processing_vw_lmm import VwLmmProcessor


@dataclass
class VisualWordMap:
    """The visual words of one image, ready to draw.

    Args:
        image (`PIL.Image.Image`): What the model saw: squared, resized.
        words (`list[list[str]]`): The most probable words of every patch, patches in reading order.
        probabilities (`np.ndarray` of shape `(num_patches, top_k)`): Their probabilities.
        heat (`dict[str, np.ndarray]`): For the words with the greatest share of the image, their probability in every patch,
            of shape `(rows, columns)`; the greatest share first.
    """

    image: Image.Image
    words: list[list[str]]
    probabilities: np.ndarray
    heat: dict[str, np.ndarray]

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return round(len(self.words) ** 0.5)


def readable(token: str) -> str:
    """A token as people read it: without the mark of a leading space; blank if it is no visible text."""
    text = token.replace("▁", " ").replace("Ġ", " ").strip()  # SentencePiece's and byte-level BPE's space
    return text if text.isprintable() and "\ufffd" not in text and not text.startswith("<0x") else ""


@torch.no_grad()
def visual_word_map(
    model: VwLmmForCausalLM, processor: VwLmmProcessor, image: Image.Image, top_k: int = 5, num_heat_maps: int = 8
) -> VisualWordMap:
    """Find the visual words of an image.

    Args:
        model, processor: A VW-LMM.
        image (`PIL.Image.Image`): Any picture.
        top_k (`int`): Words per patch.
        num_heat_maps (`int`): Words that get a heat map.

    Raises:
        ValueError: If the patches form no square, or `top_k` does not fit the vocabulary.
    """
    pixel_values = processor(images=image, text=processor.image_token, return_tensors="pt")["pixel_values"]
    pixel_values = pixel_values.to(model.device)
    ids, probabilities = model.get_visual_words(pixel_values, top_k).to_tuple()
    side = round(ids.shape[1] ** 0.5)
    if side * side != ids.shape[1]:
        raise ValueError(f"The {ids.shape[1]} patches of the image form no square.")
    features = model.get_image_features(pixel_values, return_dict=True).pooler_output[0]
    distribution = model.word_logits(model.vm_head, features).float().softmax(-1)  # (num_patches, vocab_size)

    def decode(token_id: int) -> str:
        return processor.tokenizer.decode([token_id], skip_special_tokens=True)

    heat: dict[str, np.ndarray] = {}
    for token_id in distribution.mean(0).topk(10 * num_heat_maps).indices.tolist():
        name = readable(decode(token_id))
        if name and name not in heat and len(heat) < num_heat_maps:
            heat[name] = distribution[:, token_id].reshape(side, side).cpu().numpy()
    mean, std = (np.array(getattr(processor.image_processor, f"image_{name}")) for name in ("mean", "std"))
    levels = pixel_values[0].float().cpu().permute(1, 2, 0).numpy() * std + mean
    return VisualWordMap(
        image=Image.fromarray((levels.clip(0, 1) * 255).round().astype(np.uint8)),
        words=[[readable(decode(token_id)) for token_id in row] for row in ids[0].tolist()],
        probabilities=probabilities[0].cpu().numpy(),
        heat=heat,
    )


def draw_png(found: VisualWordMap, path: Path) -> None:
    """The image with the first word of every patch, as opaque as it is probable; beside it the words with their heat maps.

    Raises:
        ImportError: If matplotlib is missing (`pip install triptych[demo]`).
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Pictures need matplotlib: pip install 'triptych[demo]'.") from error
    side = found.grid
    columns = 4
    rows = -(-len(found.heat) // columns)
    figure = Figure(figsize=(13, 6.4), layout="constrained")
    left, right = figure.subfigures(1, 2)  # type: ignore[misc]
    axis = left.subplots()
    axis.imshow(found.image, extent=(0, side, side, 0), alpha=0.55)
    for index, (names, probabilities) in enumerate(zip(found.words, found.probabilities, strict=True)):
        row, column = divmod(index, side)
        axis.text(
            column + 0.5, row + 0.5, names[0], ha="center", va="center", fontsize=min(9, 70 / side), weight="bold",
            alpha=float(0.25 + 0.75 * probabilities[0]), parse_math=False,
        )  # fmt: skip
    axis.set(xticks=range(side + 1), yticks=range(side + 1), xticklabels=[], yticklabels=[])
    axis.grid(color="0.7", linewidth=0.4)
    axis.tick_params(length=0)
    axis.set_title("first word of every patch; opacity: its probability", fontsize=10)
    right.subplots(max(rows, 1), columns, squeeze=False)
    for small in right.axes:
        small.set_axis_off()
    for small, (name, heat) in zip(right.axes, found.heat.items(), strict=False):
        small.imshow(found.image, extent=(0, side, side, 0), alpha=0.35)
        small.imshow(
            heat, extent=(0, side, side, 0), cmap="magma", alpha=0.75, vmin=0, vmax=max(float(heat.max()), 1e-6)
        )
        small.set_title(f"{name}\n{heat.mean():.1%}, up to {heat.max():.0%}", fontsize=9, parse_math=False)
    right.suptitle("words with the greatest share, and where they are", fontsize=10)
    figure.savefig(path, dpi=110)


def data_url(save: Callable[..., Any]) -> str:
    """What `save(file, format="png")` of a picture or figure writes, as an address of pages."""
    buffer = io.BytesIO()
    save(buffer, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def write_page(path: Path, template: Path, values: dict[str, Any]) -> None:
    """Fill a template of a page; a value that is missing is an error."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(template.read_text(encoding="utf-8"))
    path.write_text(page.render(values), encoding="utf-8")


def draw_html(found: VisualWordMap, path: Path, name: str) -> None:
    """A page of one file: the image with its words, all words of the patch under the pointer, a heat map per word."""
    patches = [
        [[word, round(float(p), 5)] for word, p in zip(names, row, strict=True)]
        for names, row in zip(found.words, found.probabilities, strict=True)
    ]
    heat = {word: [round(float(p), 6) for p in values.ravel()] for word, values in found.heat.items()}
    values = {"image": data_url(found.image.save), "side": found.grid, "name": name, "patches": patches, "heat": heat}
    write_page(path, Path(__file__).with_suffix(".html.jinja"), values)


__all__ = ["VisualWordMap", "data_url", "draw_html", "draw_png", "readable", "visual_word_map", "write_page"]
