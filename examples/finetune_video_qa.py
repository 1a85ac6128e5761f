"""Train MaMMUT to answer questions about videos through sparse tubes, and the same model on one frame for comparison.

    python examples/pretrain.py --model mammut --output_dir outputs/demo
    python examples/finetune_video_qa.py --output_dir outputs/video-qa --model_name_or_path outputs/demo
    python examples/finetune_video_qa.py --output_dir outputs/msvd-qa --dataset path/to/MSVD-QA \\
        --model_name_or_path outputs/my-image-model --num_epochs 10

By default on moving-emoji clips, tested on emoji x direction combinations that training never shows. MSRVTT-QA and MSVD-QA are
read from a folder with train_qa.json, test_qa.json and the videos. `--one_frame` trains and tests on the middle frame alone, without
tubes: what a picture model would answer.
"""

from dataclasses import dataclass

from transformers import HfArgumentParser

from triptych.arguments import argument
from triptych.data.moving_emoji import MovingEmojiDataset, load_moving_emoji
from triptych.data.splits import refuse_changed
from triptych.data.video_questions import VideoQuestionDataset, load_video_questions
from triptych.modeling.configuration_base import check_positive
from triptych.training.captioners import ModelArguments, config_of, load_or_build, read_json
from triptych.training.cards import card_fields
from triptych.training.engine import Engine
from triptych.training.question_answering import QuestionArguments, texts_of, train_on_questions
from triptych.training.run_arguments import RunArguments
from triptych.training.transfer import layer_rates


# TubeViT's kernels for 16 frames of 96 x 96 pixels: its strides of 16 frames and 32 pixels would look at a few corners of that.
SMALL_TUBES = [
    [[8, 8, 8], [8, 24, 24], [0, 4, 4]],
    [[4, 12, 12], [4, 24, 24], [0, 0, 0]],
]


@dataclass
class VideoArguments:
    dataset: str = argument(
        default="moving-emoji", help="'moving-emoji', or a folder in MSRVTT-QA's or MSVD-QA's layout."
    )
    dataset_license: str | None = argument(default=None, help="Licence of your data, for the card.")
    eval_split: str = argument(default="test", help="Of a folder: test or val.")
    num_clips: int = argument(default=60_000, help="Moving-emoji clips in the training split.")
    num_test_clips: int = argument(default=400, help="Moving-emoji clips in the test split.")
    num_frames: int | None = argument(
        default=None, help="Frames sampled from a clip. Default: 16 of moving emojis, 32 of video files."
    )
    frame_stride: int | None = argument(
        default=None,
        help="Every so-many-th frame passes through the image patches. Default: 5 (four frames) of moving emojis, else "
        "first and last one.",
    )
    tubes: str | None = argument(
        default=None, help="JSON list of [kernel, stride, offset]. Default: some for moving emojis, else TubeViT's."
    )
    position_gate: float = argument(
        default=4.0,
        help="Where the gate of the fixed positions starts. 4 makes them as long as the demo model's patch embeddings. The "
        "paper's 0 leaves an image model unchanged, and blind to the order of frames until the gate has opened.",
    )
    one_frame: bool = argument(
        default=False, help="Train and test on the middle frame alone, without tubes, for comparison."
    )

    def __post_init__(self) -> None:
        check_positive(self, "num_clips", "num_test_clips", "num_frames", "frame_stride")
        of_other_data = ("dataset_license", "eval_split") if self.is_small else ("num_clips", "num_test_clips")
        refuse_changed(self, of_other_data, f"says nothing about `dataset` {self.dataset!r}")

    @property
    def is_small(self) -> bool:
        """Whether the clips are rendered, not read."""
        return self.dataset == "moving-emoji"

    def vision_config(self, num_frames: int) -> dict:
        """What the tower needs for clips."""
        fields = {
            "use_fixed_positions": True,
            "frame_stride": self.frame_stride or (5 if self.is_small else max(1, num_frames - 1)),
            "use_tubes": not self.one_frame,
            "position_gate_init_value": self.position_gate,
        }
        if self.tubes is not None:
            fields["tubes"] = read_json("tubes", self.tubes)
        elif self.is_small:
            fields["tubes"] = SMALL_TUBES
        return fields


def main() -> None:
    parser = HfArgumentParser((VideoArguments, QuestionArguments, ModelArguments, RunArguments))
    # Every clip is new, so one epoch.
    parser.set_defaults(
        batch_size=96, eval_batch_size=96, learning_rate=3e-4, eval_epochs=0.125, num_eval_questions=300
    )
    args, question_args, model_args, run_args = parser.parse_args_into_dataclasses()
    num_frames = args.num_frames or (16 if args.is_small else 32)
    vision = {"vision_config": args.vision_config(num_frames), "contrastive_loss_weight": 0.0}
    config = config_of("mammut", model_args, vision)
    engine = Engine(run_args)
    with engine.accelerator.main_process_first():
        if args.is_small:
            data = load_moving_emoji(args.num_clips, args.num_test_clips)
        else:
            data = load_video_questions(args.dataset, args.eval_split)
    model, processor = load_or_build("mammut", model_args, config, texts_of(data))
    processor = engine.restored(processor)
    processor.num_frames = 1 if args.one_frame else num_frames
    if args.is_small:
        size = config.vision_config.image_size
        sets = [MovingEmojiDataset(data[split], size) for split in ("train", "test")]
    else:
        sets = [VideoQuestionDataset(data[split]) for split in ("train", "test")]

    tags = ["visual-question-answering"]
    card = card_fields([args, question_args, model_args], run_args, "video-text-to-text", tags)
    rates = layer_rates(model, run_args.learning_rate, model_args.layer_decay)
    train_on_questions(engine, question_args, model, processor, *sets, card, rates)


if __name__ == "__main__":
    main()
