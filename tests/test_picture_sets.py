"""Data sets made of packages: what they name, what they hold out, and where they are kept. The packages here are made by hand."""

import io
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
from emoji import EMOJI_DATA
from PIL import Image

from triptych.data import picture_sets
from triptych.data.clip_art import OPEN_CLIP_ART, STAMPS, read_open_clip_art, read_stamps
from triptych.data.drawings import Drawing, concept_of, square_picture
from triptych.data.icon_sets import VERSIONS, package_of, read_emoji, read_game_icons, read_health_icons
from triptych.data.packages import Package
from triptych.data.pairs import load_pairs
from triptych.data.picture_sets import PICTURE_SETS, load_picture_set, split_drawings
from triptych.data.splits import DataArguments
from triptych.data.statements import STATEMENTS
from triptych.data.unicode_names import caption_named


ROOT = Path(__file__).parents[1]
# Concepts that every emoji set draws, as CLDR's names and as code points
CONCEPTS = {
    "red-heart": "2764", "blue-heart": "1f499", "grinning-face": "1f600", "cat-face": "1f431", "dog-face": "1f436",
    "waving-hand": "1f44b", "waving-hand-dark-skin-tone": "1f44b-1f3ff", "pizza": "1f355", "rocket": "1f680", "anchor": "2693",
    "snail": "1f40c", "key": "1f511", "banana": "1f34c", "black-scissors": "2702",
}  # fmt: skip

CONCEPTS |= {
    entry["en"].strip(":").replace("_", "-"): f"{ord(sign):x}"
    for sign, entry in list(EMOJI_DATA.items())[::8]
    if len(sign) == 1 and "whale" not in entry["en"]
}
NAMES = [f"thing-{first}{second}" for first in "abcdef" for second in "ghijkl"]


def body(seed: str) -> str:
    """A drawing of its own for every name."""
    rng = np.random.default_rng(list(seed.encode()))
    numbers = rng.integers(2, 30, (4, 4))
    colours = rng.integers(0, 256, (4, 3))
    return "".join(
        f'<rect x="{x}" y="{y}" width="{w}" height="{h}" fill="rgb({r},{g},{b})"/>'
        for (x, y, w, h), (r, g, b) in zip(numbers, colours, strict=True)
    )


@pytest.fixture
def packages(tmp_path, monkeypatch) -> Path:
    """Folders of all packages, as their clients leave them; nothing can be fetched."""
    for name in ("HF_CACHE_HOME", "HF_DATASETS_CACHE"):
        monkeypatch.setattr(datasets.config, name, str(tmp_path / name))
    monkeypatch.setattr(Package, "command", property(lambda self: ["no-such-client", self.name]))
    for name in VERSIONS:
        folder = package_of(name).folder / "package"
        folder.mkdir(parents=True)
        icons = {icon: {"body": body(f"{name} {icon}")} for icon in CONCEPTS}
        if name == "fxemoji":
            icons = {icon.replace("-", ""): value for icon, value in icons.items()} | {
                "nobodyknows": {"body": body("?")}
            }
        if name == "noto":
            icons |= {"old": {"body": body("old"), "hidden": True}, "twin": {"body": icons["snail"]["body"]}}
        if name == "game-icons":
            icons = {
                "abstract-001": {"body": body("a")},
                "card-ace-2": {"body": '<path d="M0 0h9v9z" fill="currentColor"/>'},
            }
        if name == "healthicons":
            icons = {
                icon: {"body": body(icon)}
                for icon in ("tooth", "tooth-outline", "tooth-outline-24px", "baby-0306m", *NAMES)
            }
        (folder / "icons.json").write_text(json.dumps({"prefix": name, "icons": icons, "width": 32, "height": 32}))
        if name in ("noto", "twemoji", "fluent-emoji-flat"):
            (folder / "chars.json").write_text(
                json.dumps({code: icon for icon, code in CONCEPTS.items()} | {"1f40b": "twin"})
            )
    return tmp_path


def clip_art(title: str, *keywords: str) -> str:
    items = "".join(f"<rdf:li>{word}</rdf:li>" for word in keywords)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" width="20mm" height="10mm"><metadata><rdf:RDF '
        'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:cc="http://web.resource.org/cc/" '
        f'xmlns:dc="http://purl.org/dc/elements/1.1/"><cc:Work><dc:title>{title}</dc:title><dc:subject><rdf:Bag>{items}</rdf:Bag>'
        f"</dc:subject></cc:Work></rdf:RDF></metadata>{body(title)}</svg>"
    )


@pytest.fixture
def clip_art_package(packages) -> Path:
    folder = OPEN_CLIP_ART.folder / "usr" / "share" / "openclipart" / "svg"
    folder.mkdir(parents=True)
    files = {
        "lion_jon_01.svg": clip_art(
            "Clipart by Nicu Buculei - Sleepy_Lion_02", "hash", "animal", "lion", "big cat", "icons"
        ),
        "anchor.svg": clip_art("Anchor"),
        "star_49pt16step.svg": clip_art(""),
        "blank.svg": '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "broken.svg": "<svg",
        **{f"theme_{word}.svg": clip_art("Lemon theme") for word in "abcdefghijkl"},
    }
    for name, content in files.items():
        (folder / name).write_text(content)
    (folder / "linked.svg").symlink_to(folder / "anchor.svg")
    return folder


def test_emoji_are_named_by_code_points_or_by_their_letters(packages):
    noto = {drawing.file_name: drawing.caption for drawing in read_emoji("noto")}
    assert noto["noto/waving-hand-dark-skin-tone.svg"] == "waving hand: dark skin tone"
    assert "noto/old.svg" not in noto
    other = {drawing.file_name: drawing.caption for drawing in read_emoji("fxemoji")}
    assert other["fxemoji/wavinghanddarkskintone.svg"] == "waving hand: dark skin tone"
    assert other["fxemoji/blackscissors.svg"] == "scissors"  # what Unicode calls the character
    assert "fxemoji/nobodyknows.svg" not in other
    assert caption_named("laughing-thing", {"laughing-thing": "1f600"}) == "grinning face"


def test_pictograms_are_words_on_their_own_ground(packages):
    (ace,) = read_game_icons()
    assert (ace.caption, ace.background) == ("card ace", "black")
    picture = np.asarray(square_picture(ace, 32))
    assert picture[30, 30].tolist() == [0, 0, 0]
    assert picture[1, 7].tolist() == [255, 255, 255]
    found = Counter(drawing.caption for drawing in read_health_icons())
    assert (found["tooth"], found["baby 0306m"]) == (3, 1)


def test_clip_art_is_described_by_title_and_keywords(clip_art_package):
    captions = {Path(drawing.file_name).name: drawing.caption for drawing in read_open_clip_art()}
    assert captions["lion_jon_01.svg"] == "sleepy lion: animal, big cat"
    assert captions["anchor.svg"] == "anchor"
    assert captions["theme_a.svg"] == "theme a"  # the title is that of a collection
    assert captions["broken.svg"] == "broken"
    assert not {"star_49pt16step.svg", "linked.svg"} & captions.keys()


def test_stamps_have_their_english_sentence(packages):
    folder = STAMPS.folder / "usr" / "share" / "tuxpaint" / "stamps" / "animals"
    folder.mkdir(parents=True)
    file = io.BytesIO()
    Image.new("RGBA", (40, 20), (200, 30, 30, 255)).save(file, "PNG")
    (folder / "crow.png").write_bytes(file.getvalue())
    (folder / "crow.txt").write_text("A crow.\nde.utf8=Eine Krähe.\n", encoding="utf-8")
    (folder / "nothing.txt").write_text("A sentence without a picture.\n")
    (crow,) = read_stamps()
    assert crow.caption == "A crow."
    picture = square_picture(crow, 16)
    assert picture.getpixel((8, 8)) == (200, 30, 30)
    assert picture.getpixel((8, 1)) == (255, 255, 255)  # the whole of it, in the middle


def test_no_style_of_a_held_out_concept_is_trained_on(clip_art_package, monkeypatch):
    monkeypatch.setattr(picture_sets, "all_drawings", list)
    data = load_picture_set("drawings", 24)
    assert sum(len(split) for split in data.values()) > 100
    groups = {name: set(data[name]["group"]) for name in ("train", "validation", "test")}
    assert (
        not groups["train"] & groups["test"]
        | groups["train"] & groups["validation"]
        | groups["validation"] & groups["test"]
    )
    # Written from the rule: all styles, tones and colours of a concept, and clip art of that name, are in one split.
    for word in ("waving hand", "heart", "anchor", "snail", "key"):
        where = {name for name in groups for caption in data[name]["caption"] if word in caption}
        assert len(where) == 1, word
    assert set(data["new_style"]["style"]) == {"fxemoji"}
    assert not any("fxemoji" in data[name]["style"] for name in groups)
    snails = [caption for split in data.values() for caption, style in zip(split["caption"], split["style"], strict=True)
              if style == "noto" and caption in ("snail", "whale")]  # fmt: skip
    assert snails == ["snail"]  # the other one looks the same
    assert data["train"][0]["image"].size == (24, 24)


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("man pilot: dark skin tone", "pilot", True),
        ("red apples", "Green apple", True),
        ("flag: Brazil", "flag of brazil", True),
        ("pregnant 0812w", "pregnant 32w", True),
        ("led square red", "led square green", True),
        ("man", "woman", False),
        ("red apple", "pineapple", False),
        ("flag: Brazil", "flag: Bolivia", False),
    ],
)
def test_a_concept_is_what_variants_share(one, other, is_same):
    assert (concept_of(one) == concept_of(other)) == is_same


def test_a_split_follows_the_names_alone():
    picture_set = PICTURE_SETS["healthicons"]
    drawings = [Drawing(f"{name}.svg", name, body(name), "healthicons") for name in map(str, range(200))]
    drawings = [
        Drawing(each.file_name, f"thing {chr(97 + index % 26)}{chr(97 + index // 26)}", each.source)
        for index, each in enumerate(drawings)
    ]
    splits = split_drawings(picture_set, drawings)
    again = split_drawings(picture_set, drawings[::-1])
    assert splits == again
    assert {name: len(split) for name, split in splits.items()} == pytest.approx(
        {"train": 140, "validation": 20, "test": 40}, abs=16
    )


def test_no_group_fills_a_held_out_split():
    picture_set = PICTURE_SETS["healthicons"]
    names = [f"thing {letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    drawings = [
        Drawing(f"{name}-{tone}.svg", f"{name} {tone}", body(name), "healthicons")
        for name in names
        for tone in range(20)
    ]
    splits = split_drawings(picture_set, drawings)
    sizes = {name: set(Counter(group for _, group in split).values()) for name, split in splits.items()}
    assert sizes == {"train": {20}, "validation": {8}, "test": {8}}
    groups = [{group for _, group in split} for split in splits.values()]
    assert len(set.union(*groups)) == sum(map(len, groups)) == len(names)


def test_what_was_drawn_is_kept_and_loaded_as_pairs(packages, monkeypatch):
    first = load_picture_set("healthicons", 16)
    assert not list(Path(datasets.config.HF_DATASETS_CACHE).rglob(".*"))
    monkeypatch.setattr(picture_sets, "square_picture", None)
    again = load_pairs("healthicons", image_size=16, eval_split="validation")
    assert again["train"]["caption"] == first["train"]["caption"]
    assert again["test"]["caption"] == first["validation"]["caption"]


def test_a_package_that_cannot_be_fetched_says_where_it_belongs(packages):
    folder = OPEN_CLIP_ART.folder
    with pytest.raises(
        OSError, match=rf"there is no no-such-client on this machine Unpack the package into {folder} by hand"
    ):
        load_picture_set("tuxpaint-stamps")
    assert not list(folder.parent.glob(".*"))


def test_a_package_is_fetched_by_its_client(tmp_path, monkeypatch):
    source = tmp_path / "source"
    (source / "package").mkdir(parents=True)
    (source / "package" / "icons.json").write_text("{}")
    command = ["tar", "czf", "fetched.tgz", "-C", str(source), "package"]
    monkeypatch.setattr(datasets.config, "HF_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(Package, "command", property(lambda self: command))
    package = package_of("noto")
    assert (package.fetch() / "package" / "icons.json").read_text() == "{}"
    monkeypatch.setattr(subprocess, "run", None)  # not again
    assert package.fetch() == package.folder


def test_the_script_trains_on_a_set_and_logs_every_pair(packages, tmp_path):
    overrides = {
        "vision_config": {"image_size": 32, "num_hidden_layers": 1},
        "text_config": {"num_unimodal_layers": 1, "num_multimodal_layers": 1},
    }
    options = {
        "dataset": "healthicons",
        "max_train_rows": 16,
        "validation_split": "validation",
        "metric_for_best_model": "validation_coca_loss",
        "max_steps": 1,
        "num_workers": 0,
    }
    options |= {
        "batch_size": 8,
        "eval_batch_size": 8,
        "output_dir": tmp_path / "out",
        "config_overrides": json.dumps(overrides),
    }
    command = [sys.executable, str(ROOT / "examples" / "pretrain.py"), "--log_samples"]
    command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    environment = {
        **os.environ,
        "HF_HOME": datasets.config.HF_CACHE_HOME,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("HF_DATASETS_CACHE", None)
    outcome = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert outcome.returncode == 0, outcome.stderr
    results = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    samples = json.loads((tmp_path / "out" / "eval_samples.json").read_text())
    assert results["num_eval_images"] == len(samples["num_tokens"]) != len(samples["validation_num_tokens"])
    assert results["validation_perplexity"] == pytest.approx(
        np.exp(np.sum(samples["validation_caption_loss"]) / np.sum(samples["validation_num_tokens"])), rel=1e-3
    )
    card = (tmp_path / "out" / "README.md").read_text()
    assert "8 (0.5 epochs, 1 steps, batch 8)" in card
    assert f"of step 1, where validation_coca_loss was best: {results['validation_coca_loss']:.4g}" in card
    command[command.index("validation")] = "elsewhere"
    outcome = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert "'healthicons' can be evaluated on validation, test, not on 'elsewhere'" in outcome.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"caption_column": "text"}, "`caption_column='text'` is for data of your own; 'healthicons' has one form"),
        ({"eval_fraction": 0.5}, "`eval_fraction=0.5` is for data of your own"),
        ({"others": ["test"]}, "`validation_split` and `also_evaluate` must differ, got test, test"),
        ({"others": ["validation", "validation"]}, "must differ, got test, validation, validation"),
        ({"eval_split": "train"}, "'healthicons' can be evaluated on validation, test, not on 'train'"),
    ],
)
def test_what_a_package_s_set_cannot_have_is_refused(packages, options, message):
    with pytest.raises(ValueError, match=message):
        load_pairs("healthicons", image_size=16, **options)


def test_every_set_has_a_statement_with_its_splits():
    for name, picture_set in PICTURE_SETS.items():
        splits = {"validation", "test", *(["new_style"] if picture_set.new_style else [])}
        assert set(STATEMENTS[name].splits) == splits
        assert STATEMENTS[name].license is not None
    with pytest.raises(
        ValueError, match="`eval_split` of 'healthicons' must be one of validation, test, got 'new_style'"
    ):
        DataArguments(dataset="healthicons", eval_split="new_style")
