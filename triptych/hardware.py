"""What this machine multiplies fast: the precision to train in, and the form of a model that answers soonest."""

import torch
from torch import nn


def best_precision() -> str:
    """`"bf16"` where the hardware multiplies it natively, else `"no"` (fp32)."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    if torch.backends.mps.is_available():
        return "no"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "no"


class PackedLinear(nn.Module):
    """A linear layer whose weight is packed for oneDNN.

    torch multiplies fp32 on a CPU by MKL, which on AMD's processors does without AVX-512 and is slow with the few rows of a step of
    decoding. oneDNN, which torch brings too, is a multiple faster there; docs/benchmarks.md has the ratios.

    Args:
        linear (`nn.Linear`): On a CPU, in fp32 or bf16.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        # Opaque: neither a parameter nor a buffer, which somebody would move or save.
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # What torch's own compiler makes of a linear layer; the last three say that no function follows.
        return torch.ops.mkldnn._linear_pointwise(hidden_states, self.packed, self.bias, "none", [], "")


@torch.no_grad()
def pack_linear_layers(model: nn.Module) -> nn.Module:
    """Pack all linear layers of a model for inference on this CPU, in place; its outputs stay equal up to rounding.

    The model has no gradients afterwards and cannot be saved or moved: load it anew for that. A head that is tied to the embeddings
    becomes a copy; of all other weights only the packed form stays. Layers of another kind (quantised ones, adapters) stay as they are.

    Args:
        model (`nn.Module`): On a CPU, in fp32 or bf16.

    Returns:
        `nn.Module`: The same model.

    Raises:
        ValueError: If linear layers are on another device or of another type.
    """
    layers = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and type(child.weight.data) is torch.Tensor
    ]
    for _, _, layer in layers:
        weight = layer.weight
        if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(
                f"`model` must be on a CPU, in float32 or bfloat16, got {weight.dtype} on {weight.device}."
            )
    if torch.backends.mkldnn.is_available():
        for parent, name, layer in layers:
            setattr(parent, name, PackedLinear(layer))
    return model.eval()


def default_device() -> str:
    """Where models answer: the GPU, if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def prepare_for_inference(model: nn.Module) -> nn.Module:
    """A loaded model on the GPU, if there is one; else on the CPU, in a type that it multiplies natively, with packed layers.

    Args:
        model (`PreTrainedModel`): Which from now on only answers; see [`pack_linear_layers`].
    """
    if default_device() == "cuda":
        return model.to("cuda").eval()
    if model.dtype == torch.float16 or (model.dtype == torch.bfloat16 and best_precision() == "no"):
        model = model.float()
    return pack_linear_layers(model)


__all__ = ["PackedLinear", "best_precision", "default_device", "pack_linear_layers", "prepare_for_inference"]
