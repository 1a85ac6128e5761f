"""Pictures made of OpenMoji drawings, with questions: what is this, how many, and which colour the ground has.

The drawings of the test split are those that captions hold out: none of them is in a training picture.
"""

import random
from collections import Counter, defaultdict
from typing import Any

from datasets import Dataset
from PIL import Image
from torch.utils.data import Dataset as TorchDataset

from triptych.data.conversations import ConversationMixture, QuestionConversations, dialogue
from triptych.data.drawings import picture_of
from triptych.data.easy_vqa import load_easy_vqa
from triptych.data.openmoji import named_drawings


_EASY_VQA_QUESTIONS = 1500  # of 38,575
GROUNDS = {
    "white": (255, 255, 255),
    "red": (250, 170, 165),
    "orange": (255, 205, 145),
    "yellow": (250, 245, 150),
    "green": (175, 230, 165),
    "blue": (165, 205, 250),
    "purple": (215, 180, 245),
    "grey": (205, 205, 205),
}
NUMBERS = ("one", "two", "three", "four")
QUESTIONS = {
    "what": "What is this?",
    "number": "How many are there?",
    "color": "Which colour is the background?",
}


class OpenMojiQuestions:
    """Pictures of drawings, alternating: a drawing as it is, and a scene of one to four copies on a coloured ground.

    A scene of n copies has n x n cells, n of them taken: as in photographs, more things are smaller things.

    Of the drawing, the question is what it is: the caption up to the colon, so "woman juggling" without her skin tone, and
    "flag" without the country, which nobody can know of a flag never seen. Of the scene: how many, and which colour.

    Args:
        split (`str`): `"train"` or `"test"`.
        pictures_per_drawing (`int`): Pictures of every drawing. The second, the fourth and so on are scenes.
        seed (`int`): Seed of colours, numbers and places.
        image_size (`int`): Height and width of the pictures, in pixels.
    """

    def __init__(self, split: str, pictures_per_drawing: int = 2, seed: int = 0, image_size: int = 96):
        self._drawings = {each.caption: str(each.source) for each in named_drawings()[split]}
        self.image_size = image_size
        self.rows = [
            _scene(f"{seed}-{split}-{index}-{caption}", caption) if index % 2 else _portrait(caption)
            for caption in self._drawings
            for index in range(pictures_per_drawing)
        ]
        random.Random(seed).shuffle(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        return {"images": [self.render(row)], "messages": _messages(row["answers"])}

    def lengths(self) -> list[int]:
        """Characters of every conversation."""
        return [sum(len(turn["content"]) for turn in _messages(row["answers"])) for row in self.rows]

    def render(self, row: dict[str, Any]) -> Image.Image:
        """The picture of a row of `rows`."""
        picture = Image.new("RGB", (self.image_size,) * 2, GROUNDS[row["ground"]])
        side = round(row["scale"] * self.image_size)
        sprite = picture_of(self._drawings[row["caption"]], side)
        for x, y in row["places"]:
            corner = (round(x * self.image_size - sprite.width / 2), round(y * self.image_size - sprite.height / 2))
            picture.paste(sprite, corner, sprite)
        return picture

    def questions(self) -> Dataset:
        """Every question on its own, for evaluation: columns `picture` (index of the row), `question`, `answers`, `answer_type`."""
        rows = [
            {"picture": index, "question": QUESTIONS[kind], "answers": [answer], "answer_type": kind}
            for index, row in enumerate(self.rows)
            for kind, answer in row["answers"].items()
        ]
        return Dataset.from_list(rows)


class HeldOutQuestions(TorchDataset):
    """Questions about held-out drawings, and half as many of easy-VQA's test split as there are pictures.

    Args:
        num_pictures (`int`): Pictures of drawings.
        seed (`int`): Of both.

    Attributes:
        data (`Dataset`): Columns `question`, `answers`, `answer_type` ("easy-VQA" for the latter).
        with_images (`bool`): Whether rows have their `image`.
    """

    def __init__(self, num_pictures: int, seed: int = 0):
        drawings = OpenMojiQuestions("test", seed=seed)
        asked = drawings.questions().filter(lambda row: row["picture"] < num_pictures)
        pictures = [drawings[index]["images"][0] for index in range(min(num_pictures, len(drawings)))]
        shapes = load_easy_vqa()["test"].shuffle(seed=seed).select(range(num_pictures // 2))
        rows = [{**row, "image": pictures[row["picture"]]} for row in asked]
        rows += [{**row, "answer_type": "easy-VQA"} for row in shapes]
        rows.sort(key=lambda row: row["answer_type"])  # a batch waits for its longest answer
        names = ("question", "answers", "answer_type")
        self.data = Dataset.from_dict({name: [row[name] for row in rows] for name in names})
        self.images = [row["image"] for row in rows]
        self.seed, self.with_images = seed, True

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.data[index] | ({"image": self.images[index]} if self.with_images else {})

    def commonest_answers(self) -> list[str]:
        """To every question the training split's commonest answer to its kind."""
        counts: dict[str, Counter] = defaultdict(Counter)
        for row in OpenMojiQuestions("train", seed=self.seed).questions():
            counts[row["answer_type"]].update(row["answers"])
        for row in load_easy_vqa()["train"].remove_columns("image"):
            counts["easy-VQA"].update(row["answers"])
        return [counts[kind].most_common(1)[0][0] for kind in self.data["answer_type"]]


def load_openmoji_conversations(pictures_per_drawing: int, seed: int = 0) -> ConversationMixture:
    """Conversations to train on: about drawings, and about some of easy-VQA's shapes, which are soon learned."""
    shapes = load_easy_vqa()["train"].shuffle(seed=seed).select(range(_EASY_VQA_QUESTIONS))
    drawings = OpenMojiQuestions("train", pictures_per_drawing, seed)
    return ConversationMixture([drawings, QuestionConversations(shapes)])  # type: ignore[list-item]


def _portrait(caption: str) -> dict[str, Any]:
    answers = {"what": caption.partition(":")[0]}
    return {"caption": caption, "ground": "white", "scale": 1.0, "places": [(0.5, 0.5)], "answers": answers}


def _scene(seed: str, caption: str) -> dict[str, Any]:
    rng = random.Random(seed)
    number = rng.randint(1, 4)
    cells = rng.sample([(x, y) for x in range(number) for y in range(number)], number)
    places = [tuple((cell + 0.5 + rng.uniform(-0.04, 0.04)) / number for cell in place) for place in cells]
    ground = rng.choice(list(GROUNDS))
    answers = [("number", NUMBERS[number - 1]), ("color", ground)]
    return {
        "caption": caption,
        "ground": ground,
        "scale": 0.9 / number,
        "places": places,
        "answers": dict(rng.sample(answers, len(answers))),
    }


def _messages(answers: dict[str, str]) -> list[dict[str, str]]:
    return dialogue((QUESTIONS[kind], answer) for kind, answer in answers.items())


__all__ = ["GROUNDS", "NUMBERS", "QUESTIONS", "HeldOutQuestions", "OpenMojiQuestions", "load_openmoji_conversations"]
