"""What all of open_clip's checkpoints share: names inside a transformer block, fused projections, matrices stored (in, out)."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from triptych.convert.origin import Origin


# Ours to theirs, inside a block.
_BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm_kv": "ln_1_kv",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "{attention}.out_proj": "attn.out_proj",
}


@dataclass(frozen=True)
class OpenClipLayout:
    """Where the parameters of one of our models stand in an open_clip model.

    Args:
        exact (`dict`): Our name to theirs.
        fused (`dict`): Our name with `{qkv}` for q, k and v to theirs, one tensor that holds the three.
        prefixes (`dict`): Beginnings of our names to theirs.
        blocks (`list`): Our prefix of a block, with `{}` for its index; theirs; our name of its attention.
        transposed (`set`): Their names of what is stored as (in, out). Some are square, so a forgotten transpose raises no error.
        ignored (`set`): Their names of what is nowhere used.
    """

    exact: dict[str, str]
    prefixes: dict[str, str]
    blocks: list[tuple[str, str, str]]
    transposed: set[str]
    fused: dict[str, str] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()

    def origin_of(self, name: str) -> Origin:
        """Origin of one of our parameters.

        Raises:
            ValueError: If open_clip has no such parameter.
        """
        if name in self.exact:
            key = self.exact[name]
            return Origin(key, is_transposed=key in self.transposed, is_scalar=key.startswith("logit_"))
        for ours, theirs in self.fused.items():
            for part, letter in enumerate("qkv"):
                if name == ours.format(qkv=letter):
                    return Origin(theirs, part, 3)
        for ours, theirs in self.prefixes.items():
            if name.startswith(ours):
                return Origin(theirs + name.removeprefix(ours))
        for ours, theirs, attention in self.blocks:
            if match := re.match(re.escape(ours).replace(r"\{\}", r"(\d+)"), name):
                origin = _origin_in_block(name[match.end() :], theirs.format(match[1]), attention)
                if origin is not None:
                    return origin
        raise ValueError(f"`{name}` stands nowhere in open_clip's layout.")

    def origins(self, names: Iterable[str]) -> dict[str, Origin]:
        """Origins of all parameters of a model of ours."""
        return {name: self.origin_of(name) for name in names}


def _origin_in_block(rest: str, prefix: str, attention: str) -> Origin | None:
    if match := re.fullmatch(rf"{attention}\.([qkv])_proj\.(weight|bias)", rest):
        return Origin(f"{prefix}attn.in_proj_{match[2]}", "qkv".index(match[1]), 3)
    for ours, theirs in _BLOCK.items():
        start = f"{ours.format(attention=attention)}."
        if rest.startswith(start):
            return Origin(f"{prefix}{theirs}.{rest.removeprefix(start)}")
    return None


__all__ = ["OpenClipLayout"]
