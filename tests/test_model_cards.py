"""The cards of the presets: their metadata are the Hub's, and every snippet in them runs."""

import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

import triptych
from tests.conftest import grr_coca_pair, mammut_pair, run_snippets, vw_lmm_pair
from triptych.training.cards import combined_license, training_command


FOLDER = Path(__file__).parents[1] / "model_cards"
CARDS = sorted(path.stem for path in FOLDER.glob("*.md") if not path.stem.endswith("template"))
PRESETS = {
    **triptych.GrrCocaConfig.presets(),
    **triptych.MammutConfig.presets(),
    **triptych.VwLmmConfig.presets(),
}


def write_checkpoint(card: str, folder: Path) -> None:
    """A tiny model of the card's kind."""
    if card.startswith("vw-lmm"):
        pair = vw_lmm_pair(pseudo_image_features=card == "vw-lmm-pif")
    elif "mammut" in card:
        pair = mammut_pair("laion" if card == "openmammut" else "paper")
    else:
        pair = grr_coca_pair({"coca-open-clip": "open_clip", "baseline-coca": "baseline"}.get(card, "grr"))
    for part in pair:
        part.save_pretrained(folder)


def test_there_is_a_card_for_everything_that_users_look_for():
    assert CARDS == [
        "baseline-coca", "coca-open-clip", "grr-coca", "mammut", "openmammut", "vw-lmm-mistral", "vw-lmm-pif",
        "vw-lmm-smollm2", "vw-lmm-vicuna",
    ]  # fmt: skip


@pytest.mark.parametrize("name", CARDS)
def test_metadata_presets_and_sources(name):
    card = ModelCard.load(FOLDER / f"{name}.md")
    assert card.data.license
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag in ("image-to-text", "image-text-to-text")
    for result in card.data.eval_results or ():
        value = result.metric_value  # stands in the text too, with its data and its chance
        assert str(value) in card.text or f"{100 * value:.1f} %" in card.text
    assert "```bibtex" in card.text
    for heading in ("Use", "Training", "Evaluation", "Data and licence", "Intended use and limits", "Sources"):
        assert f"\n## {heading}\n" in card.text
    for preset in re.findall(r"^\| `([\w-]+)`", card.text, re.MULTILINE):
        assert preset in PRESETS
    classes = set(re.findall(r"\bAutoModel\w*", card.text))
    model_type = "VwLmm" if name.startswith("vw-lmm") else "Mammut" if "mammut" in name else "GrrCoca"
    expected = triptych.modeling.self_contained.auto_classes_of(getattr(triptych, f"{model_type}Config"))
    assert expected.keys() <= classes


@pytest.mark.parametrize("name", CARDS)
def test_snippets_run(name, tmp_path, monkeypatch, capsys):
    write_checkpoint(name, tmp_path / "checkpoint")
    card = (FOLDER / f"{name}.md").read_text(encoding="utf-8")
    run_snippets(card, tmp_path / "checkpoint", tmp_path, monkeypatch)
    assert len(capsys.readouterr().out.splitlines()) >= 3


def test_the_command_of_a_run_tells_no_secrets(monkeypatch):
    argv = [
        "/home/me/examples/pretrain.py",
        "--hub_token",
        "hf_SECRET",
        "--token=hf_SECRET",
        "--dataset",
        "/home/me/data",
        "--image_folder=/home/me/my pictures",
        "--seed",
        "1",
    ]
    monkeypatch.setattr("sys.argv", argv)
    assert training_command() == "python examples/pretrain.py --dataset data '--image_folder=my pictures' --seed 1"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert training_command().startswith("accelerate launch --num_processes 2 examples/pretrain.py")


@pytest.mark.parametrize(
    ("data", "base", "expected"),
    [
        ("mit", "cc-by-sa-4.0", "cc-by-sa-4.0"),
        ("cc-by-sa-4.0", "mit", "cc-by-sa-4.0"),
        ("cc-by-sa-4.0", "cc-by-nc-4.0", None),
        (None, "mit", None),
        ("mit", None, None),  # a checkpoint that states no licence allows nothing
    ],
)
def test_the_stricter_licence_wins(tmp_path, data, base, expected):
    assert combined_license(data, None) == (data, "")
    (tmp_path / "README.md").write_text(f"---\nlicense: {base}\n---\n" if base else "---\ntags: []\n---\n")
    found, sentence = combined_license(data, str(tmp_path))
    assert found == expected
    assert tmp_path.name in sentence
    assert str(tmp_path) not in sentence
