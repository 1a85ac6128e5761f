"""Teach an image-text MaMMUT to find things: detection heads on base classes, tested on base and novel ones.

Emoji scenes, 38 minutes on two cores, from the image-text model of docs/mammut.md, "Finding things":
    python examples/finetune_detection.py --output_dir outputs/detection --model_name_or_path outputs/mammut-scenes
LVIS, rare classes held out:
    accelerate launch examples/finetune_detection.py --output_dir outputs/lvis --model_name_or_path outputs/mammut-large \
        --dataset coco/images --train_annotations lvis_v1_train.json --eval_annotations lvis_v1_val.json \
        --detection_config '{}' --backbone_learning_rate 1e-5 --templates "a photo of a {}."
A data set with the usual `objects` column: --dataset name/of-it. Go on after a stop: the same command with --resume.
"""

from dataclasses import dataclass

from torch import nn
from transformers import HfArgumentParser

from triptych.arguments import argument
from triptych.data.detection import DetectionCollator, DetectionDataset, load_detection
from triptych.data.splits import DataArguments, refuse_changed
from triptych.detection import Detector, draw_detections
from triptych.evaluation.detector import evaluate_detector
from triptych.modeling.configuration_base import check_positive
from triptych.training.cards import card_fields
from triptych.training.detectors import DetectorArguments, build_detector, train_heads_and_tower
from triptych.training.engine import Engine, Task
from triptych.training.run_arguments import RunArguments


@dataclass
class BoxArguments(DataArguments):
    dataset: str = argument(
        default="emoji-scenes",
        help="'emoji-scenes'; a folder or Hub name with `objects`; with annotations the folder of images.",
    )
    train_annotations: str | None = argument(default=None, help="COCO or LVIS JSON to train on.")
    eval_annotations: str | None = argument(default=None, help="COCO or LVIS JSON to evaluate on.")
    novel_classes: str | None = argument(
        default=None,
        help="File with the names of the classes whose boxes are held out, one per line. Default: the novel concepts of "
        "emoji scenes, LVIS's rare classes, none elsewhere.",
    )
    num_scenes: int = argument(default=6000, help="Emoji scenes to train on.")
    min_scale: float = argument(default=0.5, help="Smallest scale of the large-scale jitter.")
    max_scale: float = argument(default=1.5, help="Largest scale of the large-scale jitter.")
    num_eval_images: int = argument(
        default=100, help="Images of the evaluations during training; the last one takes all."
    )
    num_pictures: int = argument(default=8, help="Test images drawn with what was found.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train_annotations is not None:
            names = ("dataset_config", "eval_split", "group_column")
            refuse_changed(self, names, "says nothing beside `train_annotations`")
        else:
            refuse_changed(self, ["on_bad_row"], "is for `train_annotations`")
        if self.dataset != "emoji-scenes":
            refuse_changed(self, ["num_scenes"], f"is for emoji scenes, `dataset` is {self.dataset!r}")
        check_positive(self, "num_eval_images")
        if not 0 < self.min_scale <= self.max_scale:
            raise ValueError(f"`min_scale` {self.min_scale} must be above 0 and at most `max_scale` {self.max_scale}.")


def main() -> None:
    parser = HfArgumentParser((BoxArguments, DetectorArguments, RunArguments))
    parser.set_defaults(
        num_epochs=3, batch_size=8, eval_batch_size=8, learning_rate=1e-3, adam_beta2=0.999, weight_decay=0.05,
        eval_epochs=2, attn_implementation="sdpa",
    )  # fmt: skip
    args, detector_args, run_args = parser.parse_args_into_dataclasses()
    engine = Engine(run_args)
    accelerator = engine.accelerator
    with accelerator.main_process_first():
        source = args.loading("train_annotations", "eval_annotations", "novel_classes", "num_scenes")
        data = load_detection(**source, seed=run_args.seed)
    base_classes = [data.categories[index] for index in data.base]
    model, processor = build_detector(detector_args, base_classes)
    detection = model.config.detection_config
    jitter = {"image_size": detection.image_size, "scales": (args.min_scale, args.max_scale), "seed": run_args.seed}
    shown = (data.splits["train"], data.categories, data.base)
    train_set = DetectionDataset(*shown, with_masks=detection.use_mask_head, **jitter)
    test_set = DetectionDataset(data.splits["test"], data.categories)

    def evaluate(model: nn.Module, is_last: bool) -> dict[str, float]:
        num_images = len(test_set) if is_last else args.num_eval_images
        detector = accelerator.unwrap_model(model)
        reading = (accelerator, run_args.eval_batch_size, num_images, run_args.num_workers)
        return evaluate_detector(detector, processor, test_set, data, *reading)

    tags = ["object-detection", "open-vocabulary"]
    card = card_fields([args, detector_args], run_args, "zero-shot-object-detection", tags)
    loss_parts = ("rpn_centerness", "rpn_box", "classification", "box") + ("mask",) * detection.use_mask_head
    # The text side is frozen, so the classes are encoded once.
    class_embeds = Detector(model.to(accelerator.device).eval(), processor).class_embeds(base_classes)
    classes = ", ".join(f"{len(each)} {group}" for group, each in data.groups.items()) or "all base"
    task = Task(
        name="detection",
        model=model,
        processor=processor,
        train_set=train_set,
        collator=DetectionCollator(processor),
        loss_parts=loss_parts,
        evaluate=evaluate,
        learning_rates=train_heads_and_tower(model, detector_args.backbone_learning_rate),
        extra_inputs={"class_embeds": class_embeds},
        headline=("ap50", "ap50_base", "ap50_novel"),
        card={**card, "classes": classes, "loss_parts": loss_parts},
    )
    engine.train(task)
    repository = engine.finish(task, engine.evaluate(task))
    if repository is not None:
        detector = Detector(engine.trained.eval(), processor)
        pictures = repository / "pictures"
        pictures.mkdir(exist_ok=True)
        for index in range(min(args.num_pictures, len(test_set))):
            image = test_set[index]["image"]
            with accelerator.autocast():
                found = detector([image], data.categories)[0]
            draw_detections(image, found).save(pictures / f"{index}.png")
        print(f"Pictures are in {pictures}.")


if __name__ == "__main__":
    main()
