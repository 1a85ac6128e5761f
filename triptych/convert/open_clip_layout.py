"""What all of open_clip's checkpoints share: names inside a transformer block, fused projections, matrices stored (in, out)."""

import re
from dataclasses import dataclass

import torch


_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_1_kv": "layer_norm_kv",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "{attention}.out_proj",
    "attn.in_proj_weight": "{attention}.{qkv}_proj.weight",
    "attn.in_proj_bias": "{attention}.{qkv}_proj.bias",
}


@dataclass(frozen=True)
class OpenClipLayout:
    """How the parameters of one open_clip model are called here.

    Args:
        name (`str`): Of the model, for messages.
        exact (`dict`): Their name to ours; `{qkv}` stands for q, k, v where one tensor holds the three.
        prefixes (`dict`): Beginnings of names to ours.
        blocks (`list`): Regex of a block's prefix with one group, its index; our prefix; our name of its attention.
        transposed (`set`): Stored as (in, out). Some are square, so a forgotten transpose raises no error.
    """

    name: str
    exact: dict[str, str]
    prefixes: dict[str, str]
    blocks: list[tuple[str, str, str]]
    transposed: set[str]

    def rename_key(self, key: str) -> str:
        """Our name of a parameter.

        Raises:
            ValueError: If the parameter belongs to no such model.
        """
        if key in self.exact:
            return self.exact[key]
        for prefix, target in self.prefixes.items():
            if key.startswith(prefix):
                return target + key.removeprefix(prefix)
        for pattern, target, attention in self.blocks:
            if match := re.match(pattern, key):
                rest = key[match.end() :]
                for suffix, renamed in _BLOCK.items():
                    if rest == suffix or rest.startswith(f"{suffix}."):
                        name = target.format(match[1]) + renamed + rest.removeprefix(suffix)
                        return name.replace("{attention}", attention)
        raise ValueError(f"{key!r} is not a parameter of {self.name}.")

    def convert_state_dict(self, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Translate names, split fused projections, transpose what is stored (in, out).

        Raises:
            ValueError: If a parameter belongs to no such model.
        """
        converted = {}
        for key, tensor in state_dict.items():
            key = key.removeprefix("module.")
            name = self.rename_key(key)
            if key in self.transposed:
                tensor = tensor.T.contiguous()
            if "{qkv}" in name:
                for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                    converted[name.replace("{qkv}", letter)] = part.clone()
            else:
                converted[name] = tensor.reshape(()) if key in ("logit_scale", "logit_bias") else tensor
        return converted


__all__ = ["OpenClipLayout"]
