"""Evaluation of contrastive captioners on held-out pairs. All numbers are flat, so they can go to any tracker."""

import math
import re
from collections import Counter
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import Dataset
from transformers import ProcessorMixin

from triptych.data.pairs import PairCollator
from triptych.evaluation.retrieval_recall import ranks_of_first, recalls
from triptych.evaluation.sharing import evaluating, map_rows


def retrieval_recalls(image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> dict[str, float]:
    """Recall@1, 5, 10 and median rank, both ways, over all pairs at once.

    Args:
        image_embeds (`torch.Tensor` of shape `(num_pairs, projection_dim)`): Normalised image embeddings.
        text_embeds (`torch.Tensor` of shape `(num_pairs, projection_dim)`): Normalised embeddings of their captions.
    """
    similarity = (text_embeds @ image_embeds.T).numpy()
    right = [[pair] for pair in range(len(similarity))]
    return {
        f"{direction}_{name}": value
        for direction, scores in (("text_to_image", similarity), ("image_to_text", similarity.T))
        for name, value in recalls(ranks_of_first(scores, right)).items()
    }


def word_f1(generated: str, true: str) -> float:
    """F1 of the words (as a multiset, lower case, without punctuation) of a generated against a true caption."""
    found, wanted = (Counter(re.findall(r"\w+", text.lower())) for text in (generated, true))
    overlap = (found & wanted).total()
    return 2 * overlap / max(1, found.total() + wanted.total())


def caption_overlap(generated: list[str], true: list[str]) -> dict[str, float]:
    """`caption_exact_match`, the share of captions that equal the true one, and `caption_word_f1`, the mean of [`word_f1`]."""
    pairs = list(zip(generated, true, strict=True))
    return {
        "caption_exact_match": sum(one == other for one, other in pairs) / len(pairs),
        "caption_word_f1": sum(word_f1(one, other) for one, other in pairs) / len(pairs),
    }


def generate_captions(
    model: torch.nn.Module,
    dataset: Dataset,
    processor: ProcessorMixin,
    accelerator: Accelerator,
    batch_size: int,
    num_workers: int = 0,
) -> list[tuple[str, str]]:
    """Caption every image greedily.

    Returns:
        `list[tuple[str, str]]`: Generated and true caption of every readable pair, in order, on every process.
    """
    captioner: Any = accelerator.unwrap_model(model)

    def caption(pairs: list[dict[str, Any]]) -> list[tuple[str, str]]:
        pairs = _readable(pairs)
        if not pairs:
            return []
        inputs = processor(images=[pair["image"] for pair in pairs], return_tensors="pt").to(accelerator.device)
        with accelerator.autocast():
            ids = captioner.generate(**inputs, num_beams=1, do_sample=False)
        texts = processor.batch_decode(ids, skip_special_tokens=True)
        return [(text.strip(), pair["caption"].strip()) for text, pair in zip(texts, pairs, strict=True)]

    with evaluating(captioner):
        return map_rows(caption, dataset, accelerator, batch_size, num_workers, "caption")


def _readable(pairs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pairs that do not stand in for a corrupt one: those would count twice."""
    return [pair for pair in pairs if not pair["num_skipped"]]


def evaluate_pairs(
    model: torch.nn.Module,
    dataset: Dataset,
    collator: PairCollator,
    accelerator: Accelerator,
    batch_size: int,
    num_workers: int = 0,
) -> dict[str, float]:
    """Evaluate a contrastive captioner on every readable pair of a data set, spread over the processes.

    Args:
        model: A captioner; returns embeddings and both losses when given labels.
        dataset: Held-out pairs.
        collator: Of the same processor as in training.
        accelerator: Of this run.
        batch_size (`int`): Pairs per batch, and the number of candidates in the contrastive loss (whose chance level is
            ln(batch_size)); a last partial batch does not count there.
        num_workers (`int`): Processes that decode images.

    Returns:
        `contrastive_loss`, `caption_loss` (nats per token), `perplexity` (exp of the token-weighted mean over the split),
        `coca_loss` (weighted sum), recalls and median ranks both ways, and what they were measured on.
    """
    captioner: Any = accelerator.unwrap_model(model)
    device = accelerator.device

    def embed(pairs: list[dict[str, Any]]) -> list[tuple[torch.Tensor, torch.Tensor, float, int]]:
        pairs = _readable(pairs)
        if not pairs:
            return []
        batch = {key: value.to(device) for key, value in collator(pairs).items() if key != "num_skipped"}
        with accelerator.autocast():
            outputs = captioner(**batch, skip_logits=True)  # not DDP around it, which may share buffers at every call
        embeds = outputs.text_embeds
        if embeds is None:  # a caption-only loss leaves them out
            features = captioner.get_text_features(batch["input_ids"], attention_mask=batch["attention_mask"])
            embeds = torch.nn.functional.normalize(features.pooler_output.float(), dim=-1)
        num_tokens = int((batch["labels"][:, 1:] != -100).sum())
        sides = (outputs.image_embeds.float().cpu(), embeds.float().cpu())
        return [(*sides, outputs.caption_loss.item() * num_tokens, num_tokens)]

    with evaluating(captioner):
        parts = map_rows(embed, dataset, accelerator, batch_size, num_workers)
    images, texts = (torch.cat([part[side] for part in parts]) for side in (0, 1))
    caption_loss = sum(part[2] for part in parts) / sum(part[3] for part in parts)
    batch_size = min(batch_size, len(images))
    with torch.no_grad():
        losses = [
            captioner.model.contrastive_loss(image_embeds.to(device), text_embeds.to(device))
            for image_embeds, text_embeds in zip(images.split(batch_size), texts.split(batch_size), strict=True)
            if len(image_embeds) == batch_size
        ]
    contrastive, config = torch.stack(losses).mean().item(), captioner.config
    return {
        "contrastive_loss": contrastive,
        "caption_loss": caption_loss,
        "perplexity": math.exp(caption_loss),
        "coca_loss": config.contrastive_loss_weight * contrastive + config.caption_loss_weight * caption_loss,
        **retrieval_recalls(images, texts),
        "contrastive_batch_size": batch_size,
        "num_eval_images": len(images),
    }


__all__ = ["caption_overlap", "evaluate_pairs", "generate_captions", "retrieval_recalls", "word_f1"]
