"""Moving-emoji clips: short videos rendered from OpenMoji, with questions that no single frame answers.

One emoji crosses the scene while two others appear, one after the other, and stay. What moves, where it goes and what came last
are asked. Every emoji has one direction in which it never moves in the training split; the test split shows only those.
"""

import random
from functools import lru_cache
from typing import Any

from datasets import Dataset, DatasetDict, Features, Value
from PIL import Image

from triptych.data.easy_vqa import QUESTION_FEATURES
from triptych.data.openmoji import pictures_named
from triptych.data.questions import QuestionRows


NUM_FRAMES = 32
EMOJIS = (
    "red apple", "banana", "rocket", "sailboat", "bicycle", "key", "bell", "umbrella", "cactus", "frog", "octopus", "snail",
    "butterfly", "soccer ball", "guitar", "crown", "pizza", "red heart", "star", "snowman", "watermelon", "penguin",
    "mushroom", "whale",
)  # fmt: skip
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
QUESTIONS = {
    "object": "what moves?",
    "direction": "which direction does it move?",
    "order": "what appears last?",
}


def held_out_direction(emoji: str) -> str:
    """The direction in which an emoji moves in test clips only."""
    return list(DIRECTIONS)[EMOJIS.index(emoji) % len(DIRECTIONS)]


def _scene(seed: str, held_out: bool) -> dict[str, Any]:
    """What happens in a clip; lengths as shares of the frame's side."""
    rng = random.Random(seed)
    mover, first, last = rng.sample(EMOJIS, 3)
    kept_out = held_out_direction(mover)
    direction = kept_out if held_out else rng.choice([name for name in DIRECTIONS if name != kept_out])
    # The middle of the way is uniform, so where the emoji is in the middle frame says nothing about where it goes.
    distance = rng.uniform(0.35, 0.5)
    along, across = rng.uniform(0.42, 0.58), rng.uniform(0.2, 0.8)
    dx, dy = DIRECTIONS[direction]
    center = (along, across) if dx else (across, along)
    # Beside the way, one in each half of it; what moves may cover a part of them.
    side = (across + 0.45) % 0.8 + 0.1
    halves = [0.2, 0.8]
    rng.shuffle(halves)
    places = [(half, side) if dx else (side, half) for half in halves]
    appears = rng.randint(2, 12)
    return {
        "emojis": [mover, first, last],
        "direction": direction,
        "start": [center[0] - dx * distance / 2, center[1] - dy * distance / 2],
        "end": [center[0] + dx * distance / 2, center[1] + dy * distance / 2],
        "places": [list(place) for place in places],
        "appear": [appears, rng.randint(appears + 6, NUM_FRAMES - 6)],
        "background": [rng.randint(200, 255) for _ in range(3)],
    }


def render_clip(scene: dict[str, Any], image_size: int) -> list[Image.Image]:
    """The 32 frames of a scene, RGB, `image_size x image_size` pixels. Emojis are a third of the frame's side wide."""
    sprite_size = round(image_size / 3)
    sprites = pictures_named(EMOJIS, sprite_size)
    mover, *standing = scene["emojis"]

    def paste(frame: Image.Image, name: str, x: float, y: float) -> None:
        corner = (round(x * image_size - sprite_size / 2), round(y * image_size - sprite_size / 2))
        frame.paste(sprites[name], corner, sprites[name])

    frames = []
    for index in range(NUM_FRAMES):
        frame = Image.new("RGB", (image_size, image_size), tuple(scene["background"]))
        for name, place, since in zip(standing, scene["places"], scene["appear"], strict=True):
            if index >= since:
                paste(frame, name, *place)
        share = index / (NUM_FRAMES - 1)
        paste(frame, mover, *(a + share * (b - a) for a, b in zip(scene["start"], scene["end"], strict=True)))
        frames.append(frame)
    return frames


# The questions about a clip follow one another (`GroupedSampler`); the collator knows a clip again by its identity.
@lru_cache(maxsize=4)
def _clip(scene: str, held_out: bool, image_size: int) -> list[Image.Image]:
    return render_clip(_scene(scene, held_out), image_size)


def load_moving_emoji(num_train: int = 4000, num_test: int = 400, seed: int = 0) -> DatasetDict:
    """Scenes and their three questions each.

    Args:
        num_train, num_test (`int`): Clips in the two splits.
        seed (`int`): Seed of the scenes.

    Returns:
        `DatasetDict` with splits `train` and `test` and columns `scene` (its seed), `held_out`, `question`, `answers`,
        `answer_type` (object, direction, order). [`MovingEmojiDataset`] renders them.
    """
    features = Features({"scene": Value("string"), "held_out": Value("bool"), **QUESTION_FEATURES})
    splits = {}
    for name, count in (("train", num_train), ("test", num_test)):
        rows: list[dict[str, Any]] = []
        for index in range(count):
            key, held_out = f"{seed}-{name}-{index}", name == "test"
            scene = _scene(key, held_out)
            answers = {"object": scene["emojis"][0], "direction": scene["direction"], "order": scene["emojis"][2]}
            clip = {"scene": key, "held_out": held_out}
            rows += [
                {**clip, "question": QUESTIONS[kind], "answers": [answer], "answer_type": kind}
                for kind, answer in answers.items()
            ]
        splits[name] = Dataset.from_list(rows, features=features)
    return DatasetDict(splits)


class MovingEmojiDataset(QuestionRows):
    """Rows of [`load_moving_emoji`] with the clip rendered as a list of frames.

    Args:
        data (`datasets.Dataset`): A split.
        image_size (`int`): Height and width of the frames, in pixels.
    """

    group_column = "scene"

    def __init__(self, data: Dataset, image_size: int):
        super().__init__(data)
        self.image_size = image_size

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.data[index]
        frames = _clip(row["scene"], row["held_out"], self.image_size)
        return {**row, "video": frames, "answer": row["answers"][0]}


__all__ = [
    "DIRECTIONS", "EMOJIS", "NUM_FRAMES", "MovingEmojiDataset", "held_out_direction", "load_moving_emoji", "render_clip",
]  # fmt: skip
