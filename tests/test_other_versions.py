"""Checkpoints in other environments: the oldest transformers supported, and the newest there is. `make test` makes both."""

import sys
from pathlib import Path

import pytest

from tests.checkpoints import compare, meet_a_stranger, save_checkpoints


ENVIRONMENTS = sorted(Path(sys.prefix).glob("versions/*/bin/python"))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    save_checkpoints(folder)
    return folder


@pytest.fixture(scope="module")
def expected(checkpoints, tmp_path_factory) -> dict[str, dict]:
    return meet_a_stranger(Path(sys.executable), checkpoints, tmp_path_factory.mktemp("here"))


@pytest.mark.skipif(not ENVIRONMENTS, reason="`make test` makes the environments with other versions of transformers")
@pytest.mark.parametrize("python", ENVIRONMENTS, ids=[path.parts[-3] for path in ENVIRONMENTS])
def test_checkpoints_answer_alike_and_come_back_as_they_went(python, checkpoints, expected, tmp_path):
    again = tmp_path / "again"
    compare(meet_a_stranger(python, checkpoints, tmp_path / "there", save_to=again), expected)
    compare(meet_a_stranger(Path(sys.executable), again, tmp_path / "back"), expected)


def test_a_difference_is_found(checkpoints, expected):
    changed = {name: dict(results) for name, results in expected.items()}
    changed["mammut"]["AutoModelForImageTextToText answer"] = expected["mammut"][
        "AutoModelForImageTextToText answer"
    ].roll(1, -1)
    with pytest.raises(AssertionError, match="mammut: AutoModelForImageTextToText answer"):
        compare(changed, expected)
