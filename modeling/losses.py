"""Losses as pure functions, shared by the models of this package. Every loss is computed and returned in fp32."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.nn.functional import all_gather
from torch.utils.checkpoint import checkpoint


def is_distributed() -> bool:
    """Whether this process trains together with others."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _check_pairs(image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> int:
    if len(image_embeds) != len(text_embeds) or len(image_embeds) == 0:
        raise ValueError(
            "A contrastive loss needs equally many images and texts, at least one of each: got "
            f"{len(image_embeds)} `image_embeds` and {len(text_embeds)} `text_embeds`."
        )
    return len(image_embeds)


def contrastive_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
    reduction: str = "mean",
    gather: bool = False,
) -> torch.Tensor:
    """Softmax contrastive loss over matching image-text pairs (CoCa, arXiv 2205.01917, eq. 2).

    With `gather`, every process scores its own rows against the pairs of all processes. The mean of the returned losses
    over processes is the loss of the global batch, and so are the gradients that DDP averages.

    Args:
        image_embeds (`torch.Tensor` of shape `(num_pairs, projection_dim)`): L2-normalised image embeddings.
        text_embeds (`torch.Tensor` of shape `(num_pairs, projection_dim)`): Their texts' embeddings, normalised.
        logit_scale (`torch.Tensor` of shape `()`): Inverse temperature (the exponential of the learned parameter).
        reduction (`"mean"` or `"sum"`): Mean (open_clip) or sum (the paper) of the two directions.
        gather (`bool`): Take negatives from all processes, with gradient. All must hold equally many pairs.

    Returns:
        `torch.Tensor` of shape `()`.

    Raises:
        ValueError: If the numbers of images and texts differ or are zero, or `reduction` is unknown.
    """
    num_pairs = _check_pairs(image_embeds, text_embeds)
    if reduction not in ("mean", "sum"):
        raise ValueError(f'`reduction` must be "mean" or "sum", got {reduction!r}.')
    image_embeds, text_embeds, logit_scale = image_embeds.float(), text_embeds.float(), logit_scale.float()
    all_image_embeds, all_text_embeds, first_row = image_embeds, text_embeds, 0
    if gather and is_distributed():
        all_image_embeds = torch.cat(all_gather(image_embeds))
        all_text_embeds = torch.cat(all_gather(text_embeds))
        first_row = dist.get_rank() * num_pairs

    targets = torch.arange(first_row, first_row + num_pairs, device=image_embeds.device)
    with torch.autocast(image_embeds.device.type, enabled=False):  # which would multiply in half precision
        image_to_text = nn.functional.cross_entropy(logit_scale * image_embeds @ all_text_embeds.T, targets)
        text_to_image = nn.functional.cross_entropy(logit_scale * text_embeds @ all_image_embeds.T, targets)
    loss = image_to_text + text_to_image
    return loss / 2 if reduction == "mean" else loss


def focal_contrastive_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor | None = None,
    gamma: float = 1.0,
    gather: bool = False,
) -> torch.Tensor:
    """Focal sigmoid contrastive loss over matching image-text pairs (MaMMUT, arXiv 2303.16839, section 3.2).

    With logits x and p = sigmoid(x) for the pair of a row, 1 - sigmoid(x) for all others, every element costs
    -(1 - p)^gamma log p; rows are summed and divided by the number of pairs. The two directions of the paper have equal
    sums, so the sum over rows counts twice. gamma = 0 is binary cross-entropy.

    With `gather`, every process scores its own images against the texts of all processes, as in [`contrastive_loss`].

    Args:
        image_embeds (`torch.Tensor` of shape `(num_pairs, projection_dim)`): L2-normalised image embeddings.
        text_embeds (`torch.Tensor` of shape `(num_pairs, projection_dim)`): Their texts' embeddings, normalised.
        logit_scale (`torch.Tensor` of shape `()`): Inverse temperature (the exponential of the learned parameter).
        logit_bias (`torch.Tensor` of shape `()`, *optional*): Added to every logit (SigLIP, arXiv 2303.15343); the paper
            has none.
        gamma (`float`): Focusing exponent. Not printed in the paper; 1.0 in the authors' RO-ViT code.
        gather (`bool`): Take negatives from all processes, with gradient. All must hold equally many pairs.

    Returns:
        `torch.Tensor` of shape `()`.

    Raises:
        ValueError: If the numbers of images and texts differ or are zero.
    """
    num_pairs = _check_pairs(image_embeds, text_embeds)
    image_embeds, text_embeds = image_embeds.float(), text_embeds.float()
    all_text_embeds, first_row = text_embeds, 0
    if gather and is_distributed():
        all_text_embeds = torch.cat(all_gather(text_embeds))
        first_row = dist.get_rank() * num_pairs
    with torch.autocast(image_embeds.device.type, enabled=False):  # which would multiply in half precision
        logits = logit_scale.float() * image_embeds @ all_text_embeds.T  # (num_pairs, pairs of all processes)
        if logit_bias is not None:
            logits = logits + logit_bias.float()
        # The sign makes every element a positive one: p = sigmoid(signed), 1 - p = sigmoid(-signed).
        rows = torch.arange(num_pairs, device=logits.device)
        sign = -torch.ones_like(logits)
        sign[rows, first_row + rows] = 1.0
        signed = sign * logits
        # (1 - p)^gamma through its logarithm: no power of zero, whose gradient is infinite for gamma < 1
        modulator = (gamma * nn.functional.logsigmoid(-signed)).exp()
        return -2 * (modulator * nn.functional.logsigmoid(signed)).sum() / num_pairs


def captioning_loss(
    hidden_states: torch.Tensor,
    labels: torch.Tensor,
    lm_head: Callable[[torch.Tensor], torch.Tensor],
    gather: bool = False,
    chunk_size: int = 1024,
) -> torch.Tensor:
    """Next-token cross-entropy, mean over the tokens of the whole batch (CoCa, arXiv 2205.01917, eq. 3).

    Vocabulary logits exist for one chunk of tokens at a time: of several, they are recomputed in the backward pass, so peak
    memory grows with `chunk_size x vocabulary`, not with `batch x length x vocabulary`.

    Args:
        hidden_states (`torch.Tensor` of shape `(batch_size, sequence_length, hidden_size)`): Decoder outputs.
        labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
            Token ids; position t is predicted from position t - 1. Targets of -100 are ignored.
        lm_head: Maps hidden states to vocabulary logits. Called as a module, so adapters on it take part.
        gather (`bool`): Divide by the mean token count of all processes, so that gradients averaged by DDP are those of
            the global batch even where captions differ in length.
        chunk_size (`int`): Tokens per chunk.

    Returns:
        `torch.Tensor` of shape `()`; zero if no token is supervised.
    """
    if labels.shape != hidden_states.shape[:2]:
        raise ValueError(
            "`labels` must have one entry per token: expected shape "
            f"{tuple(hidden_states.shape[:2])}, got {tuple(labels.shape)}."
        )
    states = hidden_states[:, :-1].flatten(0, 1)  # (tokens, hidden_size)
    targets = labels[:, 1:].flatten().to(states.device)
    if not torch.compiler.is_compiling():  # padding and questions cost no logits; their number would break a graph
        supervised = targets != -100
        states, targets = states[supervised], targets[supervised]

    def chunk_loss(chunk_states: torch.Tensor, chunk_targets: torch.Tensor) -> torch.Tensor:
        logits = lm_head(chunk_states).float()
        return nn.functional.cross_entropy(logits, chunk_targets, ignore_index=-100, reduction="sum")

    total = states.new_zeros((), dtype=torch.float32)
    for chunk_states, chunk_targets in zip(states.split(chunk_size), targets.split(chunk_size), strict=True):
        if torch.is_grad_enabled() and len(states) > chunk_size:  # a single chunk may as well keep its logits
            total = total + checkpoint(chunk_loss, chunk_states, chunk_targets, use_reentrant=False)
        else:
            total = total + chunk_loss(chunk_states, chunk_targets)

    num_tokens = (targets != -100).sum().float()
    if gather and is_distributed():
        dist.all_reduce(num_tokens)
        num_tokens = num_tokens / dist.get_world_size()
    return total / num_tokens.clamp(min=1e-6)


__all__ = ["captioning_loss", "contrastive_loss", "focal_contrastive_loss", "is_distributed"]
