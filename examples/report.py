"""Load a finished repository the way a stranger does, and show what it can do on held-out pairs.

    python examples/report.py outputs/demo

With `--questions outputs/demo-questions` the report also shows answers of the model fine-tuned from it.

Writes report.html and report.png into the repository: captions beside the true ones, retrieval both ways, the training
curve. The model comes through transformers' Auto classes and the code inside the repository; triptych is imported
afterwards, for the pictures only.
"""

import argparse
import base64
import io
import json
import random
import textwrap
from pathlib import Path

import jinja2
import matplotlib
import torch
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor


matplotlib.use("Agg")
import matplotlib.pyplot as plt


matplotlib.rcParams["text.parse_math"] = False  # captions are no formulas


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("repository", type=Path, help="folder written by examples/pretrain.py")
    parser.add_argument("--num_captions", type=int, default=24, help="pictures to caption")
    parser.add_argument("--num_queries", type=int, default=8, help="retrieval queries each way")
    parser.add_argument("--num_beams", type=int, default=4, help="beams of the caption search")
    parser.add_argument(
        "--questions", type=Path, help="folder written by examples/finetune_vqa.py: show its answers too"
    )
    parser.add_argument("--num_questions", type=int, default=24, help="questions to show")
    parser.add_argument("--dataset", help="where the pairs lie, if they are a folder or file of yours")
    parser.add_argument("--questions_dataset", help="likewise for --questions")
    parser.add_argument("--seed", type=int, default=0, help="which pictures are drawn")
    return parser.parse_args()


@torch.no_grad()
def embed(model, processor, images: list, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised embeddings of all images and all captions, of shape (num_pairs, projection_dim) each."""
    image_embeds, text_embeds = [], []
    for start in range(0, len(images), 64):
        inputs = processor(
            images=images[start : start + 64], text=captions[start : start + 64], return_tensors="pt"
        ).to(model.device)
        outputs = model(**inputs)
        image_embeds.append(outputs.image_embeds)
        text_embeds.append(outputs.text_embeds)
    return torch.cat(image_embeds), torch.cat(text_embeds)


@torch.no_grad()
def answer_sample(repository: Path, dataset: str | None, count: int, seed: int, device: str) -> dict:
    """Accuracies of a question-answering repository, and its answers to some held-out questions."""
    model = AutoModelForImageTextToText.from_pretrained(repository, trust_remote_code=True).to(device).eval()
    processor = AutoProcessor.from_pretrained(repository, trust_remote_code=True)

    from triptych.data.questions import QuestionDataset, load_questions

    trained = json.loads((repository / "training_arguments.json").read_text())
    columns = {
        name: trained[name] for name in ("image_column", "question_column", "answer_column", "answer_type_column")
    }
    splits = {name: trained[name] for name in ("eval_split", "group_column", "seed")}
    data = load_questions(dataset or trained["dataset"], trained["dataset_config"], **columns, **splits)
    rows = QuestionDataset(data["test"])
    items = [rows[index] for index in random.Random(seed).sample(range(len(rows)), min(count, len(rows)))]
    inputs = processor(
        images=[item["image"] for item in items], questions=[item["question"] for item in items], return_tensors="pt"
    ).to(device)
    ids = model.generate(**inputs, max_new_tokens=trained["max_answer_tokens"])
    answers = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return {
        "dataset": trained["dataset"],
        "metrics": json.loads((repository / "eval_results.json").read_text()),
        "items": [
            {
                "image": data_url(item["image"]),
                "question": item["question"],
                "generated": answer.strip(),
                "true": item["answer"],
            }
            for item, answer in zip(items, answers, strict=True)
        ],
    }


def data_url(image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def plot_curve(log: list[dict], axes) -> None:
    """Training losses over steps, with the held-out ones on top."""
    colours = {"caption_loss": "tab:blue", "contrastive_loss": "tab:orange"}
    for name, colour in colours.items():
        steps = [row["step"] for row in log if row.get(name) is not None]
        values = [row[name] for row in log if row.get(name) is not None]
        axes.plot(steps, values, color=colour, alpha=0.35, linewidth=0.8)
        evaluated = [(row["step"], row[f"eval_{name}"]) for row in log if f"eval_{name}" in row]
        axes.plot(*zip(*evaluated, strict=True), "o-", color=colour, label=f"{name.replace('_', ' ')}, held out")
    axes.set(xlabel="optimiser step", ylabel="nats", title="Training (thin) and held-out (dots) losses")
    axes.legend()
    axes.grid(alpha=0.3)


def main() -> None:
    args = parse_arguments()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    captioner = AutoModelForImageTextToText.from_pretrained(args.repository, trust_remote_code=True).to(device).eval()
    encoder = AutoModel.from_pretrained(args.repository, trust_remote_code=True).to(device).eval()
    processor = AutoProcessor.from_pretrained(args.repository, trust_remote_code=True)

    from triptych.data.emoji_scenes import EmojiPictures
    from triptych.data.pairs import ImageCaptionDataset, load_pairs
    from triptych.evaluation.retrieval_recall import ranks_of_first

    # The very split that training held out.
    trained = json.loads((args.repository / "training_arguments.json").read_text())
    size = captioner.config.vision_config.image_size
    if trained["dataset"] == "openmoji-scenes":
        pairs = EmojiPictures("test", size, pair_share=0.0, thing_repeats=1)
    else:
        columns = {name: trained[name] for name in ("image_column", "caption_column")}
        splits = {name: trained[name] for name in ("eval_split", "group_column", "seed")}
        name = args.dataset or trained["dataset"]
        data = load_pairs(name, trained["dataset_config"], **columns, image_size=size, **splits)
        pairs = ImageCaptionDataset(data["test"], **columns, on_corrupt_image=trained["on_corrupt_image"])
    items = [item for item in (pairs[index] for index in range(len(pairs))) if not item["num_skipped"]]
    images, captions = [item["image"] for item in items], [item["caption"] for item in items]
    order = random.Random(args.seed).sample(range(len(items)), len(items))

    shown = order[: args.num_captions]
    inputs = processor(images=[images[index] for index in shown], return_tensors="pt").to(device)
    ids = captioner.generate(**inputs, num_beams=args.num_beams)
    generated = [text.strip() for text in processor.batch_decode(ids, skip_special_tokens=True)]

    image_embeds, text_embeds = embed(encoder, processor, images, captions)
    similarity = (text_embeds @ image_embeds.T).cpu()
    right = [[pair] for pair in range(len(items))]
    ranks = {
        "text": ranks_of_first(similarity.numpy(), right),
        "image": ranks_of_first(similarity.T.numpy(), right),
    }
    queries = order[-args.num_queries :]

    metrics = json.loads((args.repository / "eval_results.json").read_text())
    log = [json.loads(line) for line in (args.repository / "training_log.jsonl").read_text().splitlines()]
    for side, name in (("text", "text_to_image"), ("image", "image_to_text")):
        recall = (ranks[side] < 1).mean()
        print(
            f"{name} recall@1 of the reloaded model: {recall:.4f} (after training: {metrics[f'{name}_recall@1']:.4f})"
        )

    curve = io.BytesIO()
    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    plot_curve(log, axes)
    figure.savefig(curve, format="png", dpi=120)
    plt.close(figure)

    template = (Path(__file__).parent / "report.html.jinja").read_text(encoding="utf-8")
    html = (
        jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
        .from_string(template)
        .render(
            name=args.repository.resolve().name,
            dataset=trained["dataset"],
            num_pairs=len(items),
            num_parameters=captioner.num_parameters(),
            metrics=metrics,
            curve="data:image/png;base64," + base64.b64encode(curve.getvalue()).decode(),
            captioned=[
                {"image": data_url(images[index]), "generated": text, "true": captions[index]}
                for index, text in zip(shown, generated, strict=True)
            ],
            answered=args.questions
            and answer_sample(args.questions, args.questions_dataset, args.num_questions, args.seed, device),
            text_queries=[
                {
                    "query": captions[index],
                    "rank": ranks["text"][index] + 1,
                    "found": [
                        {"image": data_url(images[hit]), "caption": captions[hit], "is_target": hit == index}
                        for hit in similarity[index].topk(min(6, len(items))).indices.tolist()
                    ],
                }
                for index in queries
            ],
            image_queries=[
                {
                    "image": data_url(images[index]),
                    "rank": ranks["image"][index] + 1,
                    "found": [
                        {"caption": captions[hit], "is_target": hit == index}
                        for hit in similarity[:, index].topk(min(5, len(items))).indices.tolist()
                    ],
                }
                for index in queries
            ],
        )
    )
    (args.repository / "report.html").write_text(html, encoding="utf-8")

    per_row = min(6, len(shown))
    rows = -(-len(shown) // per_row)
    figure = plt.figure(figsize=(15, 2.6 * rows + 4.5), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[2.6 * rows, 4])
    for axes, index, text in zip(top.subplots(rows, per_row, squeeze=False).flat, shown, generated, strict=False):
        axes.imshow(images[index])
        colour = "darkgreen" if text == captions[index] else "black"
        axes.set_title(textwrap.fill(text, 26), fontsize=10, color=colour)
        axes.set_xlabel(textwrap.fill(captions[index], 34), fontsize=8, color="grey")
        axes.set(xticks=[], yticks=[])
    plot_curve(log, bottom.subplots())
    figure.savefig(args.repository / "report.png", dpi=90)
    print(f"Wrote {args.repository / 'report.html'} and report.png.")


if __name__ == "__main__":
    main()
