"""Train MaMMUT to answer questions about videos through sparse tubes, and the same model on one frame for comparison.

    python examples/pretrain.py --model mammut --output_dir outputs/demo
    python examples/finetune_video_qa.py --output_dir outputs/video-qa --model_name_or_path outputs/demo
    python examples/finetune_video_qa.py --output_dir outputs/msvd-qa --dataset path/to/MSVD-QA \\
        --model_name_or_path outputs/my-image-model --num_train_epochs 10

By default on moving-emoji clips, tested on emoji x direction combinations that training never shows. MSRVTT-QA and MSVD-QA are
read from a folder with train_qa.json, test_qa.json and the videos. The arguments of transformers' Trainer are accepted, except
label smoothing.
"""

import json
from dataclasses import asdict, dataclass, field, replace

from datasets import DatasetDict
from transformers import HfArgumentParser, set_seed

from triptych.training.finetuning import (
    ModelArguments,
    QuestionTrainer,
    QuestionTrainingArguments,
    answer_table,
    load_or_build,
    read_json,
    save_questions_repository,
    train_on_questions,
)
from triptych.training.moving_emoji import MovingEmojiDataset, load_moving_emoji
from triptych.training.questions import evaluate_answers
from triptych.training.video_questions import VideoQuestionDataset, load_video_questions


# TubeViT's kernels for 16 frames of 96 x 96 pixels: its strides of 16 frames and 32 pixels would look at a few corners of that.
SMALL_TUBES = [
    [[8, 8, 8], [8, 24, 24], [0, 4, 4]],
    [[4, 12, 12], [4, 24, 24], [0, 0, 0]],
]


@dataclass
class VideoArguments:
    dataset: str = field(
        default="moving-emoji", metadata={"help": "'moving-emoji', or a folder in MSRVTT-QA's or MSVD-QA's layout."}
    )
    dataset_license: str | None = field(default=None, metadata={"help": "Licence of your data, for the card."})
    eval_split: str = field(default="test", metadata={"help": "Of a folder: test or val."})
    num_clips: int = field(default=60_000, metadata={"help": "Moving-emoji clips in the training split."})
    num_test_clips: int = field(default=400, metadata={"help": "Moving-emoji clips in the test split."})
    num_frames: int | None = field(
        default=None, metadata={"help": "Frames sampled from a clip. Default: 16 of moving emojis, 32 of video files."}
    )
    frame_stride: int | None = field(
        default=None,
        metadata={
            "help": "Every so-many-th frame passes through the image patches. Default: 5 (four frames) of moving emojis, else "
            "first and last one."
        },
    )
    tubes: str | None = field(
        default=None,
        metadata={"help": "JSON list of [kernel, stride, offset]. Default: some for moving emojis, else TubeViT's."},
    )
    position_gate: float = field(
        default=4.0,
        metadata={
            "help": "Where the gate of the fixed positions starts. 4 makes them as long as the demo model's patch embeddings. The "
            "paper's 0 leaves an image model unchanged, and blind to the order of frames until the gate has opened."
        },
    )
    one_frame_ablation: bool = field(
        default=True, metadata={"help": "Also train on the middle frame alone, without tubes, and print both."}
    )
    num_eval_questions: int = field(
        default=300, metadata={"help": "Questions of the evaluations during training; the last one takes all."}
    )

    def __post_init__(self) -> None:
        for name in ("num_clips", "num_test_clips", "num_frames", "frame_stride", "num_eval_questions"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        if self.tubes is not None:
            read_json("tubes", self.tubes)


@dataclass
class VideoTrainingArguments(QuestionTrainingArguments):
    """Defaults for clips that are rendered on the fly: every one is new, so one epoch."""

    per_device_train_batch_size: int = 96
    per_device_eval_batch_size: int = 96
    num_train_epochs: float = 1.0
    eval_strategy: str = "steps"
    eval_steps: float | None = 250
    save_strategy: str = "steps"
    save_steps: float = 250


def run(
    data: DatasetDict,
    args: VideoArguments,
    model_args: ModelArguments,
    training_args: QuestionTrainingArguments,
    whole: bool,
) -> tuple[QuestionTrainer, list[str], dict[str, float]]:
    """Train and evaluate on whole clips, or (same data, seed and steps) on their middle frames alone."""
    set_seed(training_args.seed)
    is_small = args.dataset == "moving-emoji"
    num_frames = args.num_frames or (16 if is_small else 32)
    vision = {
        "use_fixed_positions": True,
        "frame_stride": args.frame_stride or (5 if is_small else max(1, num_frames - 1)),
        "use_tubes": whole,
        "position_gate_init_value": args.position_gate,
    }
    if args.tubes is not None:
        vision["tubes"] = read_json("tubes", args.tubes)
    elif is_small:
        vision["tubes"] = SMALL_TUBES
    texts = [*data["train"]["question"], *(answers[0] for answers in data["train"]["answers"])]
    model, processor = load_or_build(model_args, texts, {"vision_config": vision})
    processor.num_frames = num_frames if whole else 1

    few = data["test"].select(range(min(args.num_eval_questions, len(data["test"]))))
    if args.dataset == "moving-emoji":
        size = model.config.vision_config.image_size
        train_set, few_set, test_set = (MovingEmojiDataset(rows, size) for rows in (data["train"], few, data["test"]))
    else:
        train_set, few_set, test_set = map(VideoQuestionDataset, (data["train"], few, data["test"]))
    trainer = train_on_questions(model, processor, train_set, few_set, model_args, training_args)
    answers = trainer.answer(test_set)
    return trainer, answers, evaluate_answers(answers, data["test"])


def main() -> None:
    parser = HfArgumentParser((VideoArguments, ModelArguments, VideoTrainingArguments))
    args, model_args, training_args = parser.parse_args_into_dataclasses()
    with training_args.main_process_first(desc="data"):
        if args.dataset == "moving-emoji":
            data = load_moving_emoji(args.num_clips, args.num_test_clips)
        else:
            data = load_video_questions(args.dataset, args.eval_split)

    trainer, answers, results = run(data, args, model_args, training_args, whole=True)
    arguments = {**asdict(args), "kind": "video", "example_question": data["test"]["question"][0]}
    folder = save_questions_repository(trainer, answers, data["test"], results, model_args, arguments)
    tables = {"whole clips": answer_table(results, len(answers))}
    if args.one_frame_ablation:
        one_frame_args = replace(
            training_args,
            output_dir=f"{training_args.output_dir}/one-frame",
            save_strategy="no",
            resume_from_checkpoint=None,
        )
        trainer, answers, one_frame = run(data, args, model_args, one_frame_args, whole=False)
        tables["the middle frame alone"] = answer_table(one_frame, len(answers))
        if folder is not None:
            (folder / "one_frame_results.json").write_text(json.dumps(one_frame, indent=2) + "\n")
    if folder is not None:
        for name, table in tables.items():
            print(f"\nTrained and tested on {name}:\n{table}")
        print(f"\nThe repository is in {folder}; answers.jsonl holds every answer.")
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
