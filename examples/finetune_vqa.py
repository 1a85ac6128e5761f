"""Train MaMMUT to answer questions about images: easy-VQA by default, any VQA data set by name.

    python examples/finetune_vqa.py --output_dir outputs/easy-vqa
    python examples/finetune_vqa.py --output_dir outputs/vqa --model_name_or_path outputs/demo --num_epochs 1
    accelerate launch examples/finetune_vqa.py --output_dir outputs/mine --dataset name/of-questions --eval_split validation

The question is the prompt; only the answer is supervised; answers are generated, not picked from a list.
"""

from dataclasses import dataclass

from transformers import HfArgumentParser

from triptych.arguments import argument
from triptych.data.questions import QuestionDataset, load_questions
from triptych.data.splits import DataArguments
from triptych.training.captioners import ModelArguments, config_of, load_or_build
from triptych.training.cards import card_fields
from triptych.training.engine import Engine
from triptych.training.question_answering import QuestionArguments, texts_of, train_on_questions
from triptych.training.run_arguments import RunArguments
from triptych.training.transfer import layer_rates


# easy-VQA's images are 64 x 64 pixels; patches of 8 show enough of a small shape to tell it from another.
SMALL_IMAGES = {"vision_config": {"image_size": 64, "patch_size": 8}}


@dataclass
class VqaArguments(DataArguments):
    dataset: str = argument(
        default="easy-vqa", help="'easy-vqa', a folder, a parquet file, or the name of a Hub data set."
    )
    image_column: str = argument(default="image", help="Column with the images.")
    question_column: str = argument(default="question", help="Column with the questions.")
    answer_column: str = argument(
        default="answers", help="Column with an answer, a list of them, or VQAv2's list of dicts."
    )
    answer_type_column: str = argument(
        default="answer_type", help="Column with the kind of answer; guessed if it is missing."
    )


def main() -> None:
    parser = HfArgumentParser((VqaArguments, QuestionArguments, ModelArguments, RunArguments))
    parser.set_defaults(num_epochs=8, batch_size=256, eval_batch_size=256, learning_rate=3e-4)
    data_args, question_args, model_args, run_args = parser.parse_args_into_dataclasses()
    is_small = data_args.dataset == "easy-vqa" and model_args.model_name_or_path is None
    config = config_of("mammut", model_args, {"contrastive_loss_weight": 0.0, **(SMALL_IMAGES if is_small else {})})
    engine = Engine(run_args)
    with engine.accelerator.main_process_first():
        data = load_questions(**data_args.loading(), seed=run_args.seed)
    model, processor = load_or_build("mammut", model_args, config, texts_of(data))
    processor = engine.restored(processor)

    task = "visual-question-answering"
    card = card_fields([data_args, question_args, model_args], run_args, task, [task])
    sets = [QuestionDataset(data[split]) for split in ("train", "test")]
    rates = layer_rates(model, run_args.learning_rate, model_args.layer_decay)
    train_on_questions(engine, question_args, model, processor, *sets, card, rates)


if __name__ == "__main__":
    main()
