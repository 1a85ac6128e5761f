"""How scripts describe their arguments, as fields of dataclasses that `HfArgumentParser` reads."""

from typing import Any

from transformers.hf_argparser import HfArg


argument: Any = (
    HfArg  # `argument(default=1, help="...")`; untyped, so that checkers take it as the default of any field
)

__all__ = ["argument"]
