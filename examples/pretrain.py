"""Pretrain (or go on training) a contrastive captioner, GRR-CoCa or MaMMUT, on image-caption pairs.

Two minutes on OpenMoji:            python examples/pretrain.py --output_dir outputs/try --num_epochs 4
The other model, all else equal:    python examples/pretrain.py --output_dir outputs/try --num_epochs 4 --model mammut
A folder of images and captions:    python examples/pretrain.py --output_dir outputs/mine --dataset path/to/folder
Shards, read as a stream:           python examples/pretrain.py --output_dir outputs/large --streaming --max_steps 10000 \
                                        --dataset "shards/train-{00000..00099}.tar" --eval_shards "shards/test-*.tar"
A data set on the Hub, two GPUs:    accelerate launch --num_processes 2 examples/pretrain.py \
                                        --output_dir outputs/large --dataset name/of-pairs --caption_column text \
                                        --preset grr-coca-base --tokenizer openai/clip-vit-base-patch32
Go on after a stop:                 the same command with --resume
"""

from dataclasses import dataclass
from typing import Literal

from torch import nn
from transformers import HfArgumentParser

from triptych.arguments import argument
from triptych.data.pairs import PairCollator
from triptych.evaluation.captioner import (
    evaluate_pairs,
    generate_captions,
    score_captions,
    score_pairs,
    summarize_pairs,
)
from triptych.training.captioners import ModelArguments, config_of, load_or_build
from triptych.training.cards import card_fields
from triptych.training.engine import Engine, Task
from triptych.training.pair_sets import PairArguments, load_sets
from triptych.training.run_arguments import RunArguments
from triptych.training.transfer import layer_rates


@dataclass
class PretrainArguments(PairArguments):
    model: Literal["grr-coca", "mammut"] = argument(default="grr-coca", help="Family to train.")
    log_samples: bool = argument(
        default=False, help="Write the final numbers of every held-out pair: eval_samples.json."
    )


def main() -> None:
    parser = HfArgumentParser((PretrainArguments, ModelArguments, RunArguments))
    parser.set_defaults(num_epochs=14, eval_epochs=4, num_checkpoints=2)
    data_args, model_args, run_args = parser.parse_args_into_dataclasses()
    if data_args.streaming:
        for name in ("num_epochs", "eval_epochs"):
            if getattr(run_args, name) != parser.get_default(name):
                raise ValueError(
                    f"`{name}` counts passes, a stream is counted in steps: see `max_steps` and `eval_steps`."
                )
    config = config_of(data_args.model, model_args)
    engine = Engine(run_args)
    accelerator, size = engine.accelerator, config.vision_config.image_size
    with accelerator.main_process_first():
        train_set, eval_sets, captions = load_sets(data_args, size, run_args.seed)
    model, processor = load_or_build(data_args.model, model_args, config, captions)
    processor = engine.restored(processor)
    model.generation_config.max_new_tokens = min(24, config.max_position_embeddings - 1)
    collator = PairCollator(processor, truncation=data_args.truncate_captions)
    reading = (accelerator, run_args.eval_batch_size, run_args.num_workers)

    samples: dict[str, list[float]] = {}
    chooser = "" if data_args.validation_split is None else f"{data_args.validation_split}_"

    def evaluate(model: nn.Module, is_last: bool) -> dict[str, float]:
        if not is_last:
            numbers = evaluate_pairs(model, eval_sets[chooser], collator, *reading)
            return {chooser + name: value for name, value in numbers.items()}
        results = {}
        for prefix, eval_set in eval_sets.items():
            scores = score_pairs(model, eval_set, collator, *reading)
            scores |= score_captions(generate_captions(model, eval_set, processor, *reading))
            numbers = summarize_pairs(scores, config, run_args.eval_batch_size)
            results |= {prefix + name: value for name, value in numbers.items()}
            samples.update({prefix + name: values.round(5).tolist() for name, values in scores.items()})
        return results

    headline = ("perplexity", "contrastive_loss", "text_to_image_recall@1")
    tags = ["image-captioning", "image-text-retrieval"]
    card = card_fields([data_args, model_args], run_args, "image-to-text", tags)
    weights = (config.contrastive_loss_weight, config.caption_loss_weight)
    task = Task(
        name="pretrain",
        model=model,
        processor=processor,
        train_set=train_set,
        collator=collator,
        loss_parts=("contrastive_loss", "caption_loss"),
        evaluate=evaluate,
        learning_rates=layer_rates(model, run_args.learning_rate, model_args.layer_decay),
        find_unused_parameters=config.contrastive_loss_weight == 0,
        headline=(*headline, *(chooser + name for name in headline if chooser)),
        card={**card, "loss_weights": weights},
    )
    engine.train(task)
    results = engine.evaluate(task)
    engine.finish(task, results, {"eval_samples.json": samples} if data_args.log_samples else None)


if __name__ == "__main__":
    main()
