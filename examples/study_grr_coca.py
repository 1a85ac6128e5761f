"""Does GRR-CoCa beat its Baseline? Pretrain both on drawings, fine-tune on three other sets, with seeds; take the encoder apart.

    python examples/study_grr_coca.py --output_dir outputs/study
    python examples/study_grr_coca.py --output_dir outputs/study --parts main --seeds 0 1 2
    python examples/study_grr_coca.py --output_dir outputs/study-base --size base --num_parallel 1 --batch_size 256

Hours on two cores; the same command goes on after a stop. Every run is one of examples/pretrain.py and leaves its folder. Learning
rates are chosen per variant on the validation split, by the lowest CoCa loss, before a test number is looked at. Prints the tables of
docs/studies/grr_coca.md, from finished runs in seconds, and writes them with plots into report.html.
"""

import argparse
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from triptych import GrrCocaConfig
from triptych.data.picture_sets import load_picture_set
from triptych.training.study import Run, Study, script_trainer
from triptych.training.tokenizer import train_tokenizer


FINE_TUNING = ("game-icons", "healthicons", "tuxpaint-stamps")
# What GRR-CoCa changes in the vision tower, by the fields that say so.
FACTORS = {
    "geglu": ("mlp_type", "intermediate_size"),
    "rmsnorm": ("norm_type", "norm_eps"),
    "rope_1d": ("position_embedding_type",),
}
ENCODERS = [
    (), ("geglu",), ("rmsnorm",), ("rope_1d",), ("rope_2d",),
    ("rmsnorm", "rope_1d"), ("geglu", "rope_1d"), ("geglu", "rmsnorm"), ("rmsnorm", "rope_2d"), ("geglu", "rope_2d"),
    ("geglu", "rmsnorm", "rope_1d"), ("geglu", "rmsnorm", "rope_2d"),
]  # fmt: skip


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="where the runs and the report go")
    parser.add_argument(
        "--parts", nargs="+", choices=["main", "factors", "sizes"], default=["main", "factors", "sizes"]
    )
    parser.add_argument("--size", choices=["tiny", "base", "large"], default="tiny", help="size of the presets")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="of the two variants of equal size"
    )
    parser.add_argument("--num_other_seeds", type=int, default=3, help="how many of them all other variants get")
    rates = {"type": float, "nargs": "+"}
    parser.add_argument("--learning_rates", **rates, default=[2.5e-4, 5e-4, 1e-3, 2e-3], help="grid to pretrain")
    parser.add_argument("--finetuning_rates", **rates, default=[1e-4, 3e-4, 1e-3], help="grid to fine-tune")
    parser.add_argument("--num_epochs", type=float, default=6, help="passes over the data of a run that pretrains")
    parser.add_argument("--finetuning_epochs", type=float, default=8, help="likewise of one that fine-tunes")
    parser.add_argument("--batch_size", type=int, default=64, help="pairs per step and contrastive loss")
    parser.add_argument("--grid_pairs", type=int, default=10000, help="pairs that the grid and the factors train on")
    parser.add_argument("--smaller", type=int, nargs="+", default=[3000, 10000], help="sizes of smaller training sets")
    parser.add_argument("--num_parallel", type=int, default=2, help="runs at a time, which share the cores")
    return parser.parse_args()


class GrrCocaStudy:
    """The runs of the study, and their order: a grid before what it chooses for."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.grr, self.baseline = f"grr-coca-{args.size}-iso", f"baseline-coca-{args.size}-iso"
        self.variants = [
            self.grr,
            self.baseline,
            *(f"{name}-{args.size}" for name in ("grr-coca", "baseline-coca", "coca")),
        ]
        threads = max(1, (os.cpu_count() or 1) // args.num_parallel)
        train = script_trainer(Path(__file__).with_name("pretrain.py"), threads, {"checkpoint_steps": 500})
        self.study = Study(args.output_dir, train, args.num_parallel)

    def seeds(self, variant: str) -> list[int]:
        return (
            self.args.seeds if variant in (self.grr, self.baseline) else self.args.seeds[: self.args.num_other_seeds]
        )

    def pretraining(self, part: str, variant: str, seed: int, rate: float, **changes: Any) -> Run:
        arguments = {
            "dataset": "drawings",
            "preset": variant,
            "tokenizer": "{study}/tokenizer",
            "learning_rate": rate,
            "num_epochs": self.args.num_epochs,
            "batch_size": self.args.batch_size,
            "eval_batch_size": self.args.batch_size,
            "eval_epochs": 1,
            "also_evaluate": "new_style",
            "log_samples": True,
        }
        return Run(part, variant, seed, {**arguments, **changes})

    def fine_tuning(self, part: str, dataset: str, variant: str, seed: int, rate: float, **changes: Any) -> Run:
        arguments = {
            "dataset": dataset,
            "model_name_or_path": f"{{study}}/pretraining/{variant}/seed-{seed}",
            "learning_rate": rate,
            "num_epochs": self.args.finetuning_epochs,
            "batch_size": self.args.batch_size,
            "eval_batch_size": self.args.batch_size,
            "eval_epochs": 2,
            "log_samples": True,
        }
        return Run(part, variant, seed, {**arguments, **changes})

    def grid(self, variant: str) -> dict[float, Run]:
        """By learning rate, the runs that choose one; their seed is nobody else's."""
        seed, changes = max(self.args.seeds) + 100, {"max_train_rows": self.args.grid_pairs, "also_evaluate": None}
        changes |= {"eval_split": "validation", "log_samples": False, "eval_epochs": 2}
        return {
            rate: self.pretraining(f"learning-rates/{rate:g}", variant, seed, rate, **changes)
            for rate in self.args.learning_rates
        }

    def fine_tuning_grid(self, dataset: str, variant: str) -> dict[float, Run]:
        changes, seed = {"eval_split": "validation", "log_samples": False}, self.args.seeds[0]
        return {
            rate: self.fine_tuning(f"learning-rates/{dataset}/{rate:g}", dataset, variant, seed, rate, **changes)
            for rate in self.args.finetuning_rates
        }

    def best(self, grid: dict[float, Run]) -> float:
        return min(grid, key=lambda rate: self.study.results(grid[rate])["coca_loss"])

    def finish(self, runs: Iterable[Run], description: str) -> list[Run]:
        runs = list(runs)
        self.study.finish(runs, description)
        return runs

    def make_tokenizer(self) -> None:
        """One tokenizer of all training captions, so that perplexities of smaller training sets compare."""
        folder, length = (
            self.args.output_dir / "tokenizer",
            GrrCocaConfig.from_preset(self.grr).max_position_embeddings,
        )
        if not folder.exists():
            train_tokenizer(load_picture_set("drawings")["train"]["caption"], 2048, length).save_pretrained(folder)

    def main_part(self) -> dict[str, list[Run]]:
        """Pretraining and the three fine-tunings of all variants and seeds, by part."""
        grids = {variant: self.grid(variant) for variant in self.variants}
        self.finish((run for grid in grids.values() for run in grid.values()), "learning rates")
        seeds = [
            (variant, seed) for seed in self.args.seeds for variant in self.variants if seed in self.seeds(variant)
        ]
        rates = {variant: self.best(grid) for variant, grid in grids.items()}
        parts = {
            "pretraining": self.finish(
                (self.pretraining("pretraining", variant, seed, rates[variant]) for variant, seed in seeds),
                "pretraining",
            )
        }
        for dataset in FINE_TUNING:
            grids = {variant: self.fine_tuning_grid(dataset, variant) for variant in self.variants}
            self.finish((run for grid in grids.values() for run in grid.values()), f"learning rates, {dataset}")
            rates = {variant: self.best(grid) for variant, grid in grids.items()}
            runs = [self.fine_tuning(dataset, dataset, variant, seed, rates[variant]) for variant, seed in seeds]
            parts[dataset] = self.finish(runs, dataset)
        return parts


def main() -> None:
    args = parse_arguments()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    study = GrrCocaStudy(args)
    study.make_tokenizer()
    if "main" in args.parts:
        study.main_part()


if __name__ == "__main__":
    main()
