"""Train MaMMUT to answer questions about images: easy-VQA by default, any VQA data set by name.

    python examples/finetune_vqa.py --output_dir outputs/easy-vqa
    python examples/finetune_vqa.py --output_dir outputs/vqa --model_name_or_path outputs/demo --num_train_epochs 1
    accelerate launch examples/finetune_vqa.py --output_dir outputs/mine --dataset name/of-questions --eval_split validation

The question is the prompt; only the answer is supervised; answers are generated, not picked from a list. The arguments of
transformers' Trainer are accepted, except label smoothing.
"""

import json
from dataclasses import asdict, dataclass, field

from transformers import HfArgumentParser, set_seed

from triptych.training.finetuning import (
    ModelArguments,
    QuestionTrainingArguments,
    answer_table,
    load_or_build,
    save_questions_repository,
    train_on_questions,
)
from triptych.training.questions import QuestionDataset, evaluate_answers, load_questions


# easy-VQA's images are 64 x 64 pixels; patches of 8 show enough of a small shape to tell it from another.
SMALL_IMAGES = {"vision_config": {"image_size": 64, "patch_size": 8}}


@dataclass
class DataArguments:
    dataset: str = field(default="easy-vqa", metadata={"help": "'easy-vqa', a folder, or the name of a Hub data set."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    image_column: str = field(default="image", metadata={"help": "Column with the images."})
    question_column: str = field(default="question", metadata={"help": "Column with the questions."})
    answer_column: str = field(
        default="answers", metadata={"help": "Column with an answer, a list of them, or VQAv2's list of dicts."}
    )
    answer_type_column: str = field(
        default="answer_type", metadata={"help": "Column with the kind of answer; guessed if it is missing."}
    )
    dataset_license: str | None = field(default=None, metadata={"help": "Licence of your data, for the card."})
    eval_split: str = field(default="test", metadata={"help": "Split to evaluate on; held out if it does not exist."})
    num_eval_questions: int = field(
        default=1000, metadata={"help": "Questions of the evaluations during training; the last one takes all."}
    )


def main() -> None:
    parser = HfArgumentParser((DataArguments, ModelArguments, QuestionTrainingArguments))
    data_args, model_args, training_args = parser.parse_args_into_dataclasses()
    set_seed(training_args.seed)
    with training_args.main_process_first(desc="data"):
        data = load_questions(
            data_args.dataset,
            data_args.dataset_config,
            data_args.image_column,
            data_args.question_column,
            data_args.answer_column,
            data_args.answer_type_column,
            data_args.eval_split,
            seed=training_args.seed,
        )
    texts = [*data["train"]["question"], *(answers[0] for answers in data["train"]["answers"])]
    from_scratch = model_args.model_name_or_path is None
    overrides = SMALL_IMAGES if data_args.dataset == "easy-vqa" and from_scratch else None
    model, processor = load_or_build(model_args, texts, overrides)

    train_set, test_set = QuestionDataset(data["train"]), QuestionDataset(data["test"])
    few = data["test"].select(range(min(data_args.num_eval_questions, len(data["test"]))))
    trainer = train_on_questions(model, processor, train_set, QuestionDataset(few), model_args, training_args)

    answers = trainer.answer(test_set)
    results = evaluate_answers(answers, data["test"])
    arguments = {**asdict(data_args), "kind": "image", "example_question": data["test"]["question"][0]}
    folder = save_questions_repository(trainer, answers, data["test"], results, model_args, arguments)
    if folder is not None:
        print(json.dumps(results, indent=2))
        print(answer_table(results, len(answers)))
        print(f"The repository is in {folder}; answers.jsonl holds every answer.")
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
