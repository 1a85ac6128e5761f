"""Does GRR-CoCa beat its Baseline? Pretrain both on drawings, fine-tune on three other sets, with seeds; take the encoder apart.

    python examples/study_grr_coca.py --output_dir outputs/study
    python examples/study_grr_coca.py --output_dir outputs/study --parts main --seeds 0 1 2
    python examples/study_grr_coca.py --output_dir outputs/study-base --size base --num_parallel 1 --batch_size 256

Hours on two cores; the same command goes on after a stop. Every run is one of examples/pretrain.py and leaves its folder. Learning
rates are chosen per variant on the validation split, by the lowest CoCa loss, before a test number is looked at. Prints the tables of
docs/studies/grr_coca.md, from finished runs in seconds, and writes them with plots into report.html.
"""

import argparse
import signal
import sys
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from triptych.evaluation.comparisons import METRICS, Difference, average, comparison_table, mean_table
from triptych.study_report import plot_by_size, plot_curves, plot_differences, plot_pairs, write_report, write_tables
from triptych.training.grr_coca_study import ENCODERS, FINE_TUNING, GrrCocaStudy, StudyArguments


PARTS = ["main", "factors", "sizes"]
# Relative differences in the abstract of the paper
PAPER = {
    "pretraining": {"contrastive_loss": -0.2725, "perplexity": -0.0371, "coca_loss": -0.0715},
    "fine-tuning": {"contrastive_loss": -0.1366, "perplexity": -0.0518, "coca_loss": -0.0555},
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="where the runs and the report go")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to do; all by default")
    parser.add_argument("--size", choices=["tiny", "base", "large"], help="size of the presets")
    parser.add_argument("--seeds", type=int, nargs="+", help="of the two variants of equal parameters")
    parser.add_argument("--num_other_seeds", type=int, help="how many of them all other variants get")
    parser.add_argument("--learning_rates", type=float, nargs="+", help="grid to pretrain")
    parser.add_argument("--fine_tuning_rates", type=float, nargs="+", help="grid to fine-tune")
    parser.add_argument("--num_epochs", type=float, help="passes over the data of a run that pretrains")
    parser.add_argument("--fine_tuning_epochs", type=float, help="likewise of one that fine-tunes")
    parser.add_argument("--batch_size", type=int, help="pairs per step, and of the contrastive loss of evaluations")
    parser.add_argument("--grid_pairs", type=int, help="training pairs of the grid and of the factors")
    parser.add_argument("--smaller", type=int, nargs="+", help="sizes of smaller training sets")
    parser.add_argument("--num_parallel", type=int, help="runs at a time, which share the cores")
    parser.add_argument("--archive", type=Path, help="pack the logs and numbers of all runs into this file, .tar.xz")
    parser.set_defaults(**asdict(StudyArguments()))
    return parser.parse_args()


def wide_table(differences: dict[str, dict[str, Difference]]) -> pd.DataFrame:
    """A row per comparison: mean difference of every metric, with its interval."""

    rows = [
        {"": name, **{METRICS[metric].title: found.text(1) for metric, found in each.items()}}
        for name, each in differences.items()
    ]
    return pd.DataFrame(rows)


def paper_table(pretrained: dict[str, Difference], fine_tuned: dict[str, Difference]) -> pd.DataFrame:
    """The differences beside those of the paper (arXiv 2507.18009, abstract)."""
    columns = {
        "pretraining": (pretrained, PAPER["pretraining"]),
        "fine-tuning, mean of three": (fine_tuned, PAPER["fine-tuning"]),
    }
    return pd.DataFrame(
        [
            {
                "metric": METRICS[metric].title,
                **{f"{name}, {whose}": f"{value:+.2%}" for name, (found, paper) in columns.items()
                   for whose, value in (("here", found[metric].mean), ("paper", paper[metric]))},
            }
            for metric in PAPER["pretraining"]
        ]
    )  # fmt: skip


def main_sections(study: GrrCocaStudy) -> list[tuple]:
    """Both comparisons on all data sets."""
    data = ["drawings", "new_style", *FINE_TUNING]
    sections = [
        (
            "Learning rates",
            "Validation split, one seed: CoCa loss / contrastive loss / perplexity. The lowest CoCa loss was chosen.",
            study.rate_tables,
        )
    ]
    for name in data:
        prefix = "new_style_" if name == "new_style" else ""
        results = {
            variant: [study.study.results(run) for (other, _), run in study.runs[name].items() if other == variant]
            for variant in study.variants
        }
        table = mean_table(results, {metric.title: prefix + key for key, metric in METRICS.items()})
        sections.append((f"{name}: means and standard deviations over seeds", "Held-out pairs.", [table]))
    size = study.args.size
    pairs = {
        "equal parameters": (study.grr, study.baseline),
        "equal width": (f"grr-coca-{size}", f"baseline-coca-{size}"),
    }
    pairs["against the original CoCa"] = (study.grr, f"coca-{size}")
    for title, names in pairs.items():
        found = {name: study.compare(name, *names) for name in data}
        found["mean of the three fine-tuned"] = average([found[name] for name in FINE_TUNING])
        figure = Figure(figsize=(12, 3.4), layout="constrained")
        for axes, name in zip(
            figure.subplots(1, 3), ("drawings", "new_style", "mean of the three fine-tuned"), strict=True
        ):
            plot_differences(axes, found[name], name)
        text = f"{names[0]} against {names[1]}: relative differences, with 95 % intervals over seeds and pairs."
        tables = [paper_table(found["drawings"], found["mean of the three fine-tuned"]), wide_table(found)]
        tables += [comparison_table(found["drawings"]), comparison_table(found["mean of the three fine-tuned"])]
        sections.append((f"GRR-CoCa, {title}", text, [*tables, figure]))
    exchanged = {
        name: study.compare(name, study.grr, study.baseline) for name in study.runs if name.startswith("both at ")
    }
    if exchanged:
        text = "Both variants of equal parameters with the learning rate of the one, then of the other."
        sections.append(("At equal learning rates", text, [wide_table(exchanged)]))
    curves, paired = Figure(figsize=(12, 3.6), layout="constrained"), Figure(figsize=(12, 3.2), layout="constrained")
    logs = study.logs("drawings", study.variants)
    for axes, key in zip(
        curves.subplots(1, 3), ("contrastive_loss", "perplexity", "text_to_image_recall@1"), strict=True
    ):
        plot_curves(axes, logs, f"eval_validation_{key}")
    for axes, key in zip(paired.subplots(1, len(METRICS)), METRICS, strict=True):
        values = [
            [study.study.results(study.runs["drawings"][name, seed])[key] for seed in study.args.seeds]
            for name in pairs["equal parameters"]
        ]
        plot_pairs(axes, *values, ("GRR", "Baseline"), METRICS[key].title)
    sections.append(
        ("Pretraining", "Bands: from the lowest seed to the highest. Lines: the runs of one seed.", [curves, paired])
    )
    return sections


def factor_section(study: GrrCocaStudy) -> tuple:
    names = {"+".join(encoder) or "original": encoder for encoder in ENCODERS}
    whole = {"rope_1d": "geglu+rmsnorm+rope_1d", "rope_2d": "geglu+rmsnorm+rope_2d"}
    alone = {
        f"original + {name}": study.compare("factors", name, "original")
        for name in names
        if len(names[name]) in (1, 3)
    }
    without = {}
    for rope, full in whole.items():
        for name, encoder in names.items():
            if len(encoder) == 2 and (rope in encoder or ("rope_1d" not in encoder and "rope_2d" not in encoder)):
                (missing,) = {*full.split("+")} - {*encoder}
                without[f"all with {rope}, without {missing}"] = study.compare("factors", name, full)
    text = (
        f"The Baseline's encoder with some of the changes, {study.args.grid_pairs} pairs; and all of them without one."
    )
    return "Which change does it?", text, [wide_table(alone), wide_table(without)]


def size_section(study: GrrCocaStudy) -> tuple:
    parts = {count: f"pairs-{count}" for count in study.args.smaller} | {study.num_pairs(): "drawings"}
    found = {count: study.compare(part, study.grr, study.baseline) for count, part in sorted(parts.items())}
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    for axes, key in zip(figure.subplots(1, 3), ("contrastive_loss", "perplexity", "coca_loss"), strict=True):
        plot_by_size(axes, {count: each[key] for count, each in found.items()}, METRICS[key].title)
    table = wide_table({f"{count:,} pairs": each for count, each in found.items()})
    return "The gap by the number of pairs", "GRR-CoCa against Baseline CoCa, equal parameters.", [table, figure]


def main() -> None:
    options = vars(parse_arguments())
    folder, parts, archive = (options.pop(name) for name in ("output_dir", "parts", "archive"))
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # runs save checkpoints
    study = GrrCocaStudy(folder, StudyArguments(**options), Path(__file__).with_name("pretrain.py"))
    study.make_tokenizer()
    study.choose_rates()
    for seed in study.args.seeds:  # one after the other: what ends early leaves whole seeds
        study.pretrain(seed)
        if "main" in parts:
            study.fine_tune(seed)
    study.exchange_rates()
    if "sizes" in parts:
        study.shrink_data()
    if "factors" in parts:
        study.take_encoder_apart()
    sections = main_sections(study) if "main" in parts else []
    sections += [factor_section(study)] if "factors" in parts else []
    sections += [size_section(study)] if "sizes" in parts else []
    write_report(folder / "report.html", "Does GRR-CoCa beat its Baseline?", sections)
    print(write_tables(folder, sections), "\n")
    if archive is not None:
        study.study.pack(archive)
    print(f"The same with plots: {folder / 'report.html'}; LaTeX: {folder / 'tables.tex'}.")


if __name__ == "__main__":
    main()
