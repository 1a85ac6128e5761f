"""How a script trains: the arguments of all of them."""

from dataclasses import dataclass
from typing import Literal

from triptych.arguments import argument
from triptych.modeling.configuration_base import check_positive


@dataclass
class RunArguments:
    """How a script trains; scripts set defaults of their own."""

    output_dir: str = argument(help="Where the finished repository and the checkpoints go.")
    num_epochs: float = argument(default=1.0, help="Passes over the training split.")
    max_steps: int | None = argument(default=None, help="Optimiser steps, instead of `num_epochs`.")
    batch_size: int = argument(default=32, help="Rows per process and step.")
    gradient_accumulation_steps: int = argument(
        default=1, help="Batches per optimiser step. Negatives come from one batch, not from all of them."
    )
    micro_batch_size: int | None = argument(
        default=None,
        help="Rows of a batch that pass through the model at a time; the contrastive loss compares all `batch_size` of them (gradient "
        "caching), for one more forward pass of the towers.",
    )
    learning_rate: float = argument(default=5e-4, help="Peak learning rate.")
    lr_scheduler_type: Literal["cosine", "linear", "constant_with_warmup"] = argument(
        default="cosine", help="How the learning rate goes on behind the warm-up."
    )
    warmup_ratio: float = argument(default=0.05, help="Share of the steps with a rising learning rate.")
    weight_decay: float = argument(default=0.1, help="Decay of matrices; nothing else decays.")
    adam_beta2: float = argument(default=0.98, help="Second moment decay of AdamW.")
    max_grad_norm: float = argument(default=1.0, help="Gradients are clipped to this norm.")
    ema_decay: float | None = argument(default=None, help="Average the weights with this decay, and keep the average.")
    gradient_checkpointing: bool = argument(default=False, help="Trade time for memory.")
    compile: bool = argument(
        default=False, help="Compile the layers (torch.compile): minutes at the first start, then faster steps."
    )
    attn_implementation: str | None = argument(
        default=None, help="sdpa, eager, ... Default: sdpa; eager on a CPU, faster there on short inputs."
    )
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = argument(
        default="auto", help="auto: bf16 where the hardware multiplies it natively."
    )
    eval_epochs: float = argument(
        default=1.0, help="Epochs between evaluations; 0.25: four in every epoch; 0: only at the end."
    )
    eval_steps: int | None = argument(
        default=None, help="Optimiser steps between evaluations, instead of eval_epochs."
    )
    metric_for_best_model: str | None = argument(
        default=None,
        help="Keep the weights of the evaluation with the best of this number, e.g. coca_loss, instead of the last ones. Of losses, "
        "perplexity and ranks the lowest is best, of others the highest.",
    )
    eval_tasks: str | None = argument(
        default=None,
        help="YAML file of benchmarks that every evaluation does beside the held-out numbers: `icons: {task: classification, dataset: "
        "data/icons, limit: 500}`; see docs/evaluation.md.",
    )
    eval_batch_size: int = argument(default=64, help="Rows evaluated at a time.")
    checkpoint_steps: int = argument(default=500, help="Optimiser steps between checkpoints; 0: none.")
    num_checkpoints: int = argument(default=1, help="Checkpoints to keep.")
    resume: Literal[False, True, "auto"] = argument(
        default=False,
        metadata={"nargs": "?", "const": True},
        help="Go on from the last checkpoint in output_dir, exactly. auto: if there is one, else from the beginning.",
    )
    num_workers: int = argument(default=1, help="Processes that read and prepare rows.")
    report_to: str = argument(default="none", help="Tracker: tensorboard, wandb, trackio, ... or none.")
    hub_model_id: str | None = argument(
        default=None, help="Publish the finished repository under this name, owner/name."
    )
    hub_private: bool = argument(default=False, help="Create that repository as a private one.")
    seed: int = argument(default=0, help="Seed of weights, order and augmentation.")

    def __post_init__(self) -> None:
        for name in ("num_epochs", "batch_size", "gradient_accumulation_steps", "eval_batch_size", "num_checkpoints"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}.")
        check_positive(self, "max_steps", "micro_batch_size", "eval_steps")
        if self.micro_batch_size is not None:
            if self.batch_size % self.micro_batch_size:
                raise ValueError(
                    f"`batch_size` {self.batch_size} must be a multiple of `micro_batch_size` {self.micro_batch_size}."
                )
            if self.gradient_accumulation_steps > 1:
                raise ValueError(
                    "`gradient_accumulation_steps` and `micro_batch_size` both divide a step; pass one of them."
                )
        if self.metric_for_best_model is not None and not self.eval_epochs and self.eval_steps is None:
            raise ValueError("`metric_for_best_model` needs evaluations to choose from: `eval_epochs` is 0.")
        if self.hub_private and self.hub_model_id is None:
            raise ValueError("`hub_private` needs `hub_model_id`: nothing is published without it.")


__all__ = ["RunArguments"]
