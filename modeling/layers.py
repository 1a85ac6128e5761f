"""Transformer parts shared by the models of this package.

Every part reads its sizes from a config with transformers' usual field names (`hidden_size`, `num_attention_heads`,
`intermediate_size`, ...) plus `norm_type`, `norm_eps`, `mlp_type`, `mlp_bias` and `attention_bias`.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .inputs import refuse_unknown


def build_norm(config, hidden_size: int | None = None) -> nn.Module:
    """RMSNorm or LayerNorm over the last dimension, as `config.norm_type` says. Both compute statistics in fp32."""
    norm_class = nn.RMSNorm if config.norm_type == "rmsnorm" else nn.LayerNorm
    return norm_class(hidden_size or config.hidden_size, eps=config.norm_eps)


def learned_scalar(value: float) -> nn.Parameter:
    """In fp32, whatever the model's precision; of shape `(1,)`, because FSDP2 refuses parameters without a dimension."""
    return nn.Parameter(torch.tensor([value], dtype=torch.float32))


def recomputed(project: Callable[..., torch.Tensor], *inner: torch.Tensor) -> torch.Tensor:
    """A projection of an activation, of which the backward pass makes the activation again instead of keeping it.

    Activations are as wide as what they are made from and cost little, so a step needs a quarter less memory.

    Args:
        project (`Callable`): From the tensors to their activation and on to the output; without randomness.
        inner (`torch.Tensor`): What the activation is made from.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():  # a compiler decides by itself what to keep
        return project(*inner)
    return checkpoint(project, *inner, use_reentrant=False, preserve_rng_state=False)


def product_dtype(tensor: torch.Tensor) -> torch.dtype:
    """The type in which linear layers multiply it: that of autocast, or its own."""
    device = tensor.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(
        device
    ):  # "meta" knows no autocast
        return tensor.dtype
    return torch.get_autocast_dtype(device)


def autocast_once(states: torch.Tensor) -> torch.Tensor:
    """Under autocast in its precision, for what several linear layers read: autocast would make, and keep, a copy for each."""
    return states.to(product_dtype(states))


class PlainFeedForward(nn.Module):
    """Linear, GELU (exact, or OpenAI's approximation "quick_gelu"), linear: the feed-forward layer of the original ViT and CoCa."""

    tp_plan = {"fc1": "colwise", "fc2": "rowwise"}  # noqa: RUF012

    def __init__(self, config):
        super().__init__()
        self.activation = ACT2FN[config.mlp_type]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return recomputed(lambda inner: self.fc2(self.activation(inner)), self.fc1(hidden_states))


class GatedFeedForward(nn.Module):
    """GEGLU (Shazeer 2020, arXiv 2002.05202, eq. 6): down(GELU(gate(x)) * up(x)), with exact GELU."""

    tp_plan = {"gate_proj": "colwise", "up_proj": "colwise", "down_proj": "rowwise"}  # noqa: RUF012

    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = autocast_once(hidden_states)
        gate, up = self.gate_proj(hidden_states), self.up_proj(hidden_states)
        return recomputed(lambda gate, up: self.down_proj(nn.functional.gelu(gate) * up), gate, up)


def build_feed_forward(config) -> nn.Module:
    """The feed-forward layer that `config.mlp_type` names."""
    return GatedFeedForward(config) if config.mlp_type == "geglu" else PlainFeedForward(config)


class PatchEmbeddings(nn.Module):
    """Patches of images, and the class token that a tower may have; where they stand is said by the tower."""

    position_embedding: nn.Embedding | None

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.grid_size = config.image_size // config.patch_size
        self.patch_embedding = nn.Conv2d(
            config.num_channels,
            config.hidden_size,
            kernel_size=config.patch_size,
            stride=config.patch_size,
            bias=config.patch_bias,
        )
        self.class_embedding = nn.Parameter(torch.empty(config.hidden_size)) if config.use_cls_token else None

    def embed_patches(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, int, int]:
        """Patches `(images, rows * columns, hidden_size)` of `(images, channels, height, width)`, and their rows and columns."""
        dtype = self.patch_embedding.weight.dtype
        patches = self.patch_embedding(pixel_values.to(dtype))  # (images, hidden, rows, columns)
        # Under autocast the convolution answers in half precision; the residual stream stays in the weights' precision.
        return patches.flatten(2).transpose(1, 2).to(dtype), *patches.shape[-2:]

    def resize_positions(self, image_size: int) -> None:
        """Expect images of another size from now on; a learned table of positions is resized.

        Raises:
            ValueError: If they are no whole number of patches.
        """
        patch_size = self.config.patch_size
        if image_size % patch_size:
            raise ValueError(f"`image_size` must be a multiple of `patch_size`, got {image_size} and {patch_size}.")
        grid_size = image_size // patch_size
        if self.position_embedding is not None:
            table = resize_position_table(self.position_embedding.weight, self.grid_size, grid_size, grid_size)
            resize_embedding(self.position_embedding, table)
        self.config.image_size, self.grid_size = image_size, grid_size


def first_rows(table: torch.Tensor, num_rows: int, std: float) -> torch.Tensor:
    """So many rows of a table; those that it does not have are fresh, of this standard deviation."""
    fresh = torch.empty(max(0, num_rows - len(table)), table.shape[1], dtype=table.dtype, device=table.device)
    return torch.cat([table[:num_rows], fresh.normal_(std=std)])


def resize_embedding(embedding: nn.Embedding, rows: torch.Tensor) -> None:
    """Give a table of embeddings other rows, and as many of them as come."""
    embedding.weight = nn.Parameter(rows.detach().clone(), requires_grad=embedding.weight.requires_grad)
    embedding.num_embeddings = len(rows)


def resize_position_table(table: torch.Tensor, grid_size: int, height: int, width: int) -> torch.Tensor:
    """A learned table of patch positions, resized (bicubic, antialiased, in fp32) to another grid.

    Args:
        table (`torch.Tensor` of shape `(num_special + grid_size ** 2, hidden_size)`):
            Positions row by row, behind those of special tokens, which are kept.
        grid_size (`int`): Height and width of the learned grid, in patches.
        height, width (`int`): Of the wanted grid, in patches.

    Returns:
        `torch.Tensor` of shape `(num_special + height * width, hidden_size)`.
    """
    if (height, width) == (grid_size, grid_size):
        return table
    special, grid = table[: -(grid_size**2)], table[-(grid_size**2) :]
    grid = grid.T.reshape(1, -1, grid_size, grid_size).float()
    grid = nn.functional.interpolate(grid, size=(height, width), mode="bicubic", antialias=True)
    return torch.cat([special, grid[0].flatten(1).T.to(table.dtype)])


def kept_patches(hidden_states: torch.Tensor, share: float, num_special: int) -> torch.Tensor:
    """Which tokens of every image stay when patches are dropped at random (FLIP, Li et al. 2023, arXiv 2212.00794, section 3).

    Args:
        hidden_states (`torch.Tensor` of shape `(batch_size, num_special + patches, hidden_size)`): Tokens, special ones in front.
        share (`float`): Of the patches that go; at least one stays.
        num_special (`int`): Tokens that all stay.

    Returns:
        `torch.LongTensor` of shape `(batch_size, num_special + kept patches)`, in the order of the tokens.
    """
    batch_size, num_tokens = hidden_states.shape[:2]
    num_patches = num_tokens - num_special
    noise = torch.rand(batch_size, num_patches, device=hidden_states.device)
    kept = noise.topk(max(1, round((1 - share) * num_patches)), dim=1).indices.sort(dim=1).values + num_special
    special = torch.arange(num_special, device=kept.device).expand(batch_size, -1)
    return torch.cat([special, kept], dim=1)


def slice_logits_to_keep(hidden_states: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
    """The positions that get logits, as `logits_to_keep` of transformers' `forward` methods chooses them.

    Args:
        hidden_states (`torch.Tensor` of shape `(batch_size, sequence_length, hidden_size)`): Of all positions.
        logits_to_keep (`int` or `torch.Tensor`):
            The last so many positions, 0 for all; or indices, of shape `(positions,)` or `(batch_size, positions)`; or a
            boolean mask of shape `(batch_size, sequence_length)`.

    Returns:
        `torch.Tensor` of shape `(batch_size, positions, hidden_size)`; for a mask `(positions, hidden_size)`.
    """
    if isinstance(logits_to_keep, int):
        return hidden_states[:, -logits_to_keep:]
    if logits_to_keep.ndim == 1:
        return hidden_states[:, logits_to_keep]
    if logits_to_keep.dtype == torch.bool:
        return hidden_states[logits_to_keep]
    return hidden_states.take_along_dim(logits_to_keep[..., None], dim=1)


def rotary_angles(position_ids: torch.Tensor, dim: int, theta: float) -> torch.Tensor:
    """Angles of one-dimensional RoPE (Su et al. 2021, arXiv 2104.09864, eq. 15).

    Args:
        position_ids (`torch.Tensor` of shape `(batch_size, sequence_length)`): Positions, in tokens.
        dim (`int`): Channels to rotate; even.
        theta (`float`): Base of the frequencies.

    Returns:
        `torch.Tensor` of shape `(batch_size, sequence_length, dim / 2)`, fp32, in radians.
    """
    exponents = torch.arange(0, dim, 2, dtype=torch.float32, device=position_ids.device) / dim
    return position_ids[..., None].float() * theta**-exponents


def rotary_embedding(position_ids: torch.Tensor, head_dim: int, theta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines for [`apply_rotary`].

    Args:
        position_ids (`torch.Tensor` of shape `(batch_size, sequence_length)` or `(batch_size, sequence_length, axes)`):
            Positions. With several axes (axial RoPE) each axis rotates an equal share of the channels.
        head_dim (`int`): Channels of one attention head.
        theta (`float`): Base of the frequencies.

    Returns:
        Two fp32 tensors of shape `(batch_size, 1, sequence_length, head_dim / 2)`.
    """
    if position_ids.ndim == 2:
        position_ids = position_ids[..., None]
    num_axes = position_ids.shape[-1]
    angles = torch.cat([rotary_angles(axis, head_dim // num_axes, theta) for axis in position_ids.unbind(-1)], dim=-1)
    angles = angles[:, None]
    return angles.cos(), angles.sin()


def apply_rotary(states: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotate channel i with channel i + head_dim / 2 (the "half" pairing of transformers), in fp32.

    Args:
        states (`torch.Tensor` of shape `(batch_size, num_heads, sequence_length, head_dim)`): Queries or keys.
        rotary: Cosines and sines from [`rotary_embedding`].
    """
    cos, sin = rotary
    first, second = states.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(states.dtype)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain attention with fp32 softmax; the only implementation that returns its weights."""
    scores = torch.matmul(query, key.transpose(-1, -2)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class Attention(nn.Module):
    """Multi-head self- or cross-attention through transformers' attention interface.

    Keys and values come from `key_value_states` if these are given (cross-attention) and from `hidden_states` otherwise.
    Of these there may be fewer than texts, if every one is that of equally many texts in a row.

    The cache is called `layer_past`: the one name that every version of transformers takes away from a layer whose
    activations are checkpointed, where it would be written twice.

    Args:
        config: Config of the owning model; names the attention implementation.
        is_causal (`bool`): Whether a query may see later keys when no mask is given. Never true for cross-attention.
        layer_idx (`int`, *optional*):
            Index in the cache: dense from 0 over self-attention layers, and separately over cross-attention layers.
        hidden_size, num_heads, key_value_size (`int`, *optional*):
            Width of queries and output, number of heads, width of the key/value input. Default: the config's width.
    """

    tp_plan = {"q_proj": "colwise", "k_proj": "colwise", "v_proj": "colwise", "out_proj": "rowwise"}  # noqa: RUF012

    def __init__(
        self,
        config,
        is_causal: bool = False,
        layer_idx: int | None = None,
        hidden_size: int | None = None,
        num_heads: int | None = None,
        key_value_size: int | None = None,
    ):
        super().__init__()
        hidden_size = hidden_size or config.hidden_size
        key_value_size = key_value_size or hidden_size
        self.config = config
        self.is_causal = is_causal
        self.layer_idx = layer_idx
        self.head_dim = hidden_size // (num_heads or config.num_attention_heads)
        self.scaling = self.head_dim**-0.5
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=config.attention_bias)
        self.k_proj = nn.Linear(key_value_size, hidden_size, bias=config.attention_bias)
        self.v_proj = nn.Linear(key_value_size, hidden_size, bias=config.attention_bias)
        self.out_proj = nn.Linear(hidden_size, hidden_size, bias=config.attention_bias)

    def _split_heads(self, states: torch.Tensor) -> torch.Tensor:
        if states.shape[-1] % self.head_dim:
            raise ValueError(
                "Tensor parallelism shares whole heads: the number of heads must be a multiple of `tp_size`, got "
                f"{self.q_proj.out_features // self.head_dim}."
            )
        return states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (batch, heads, length, head_dim)

    def _self_attention_states(
        self, hidden_states: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor] | None, layer_past: Cache | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        plain_states = rotated_states = autocast_once(hidden_states)
        if rotary is not None and self.config.rope_placement == "pre_proj":
            rotated_states = apply_rotary(self._split_heads(hidden_states), rotary).transpose(1, 2).flatten(2)
            rotated_states = autocast_once(rotated_states)
        query = self._split_heads(self.q_proj(rotated_states))
        key = self._split_heads(self.k_proj(rotated_states))
        value = self._split_heads(self.v_proj(plain_states))
        if rotary is not None and self.config.rope_placement == "post_proj":
            query, key = apply_rotary(query, rotary), apply_rotary(key, rotary)
        if layer_past is not None:
            if isinstance(layer_past, EncoderDecoderCache):
                layer_past = layer_past.self_attention_cache
            key, value = layer_past.update(key, value, self.layer_idx)
        return query, key, value

    def _cross_attention_states(
        self, hidden_states: torch.Tensor, key_value_states: torch.Tensor, layer_past: EncoderDecoderCache | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        query = self._split_heads(self.q_proj(hidden_states))
        if layer_past is not None and layer_past.is_updated.get(self.layer_idx):
            cached = layer_past.cross_attention_cache.layers[self.layer_idx]
            return query, cached.keys, cached.values
        key_value_states = autocast_once(key_value_states)
        key = self._split_heads(self.k_proj(key_value_states))
        value = self._split_heads(self.v_proj(key_value_states))
        if layer_past is not None:
            key, value = layer_past.cross_attention_cache.update(key, value, self.layer_idx)
            layer_past.is_updated[self.layer_idx] = True
        return query, key, value

    def forward(
        self,
        hidden_states: torch.Tensor,
        key_value_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary: tuple[torch.Tensor, torch.Tensor] | None = None,
        layer_past: Cache | None = None,
        is_cross_attention: bool = False,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        refuse_unknown(kwargs)  # here they come to their end, through whatever entrance
        if is_cross_attention:
            query, key, value = self._cross_attention_states(hidden_states, key_value_states, layer_past)
        else:
            query, key, value = self._self_attention_states(hidden_states, rotary, layer_past)
        num_texts, _, length, _ = query.shape
        shares_images = is_cross_attention and num_texts != key.shape[0]
        if shares_images:  # the texts of an image ask as one long text: (images, heads, texts * length, head_dim)
            query = query.unflatten(0, (key.shape[0], -1)).transpose(1, 2).flatten(2, 3)

        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attention_interface(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.scaling,
            dropout=self.config.attention_dropout if self.training else 0.0,
            **kwargs,
        )
        if shares_images:
            output = output.reshape(num_texts, length, *output.shape[2:])
            weights = weights if weights is None else weights.unflatten(2, (-1, length)).transpose(1, 2).flatten(0, 1)
        return self.out_proj(output.flatten(2)), weights  # (batch, length, heads, head_dim) -> (batch, length, width)


class SelfAttentionBlock(GradientCheckpointingLayer):
    """Pre-norm self-attention, then (unless `has_mlp` is false) a pre-norm feed-forward layer."""

    def __init__(self, config, is_causal: bool = False, layer_idx: int | None = None, has_mlp: bool = True):
        super().__init__()
        self.layer_norm1 = build_norm(config)
        self.self_attn = Attention(config, is_causal=is_causal, layer_idx=layer_idx)
        self.layer_norm2 = build_norm(config) if has_mlp else None
        self.mlp = build_feed_forward(config) if has_mlp else None
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        rotary: tuple[torch.Tensor, torch.Tensor] | None = None,
        layer_past: Cache | None = None,
        **kwargs,
    ) -> torch.Tensor:
        attended, _ = self.self_attn(
            self.layer_norm1(hidden_states),
            attention_mask=attention_mask,
            rotary=rotary,
            layer_past=layer_past,
            **kwargs,
        )
        hidden_states = hidden_states + self.dropout(attended)
        if self.mlp is not None:
            hidden_states = hidden_states + self.dropout(self.mlp(self.layer_norm2(hidden_states)))
        return hidden_states


class CrossAttentionBlock(GradientCheckpointingLayer):
    """Pre-norm cross-attention to a memory, then a pre-norm feed-forward layer.

    Args:
        config: Config of the owning model.
        layer_idx (`int`): Index of this layer in the cross-attention cache.
        norm_memory (`bool`): Whether this layer normalises the memory itself (open_clip's layout).
    """

    def __init__(self, config, layer_idx: int, norm_memory: bool = False):
        super().__init__()
        self.layer_norm1 = build_norm(config)
        self.layer_norm_kv = build_norm(config) if norm_memory else None
        self.cross_attn = Attention(config, layer_idx=layer_idx)
        self.layer_norm2 = build_norm(config)
        self.mlp = build_feed_forward(config)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None,
        layer_past: EncoderDecoderCache | None = None,
        **kwargs,
    ) -> torch.Tensor:
        if self.layer_norm_kv is not None and encoder_hidden_states is not None:
            encoder_hidden_states = self.layer_norm_kv(encoder_hidden_states)
        attended, _ = self.cross_attn(
            self.layer_norm1(hidden_states),
            key_value_states=encoder_hidden_states,
            layer_past=layer_past,
            is_cross_attention=True,
            **kwargs,
        )
        hidden_states = hidden_states + self.dropout(attended)
        return hidden_states + self.dropout(self.mlp(self.layer_norm2(hidden_states)))


__all__ = [
    "Attention",
    "CrossAttentionBlock",
    "GatedFeedForward",
    "PatchEmbeddings",
    "PlainFeedForward",
    "SelfAttentionBlock",
    "apply_rotary",
    "build_feed_forward",
    "build_norm",
    "eager_attention_forward",
    "first_rows",
    "kept_patches",
    "learned_scalar",
    "product_dtype",
    "resize_embedding",
    "resize_position_table",
    "rotary_embedding",
    "slice_logits_to_keep",
]
