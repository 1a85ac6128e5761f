"""Adapters of PEFT around a model."""

from dataclasses import dataclass
from typing import Any, Literal

from peft import IA3Config, LoraConfig, PeftConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import PreTrainedModel

from triptych.arguments import argument


@dataclass
class AdapterArguments:
    """What is added to a model."""

    method: Literal["lora", "dora", "ia3"] = argument(default="lora", help="Kind of adapter.")
    rank: int = argument(default=16, help="Rank of LoRA and DoRA.")
    alpha: int | None = argument(default=None, help="Scale of LoRA and DoRA. Default: twice the rank.")
    dropout: float = argument(default=0.0, help="Dropout of LoRA and DoRA.")
    target_modules: str = argument(
        default="all-linear", help="'all-linear', or the ends of module names, with commas between them."
    )
    load_in: Literal["4bit", "8bit"] | None = argument(default=None, help="Quantise the base with bitsandbytes (GPU).")
    base_model_id: str | None = argument(
        default=None, help="The base's name on the Hub, if `model_name_or_path` is a folder."
    )

    def __post_init__(self) -> None:
        if self.method == "ia3" and (self.rank, self.alpha, self.dropout) != (16, None, 0.0):
            raise ValueError("`rank`, `alpha` and `dropout` belong to LoRA and DoRA, `method` is 'ia3'.")


def add_adapter(model: PreTrainedModel, args: AdapterArguments) -> PeftModel:
    """The model with an adapter, which alone is trained."""
    if args.load_in is not None:
        model = prepare_model_for_kbit_training(model)
    targets = args.target_modules
    shared: dict[str, Any] = {
        "target_modules": targets if targets == "all-linear" else targets.split(","),
        # VW-LMM's VM head takes no part in the language loss.
        "exclude_modules": ["vm_head"] if model.config.model_type == "vw_lmm" else None,
    }
    config: PeftConfig
    if args.method == "ia3":
        config = IA3Config(feedforward_modules=[], **shared)
    else:
        config = LoraConfig(
            r=args.rank,
            lora_alpha=args.alpha or 2 * args.rank,
            lora_dropout=args.dropout,
            use_dora=args.method == "dora",
            **shared,
        )
    adapted = get_peft_model(model, config)
    adapted.print_trainable_parameters()
    return adapted


__all__ = ["AdapterArguments", "add_adapter"]
