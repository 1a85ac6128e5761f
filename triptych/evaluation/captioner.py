"""Evaluation of contrastive captioners on held-out pairs. All numbers are flat, so they can go to any tracker."""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.nn.functional import cross_entropy, normalize
from torch.utils.data import Dataset
from transformers import ProcessorMixin

from triptych.data.pairs import PairCollator
from triptych.evaluation.generator import Generator
from triptych.evaluation.retrieval_recall import ranks_of_first, recalls
from triptych.evaluation.sharing import evaluating, map_rows, shares_weights


def retrieval_ranks(
    image_embeds: torch.Tensor, text_embeds: torch.Tensor, captions: Sequence[str]
) -> dict[str, np.ndarray]:
    """Rank (0 = first) of the first right answer to every pair's text and image.

    Pairs with equal captions answer one another: every image of a caption is right, and a caption is one candidate.

    Args:
        image_embeds (`torch.Tensor` of shape `(num_pairs, projection_dim)`): Normalised image embeddings.
        text_embeds (`torch.Tensor` of shape `(num_pairs, projection_dim)`): Normalised embeddings of their captions.
        captions (`Sequence[str]`): What the texts are.

    Returns:
        `dict` with `text_to_image_rank` and `image_to_text_rank`.
    """
    rows: dict[str, list[int]] = {}
    for row, caption in enumerate(captions):
        rows.setdefault(caption, []).append(row)
    similarity = (text_embeds @ image_embeds.T).numpy()
    candidates = {caption: [number] for number, caption in enumerate(rows)}
    distinct = similarity[[first for first, *_ in rows.values()]].T  # (images, distinct captions)
    return {
        "text_to_image_rank": ranks_of_first(similarity, [rows[caption] for caption in captions]),
        "image_to_text_rank": ranks_of_first(distinct, [candidates[caption] for caption in captions]),
    }


def word_f1(generated: str, true: str) -> float:
    """F1 of the words (as a multiset, lower case, without punctuation) of a generated against a true caption."""
    found, wanted = (Counter(re.findall(r"\w+", text.lower())) for text in (generated, true))
    overlap = (found & wanted).total()
    return 2 * overlap / max(1, found.total() + wanted.total())


def _of_readable(function: Callable[[list[dict[str, Any]]], list[Any]]) -> Callable[[list[dict[str, Any]]], list[Any]]:
    """The function on the pairs of a batch that do not stand in for a corrupt one: those would count twice."""

    def on_readable(pairs: list[dict[str, Any]]) -> list[Any]:
        readable = [pair for pair in pairs if not pair["num_skipped"]]
        found = function(readable or pairs)  # where weights are shared out, no process may leave out a pass
        return found if readable else []

    return on_readable


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
    generator = Generator(captioner, processor, accelerator.device)

    @_of_readable
    def caption(pairs: list[dict[str, Any]]) -> list[tuple[str, str]]:
        with accelerator.autocast():
            texts = generator.captions([pair["image"] for pair in pairs], synced_gpus=shares_weights(accelerator))
        return [(text, pair["caption"].strip()) for text, pair in zip(texts, pairs, strict=True)]

    with evaluating(captioner):
        return map_rows(caption, dataset, accelerator, batch_size, num_workers, "caption")


def score_captions(pairs: list[tuple[str, str]]) -> dict[str, np.ndarray]:
    """Of every pair of [`generate_captions`] `caption_exact_match`, whether the two are equal, and `caption_word_f1`."""
    return {
        "caption_exact_match": np.array([float(generated == true) for generated, true in pairs]),
        "caption_word_f1": np.array([word_f1(*pair) for pair in pairs]),
    }


def score_pairs(
    model: torch.nn.Module,
    dataset: Dataset,
    collator: PairCollator,
    accelerator: Accelerator,
    batch_size: int,
    num_workers: int = 0,
) -> dict[str, np.ndarray]:
    """Score every readable pair of a data set with a contrastive captioner, spread over the processes.

    Args:
        model: A captioner; returns embeddings and logits when given labels.
        dataset: Held-out pairs.
        collator: Of the same processor as in training.
        accelerator: Of this run.
        batch_size (`int`): Pairs per batch, and the number of candidates in the contrastive loss (whose chance level is
            ln(batch_size)); a last partial batch does not count there.
        num_workers (`int`): Processes that decode images.

    Returns:
        `dict` of a value per pair: `contrastive_loss` (NaN in the last partial batch), `caption_loss` (nats, summed over the
        caption's `num_tokens`), `text_to_image_rank` and `image_to_text_rank` as of [`retrieval_ranks`].
    """
    captioner: Any = accelerator.unwrap_model(model)
    device = accelerator.device

    @_of_readable
    def embed(pairs: list[dict[str, Any]]) -> list[tuple]:
        batch = {key: value.to(device) for key, value in collator(pairs).items() if key != "num_skipped"}
        with accelerator.autocast():
            # Not DDP around it, which may share buffers at every call. Logits come out of the forward pass, where sharded weights are whole.
            outputs = captioner(**batch, skip_logits=False)
        labels = batch["labels"]
        losses = [
            cross_entropy(logits[:-1].float(), targets[1:], reduction="sum")
            for logits, targets in zip(outputs.logits, labels, strict=True)
        ]
        embeds = outputs.text_embeds
        if embeds is None:  # a caption-only loss leaves them out
            features = captioner.get_text_features(batch["input_ids"], attention_mask=batch["attention_mask"])
            embeds = normalize(features.pooler_output.float(), dim=-1)
        num_tokens = (labels[:, 1:] != -100).sum(dim=1).tolist()
        sides = (outputs.image_embeds.float().cpu(), embeds.float().cpu())
        captions = [pair["caption"] for pair in pairs]
        return list(zip(*sides, torch.stack(losses).tolist(), num_tokens, captions, strict=True))

    with evaluating(captioner):
        rows = map_rows(embed, dataset, accelerator, batch_size, num_workers)
    image_embeds, text_embeds, caption_losses, num_tokens, captions = zip(*rows, strict=True)
    images, texts = torch.stack(image_embeds), torch.stack(text_embeds)
    batch_size = min(batch_size, len(images))
    contrastive = torch.full((len(images),), math.nan)
    # While training, negatives would come from all processes, which have the same pairs here.
    with evaluating(captioner):
        for start in range(0, len(images) - batch_size + 1, batch_size):
            batch = slice(start, start + batch_size)
            contrastive[batch] = captioner.contrastive_losses(images[batch].to(device), texts[batch].to(device)).cpu()
    return {
        "contrastive_loss": contrastive.double().numpy(),
        "caption_loss": np.array(caption_losses),
        "num_tokens": np.array(num_tokens),
        **retrieval_ranks(images, texts, captions),
    }


def summarize_pairs(scores: dict[str, np.ndarray], config: Any, batch_size: int) -> dict[str, float]:
    """Numbers of a whole data set, or of a sample of it.

    Args:
        scores (`dict`): Of [`score_pairs`], and of [`score_captions`] where captions were generated.
        config: Of the captioner, whose weights the joint loss takes.
        batch_size (`int`): Of the contrastive loss.

    Returns:
        `contrastive_loss`, `caption_loss` (nats per token), `perplexity` (exp of the token-weighted mean over the split),
        `coca_loss` (weighted sum), recalls and median ranks both ways, the means of what captions scored, and what all was
        measured on.
    """
    contrastive = float(np.nanmean(scores["contrastive_loss"]))
    caption = float(scores["caption_loss"].sum() / scores["num_tokens"].sum())
    found = {
        f"{direction}_{name}": value
        for direction in ("text_to_image", "image_to_text")
        for name, value in recalls(scores[f"{direction}_rank"]).items()
    }
    return {
        "contrastive_loss": contrastive,
        "caption_loss": caption,
        "perplexity": math.exp(caption),
        "coca_loss": config.contrastive_loss_weight * contrastive + config.caption_loss_weight * caption,
        **found,
        **{
            name: float(values.mean())
            for name, values in scores.items()
            if name.startswith("caption_") and name != "caption_loss"
        },
        "contrastive_batch_size": min(batch_size, len(scores["num_tokens"])),
        "num_eval_images": len(scores["num_tokens"]),
    }


def evaluate_pairs(
    model: torch.nn.Module,
    dataset: Dataset,
    collator: PairCollator,
    accelerator: Accelerator,
    batch_size: int,
    num_workers: int = 0,
) -> dict[str, float]:
    """[`summarize_pairs`] of [`score_pairs`], whose arguments these are."""
    scores = score_pairs(model, dataset, collator, accelerator, batch_size, num_workers)
    return summarize_pairs(scores, accelerator.unwrap_model(model).config, batch_size)


__all__ = [
    "evaluate_pairs", "generate_captions", "retrieval_ranks", "score_captions", "score_pairs", "summarize_pairs", "word_f1",
]  # fmt: skip
