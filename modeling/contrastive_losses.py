"""Contrastive losses as pure functions, in fp32: softmax and focal, with the pairs of all processes, in chunks where there are many."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers.utils.generic import maybe_autocast

from .losses import is_distributed


# Similarities that exist at a time, beside a few tensors as large: 16 MiB in fp32. Up to 2,048 pairs are one chunk.
_CHUNK = 2**22


@cache
def _every_so_many(world: dist.ProcessGroup, step: int) -> Any:
    ranks = list(range(dist.get_world_size(world)))
    return dist.new_subgroups_by_enumeration([ranks[first::step] for first in range(step)])[0]


def processes_with_other_rows(tp_size: int = 1) -> dist.ProcessGroup | None:
    """This process and those that train on other rows; None where there are none.

    The `tp_size` neighbours that share a model by tensor parallelism all have the same rows: of them, one is enough.
    """
    if not is_distributed() or dist.get_world_size() == tp_size:
        return None
    return dist.group.WORLD if tp_size == 1 else _every_so_many(dist.group.WORLD, tp_size)


def _first_row(image_embeds: torch.Tensor, text_embeds: torch.Tensor, group: dist.ProcessGroup | None) -> int:
    """The row of this process's first pair among those of all processes of the group; 0 if there is none.

    Raises:
        ValueError: If images and texts of this process, or the pairs of the processes, differ in number; on every process.
    """
    num_images, num_texts = len(image_embeds), len(text_embeds)
    if group is not None:  # before anything is refused: a process that left alone would leave the others waiting
        counts = image_embeds.new_tensor([num_images, num_texts], dtype=torch.long)
        by_process = [torch.empty_like(counts) for _ in range(dist.get_world_size(group))]
        dist.all_gather(by_process, counts, group)
        numbers = torch.stack(by_process).tolist()
        if len({number for row in numbers for number in row}) > 1:
            raise ValueError(
                "Negatives from all processes need equally many images and texts on each: got (images, texts) "
                f"{[tuple(row) for row in numbers]} by process. Drop the last incomplete batch, or let it begin anew."
            )
    if num_images != num_texts or num_images == 0:
        raise ValueError(
            "A contrastive loss needs equally many images and texts, at least one of each: got "
            f"{num_images} `image_embeds` and {num_texts} `text_embeds`."
        )
    return 0 if group is None else dist.get_rank(group) * num_images


class _AllGather(torch.autograd.Function):
    """Rows of all processes of a group, one process after another. Gradients of all of them reach the owner of a row."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, rows.contiguous(), group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor, None]:
        gradient = grad_output.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient, group=ctx.group)
        return gradient.chunk(dist.get_world_size(ctx.group))[dist.get_rank(ctx.group)], None


class _MeanInChunks(torch.autograd.Function):
    """Mean over rows of a loss of their similarities to all candidates. Gradients are computed beside the value, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any, losses: Callable, chunk_size: int, rows: torch.Tensor, *others: torch.Tensor
    ) -> torch.Tensor:
        needed = ctx.needs_input_grad[2:]
        sides = (rows, *others)
        ctx.gradients = [
            torch.zeros_like(each) if is_needed else None for each, is_needed in zip(sides, needed, strict=True)
        ]
        total = rows.new_zeros(())
        for start in range(0, len(rows), chunk_size):
            chunk = slice(start, start + chunk_size)
            with torch.enable_grad():
                inputs = [each.detach() for each in (rows[chunk], *others)]
                wanted = [each.requires_grad_() for each, is_needed in zip(inputs, needed, strict=True) if is_needed]
                value = losses(start, *inputs).sum() / len(rows)
                found = iter(torch.autograd.grad(value, wanted) if wanted else ())
            total += value.detach()
            if ctx.gradients[0] is not None:
                ctx.gradients[0][chunk] = next(found)
            for gradient in ctx.gradients[1:]:
                if gradient is not None:
                    gradient += next(found)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients = (None if each is None else each * grad_output for each in ctx.gradients)
        return None, None, *gradients


def _over_rows(
    losses: Callable, per_pair: bool, rows: torch.Tensor, candidates: torch.Tensor, *scalars: torch.Tensor
) -> torch.Tensor:
    """Losses of rows that are compared with candidates, or their mean.

    Args:
        losses (`Callable`): From the number of the first row of a chunk, the chunk, the candidates and the scalars to its losses.
        per_pair (`bool`): Return all, not the mean.
    """
    chunk_size = max(1, _CHUNK // len(candidates))
    with maybe_autocast(rows.device.type, enabled=False):  # which would multiply in half precision
        if per_pair or len(rows) <= chunk_size:
            starts = range(0, len(rows), chunk_size)
            found = torch.cat(
                [losses(start, rows[start : start + chunk_size], candidates, *scalars) for start in starts]
            )
            return found if per_pair else found.mean()
        sides = (rows, candidates, *scalars)
        if not torch.is_grad_enabled():  # which `needs_input_grad` does not know
            sides = tuple(each.detach() for each in sides)
        return _MeanInChunks.apply(losses, chunk_size, *sides)


def contrastive_losses(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
    reduction: str = "mean",
    group: dist.ProcessGroup | None = None,
    per_pair: bool = True,
) -> torch.Tensor:
    """Softmax contrastive loss of matching image-text pairs (CoCa, arXiv 2205.01917, eq. 2).

    With a `group`, every process scores its own rows against the pairs of all its processes. The mean over processes is the
    loss of the global batch, and so are the gradients that DDP averages.

    Args:
        image_embeds (`torch.Tensor` of shape `(num_pairs, projection_dim)`): L2-normalised image embeddings.
        text_embeds (`torch.Tensor` of shape `(num_pairs, projection_dim)`): Their texts' embeddings, normalised.
        logit_scale (`torch.Tensor` of shape `(1,)`): Inverse temperature (the exponential of the learned parameter).
        reduction (`"mean"` or `"sum"`): Mean (open_clip) or sum (the paper) of the two directions.
        group (`ProcessGroup`, *optional*): Take negatives from its processes, with gradient. All must hold equally many pairs.
        per_pair (`bool`): Return the loss of every pair. Otherwise their mean, whose memory does not grow with the square of their number.

    Returns:
        `torch.Tensor` of shape `(num_pairs,)`, or `()` of the mean.

    Raises:
        ValueError: If the numbers of images and texts, or those of the processes, differ or are zero, or `reduction` is unknown.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f'`reduction` must be "mean" or "sum", got {reduction!r}.')
    image_embeds, text_embeds, logit_scale = image_embeds.float(), text_embeds.float(), logit_scale.float()
    first_row = _first_row(image_embeds, text_embeds, group)
    all_image_embeds, all_text_embeds = image_embeds, text_embeds
    if group is not None:
        all_image_embeds, all_text_embeds = (_AllGather.apply(x, group) for x in (image_embeds, text_embeds))

    def cross_entropy(start: int, rows: torch.Tensor, candidates: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        targets = torch.arange(first_row + start, first_row + start + len(rows), device=rows.device)
        return nn.functional.cross_entropy(scale * rows @ candidates.T, targets, reduction="none")

    image_to_text = _over_rows(cross_entropy, per_pair, image_embeds, all_text_embeds, logit_scale)
    text_to_image = _over_rows(cross_entropy, per_pair, text_embeds, all_image_embeds, logit_scale)
    losses = image_to_text + text_to_image
    return losses / 2 if reduction == "mean" else losses


def focal_contrastive_losses(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor | None = None,
    gamma: float = 1.0,
    group: dist.ProcessGroup | None = None,
    per_pair: bool = True,
) -> torch.Tensor:
    """Focal sigmoid contrastive loss of matching image-text pairs (MaMMUT, arXiv 2303.16839, section 3.2).

    With logits x and p = sigmoid(x) for the pair of a row, 1 - sigmoid(x) for all others, every element costs
    -(1 - p)^gamma log p. A pair costs the sum of its row, and their mean is the loss of the batch. The two directions of the
    paper have equal sums, so a row counts twice. gamma = 0 is binary cross-entropy.

    With a `group`, every process scores its own images against the texts of all its processes, as in [`contrastive_losses`].

    Args:
        image_embeds, text_embeds, logit_scale, group, per_pair: As in [`contrastive_losses`].
        logit_bias (`torch.Tensor` of shape `(1,)`, *optional*): Added to every logit (SigLIP, arXiv 2303.15343); the paper
            has none.
        gamma (`float`): Focusing exponent. Not printed in the paper; 1.0 in the authors' RO-ViT code.

    Returns:
        `torch.Tensor` of shape `(num_pairs,)`, or `()` of the mean.

    Raises:
        ValueError: If the numbers of images and texts, or those of the processes, differ or are zero.
    """
    image_embeds, text_embeds = image_embeds.float(), text_embeds.float()
    first_row = _first_row(image_embeds, text_embeds, group)
    all_text_embeds = text_embeds if group is None else _AllGather.apply(text_embeds, group)

    def focal(
        start: int, images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor, *bias: torch.Tensor
    ) -> torch.Tensor:
        logits = scale * images @ texts.T  # (images of the chunk, texts of all processes)
        for each in bias:
            logits = logits + each
        # The sign makes every element a positive one: p = sigmoid(signed), 1 - p = sigmoid(-signed).
        rows = torch.arange(len(images), device=logits.device)
        sign = -torch.ones_like(logits)
        sign[rows, first_row + start + rows] = 1.0
        signed = sign * logits
        # (1 - p)^gamma through its logarithm: no power of zero, whose gradient is infinite for gamma < 1
        modulator = (gamma * nn.functional.logsigmoid(-signed)).exp()
        return -2 * (modulator * nn.functional.logsigmoid(signed)).sum(dim=1)

    scalars = [each.float() for each in (logit_scale, logit_bias) if each is not None]
    return _over_rows(focal, per_pair, image_embeds, all_text_embeds, *scalars)


__all__ = ["contrastive_losses", "focal_contrastive_losses", "processes_with_other_rows"]
