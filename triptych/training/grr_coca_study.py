"""The runs of the study of GRR-CoCa against Baseline CoCa (arXiv 2507.18009): pretraining, fine-tuning, the encoder taken apart, less data."""

import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from triptych.data.picture_sets import PICTURE_SETS, load_picture_set
from triptych.evaluation.comparisons import Difference, compare, sums_by_group
from triptych.files import write_whole
from triptych.modeling.configuration_grr_coca import GrrCocaConfig
from triptych.training.study import Run, Study, script_trainer
from triptych.training.tokenizer import train_tokenizer


FINE_TUNING = ("game-icons", "healthicons", "tuxpaint-stamps")
GRID_SEED = 100
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


@dataclass
class StudyArguments:
    """How large the study is.

    Args:
        size (`"tiny"`, `"base"` or `"large"`): Of the presets.
        seeds (`list[int]`): Of the two variants of equal parameters.
        num_other_seeds (`int`): How many of them all other variants get.
        learning_rates, fine_tuning_rates (`list[float]`): Grids.
        num_epochs, fine_tuning_epochs (`float`): Passes over the data of a run.
        batch_size (`int`): Pairs per step, and of the contrastive loss of evaluations.
        grid_pairs (`int`): Training pairs of the grid and of the factors.
        smaller (`list[int]`): Sizes of smaller training sets.
        num_parallel (`int`): Runs at a time, which share the cores.
    """

    size: str = "tiny"
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    num_other_seeds: int = 3
    learning_rates: list[float] = field(default_factory=lambda: [5e-4, 1e-3, 2e-3])
    fine_tuning_rates: list[float] = field(default_factory=lambda: [1e-4, 3e-4, 1e-3])
    num_epochs: float = 3.0
    fine_tuning_epochs: float = 8.0
    batch_size: int = 64
    grid_pairs: int = 10_000
    smaller: list[int] = field(default_factory=lambda: [3000, 10_000])
    num_parallel: int = 2


class GrrCocaStudy:
    """The runs of the study, and their order: a grid before what it chooses for.

    Args:
        folder (`Path`): Of the study.
        args ([`StudyArguments`]): Sizes, seeds and grids.
        script (`Path`): `examples/pretrain.py`.
    """

    def __init__(self, folder: Path, args: StudyArguments, script: Path):
        self.folder, self.args = folder, args
        self.grr, self.baseline = f"grr-coca-{args.size}-iso", f"baseline-coca-{args.size}-iso"
        self.variants = [
            self.grr,
            self.baseline,
            *(f"{name}-{args.size}" for name in ("grr-coca", "baseline-coca", "coca")),
        ]
        threads = max(1, (os.cpu_count() or 1) // args.num_parallel)
        train = script_trainer(script, threads, {"checkpoint_steps": 500})
        versions = {name: PICTURE_SETS[name].version for name in ("drawings", *FINE_TUNING)}
        self.study = Study(folder, train, args.num_parallel, versions)
        self.other_seeds = args.seeds[: args.num_other_seeds]
        # Runs by part, variant and seed; what the grids found; the rates chosen to pretrain, and to fine-tune on a data set.
        self.runs: dict[str, dict[tuple[str, int], Run]] = {}
        self.rate_tables: list[pd.DataFrame] = []
        self.rates: dict[str, float] = {}
        self.fine_tuning_rates: dict[str, dict[str, float]] = {}

    def pretraining(self, part: str, variant: str, seed: int, rate: float, **changes: Any) -> Run:
        arguments: dict[str, Any] = {
            "dataset": "drawings",
            "preset": variant,
            "tokenizer": "{study}/tokenizer",
            "learning_rate": rate,
            "num_epochs": self.args.num_epochs,
            "batch_size": self.args.batch_size,
            "eval_batch_size": self.args.batch_size,
            "eval_epochs": 0.5,
            "validation_split": "validation",
            "also_evaluate": "new_style",
            "metric_for_best_model": "validation_coca_loss",
            "log_samples": True,
        }
        return Run(part, variant, seed, {**arguments, **changes})

    def fine_tuning(self, dataset: str, variant: str, seed: int, rate: float) -> Run:
        arguments = {
            "dataset": dataset,
            "model_name_or_path": f"{{study}}/pretraining/{variant}/seed-{seed}",
            "learning_rate": rate,
            "num_epochs": self.args.fine_tuning_epochs,
            "batch_size": self.args.batch_size,
            "eval_batch_size": self.args.batch_size,
            "eval_epochs": 1,
            "validation_split": "validation",
            "metric_for_best_model": "validation_coca_loss",
            "log_samples": True,
        }
        return Run(f"{dataset}/{rate:g}", variant, seed, arguments)

    def grid(self, variant: str) -> list[Run]:
        """The runs that choose a rate to pretrain with; their seed is nobody else's."""
        changes: dict[str, Any] = {
            "max_train_rows": self.args.grid_pairs,
            "eval_split": "validation",
            "metric_for_best_model": "coca_loss",
            **dict.fromkeys(("validation_split", "also_evaluate", "log_samples")),
        }
        return [
            self.pretraining(f"learning-rates/{rate:g}", variant, GRID_SEED, rate, **changes)
            for rate in self.args.learning_rates
        ]

    def make_tokenizer(self) -> None:
        """One tokenizer of all training captions, so that perplexities of smaller training sets compare."""
        folder, staging = self.folder / "tokenizer", self.folder / ".tokenizer"
        length = GrrCocaConfig.from_preset(self.grr).max_position_embeddings
        if not folder.exists():
            tokenizer = train_tokenizer(load_picture_set("drawings")["train"]["caption"], 2048, length)
            tokenizer.save_pretrained(staging)
            staging.rename(folder)

    def chosen_rates(self, grids: dict[str, list[Run]], description: str, prefix: str = "") -> dict[str, float]:
        """By variant, the learning rate with the lowest CoCa loss on the validation split."""
        self.study.finish((run for grid in grids.values() for run in grid), f"rates, {description}")
        chosen, rows = {}, []
        for name, grid in grids.items():
            found = {run.arguments["learning_rate"]: self.study.results(run) for run in grid}
            chosen[name] = min(found, key=lambda rate, found=found: found[rate][prefix + "coca_loss"])  # type: ignore[misc]
            row = {
                f"{rate:g}": " / ".join(
                    f"{results[prefix + key]:.2f}" for key in ("coca_loss", "contrastive_loss", "perplexity")
                )
                for rate, results in found.items()
            }
            rows.append({description: name, **row, "chosen": f"{chosen[name]:g}"})
        self.rate_tables.append(pd.DataFrame(rows))
        return chosen

    def choose_rates(self) -> None:
        """The rates to pretrain with."""
        self.rates = self.chosen_rates({variant: self.grid(variant) for variant in self.variants}, "pretraining")

    def variants_of(self, seed: int) -> list[str]:
        """Those that are trained with this seed."""
        return [name for name in self.variants if name in (self.grr, self.baseline) or seed in self.other_seeds]

    def pretrain(self, seed: int) -> None:
        """All variants with one seed."""
        runs = [self.pretraining("pretraining", name, seed, self.rates[name]) for name in self.variants_of(seed)]
        self._finish(runs, f"pretraining, seed {seed}", "drawings", "new_style")

    def fine_tune(self, seed: int) -> None:
        """All variants with one seed on all data sets, from what [`pretrain`] left. The first seed chooses the rates."""
        for dataset in FINE_TUNING:
            if dataset not in self.fine_tuning_rates:
                grids = {
                    name: [
                        self.fine_tuning(dataset, name, self.args.seeds[0], rate)
                        for rate in self.args.fine_tuning_rates
                    ]
                    for name in self.variants
                }
                self.fine_tuning_rates[dataset] = self.chosen_rates(grids, dataset, "validation_")
            rates = self.fine_tuning_rates[dataset]
            runs = [self.fine_tuning(dataset, name, seed, rates[name]) for name in self.variants_of(seed)]
            self._finish(runs, f"{dataset}, seed {seed}", dataset)

    def _finish(self, runs: list[Run], description: str, *parts: str) -> None:
        """Train runs, and keep them under the names of the parts that they belong to."""
        self.study.finish(runs, description)
        for part in parts:
            self.runs.setdefault(part, {}).update({(run.variant, run.seed): run for run in runs})

    def exchange_rates(self) -> None:
        """The two variants of equal parameters with the rate that the other one chose, if that is another one."""
        names, pretrained = (self.grr, self.baseline), self.runs["drawings"]
        swapped = {variant: self.rates[other] for variant, other in zip(names, names[::-1], strict=True)}
        for rate in sorted(set(swapped.values()) if swapped[self.grr] != swapped[self.baseline] else []):
            runs = {
                (variant, seed): self.pretraining(f"pretraining-{rate:g}", variant, seed, rate) if swapped[variant] == rate
                else pretrained[variant, seed]
                for variant in names
                for seed in self.other_seeds
            }  # fmt: skip
            self.study.finish(runs.values(), f"both at {rate:g}")
            self.runs[f"both at {rate:g}"] = runs

    def encoders(self) -> dict[str, dict[str, Any]]:
        """Arguments that make the Baseline's vision tower one with some of GRR-CoCa's changes, by the names of these."""
        grr, overrides = GrrCocaConfig.from_preset(self.grr).vision_config, {}
        for encoder in ENCODERS:
            fields = {field: getattr(grr, field) for name in encoder for field in FACTORS.get(name, ())}
            fields |= {"position_embedding_type": "rope_2d"} if "rope_2d" in encoder else {}
            overrides["+".join(encoder) or "original"] = {"config_overrides": {"vision_config": fields}}
        return overrides

    def take_encoder_apart(self) -> None:
        """The Baseline's vision tower with some of the changes, on fewer pairs; rates among those that its ends chose."""
        pairs, overrides = {"max_train_rows": self.args.grid_pairs}, self.encoders()
        ends = {self.rates[self.grr], self.rates[self.baseline]}
        grids = {
            name: [
                replace(run, variant=name, arguments={**run.arguments, **changes})
                for run in self.grid(self.baseline)
                if run.arguments["learning_rate"] in ends
            ]
            for name, changes in overrides.items()
        }
        rates = self.chosen_rates(grids, "factors") if len(ends) > 1 else dict.fromkeys(overrides, *ends)
        runs = [
            replace(self.pretraining("factors", self.baseline, seed, rates[name], **pairs, **changes), variant=name)
            for seed in self.other_seeds
            for name, changes in overrides.items()
        ]
        self._finish(runs, "factors", "factors")

    def shrink_data(self) -> None:
        """Less data, as many steps and evaluations."""
        for count in self.args.smaller:
            part = self.num_pairs() / count
            changes = {"max_train_rows": count, "num_epochs": self.args.num_epochs * part, "eval_epochs": 0.5 * part}
            runs = [
                self.pretraining(f"pairs-{count}", variant, seed, self.rates[variant], **changes)
                for variant in (self.grr, self.baseline)
                for seed in self.other_seeds
            ]
            self._finish(runs, f"{count} pairs", f"pairs-{count}")

    def num_pairs(self) -> int:
        """Pairs of a pass over the whole training split, in full batches."""
        last = self.study.log(self.runs["drawings"][self.grr, self.args.seeds[0]])[-1]
        return round(last["step"] / last["epoch"] * self.args.batch_size)

    def groups(self, dataset: str, split: str) -> list[str]:
        """Groups of the pairs of a split; kept with the study, whose tables then need no data set."""
        path = self.folder / "groups" / f"{dataset}-{split}.json"
        if not path.exists():
            write_whole(path, json.dumps(list(load_picture_set(dataset)[split]["group"])))
        return json.loads(path.read_text(encoding="utf-8"))

    def sums(self, dataset: str, variant: str, seeds: list[int]) -> list[pd.DataFrame]:
        """What statistics need of a variant's runs."""
        source, split, prefix = dataset, "test", ""
        if dataset not in FINE_TUNING:  # all else pretrains
            source, (split, prefix) = (
                "drawings",
                ("new_style", "new_style_") if dataset == "new_style" else ("test", ""),
            )
        groups = self.groups(source, split)
        runs = [self.runs[dataset][variant, seed] for seed in seeds]
        return [sums_by_group(self.study.samples(run), groups, prefix) for run in runs]

    def compare(self, dataset: str, first: str, second: str) -> dict[str, Difference]:
        seeds = [
            seed for variant, seed in self.runs[dataset] if variant == first and (second, seed) in self.runs[dataset]
        ]
        return compare(self.sums(dataset, first, seeds), self.sums(dataset, second, seeds))

    def logs(self, dataset: str, variants: list[str]) -> dict[str, list[list[dict[str, float]]]]:
        """Of the validation split while training, without the last record, which is of the weights that were chosen."""
        runs = self.runs[dataset].items()
        return {name: [self.study.log(run)[:-1] for (variant, _), run in runs if variant == name] for name in variants}


__all__ = ["ENCODERS", "FINE_TUNING", "GrrCocaStudy", "StudyArguments"]
