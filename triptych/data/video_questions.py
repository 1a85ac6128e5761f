"""Questions about video files: MSRVTT-QA and MSVD-QA in the layout of their authors (Xu et al. 2017)."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
from datasets import DatasetDict, Features, Value

from triptych.data.easy_vqa import QUESTION_FEATURES
from triptych.data.media_folder import CLIPS, MediaFolder
from triptych.data.questions import QuestionRows


def read_video_questions(folder: Path, split: str) -> Iterator[dict[str, Any]]:
    """Rows of `<split>_qa.json`, as of [`load_video_questions`], which describes the folder."""
    clips = MediaFolder(folder, CLIPS)
    mapping = folder / "youtube_mapping.txt"  # of MSVD: a file's name and its `vid<number>` per line
    lines = mapping.read_text().splitlines() if mapping.exists() else []
    youtube = {number: name for name, number in map(str.split, filter(str.strip, lines))}
    path = folder / f"{split}_qa.json"
    for entry in json.loads(path.read_text(encoding="utf-8")):
        number = entry["video_id"]
        names = [f"video{number}", f"vid{number}", str(number), youtube.get(f"vid{number}", "")]
        yield {
            "video": str(clips.find(*filter(None, names))),
            "question": entry["question"],
            "answers": [entry["answer"]],
            "answer_type": entry["question"].split(maxsplit=1)[0].lower(),
        }


def load_video_questions(folder: str, eval_split: str = "test") -> DatasetDict:
    """Load `train_qa.json` and `<eval_split>_qa.json` with the video files anywhere below the folder.

    Every entry has `video_id`, `question` and `answer`. MSRVTT's files are called `video<id>`, MSVD's as
    `youtube_mapping.txt` says (or `vid<id>`).

    Args:
        folder (`str`): Of the data set.
        eval_split (`str`): `test` or `val`.

    Returns:
        `DatasetDict` with splits `train` and `test` and columns `video` (a path), `question`, `answers`, `answer_type` (the
        question's first word, as these data sets are reported: what, who, how, when, where).

    Raises:
        ValueError: If a file of questions or a video is missing.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"`dataset` must be 'moving-emoji' or a folder, got {folder!r}.")
    features = Features({"video": Value("string"), **QUESTION_FEATURES})
    splits = {}
    for target, source in (("train", "train"), ("test", eval_split)):
        if not (root / f"{source}_qa.json").exists():
            raise ValueError(
                f"There is no {source}_qa.json in {root}; expected train_qa.json and {eval_split}_qa.json."
            )
        splits[target] = datasets.Dataset.from_list(list(read_video_questions(root, source)), features=features)
    return DatasetDict(splits)


class VideoQuestionDataset(QuestionRows):
    """Rows of [`load_video_questions`]; the processor reads the files."""

    group_column = "video"

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.data[index]
        # Interned: the same string object for the same file, by which the collator knows it again.
        return {**row, "video": sys.intern(row["video"]), "answer": row["answers"][0]}


__all__ = ["VideoQuestionDataset", "load_video_questions", "read_video_questions"]
