"""What of a pretrained captioner is trained on, and how fast."""

from torch import nn
from transformers import PreTrainedModel


# Sides of a captioner as stacks of layers, from the input on; a later stack goes on where the one before ends
_STACKS = (("vision_model",), ("text_model", "multimodal_decoder"))


def lock_image_tower(model: PreTrainedModel, num_trained_layers: int = 0) -> None:
    """Freeze the image tower, poolers included, so that texts learn to fit it (LiT, Zhai et al. 2022, arXiv 2111.07991).

    Its projections to the joint space and to the decoder are trained.

    Args:
        model (`PreTrainedModel`): A captioner; changed in place.
        num_trained_layers (`int`): Last layers of the tower that are trained all the same, with all that follows them.

    Raises:
        ValueError: If the tower has fewer layers.
    """
    tower = model.model.vision_model
    num_layers = len(tower.layers)
    if num_trained_layers > num_layers:
        raise ValueError(f"`unlock_layers` is {num_trained_layers}, but the image tower has {num_layers} layers.")
    if num_trained_layers == 0:
        tower.requires_grad_(False)
        return
    for part in (tower.embeddings, tower.pre_layernorm, *tower.layers[: num_layers - num_trained_layers]):
        if part is not None:
            part.requires_grad_(False)


def layer_rates(model: nn.Module, learning_rate: float, decay: float | None) -> dict[str, float]:
    """Lower learning rates for layers near the input: `learning_rate * decay ** (number of layers behind it)` (BEiT, arXiv 2106.08254).

    Embeddings count as the layer before the first. What follows the layers (poolers, projections, heads, final norms) keeps the full rate.

    Args:
        model (`nn.Module`): A captioner.
        learning_rate (`float`): Of what is not slowed down.
        decay (`float`, *optional*): From one layer to the one before. `None`: no layer has a rate of its own.

    Returns:
        `dict[str, float]`: Rates by prefix of parameters, for [`weight_decay_groups`]. A vocabulary head tied to the embeddings has theirs.
    """
    if decay is None:
        return {}
    parts = {name: part for name, part in model.named_modules() if name.rpartition(".")[2] in sum(_STACKS, ())}
    rates = {}
    for stack in _STACKS:
        names = [name for each in stack for name in parts if name.rpartition(".")[2] == each]
        layers = [f"{name}.layers.{index}." for name in names for index in range(len(parts[name].layers))]
        for behind, prefix in enumerate(reversed(layers)):
            rates[prefix] = learning_rate * decay**behind
        for name in names:  # a cross-attention layer of MaMMUT belongs to the layer that it follows
            crossed = getattr(parts[name].config, "cross_attn_layers", ())
            for index, layer in enumerate(crossed):
                rates[f"{name}.cross_layers.{index}."] = rates[f"{name}.layers.{layer}."]
        first = learning_rate * decay ** len(layers)
        for embeddings in ("embeddings", "embed_tokens", "position_embedding", "pre_layernorm", "cls_token"):
            rates[f"{names[0]}.{embeddings}"] = first
    return rates


__all__ = ["layer_rates", "lock_image_tower"]
