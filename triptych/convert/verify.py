"""Run a converted model on inputs whose outputs the original code is known to give."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

import triptych  # noqa: F401  (registers the models)


@torch.no_grad()
def deviations(folder: str | Path, tensors: str | Path) -> dict[str, float]:
    """Largest differences between a converted model's outputs and those of the original code, in fp32.

    Args:
        folder (`str` or `Path`): What [`triptych.convert.conversion.convert`] wrote.
        tensors (`str` or `Path`): Folder with `inputs.safetensors` and `expected.safetensors`. Of CoCa and openMaMMUT: `input_ids`
            (padded with 0) and `pixel_values`; `image_features`, `text_features`, `caption_logits_valid` (of real tokens),
            `contrastive_loss`, `caption_loss`, `greedy_ids`. Of VW-LMM: `pixel_values` and, optionally, `used_image_rows`;
            `image_features`, `visual_word_probs`. Whatever is not expected is not compared.

    Returns:
        `dict[str, float]`: Name to difference; of ids, the share that differs.

    Raises:
        ValueError: If nothing can be compared.
    """
    given = load_file(Path(tensors) / "inputs.safetensors")
    expected = load_file(Path(tensors) / "expected.safetensors")
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    found = _visual_words(model, given) if model.config.model_type == "vw_lmm" else _captions(model, given, expected)
    differences = {}
    for name in found.keys() & expected.keys():
        ours, theirs = found[name], expected[name].reshape(found[name].shape)
        wrong = (ours != theirs).float().mean() if name.endswith("_ids") else (ours - theirs).abs().max()
        differences[name] = wrong.item()
    if not differences:
        raise ValueError(f"{tensors} holds nothing to compare: expected some of {', '.join(sorted(found))}.")
    return dict(sorted(differences.items()))


def _visual_words(model: Any, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    images = given["pixel_values"]
    if "used_image_rows" in given:
        images = images[given["used_image_rows"].long()]
    adapted = model.get_image_features(images).pooler_output
    words = model.vm_head(adapted)[..., : model.config.image_token_id].softmax(-1)
    return {"image_features": adapted, "visual_word_probs": words}


def _captions(
    model: Any, given: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    ids = given["input_ids"]
    mask = (ids != 0).long()
    labels = ids.masked_fill(mask == 0, -100)
    outputs = model(ids, given["pixel_values"], attention_mask=mask, labels=labels)
    found = {
        "image_features": outputs.image_embeds,
        "text_features": outputs.text_embeds,
        "caption_logits_valid": outputs.logits[mask.bool()],
        "contrastive_loss": outputs.contrastive_loss,
        "caption_loss": outputs.caption_loss,
    }
    if "greedy_ids" in expected:
        rows, length = expected["greedy_ids"].shape
        images = given["pixel_values"][:rows]
        found["greedy_ids"] = model.generate(pixel_values=images, max_new_tokens=length - 1, eos_token_id=None)
    return found


__all__ = ["deviations"]
