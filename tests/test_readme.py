"""Every snippet a reader may copy runs: README, the model card, the command line."""

import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image
from transformers import CLIPImageProcessor, HfArgumentParser
from typer.testing import CliRunner

import triptych
from tests.conftest import (
    CAPTIONS,
    argument_classes,
    load_example,
    mammut_pair,
    run_card_snippet,
    tiny_mammut,
    tiny_mammut_processor,
)
from tests.test_detection import needs_torchvision, save_detector
from tests.test_hub import CARD
from tests.test_vw_lmm_training import write_towers
from triptych import hub
from triptych.cli import app
from triptych.data.openmoji import load_openmoji_captions
from triptych.training.tokenizer import train_tokenizer


ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """What `make demo` writes, untrained."""
    config = triptych.GrrCocaConfig.from_preset("grr-coca-tiny")
    captions = load_openmoji_captions(image_size=16)["train"]["caption"]
    tokenizer = train_tokenizer(captions, vocab_size=1000, max_length=config.max_position_embeddings)
    config.text_config.vocab_size = len(tokenizer)
    config.text_config.bos_token_id, config.text_config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    size = config.vision_config.image_size
    image_processor = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    model = triptych.GrrCocaForConditionalGeneration(config).eval()
    model.generation_config.max_new_tokens = 8
    processor = triptych.GrrCocaProcessor(image_processor, tokenizer)
    return hub.save_repository(tmp_path_factory.mktemp("readme") / "demo", model, processor, CARD)


def snippets(text: str) -> list[str]:
    return re.findall(r"<!-- snippet: \w+ -->\n```python\n(.*?)```", text, re.DOTALL)


def test_readme_snippets_run_one_after_another(repository, capsys):
    code = snippets(README)
    assert len(code) == README.count("```python") == 4
    namespace: dict = {}
    for snippet in code:
        exec(snippet.replace('"outputs/demo"', repr(str(repository))), namespace)
    printed = capsys.readouterr().out
    assert "torch.Size([4, 192])" in printed


def test_mammut_snippets_run_one_after_another(tmp_path, capsys):
    processor = tiny_mammut_processor(max_length=80, num_frames=8)
    model = tiny_mammut("video", text_config={"vocab_size": len(processor.tokenizer), "max_position_embeddings": 80})
    model.generation_config.max_new_tokens = 4
    repo = hub.save_repository(tmp_path / "repo", model, processor, CARD)
    document = (ROOT / "docs" / "mammut.md").read_text(encoding="utf-8")
    *code, _ = snippets(document)
    assert len(code) + 1 == document.count("```python") == 3
    namespace: dict = {}
    for snippet in code:
        exec(re.sub(r'"outputs/[\w-]+"', repr(str(repo)), snippet), namespace)
    assert "which direction does it move? ['" in capsys.readouterr().out


@needs_torchvision
def test_the_detection_snippet_runs(tmp_path, capsys, monkeypatch):
    save_detector(tmp_path / "repo")
    Image.new("RGB", (80, 60), "red").save(tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    code = snippets((ROOT / "docs" / "mammut.md").read_text(encoding="utf-8"))[-1]
    exec(code.replace('"outputs/detection"', '"repo"').replace("threshold=0.1", "threshold=0.0"), {})
    assert "red apple" in capsys.readouterr().out


def test_commands_name_real_flags_and_targets():
    pretrain = load_example("pretrain")
    command = re.search(r"<!-- command: train -->\n```bash\n(.*?)```", README, re.DOTALL).group(1)
    arguments = shlex.split(command)[2:]
    *_, parsed = HfArgumentParser(argument_classes(pretrain)).parse_args_into_dataclasses(arguments)
    assert parsed.num_epochs == 30
    for document, name in (("mammut.md", "detect"), ("data.md", "stream")):
        text = (ROOT / "docs" / document).read_text(encoding="utf-8")
        commands = re.search(rf"<!-- command: {name} -->\n```bash\n(.*?)```", text, re.DOTALL).group(1)
        for line in commands.replace("\\\n", " ").strip().splitlines():
            _, path, *arguments = shlex.split(line)
            script = load_example(Path(path).stem)
            # which refuses unknown flags
            HfArgumentParser(argument_classes(script)).parse_args_into_dataclasses(arguments)
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_vw_lmm_snippets_run_one_after_another(tmp_path, capsys):
    write_towers(tmp_path)
    document = (ROOT / "docs" / "vw_lmm.md").read_text(encoding="utf-8")
    assemble, ask = snippets(document)
    namespace: dict = {}
    exec(
        re.sub(
            r"vision, text = .*", f"vision, text = {str(tmp_path / 'vision')!r}, {str(tmp_path / 'text')!r}", assemble
        ),
        namespace,
    )
    model, processor = namespace["model"], namespace["processor"]
    hub.save_repository(tmp_path / "vw-lmm", model, processor, CARD)
    exec(ask.replace('"outputs/vw-lmm"', repr(str(tmp_path / "vw-lmm"))), namespace)
    answer, words = capsys.readouterr().out.splitlines()
    assert answer.startswith("['")
    assert words.count("'") == 6


def test_hub_snippets_run_one_after_another(tmp_path, monkeypatch, capsys):
    model, processor = mammut_pair()
    repo = hub.save_repository(tmp_path / "repo", model, processor, CARD)
    Image.new("RGB", (20, 20), "red").save(tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    document = (ROOT / "docs" / "hub.md").read_text(encoding="utf-8")
    code = snippets(document)
    assert len(code) == document.count("```python") == 6
    namespace: dict = {}
    for snippet in code:
        exec(re.sub(r'"outputs/[\w-]+"', repr(str(repo)), snippet), namespace)
    printed = capsys.readouterr().out
    for part in ("generated_text", "'answer'", "trainable params", "model.safetensors", "cider_d"):
        assert part in printed


def test_links_of_the_documents_exist():
    for document in [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *sorted((ROOT / "docs").glob("*.md")),
        *sorted((ROOT / "model_cards").glob("*.md")),
    ]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_model_card_snippet_runs(repository, tmp_path, monkeypatch, capsys):
    run_card_snippet(repository, tmp_path, monkeypatch)
    assert capsys.readouterr().out.startswith("[")


def test_command_line_captions_and_retrieves(repository, tmp_path):
    for index in range(3):
        Image.new("RGB", (40, 30), (80 * index, 0, 0)).save(tmp_path / f"{index}.png")
    runner = CliRunner()
    result = runner.invoke(
        app, ["caption", str(tmp_path / "0.png"), "--model", str(repository), "--prompt", CAPTIONS[0]]
    )
    assert result.exit_code == 0, result.output
    assert CAPTIONS[0] in result.output
    result = runner.invoke(app, ["retrieve", "a red heart", str(tmp_path), "--model", str(repository), "--top", "2"])
    assert result.exit_code == 0, result.output
    assert re.sub(r"[^\w./-]", "", result.output).count(".png") == 2  # the table breaks long paths


def test_one_bad_file_ends_no_command(repository, tmp_path):
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    kinds = ("png", "jpg", "jfif", "tif", "webp", "bmp", "gif")
    for index, kind in enumerate(kinds):
        Image.new("RGB", (40, 30), (30 * index, 0, 0)).save(folder / "more" / f"{index}.{kind}")
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "._1.png").write_bytes(b"what a Mac leaves beside 1.png")
    (folder / "notes.txt").write_text("no picture")
    for arguments in (["caption", str(folder)], ["retrieve", "a red heart", str(folder), "--top", "20"]):
        result = CliRunner().invoke(app, [*arguments, "--model", str(repository), "--json"])
        assert result.exit_code == 0, result.output
        found = {Path(row["image"]).suffix for row in json.loads(result.stdout)}
        assert found == {f".{kind}" for kind in kinds}
        assert "broken.png cannot be read" in "".join(result.stderr.splitlines())
        assert "._1.png" not in result.stderr
    listed = [str(folder / "broken.png"), str(folder / "more" / "0.png")]
    result = CliRunner().invoke(app, ["caption", *listed, "--model", str(repository)])
    assert result.exit_code == 0
    assert "0.png\t" in result.stdout


def test_command_line_errors_are_one_line(repository, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    runner = CliRunner()
    for arguments, message in [
        (["caption", str(tmp_path / "broken.png"), "-m", str(repository)], "cannot be read"),
        (["caption", str(tmp_path / "none.png"), "-m", str(repository)], "There is no image"),
        (["retrieve", "x", str(tmp_path / "nowhere"), "-m", str(repository)], "is not a folder"),
        (["retrieve", "x", str(tmp_path), "-m", str(tmp_path)], "cannot be loaded"),
    ]:
        result = runner.invoke(app, arguments)
        assert result.exit_code == 2
        assert message in result.output
        assert "Traceback" not in result.output
