"""Pretrain (or go on training) a contrastive captioner, GRR-CoCa or MaMMUT, on image-caption pairs.

Two minutes on OpenMoji:            python examples/pretrain.py --output_dir outputs/try --num_epochs 4
The other model, all else equal:    python examples/pretrain.py --output_dir outputs/try --num_epochs 4 --model mammut
A folder of images and captions:    python examples/pretrain.py --output_dir outputs/mine --dataset path/to/folder
A data set on the Hub, two GPUs:    accelerate launch --num_processes 2 examples/pretrain.py \
                                        --output_dir outputs/large --dataset name/of-pairs --caption_column text \
                                        --preset grr-coca-base --tokenizer openai/clip-vit-base-patch32
Go on after a stop:                 the same command with --resume
"""

import json
import math
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, DistributedDataParallelKwargs, set_seed
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessor,
    HfArgumentParser,
    PreTrainedConfig,
    get_cosine_schedule_with_warmup,
)

from triptych import (
    GrrCocaConfig,
    GrrCocaForConditionalGeneration,
    GrrCocaProcessor,
    MammutConfig,
    MammutForConditionalGeneration,
    MammutProcessor,
)
from triptych.hub import save_repository
from triptych.modeling.transformers_versions import checkpoint_activations
from triptych.training.card import pretraining_card
from triptych.training.checkpoints import latest_checkpoint, refuse_old_checkpoints, save_checkpoint
from triptych.training.data import ImageCaptionDataset, PairCollator, load_pairs
from triptych.training.emoji_scenes import EmojiPictures
from triptych.training.evaluation import evaluate_captions, evaluate_pairs
from triptych.training.optimization import TrainingState, best_precision, clamp_logit_scale, weight_decay_groups
from triptych.training.tokenizer import load_tokenizer, train_tokenizer
from triptych.training.training_log import TrainingLog


@dataclass
class Arguments:
    output_dir: str = field(metadata={"help": "Where the finished repository and the checkpoints go."})
    model: Literal["grr-coca", "mammut"] = field(
        default="grr-coca", metadata={"help": "Family to train from scratch."}
    )
    preset: str | None = field(default=None, metadata={"help": "Its preset. Default: the family's tiny one."})
    config_overrides: str = field(
        default="{}",
        metadata={
            "help": 'JSON of configuration fields to change, e.g. \'{"text_config": {"num_hidden_layers": 8}}\'.'
        },
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Go on from this checkpoint (weights and processor) instead of from scratch."}
    )
    tokenizer: str | None = field(
        default=None, metadata={"help": "Tokenizer to use. Default: one is trained on the training captions."}
    )
    vocab_size: int = field(default=2048, metadata={"help": "Largest vocabulary of a tokenizer trained here."})
    dataset: str = field(
        default="openmoji",
        metadata={
            "help": "'openmoji', a folder, a parquet file, a Hub name, or 'openmoji-scenes': the drawings at all sizes on "
            "varied backgrounds, for detection."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    image_column: str = field(default="image", metadata={"help": "Column with the images."})
    caption_column: str = field(default="caption", metadata={"help": "Column with a caption or a list of captions."})
    eval_split: str = field(default="test", metadata={"help": "Split to evaluate on; held out if it does not exist."})
    dataset_license: str = field(default="unknown", metadata={"help": "Licence of the data, for the model card."})
    truncate_captions: bool = field(default=False, metadata={"help": "Cut captions longer than the context."})
    on_corrupt_image: Literal["error", "skip"] = field(
        default="error", metadata={"help": "Stop at an unreadable image, or take the next pair and count."}
    )
    crop_scale: float = field(default=0.8, metadata={"help": "Smallest area that a random training crop keeps."})
    num_epochs: int = field(default=14, metadata={"help": "Passes over the training split."})
    batch_size: int = field(default=32, metadata={"help": "Pairs per process and step."})
    gradient_accumulation_steps: int = field(
        default=1,
        metadata={"help": "Batches per optimiser step. Negatives come from one batch, not from all of them."},
    )
    learning_rate: float = field(default=5e-4, metadata={"help": "Peak learning rate."})
    warmup_ratio: float = field(default=0.05, metadata={"help": "Share of the steps with a rising learning rate."})
    weight_decay: float = field(default=0.1, metadata={"help": "Decay of matrices; nothing else decays."})
    adam_beta2: float = field(default=0.98, metadata={"help": "Second moment decay of AdamW."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradients are clipped to this norm."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout after attention and feed-forward layers."})
    ema_decay: float | None = field(
        default=None, metadata={"help": "Average the weights with this decay, and keep them."}
    )
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Trade time for memory."})
    attn_implementation: str | None = field(
        default=None,
        metadata={"help": "sdpa, eager, ... Default: sdpa; eager on a CPU, faster there on short inputs."},
    )
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = field(
        default="auto", metadata={"help": "auto: bf16 where the hardware multiplies it natively."}
    )
    eval_epochs: int = field(default=4, metadata={"help": "Epochs between evaluations; 0: only at the end."})
    eval_batch_size: int = field(default=64, metadata={"help": "Candidates in the reported contrastive loss."})
    checkpoint_steps: int = field(default=500, metadata={"help": "Optimiser steps between checkpoints; 0: none."})
    num_checkpoints: int = field(default=2, metadata={"help": "Checkpoints to keep."})
    resume: bool = field(default=False, metadata={"help": "Go on from the last checkpoint in output_dir, exactly."})
    num_workers: int = field(default=1, metadata={"help": "Processes that decode images."})
    report_to: str = field(default="none", metadata={"help": "Tracker: tensorboard, wandb, trackio, ... or none."})
    seed: int = field(default=0, metadata={"help": "Seed of weights, order and crops."})


# configuration, model and processor of a family
FAMILIES: dict[str, tuple] = {
    "grr-coca": (GrrCocaConfig, GrrCocaForConditionalGeneration, GrrCocaProcessor),
    "mammut": (MammutConfig, MammutForConditionalGeneration, MammutProcessor),
}


def build_config(args: Arguments) -> PreTrainedConfig:
    """The configuration of the model to train."""
    if args.model_name_or_path:
        return AutoConfig.from_pretrained(args.model_name_or_path)
    try:
        overrides = json.loads(args.config_overrides)
    except json.JSONDecodeError as error:
        raise ValueError(f"`config_overrides` is not JSON: {error}: {args.config_overrides!r}.") from error
    return FAMILIES[args.model][0].from_preset(args.preset or f"{args.model}-tiny", **overrides)


def build(args: Arguments, config: PreTrainedConfig, captions: list) -> tuple:
    """A fresh model and processor; the vocabulary of the model follows the tokenizer."""
    _, model_class, processor_class = FAMILIES[args.model]
    text = config.text_config
    if args.tokenizer is None:
        flat = (caption for item in captions for caption in ([item] if isinstance(item, str) else item))
        tokenizer = train_tokenizer(flat, args.vocab_size, max_length=text.max_position_embeddings)
    else:
        tokenizer = load_tokenizer(args.tokenizer, max_length=text.max_position_embeddings)
    text.vocab_size = len(tokenizer)
    text.pad_token_id, text.bos_token_id = tokenizer.pad_token_id, tokenizer.bos_token_id
    text.eos_token_id = tokenizer.eos_token_id
    size = config.vision_config.image_size
    image_processor = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    return model_class._from_config(config), processor_class(image_processor, tokenizer)


def main() -> None:
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    from_scratch = {
        "preset": args.preset,
        "tokenizer": args.tokenizer,
        "config_overrides": args.config_overrides != "{}",
    }
    if args.model_name_or_path and any(from_scratch.values()):
        name = next(name for name, value in from_scratch.items() if value)
        raise ValueError(f"`{name}` belongs to a model from scratch; `model_name_or_path` brings its own.")
    output_dir = Path(args.output_dir)
    log_path, checkpoints = output_dir / "training_log.jsonl", output_dir / "checkpoints"
    source = args.model_name_or_path
    config = build_config(args)
    config.text_config.hidden_dropout = config.vision_config.hidden_dropout = args.dropout
    # A caption-only loss leaves the contrastive side without gradient, which DDP must be told.
    ddp = DistributedDataParallelKwargs(find_unused_parameters=config.contrastive_loss_weight == 0)
    accelerator = Accelerator(
        kwargs_handlers=[ddp],
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=best_precision() if args.mixed_precision == "auto" else args.mixed_precision,
        log_with=None if args.report_to == "none" else args.report_to,
        project_dir=output_dir,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=args.seed),
        step_scheduler_with_optimizer=False,
    )
    set_seed(args.seed)
    checkpoint = latest_checkpoint(checkpoints) if args.resume else refuse_old_checkpoints(checkpoints)

    # Data, processor, model
    with accelerator.main_process_first():
        data = load_pairs(
            "openmoji" if args.dataset == "openmoji-scenes" else args.dataset,
            args.dataset_config,
            args.image_column,
            args.caption_column,
            image_size=config.vision_config.image_size,
            eval_split=args.eval_split,
            seed=args.seed,
        )
    if source:
        model = AutoModelForImageTextToText.from_pretrained(source, config=config, dtype=torch.float32)
        processor = AutoProcessor.from_pretrained(source)
    else:
        model, processor = build(args, config, data["train"][args.caption_column])
    if checkpoint is not None:
        processor = AutoProcessor.from_pretrained(checkpoint / "processor")
    model.set_attn_implementation(
        args.attn_implementation or ("eager" if accelerator.device.type == "cpu" else "sdpa")
    )
    if args.gradient_checkpointing:
        checkpoint_activations(model)

    train_set: EmojiPictures | ImageCaptionDataset
    eval_set: EmojiPictures | ImageCaptionDataset
    if args.dataset == "openmoji-scenes":
        size = config.vision_config.image_size
        train_set = EmojiPictures("train", size, seed=args.seed)
        eval_set = EmojiPictures("test", size, pair_share=0.0, thing_repeats=1)
    else:
        columns = {"image_column": args.image_column, "caption_column": args.caption_column}
        train_set = ImageCaptionDataset(
            data["train"],
            **columns,
            all_captions=True,
            crop_scale=args.crop_scale,
            on_corrupt_image=args.on_corrupt_image,
            seed=args.seed,
        )
        eval_set = ImageCaptionDataset(data["test"], **columns, on_corrupt_image=args.on_corrupt_image)
    collator = PairCollator(processor, truncation=args.truncate_captions)
    if len(train_set) < args.batch_size * accelerator.num_processes:
        raise ValueError(
            f"`batch_size` {args.batch_size} on {accelerator.num_processes} processes needs at least "
            f"{args.batch_size * accelerator.num_processes} training pairs, the data set has {len(train_set)}."
        )
    loader = DataLoader(
        train_set,
        batch_size=args.batch_size,
        shuffle=True,
        drop_last=True,
        collate_fn=collator,
        num_workers=args.num_workers,
        pin_memory=torch.cuda.is_available(),
        # Its own generator: the global one belongs to dropout, which a resumed run must continue exactly.
        generator=torch.Generator().manual_seed(args.seed),
    )

    # Optimiser, schedule, averaging
    optimizer = torch.optim.AdamW(
        weight_decay_groups(model, args.weight_decay), lr=args.learning_rate, betas=(0.9, args.adam_beta2)
    )
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    steps_per_epoch = math.ceil(len(loader) / args.gradient_accumulation_steps)
    num_steps = steps_per_epoch * args.num_epochs
    scheduler = get_cosine_schedule_with_warmup(optimizer, round(args.warmup_ratio * num_steps), num_steps)
    state = TrainingState()
    accelerator.register_for_checkpointing(scheduler, state)
    ema = None
    if args.ema_decay is not None:
        ema = AveragedModel(accelerator.unwrap_model(model), multi_avg_fn=get_ema_multi_avg_fn(args.ema_decay))
        accelerator.register_for_checkpointing(ema)
    if checkpoint is not None:
        accelerator.load_state(checkpoint)
        accelerator.print(f"Resuming from {checkpoint} at step {state.step} of {num_steps}.")
    log = TrainingLog(log_path, accelerator, state, steps_per_epoch, resume=checkpoint is not None)
    accelerator.init_trackers("pretrain", config=asdict(args))

    def evaluate() -> dict:
        evaluated = model if ema is None else ema.module
        return evaluate_pairs(evaluated, eval_set, collator, accelerator, args.eval_batch_size, args.num_workers)

    # Training
    config = accelerator.unwrap_model(model).config
    logit_scale = accelerator.unwrap_model(model).model.logit_scale
    started = time.perf_counter()
    progress = tqdm(
        total=num_steps, initial=state.step, desc="train", unit="step", disable=not accelerator.is_main_process
    )
    model.train()
    for epoch in range(state.epoch, args.num_epochs):
        state.epoch = epoch
        loader.set_epoch(epoch)
        train_set.set_epoch(epoch)
        batches = accelerator.skip_first_batches(loader, state.batch) if state.batch else loader
        for batch in batches:
            state.batch += 1
            state.num_skipped += int(batch.pop("num_skipped"))
            with accelerator.accumulate(model):
                outputs = model(**batch)
                accelerator.backward(outputs.loss)
                if accelerator.sync_gradients:
                    grad_norm = accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
            if not accelerator.sync_gradients:
                continue
            if not accelerator.optimizer_step_was_skipped:
                scheduler.step()
            clamp_logit_scale(logit_scale, config.logit_scale_max)
            if ema is not None:
                ema.update_parameters(accelerator.unwrap_model(model))
            state.step += 1
            numbers = {
                "loss": outputs.loss.item(),
                "contrastive_loss": outputs.contrastive_loss.item() if outputs.contrastive_loss is not None else None,
                "caption_loss": outputs.caption_loss.item(),
                "grad_norm": float(grad_norm),
                "learning_rate": scheduler.get_last_lr()[0],
                "logit_scale": logit_scale.exp().item(),
            }
            if not math.isfinite(numbers["loss"]):
                raise FloatingPointError(f"The loss of step {state.step} is {numbers['loss']}: {numbers}")
            log.record(numbers)
            progress.update()
            progress.set_postfix(loss=f"{numbers['loss']:.3f}", skipped=state.num_skipped)
            if args.checkpoint_steps and state.step % args.checkpoint_steps == 0:
                save_checkpoint(checkpoints, accelerator, processor, state.step, keep=args.num_checkpoints)
        state.batch, state.epoch = 0, epoch + 1
        if args.eval_epochs and state.epoch % args.eval_epochs == 0 and state.epoch < args.num_epochs:
            results = evaluate()
            log.record({f"eval_{name}": value for name, value in results.items()})
            accelerator.print(
                f"epoch {state.epoch}: perplexity {results['perplexity']:.2f}, contrastive loss "
                f"{results['contrastive_loss']:.3f}, text-to-image recall@1 {results['text_to_image_recall@1']:.3f}"
            )
    progress.close()
    train_seconds = time.perf_counter() - started

    # The finished repository
    final = accelerator.unwrap_model(model if ema is None else ema.module)
    final.generation_config.max_new_tokens = min(24, config.max_position_embeddings - 1)
    results = evaluate()
    results |= evaluate_captions(final, eval_set, processor, accelerator, args.eval_batch_size, args.num_workers)
    log.record({f"eval_{name}": value for name, value in results.items()})
    if accelerator.is_main_process:
        arguments = {**asdict(args), "preset": args.preset or f"{args.model}-tiny"}
        card = pretraining_card(final, results, arguments, state, train_seconds, accelerator)
        extra_files = {"eval_results.json": results, "training_arguments.json": arguments}
        save_repository(output_dir, final, processor, card, extra_files)
        shutil.rmtree(checkpoints, ignore_errors=True)
        print(json.dumps(results, indent=2))
        print(f"Trained for {train_seconds / 60:.1f} min. The repository is in {output_dir}.")
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main()
