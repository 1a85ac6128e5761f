"""Load a finished repository the way a stranger does, and show what it can do on held-out pairs.

    python examples/report.py outputs/demo

With `--questions outputs/demo-questions` the report also shows answers of the model fine-tuned from it.

Writes report.html and report.png into the repository: captions beside the true ones, retrieval both ways, the training
curve. The models come through transformers' Auto classes and the code inside the repository; triptych is imported
afterwards, for the pictures and to ask.
"""

import argparse
import json
import random
import textwrap
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import torch
from accelerate import Accelerator
from matplotlib.figure import Figure
from torch.utils.data import Dataset, Subset
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor


matplotlib.rcParams["text.parse_math"] = False  # captions are no formulas


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("repository", type=Path, help="folder written by examples/pretrain.py")
    parser.add_argument("--num_captions", type=int, default=24, help="pictures to caption")
    parser.add_argument("--num_queries", type=int, default=8, help="retrieval queries each way")
    parser.add_argument("--num_beams", type=int, default=4, help="beams of the caption search")
    parser.add_argument("--questions", type=Path, help="folder of examples/finetune_vqa.py: show its answers too")
    parser.add_argument("--num_questions", type=int, default=24, help="questions to show")
    parser.add_argument(
        "--dataset", help="where the pairs lie, if they are a folder or file of yours; of a stream: shards to show"
    )
    parser.add_argument("--questions_dataset", help="likewise for --questions")
    parser.add_argument("--seed", type=int, default=0, help="which pictures are drawn")
    return parser.parse_args()


def held_out(load: Any, trained: dict[str, Any], dataset: str | None, **options: Any) -> Any:
    """The very split that a training held out."""
    names = [name for name in trained if name.endswith("_column")] + ["eval_split", "on_bad_row", "seed"]
    options |= {name: trained[name] for name in names}
    return load(dataset or trained["dataset"], trained["dataset_config"], **options)["test"]


def held_out_pairs(trained: dict[str, Any], dataset: str | None, image_size: int) -> Dataset:
    """The pairs that a pretraining held out, or the shards that are named instead."""
    from triptych.data.pairs import ImageCaptionDataset
    from triptych.data.shards import open_shards
    from triptych.data.streams import files_of_split, table_of
    from triptych.training.pair_sets import PairArguments, load_sets

    if trained["streaming"] and dataset is not None:
        columns = (trained["image_column"], trained["caption_column"])
        shards = open_shards(files_of_split(dataset, trained["eval_split"]), *columns)
        rows = table_of(shards, trained["max_eval_rows"], trained["on_corrupt_image"], trained["on_bad_row"])
        return ImageCaptionDataset(rows, on_corrupt_image=trained["on_corrupt_image"])
    fields = {name: trained[name] for name in PairArguments.__dataclass_fields__}
    arguments = PairArguments(**fields | ({"dataset": dataset} if dataset is not None else {}))
    return load_sets(arguments, image_size, trained["seed"])[1][""]


def answer_sample(args: argparse.Namespace, accelerator: Accelerator) -> dict[str, Any]:
    """Accuracies of a question-answering repository, and its answers to some held-out questions."""
    loading = {"device_map": accelerator.device, "trust_remote_code": True}
    model = AutoModelForImageTextToText.from_pretrained(args.questions, **loading)
    processor = AutoProcessor.from_pretrained(args.questions, trust_remote_code=True)

    from triptych.data.questions import QuestionDataset, load_questions
    from triptych.evaluation.answers import answer_questions

    trained = json.loads((args.questions / "training_arguments.json").read_text())
    rows = QuestionDataset(held_out(load_questions, trained, args.questions_dataset))
    sample = random.Random(args.seed).sample(range(len(rows)), min(args.num_questions, len(rows)))
    asked = Subset(rows, sample)
    answers = answer_questions(model, asked, processor, accelerator, 64, max_new_tokens=trained["max_answer_tokens"])
    metrics = json.loads((args.questions / "eval_results.json").read_text())
    return {"dataset": trained["dataset"], "metrics": metrics, "items": list(zip(asked, answers, strict=True))}


# Of the held-out pairs, which `pretrain.py` measures itself
_OWN = {"eval_text_to_image_recall@1"}


def plot_curve(log: list[dict], axes) -> None:
    """Training losses over steps, with the held-out ones on top."""
    colours = {"caption_loss": "tab:blue", "contrastive_loss": "tab:orange"}
    for name, colour in colours.items():
        trained = [(row["step"], row[name]) for row in log if row.get(name) is not None]
        axes.plot(*zip(*trained, strict=True), color=colour, alpha=0.35, linewidth=0.8)
        evaluated = [(row["step"], row[f"eval_{name}"]) for row in log if f"eval_{name}" in row]
        axes.plot(*zip(*evaluated, strict=True), "o-", color=colour, label=f"{name.replace('_', ' ')}, held out")
    axes.set(xlabel="optimiser step", ylabel="nats", title="Training (thin) and held-out (dots) losses")
    axes.legend(loc="upper left")
    axes.grid(alpha=0.3)
    heads = ("_top1", "_text_to_image_recall@1", "_cider_d", "_vqa_accuracy", "_accuracy", "_ap")
    benchmarks = sorted({key for row in log for key in row if key.removeprefix("eval").endswith(heads)} - _OWN)
    if benchmarks:  # of `--eval_tasks`
        right = axes.twinx()
        for key in benchmarks:
            found = [(row["step"], row[key]) for row in log if key in row]
            right.plot(*zip(*found, strict=True), "s--", markersize=4, label=key.removeprefix("eval_"))
        right.legend(loc="upper right")


def main() -> None:
    args, accelerator = parse_arguments(), Accelerator()
    loading = {"device_map": accelerator.device, "trust_remote_code": True}
    captioner = AutoModelForImageTextToText.from_pretrained(args.repository, **loading)
    encoder = AutoModel.from_pretrained(args.repository, **loading)
    processor = AutoProcessor.from_pretrained(args.repository, trust_remote_code=True)

    from triptych.evaluation.captioner import retrieval_ranks
    from triptych.evaluation.sharing import evaluating, map_rows
    from triptych.visual_words import data_url, write_page

    trained = json.loads((args.repository / "training_arguments.json").read_text())
    size = captioner.config.vision_config.image_size
    pairs = held_out_pairs(trained, args.dataset, size)
    items = [item for item in (pairs[index] for index in range(len(pairs))) if not item["num_skipped"]]
    order = random.Random(args.seed).sample(range(len(items)), len(items))
    shown, queries = order[: args.num_captions], order[-args.num_queries :]

    def embed(rows: list[dict[str, Any]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        images, captions = ([row[name] for row in rows] for name in ("image", "caption"))
        outputs = encoder(**processor(images=images, text=captions, return_tensors="pt").to(accelerator.device))
        return list(zip(outputs.text_embeds.cpu(), outputs.image_embeds.cpu(), strict=True))

    with evaluating(encoder):
        inputs = processor(images=[items[index]["image"] for index in shown], return_tensors="pt")
        ids = captioner.generate(**inputs.to(accelerator.device), num_beams=args.num_beams)
        text_embeds, image_embeds = map(torch.stack, zip(*map_rows(embed, items, accelerator, 64), strict=True))
    generated = [text.strip() for text in processor.batch_decode(ids, skip_special_tokens=True)]
    similarity = text_embeds @ image_embeds.T
    scores = {"text_to_image": similarity, "image_to_text": similarity.T}
    captions = [item["caption"] for item in items]
    found = retrieval_ranks(image_embeds, text_embeds, captions)
    ranks = {side: found[f"{side}_rank"] for side in scores}

    distinct = sorted({caption: row for row, caption in reversed(list(enumerate(captions)))}.values())
    candidates = (list(range(len(items))), distinct)  # every image; every caption once

    def nearest(each: torch.Tensor, columns: list[int]) -> list[list[int]]:
        best = each[:, columns].topk(min(6, len(columns))).indices
        return torch.tensor(columns)[best].tolist()

    metrics = json.loads((args.repository / "eval_results.json").read_text())
    log = [json.loads(line) for line in (args.repository / "training_log.jsonl").read_text().splitlines()]
    for name, found in ranks.items():
        after = metrics[f"{name}_recall@1"]
        print(f"{name} recall@1 of the reloaded model: {(found < 1).mean():.4f} (after training: {after:.4f})")

    figure = Figure(figsize=(9, 4), layout="constrained")
    plot_curve(log, figure.subplots())
    values = {
        "name": args.repository.resolve().name,
        "dataset": " + ".join(trained["mixture"]) or trained["dataset"],
        "pairs": items,
        "num_parameters": captioner.num_parameters(),
        "metrics": metrics,
        "url": data_url,
        "curve": data_url(partial(figure.savefig, dpi=120)),
        "captioned": list(zip(shown, generated, strict=True)),
        "answered": args.questions and answer_sample(args, accelerator),
        "queries": queries,
        "num_captions": len(distinct),
        "ranks": ranks,
        "nearest": {
            side: nearest(each, columns) for (side, each), columns in zip(scores.items(), candidates, strict=True)
        },
    }
    write_page(args.repository / "report.html", Path(__file__).with_suffix(".html.jinja"), values)

    per_row = min(6, len(shown))
    rows = -(-len(shown) // per_row)
    figure = Figure(figsize=(15, 2.6 * rows + 4.5), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[2.6 * rows, 4])
    for axes, index, text in zip(top.subplots(rows, per_row, squeeze=False).flat, shown, generated, strict=False):
        caption = items[index]["caption"]
        axes.imshow(items[index]["image"])
        axes.set_title(textwrap.fill(text, 26), fontsize=10, color="darkgreen" if text == caption else "black")
        axes.set_xlabel(textwrap.fill(caption, 34), fontsize=8, color="grey")
        axes.set(xticks=[], yticks=[])
    plot_curve(log, bottom.subplots())
    figure.savefig(args.repository / "report.png", dpi=90)
    print(f"Wrote {args.repository / 'report.html'} and report.png.")


if __name__ == "__main__":
    main()
