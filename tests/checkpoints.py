"""A tiny checkpoint of every model, and what the interpreters of other environments get out of them.

`python -m tests.checkpoints FOLDER` writes them.
"""

import os
import subprocess
import sys
from pathlib import Path

import torch

from tests.conftest import grr_coca_pair, mammut_pair, vw_lmm_pair
from tests.test_detection import save_detector


MAKERS = {
    "grr_coca": grr_coca_pair,
    "mammut": mammut_pair,
    "vw_lmm": vw_lmm_pair,
    "vw_lmm_pif": lambda: vw_lmm_pair(pseudo_image_features=True),
}
STRANGER = Path(__file__).parent / "stranger.py"


def save_checkpoints(folder: Path) -> None:
    """Write one checkpoint per model, each into a folder of its own."""
    for name, make in MAKERS.items():
        model, processor = make()
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    save_detector(folder / "detector")


def meet_a_stranger(python: Path, checkpoints: Path, folder: Path, save_to: Path | None = None) -> dict[str, dict]:
    """What the interpreter of another environment gets out of checkpoints; see `stranger.py`.

    Args:
        python: The interpreter.
        checkpoints: A folder of checkpoints.
        folder: For results and modules; it may be shared by no other call.
        save_to: Where it shall write them again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [str(python), str(STRANGER), str(checkpoints), str(folder / "results.pt")]
    command += [] if save_to is None else ["--save-to", str(save_to)]
    environment = {**os.environ, "HF_MODULES_CACHE": str(folder / "modules")}
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(folder / "results.pt", weights_only=False)


def compare(found: dict[str, dict], expected: dict[str, dict], tolerance: float = 1e-5) -> None:
    """Token ids, texts and integers must be equal, all else within `tolerance`.

    Raises:
        AssertionError: With the model and the result that differ.
    """
    assert found.keys() == expected.keys()
    for model, results in expected.items():
        assert found[model].keys() == results.keys(), model
        for name, value in results.items():
            where = f"{model}: {name}"
            if isinstance(value, torch.Tensor):
                exact = not value.is_floating_point()
                options = {"atol": 0, "rtol": 0} if exact else {"atol": tolerance, "rtol": tolerance}
                torch.testing.assert_close(
                    found[model][name], value, msg=lambda text, w=where: f"{w}: {text}", **options
                )
            else:
                assert found[model][name] == value, where


if __name__ == "__main__":
    save_checkpoints(Path(sys.argv[1]))
