"""Teach an image-text MaMMUT to find things: detection heads on base classes, tested on base and novel ones.

Emoji scenes, 38 minutes on two cores, from the image-text model of docs/mammut.md, "Finding things":
    python examples/finetune_detection.py --output_dir outputs/detection --model_name_or_path outputs/mammut-scenes
LVIS, rare classes held out:
    accelerate launch examples/finetune_detection.py --output_dir outputs/lvis --model_name_or_path outputs/mammut-large \
        --dataset coco/images --train_annotations lvis_v1_train.json --eval_annotations lvis_v1_val.json \
        --detection_config '{}' --backbone_learning_rate 1e-5 --templates "a photo of a {}."
A data set with the usual `objects` column: --dataset name/of-it. Go on after a stop: the same command with --resume.
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
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoProcessor, HfArgumentParser, Owlv2ImageProcessor, get_cosine_schedule_with_warmup

from triptych import MammutConfig, MammutForObjectDetection, MammutProcessor
from triptych.detection import Detector, draw_detections
from triptych.hub import save_repository
from triptych.modeling.transformers_versions import checkpoint_activations
from triptych.training.card import detection_card
from triptych.training.checkpoints import latest_checkpoint, refuse_old_checkpoints, save_checkpoint
from triptych.training.detection_data import DetectionCollator, DetectionDataset, load_detection
from triptych.training.detection_evaluation import evaluate_detector
from triptych.training.optimization import TrainingState, best_precision, weight_decay_groups
from triptych.training.training_log import TrainingLog


# For 288 pixels on a CPU; everything else is the configuration's default.
SMALL_DETECTOR = {
    "image_size": 288,
    "window_size": 8,
    "num_global_layers": 1,
    "pyramid_scales": [2.0, 1.0, 0.5],
    "channels": 96,
    "rpn_samples": 128,
    "rpn_background_fraction": 0.5,
    "num_proposals": 200,
    "box_conv_layers": 2,
    "box_hidden_size": 384,
    "box_samples": 64,
    "max_detections": 100,
    "keep_image_text_tower": True,
    "image_text_temperature": None,
    # A weak image-text model has less to say than CLIP-like ones; chosen on scenes of another seed.
    "base_exponent": 0.05,
    "novel_exponent": 0.3,
}


@dataclass
class Arguments:
    output_dir: str = field(metadata={"help": "Where the finished repository and the checkpoints go."})
    model_name_or_path: str = field(metadata={"help": "Image-text MaMMUT to start from: a folder or a Hub name."})
    random_weights: bool = field(
        default=False, metadata={"help": "Take its configuration and tokenizer only, for comparison."}
    )
    detection_config: str | None = field(
        default=None,
        metadata={"help": "JSON of detection fields. Default: a small detector for 288 pixels; '{}': the paper's."},
    )
    dataset: str = field(
        default="emoji-scenes",
        metadata={
            "help": "'emoji-scenes'; a folder or Hub name with `objects`; with annotations the folder of images."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    eval_split: str = field(default="test", metadata={"help": "Split to evaluate on."})
    train_annotations: str | None = field(default=None, metadata={"help": "COCO or LVIS JSON to train on."})
    eval_annotations: str | None = field(default=None, metadata={"help": "COCO or LVIS JSON to evaluate on."})
    novel_classes: str | None = field(
        default=None,
        metadata={
            "help": "File with the names of the classes whose boxes are held out, one per line. Default: the novel concepts of "
            "emoji scenes, LVIS's rare classes, none elsewhere."
        },
    )
    templates: list[str] = field(
        default_factory=lambda: ["{}"], metadata={"help": "What the text side is asked of a class, {} for its name."}
    )
    num_scenes: int = field(default=6000, metadata={"help": "Emoji scenes to train on."})
    dataset_license: str = field(default="unknown", metadata={"help": "Licence of the data, for the model card."})
    backbone_learning_rate: float = field(
        default=3e-4, metadata={"help": "Peak learning rate of the ViT; 0 freezes it (F-VLM)."}
    )
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of pyramid and heads."})
    num_epochs: int = field(default=3, metadata={"help": "Passes over the training split."})
    batch_size: int = field(default=8, metadata={"help": "Images per process and step."})
    min_scale: float = field(default=0.5, metadata={"help": "Smallest scale of the large-scale jitter."})
    max_scale: float = field(default=1.5, metadata={"help": "Largest scale of the large-scale jitter."})
    warmup_ratio: float = field(default=0.05, metadata={"help": "Share of the steps with a rising learning rate."})
    weight_decay: float = field(default=0.05, metadata={"help": "Decay of matrices; nothing else decays."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradients are clipped to this norm."})
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = field(
        default="auto", metadata={"help": "auto: bf16 where the hardware multiplies it natively."}
    )
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Trade time for memory in the ViT."})
    attn_implementation: str | None = field(default=None, metadata={"help": "sdpa, eager, ... Default: sdpa."})
    eval_epochs: int = field(default=2, metadata={"help": "Epochs between evaluations; 0: only at the end."})
    num_eval_images: int = field(
        default=100, metadata={"help": "Images of the evaluations during training; the last one takes all."}
    )
    eval_batch_size: int = field(default=8, metadata={"help": "Images evaluated at once."})
    num_pictures: int = field(default=8, metadata={"help": "Test images drawn with what was found."})
    checkpoint_steps: int = field(default=500, metadata={"help": "Steps between checkpoints; 0: none."})
    num_checkpoints: int = field(default=1, metadata={"help": "Checkpoints to keep."})
    resume: bool = field(default=False, metadata={"help": "Go on from the last checkpoint in output_dir, exactly."})
    num_workers: int = field(default=1, metadata={"help": "Processes that read and augment images."})
    report_to: str = field(default="none", metadata={"help": "Tracker: tensorboard, wandb, trackio, ... or none."})
    seed: int = field(default=0, metadata={"help": "Seed of weights, order and augmentation."})

    def __post_init__(self) -> None:
        for name in ("num_epochs", "batch_size", "eval_batch_size", "num_eval_images"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if not 0 < self.min_scale <= self.max_scale:
            raise ValueError(f"`min_scale` {self.min_scale} must be above 0 and at most `max_scale` {self.max_scale}.")


def build(args: Arguments, base_classes: list[str]) -> tuple[MammutForObjectDetection, MammutProcessor]:
    """The detector with the weights of the image-text model, and its processor."""
    source = args.model_name_or_path
    config = MammutConfig.from_pretrained(source)
    if config.model_type != MammutConfig.get_config_dict(source)[0].get("model_type"):
        raise ValueError(f"`model_name_or_path` must be a MaMMUT checkpoint, {source} is none.")
    try:
        fields = SMALL_DETECTOR if args.detection_config is None else json.loads(args.detection_config)
    except json.JSONDecodeError as error:
        raise ValueError(f"`detection_config` is not JSON: {error}: {args.detection_config!r}.") from error
    has_copy = getattr(config.detection_config, "keep_image_text_tower", False) and not args.random_weights
    values = config.to_dict()
    values["detection_config"] = {**(values.get("detection_config") or {}), **fields}
    values["vision_config"]["crop_positions"] = False  # the stage before; here the whole table is enlarged
    config = MammutConfig.from_dict(values)
    if args.random_weights:
        model = MammutForObjectDetection._from_config(config)
    else:
        model = MammutForObjectDetection.from_pretrained(source, config=config, dtype=torch.float32)
    if model.image_text_tower is not None and not has_copy:
        model.copy_image_text_tower()
    size, known = config.detection_config.image_size, AutoProcessor.from_pretrained(source)
    colours = {name: getattr(known.image_processor, name) for name in ("image_mean", "image_std")}
    processor = MammutProcessor(
        Owlv2ImageProcessor(size={"height": size, "width": size}, **colours),
        known.tokenizer,
        class_templates=args.templates,
        base_classes=base_classes,
    )
    return model, processor


def parameter_groups(model: MammutForObjectDetection, args: Arguments) -> list[dict]:
    """What is trained: pyramid and heads, and with a rate of its own the ViT. The text side stays as it is."""
    model.model.requires_grad_(False)
    if model.image_text_tower is not None:
        model.image_text_tower.requires_grad_(False)
    groups = weight_decay_groups(model, args.weight_decay)
    for group in groups:
        group["lr"] = args.learning_rate
    if args.backbone_learning_rate > 0:
        tower = model.model.vision_model.requires_grad_(True)
        for name, parameter in tower.embeddings.named_parameters():
            if name.startswith(("class_embedding", "tube_embedding")):  # the detector reads neither: no gradient
                parameter.requires_grad_(False)
        groups += [
            {**group, "lr": args.backbone_learning_rate} for group in weight_decay_groups(tower, args.weight_decay)
        ]
    return groups


def main() -> None:
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    output_dir = Path(args.output_dir)
    log_path, checkpoints = output_dir / "training_log.jsonl", output_dir / "checkpoints"
    accelerator = Accelerator(
        mixed_precision=best_precision() if args.mixed_precision == "auto" else args.mixed_precision,
        log_with=None if args.report_to == "none" else args.report_to,
        project_dir=output_dir,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=args.seed),
        step_scheduler_with_optimizer=False,
    )
    set_seed(args.seed)
    checkpoint = latest_checkpoint(checkpoints) if args.resume else refuse_old_checkpoints(checkpoints)

    # Data, model
    novel = None
    if args.novel_classes is not None:
        novel = [
            line.strip() for line in Path(args.novel_classes).read_text(encoding="utf-8").splitlines() if line.strip()
        ]
    with accelerator.main_process_first():
        data = load_detection(
            args.dataset,
            args.dataset_config,
            args.eval_split,
            args.train_annotations,
            args.eval_annotations,
            novel,
            num_scenes=args.num_scenes,
        )
    base_classes = [data.categories[index] for index in data.base]
    model, processor = build(args, base_classes)
    detection = model.config.detection_config
    if args.attn_implementation is not None:
        model.set_attn_implementation(args.attn_implementation)
    if args.gradient_checkpointing:
        checkpoint_activations(model)
    train_set = DetectionDataset(
        data.splits["train"],
        data.categories,
        data.base,
        detection.image_size,
        (args.min_scale, args.max_scale),
        detection.use_mask_head,
        args.seed,
    )
    test_set = DetectionDataset(data.splits["test"], data.categories)
    if len(train_set) < args.batch_size * accelerator.num_processes:
        raise ValueError(f"`batch_size` {args.batch_size} needs more than {len(train_set)} training images.")
    loader = DataLoader(
        train_set,
        batch_size=args.batch_size,
        shuffle=True,
        drop_last=True,
        collate_fn=DetectionCollator(processor),
        num_workers=args.num_workers,
        generator=torch.Generator().manual_seed(args.seed),
    )
    # The text side is frozen, so the classes are encoded once.
    class_embeds = Detector(model.to(accelerator.device).eval(), processor).class_embeds(base_classes)

    # Optimiser, schedule
    optimizer = torch.optim.AdamW(parameter_groups(model, args), lr=args.learning_rate)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    num_steps = len(loader) * args.num_epochs
    scheduler = get_cosine_schedule_with_warmup(optimizer, round(args.warmup_ratio * num_steps), num_steps)
    state = TrainingState()
    accelerator.register_for_checkpointing(scheduler, state)
    if checkpoint is not None:
        accelerator.load_state(checkpoint)
        accelerator.print(f"Resuming from {checkpoint} at step {state.step} of {num_steps}.")
    log = TrainingLog(log_path, accelerator, state, len(loader), resume=checkpoint is not None)
    accelerator.init_trackers("detection", config=asdict(args))

    def evaluate(num_images: int) -> dict:
        results = evaluate_detector(
            accelerator.unwrap_model(model),
            processor,
            test_set,
            data,
            accelerator,
            args.eval_batch_size,
            num_images,
            args.num_workers,
        )
        log.record({f"eval_{name}": value for name, value in results.items()})
        return results

    # Training
    started = time.perf_counter()
    progress = tqdm(
        total=num_steps, initial=state.step, desc="train", unit="step", disable=not accelerator.is_main_process
    )
    for epoch in range(state.epoch, args.num_epochs):
        model.train()
        state.epoch = epoch
        loader.set_epoch(epoch)
        train_set.set_epoch(epoch)
        batches = accelerator.skip_first_batches(loader, state.batch) if state.batch else loader
        for batch in batches:
            state.batch += 1
            outputs = model(**batch, class_embeds=class_embeds)
            accelerator.backward(outputs.loss)
            grad_norm = accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            if not accelerator.optimizer_step_was_skipped:
                scheduler.step()
            state.step += 1
            losses = {name: value.item() for name, value in outputs.loss_dict.items()}
            numbers = {
                "loss": outputs.loss.item(),
                **{f"{name}_loss": value for name, value in losses.items()},
                "grad_norm": float(grad_norm),
                "learning_rate": scheduler.get_last_lr()[0],
            }
            if not math.isfinite(numbers["loss"]):
                raise FloatingPointError(f"The loss of step {state.step} is {numbers['loss']}: {numbers}")
            log.record(numbers)
            progress.update()
            progress.set_postfix({"loss": f"{numbers['loss']:.3f}", "class": f"{losses['classification']:.3f}"})
            if args.checkpoint_steps and state.step % args.checkpoint_steps == 0:
                save_checkpoint(checkpoints, accelerator, processor, state.step, keep=args.num_checkpoints)
        state.batch, state.epoch = 0, epoch + 1
        if args.eval_epochs and state.epoch % args.eval_epochs == 0 and state.epoch < args.num_epochs:
            results = evaluate(args.num_eval_images)
            shown = ", ".join(f"{name} {value:.3f}" for name, value in results.items() if name.startswith("ap50"))
            accelerator.print(f"epoch {state.epoch}: {shown}")
    progress.close()
    train_seconds = time.perf_counter() - started

    # The finished repository
    final = accelerator.unwrap_model(model).eval()
    results = evaluate(len(test_set))
    if accelerator.is_main_process:
        num_classes = {group: len(classes) for group, classes in data.groups.items()}
        card = detection_card(final, results, asdict(args), num_classes, state, train_seconds, accelerator)
        extra_files = {"eval_results.json": results, "training_arguments.json": asdict(args)}
        save_repository(output_dir, final, processor, card, extra_files)
        detector = Detector(final, processor)
        pictures = output_dir / "pictures"
        pictures.mkdir(exist_ok=True)
        for index in range(min(args.num_pictures, len(test_set))):
            image = test_set[index]["image"]
            with accelerator.autocast():
                found = detector([image], data.categories)[0]
            draw_detections(image, found).save(pictures / f"{index}.png")
        shutil.rmtree(checkpoints, ignore_errors=True)
        print(json.dumps(results, indent=2))
        print(f"Trained for {train_seconds / 60:.1f} min. The repository is in {output_dir}, pictures in {pictures}.")
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main()
