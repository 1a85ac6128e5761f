"""Evaluation of contrastive captioners on held-out pairs. All numbers are flat, so they can go to any tracker."""

import math
import re
from collections import Counter

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm
from transformers import ProcessorMixin

from triptych.training.data import ImageCaptionDataset, PairCollator


def retrieval_ranks(similarity: torch.Tensor) -> torch.Tensor:
    """Rank (0 = first) of the matching candidate of every query; ties count against it.

    Args:
        similarity (`torch.Tensor` of shape `(num_queries, num_candidates)`): Query i matches candidate i.

    Returns:
        `torch.LongTensor` of shape `(num_queries,)`.
    """
    target = similarity.diagonal()[:, None]
    return similarity.shape[1] - 1 - (similarity < target).sum(dim=1)  # NaN ranks last


def retrieval_recalls(image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> dict[str, float]:
    """Recall@1, 5, 10 and median rank, both ways, over all pairs at once.

    Args:
        image_embeds (`torch.Tensor` of shape `(num_pairs, projection_dim)`): Normalised image embeddings.
        text_embeds (`torch.Tensor` of shape `(num_pairs, projection_dim)`): Normalised embeddings of their captions.
    """
    similarity = text_embeds @ image_embeds.T
    results = {}
    for name, scores in (("text_to_image", similarity), ("image_to_text", similarity.T)):
        ranks = retrieval_ranks(scores)
        for k in (1, 5, 10):
            results[f"{name}_recall@{k}"] = (ranks < k).float().mean().item()
        results[f"{name}_median_rank"] = ranks.float().median().item() + 1
    return results


def _readable(pairs: list[dict]) -> list[dict]:
    """Pairs that do not stand in for a corrupt one: those would count twice."""
    return [pair for pair in pairs if not pair["num_skipped"]]


def word_f1(generated: str, true: str) -> float:
    """F1 of the words (as a multiset, lower case, without punctuation) of a generated against a true caption."""
    found, wanted = (Counter(re.findall(r"\w+", text.lower())) for text in (generated, true))
    overlap = (found & wanted).total()
    return 2 * overlap / max(1, found.total() + wanted.total())


@torch.no_grad()
def evaluate_captions(
    model: torch.nn.Module,
    dataset: ImageCaptionDataset,
    processor: ProcessorMixin,
    accelerator: Accelerator,
    batch_size: int,
    num_workers: int = 0,
) -> dict[str, float]:
    """Caption every image greedily and compare with the true captions.

    Returns:
        `caption_exact_match`, the share of captions that equal the true one, and `caption_word_f1`, the mean of
        [`word_f1`].
    """
    captioner = accelerator.unwrap_model(model)
    was_training = captioner.training
    captioner.eval()
    scores: list[tuple[float, float]] = []
    with accelerator.split_between_processes(list(range(len(dataset)))) as indices:
        loader = DataLoader(
            Subset(dataset, indices), batch_size=batch_size, collate_fn=_readable, num_workers=num_workers
        )
        for pairs in tqdm(loader, desc="caption", leave=False, disable=not accelerator.is_main_process):
            if not pairs:
                continue
            inputs = processor(images=[pair["image"] for pair in pairs], return_tensors="pt").to(accelerator.device)
            with accelerator.autocast():
                ids = captioner.generate(**inputs)
            for pair, text in zip(pairs, processor.batch_decode(ids, skip_special_tokens=True), strict=True):
                generated, true = text.strip(), pair["caption"].strip()
                scores.append((float(generated == true), word_f1(generated, true)))
    captioner.train(was_training)
    exact, overlap = torch.tensor(gather_object(scores)).mean(dim=0).tolist()
    return {"caption_exact_match": exact, "caption_word_f1": overlap}


@torch.no_grad()
def evaluate_pairs(
    model: torch.nn.Module,
    dataset: ImageCaptionDataset,
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
    unwrapped = accelerator.unwrap_model(model)
    was_training = model.training
    model.eval()
    with accelerator.split_between_processes(list(range(len(dataset)))) as indices:
        loader = DataLoader(
            Subset(dataset, indices), batch_size=batch_size, collate_fn=_readable, num_workers=num_workers
        )
        image_embeds, text_embeds, nll, num_tokens = [], [], 0.0, 0
        for pairs in tqdm(loader, desc="evaluate", leave=False, disable=not accelerator.is_main_process):
            if not pairs:
                continue
            batch = collator(pairs)
            batch.pop("num_skipped")
            batch = {key: value.to(accelerator.device) for key, value in batch.items()}
            with accelerator.autocast():
                outputs = model(**batch, skip_logits=True)
            batch_tokens = int((batch["labels"][:, 1:] != -100).sum())
            nll += outputs.caption_loss.item() * batch_tokens
            num_tokens += batch_tokens
            image_embeds.append(outputs.image_embeds.float().cpu())
            embeds = outputs.text_embeds
            if embeds is None:  # a caption-only loss leaves them out
                features = unwrapped.get_text_features(batch["input_ids"], attention_mask=batch["attention_mask"])
                embeds = torch.nn.functional.normalize(features.pooler_output, dim=-1)
            text_embeds.append(embeds.float().cpu())
    # Lists, since a process may have no readable pair of its own
    parts = gather_object([(image_embeds, text_embeds, nll, num_tokens)])
    images, texts = (torch.cat([rows for part in parts for rows in part[side]]) for side in (0, 1))
    caption_loss = sum(part[2] for part in parts) / sum(part[3] for part in parts)
    batch_size = min(batch_size, len(images))
    config, device = unwrapped.config, accelerator.device
    losses = [
        unwrapped.model.contrastive_loss(
            images[start : start + batch_size].to(device), texts[start : start + batch_size].to(device)
        )
        for start in range(0, len(images) - batch_size + 1, batch_size)
    ]
    contrastive = torch.stack(losses).mean().item()
    model.train(was_training)
    return {
        "contrastive_loss": contrastive,
        "caption_loss": caption_loss,
        "perplexity": math.exp(caption_loss),
        "coca_loss": config.contrastive_loss_weight * contrastive + config.caption_loss_weight * caption_loss,
        **retrieval_recalls(images, texts),
        "contrastive_batch_size": batch_size,
        "num_eval_images": len(images),
    }


__all__ = ["evaluate_captions", "evaluate_pairs", "retrieval_ranks", "retrieval_recalls", "word_f1"]
