"""easy-VQA: coloured shapes and questions about them, from the `easy-vqa` package (MIT), with its published split."""

from datasets import Dataset, DatasetDict, Features, Image, Sequence, Value


QUESTION_FEATURES = {"question": Value("string"), "answers": Sequence(Value("string")), "answer_type": Value("string")}
_SHAPES = {"circle", "rectangle", "triangle"}


def _answer_type(answer: str) -> str:
    if answer in ("yes", "no"):
        return "yes/no"
    return "shape" if answer in _SHAPES else "color"


def load_easy_vqa() -> DatasetDict:
    """4,000 training and 1,000 test images of 64 x 64 pixels, with 38,575 and 9,673 questions.

    Returns:
        `DatasetDict` with splits `train` and `test` and columns `image`, `image_id`, `question`, `answers`, `answer_type`
        (yes/no, shape, color).

    Raises:
        ImportError: If `easy-vqa` is missing (`pip install triptych[demo]`).
    """
    try:
        import easy_vqa
    except ImportError as error:
        raise ImportError(f"easy-VQA needs {error.name!r}: pip install 'triptych[demo]'.") from error
    splits = {}
    for name, questions, paths in (
        ("train", easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths()),
        ("test", easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths()),
    ):
        texts, answers, image_ids = questions
        columns = {
            "image": [str(paths[image_id]) for image_id in image_ids],
            "image_id": [str(image_id) for image_id in image_ids],
            "question": texts,
            "answers": [[answer] for answer in answers],
            "answer_type": [_answer_type(answer) for answer in answers],
        }
        splits[name] = Dataset.from_dict(
            columns, features=Features({"image": Image(), "image_id": Value("string"), **QUESTION_FEATURES})
        )
    return DatasetDict(splits)


__all__ = ["QUESTION_FEATURES", "load_easy_vqa"]
