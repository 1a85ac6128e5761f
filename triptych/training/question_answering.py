"""What the scripts that train MaMMUT on questions share: arguments, evaluation, and what they write."""

import json
from dataclasses import dataclass
from typing import Any

import datasets
from torch import nn
from torch.utils.data import Subset
from transformers import PreTrainedModel, ProcessorMixin

from triptych.arguments import argument
from triptych.data.orders import GroupedSampler
from triptych.data.questions import QuestionCollator
from triptych.evaluation.answers import answer_questions, answer_table, evaluate_answers
from triptych.modeling.configuration_base import check_positive
from triptych.training.engine import Engine, Task


@dataclass
class QuestionArguments:
    """How questions are trained and asked."""

    num_eval_questions: int = argument(
        default=1000, help="Questions of the evaluations during training; the last one takes all."
    )
    questions_per_image: int = argument(
        default=5, help="Most questions of an image or clip that share it in a training batch; 1: fully shuffled."
    )
    max_answer_tokens: int = argument(default=10, help="Longest answer, in tokens.")

    def __post_init__(self) -> None:
        check_positive(self, "num_eval_questions", "questions_per_image", "max_answer_tokens")


def texts_of(data: datasets.DatasetDict) -> list[str]:
    """Questions and answers of the training split, to train a tokenizer on."""
    return [*data["train"]["question"], *(answers[0] for answers in data["train"]["answers"])]


def train_on_questions(
    engine: Engine,
    args: QuestionArguments,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    train_set: Any,
    test_set: Any,
    card: dict[str, Any],
    learning_rates: dict[str, float],
) -> None:
    """Train MaMMUT to answer questions, and write its repository with every held-out answer.

    Only the answer is supervised, and answers are generated, not picked from a list.

    Args:
        engine ([`Engine`]): Of the run.
        args ([`QuestionArguments`]): What was asked for.
        model, processor: A MaMMUT without contrastive loss.
        train_set (`Dataset`): Rows with `question`, `answer` and `image` or `video`, and `groups()`.
        test_set (`Dataset`): Such rows, whose `data` has the columns `question`, `answers` and `answer_type`.
        card (`dict`): Of [`card_fields`].
        learning_rates (`dict[str, float]`): Of [`layer_rates`].
    """
    answers: list[str] = []  # of the last evaluation
    data, reading = test_set.data, (engine.accelerator, engine.args.eval_batch_size, engine.args.num_workers)

    def evaluate(model: nn.Module, is_last: bool) -> dict[str, float]:
        count = len(data) if is_last else min(args.num_eval_questions, len(data))
        rows = Subset(test_set, range(count))
        answers[:] = answer_questions(model, rows, processor, *reading, args.max_answer_tokens)
        return evaluate_answers(answers, data.select(range(count)))

    model.generation_config.max_new_tokens = args.max_answer_tokens  # type: ignore[union-attr]
    visuals = "videos" if "video" in test_set[0] else "images"
    task = Task(
        name="questions",
        model=model,
        processor=processor,
        train_set=train_set,
        collator=QuestionCollator(processor),
        loss_parts=("caption_loss",),
        evaluate=evaluate,
        learning_rates=learning_rates,
        order=GroupedSampler(train_set.groups(), args.questions_per_image, engine.args.seed),
        find_unused_parameters=True,  # the contrastive side has no gradient
        headline=("vqa_accuracy",),
        card={**card, "visuals": visuals, "example_question": data["question"][0]},
    )
    engine.train(task)
    results = engine.evaluate(task)
    engine.accelerator.print(answer_table({engine.output_dir.name: results}))
    names = ("question", "answer", "true", "answer_type")
    rows = zip(data["question"], answers, data["answers"], data["answer_type"], strict=True)
    lines = "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows)
    engine.finish(task, results, {"answers.jsonl": lines})


__all__ = ["QuestionArguments", "texts_of", "train_on_questions"]
