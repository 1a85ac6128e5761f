"""Tiny models and processors shared by the tests. Nothing here, and no test, reaches the network."""

import importlib.util
import os
import re
import sys
from pathlib import Path
from types import ModuleType


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AddedToken, CLIPImageProcessor, LlavaImageProcessor
from transformers.utils import logging

import triptych
from tests import deprecations
from triptych.training.tokenizer import train_tokenizer


deprecations.watch()
logging.disable_progress_bar()
torch.set_num_threads(1)  # tiny models gain nothing from more, and pytest-xdist runs one process per core


# In front of a program: it runs as where triptych is not installed.
WITHOUT_TRIPTYCH = (Path(__file__).parent / "without_triptych.py").read_text(encoding="utf-8")


def load_example(name: str) -> ModuleType:
    """A script of `examples/` as a module."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "examples" / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    sys.modules[name] = script  # dataclass fields look their annotations up there
    spec.loader.exec_module(script)
    return script


def argument_classes(script: ModuleType) -> tuple[type, ...]:
    """The dataclasses that a script of `examples/` parses its arguments into, in its order."""
    (call,) = re.findall(r"HfArgumentParser\(\((.*?)\)\)", Path(script.__file__).read_text(encoding="utf-8"))
    return tuple(getattr(script, name.strip()) for name in call.split(",") if name.strip())


def converted(state_dict: dict, origins: dict) -> dict:
    """Our parameters out of those of a foreign checkpoint, all at once."""
    return {name: origin.take(state_dict[origin.key]) for name, origin in origins.items()}


CAPTIONS = [
    "a red heart",
    "a green apple",
    "woman firefighter: medium skin tone",
    "flag: Kuwait",
    "a blue whale swims",
]

# What differs from the tiny GRR-CoCa below; every open point of the paper appears in at least one variant.
VARIANTS = {
    "grr": {"vision_config": {}, "text_config": {}},
    "grr-axial": {
        "vision_config": {
            "position_embedding_type": "rope_2d",
            "rope_placement": "pre_proj",
            "use_cls_token": True,
            "pooler_type": "parallel",
        },
        "text_config": {"rope_placement": "pre_proj", "cls_position": "fixed", "multimodal_layer_type": "open_clip"},
    },
    "baseline": {
        "vision_config": {"norm_type": "layernorm", "mlp_type": "gelu", "position_embedding_type": "learned"},
        "text_config": {},
    },
    "open_clip": {
        "vision_config": {
            "norm_type": "layernorm",
            "mlp_type": "gelu",
            "position_embedding_type": "learned",
            "use_cls_token": True,
            "pre_layernorm": True,
            "patch_bias": False,
            "pooler_type": "open_clip",
        },
        "text_config": {
            "norm_type": "layernorm",
            "mlp_type": "gelu",
            "position_embedding_type": "learned",
            "cls_position": "fixed",
            "cls_mask_mode": "legacy",
            "multimodal_layer_type": "open_clip",
        },
    },
}
# open_clip's `coca_base`
VARIANTS["class_token"] = {
    "vision_config": {**VARIANTS["open_clip"]["vision_config"], "pooler_type": "class_token"},
    "text_config": VARIANTS["open_clip"]["text_config"],
}


def tiny_config(variant: str = "grr", **overrides) -> triptych.GrrCocaConfig:
    """A configuration of a few ten thousand parameters: 16 x 16 pixels, 16 patches, texts of up to 12 tokens."""
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
        "num_caption_queries": 6,
        **VARIANTS[variant]["vision_config"],
        **overrides.pop("vision_config", {}),
    }
    text = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_unimodal_layers": 2,
        "num_multimodal_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 12,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **VARIANTS[variant]["text_config"],
        **overrides.pop("text_config", {}),
    }
    return triptych.GrrCocaConfig(vision_config=vision, text_config=text, **overrides)


def tiny_model(variant: str = "grr", attn_implementation: str = "sdpa", seed: int = 0, **overrides):
    """A captioner whose every parameter is random, norms, biases and tokens too, so that none can be forgotten."""
    torch.manual_seed(seed)
    config = tiny_config(variant, **overrides)
    model = triptych.GrrCocaForConditionalGeneration._from_config(config, attn_implementation=attn_implementation)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "logit_scale" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.15)
    return model.eval()


def random_batch(config: triptych.GrrCocaConfig, lengths=(5, 12, 8), seed: int = 0) -> dict[str, torch.Tensor]:
    """Random images and right-padded texts of the given lengths, with labels."""
    generator = torch.Generator().manual_seed(seed)
    text, vision = config.text_config, config.vision_config
    input_ids = torch.full((len(lengths), max(lengths)), text.pad_token_id)
    for row, length in enumerate(lengths):
        input_ids[row, :length] = torch.randint(3, text.vocab_size, (length,), generator=generator)
        input_ids[row, 0] = text.bos_token_id
    attention_mask = (input_ids != text.pad_token_id).long()
    size = (len(lengths), vision.num_channels, vision.image_size, vision.image_size)
    return {
        "pixel_values": torch.randn(size, generator=generator),
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "labels": input_ids.masked_fill(attention_mask == 0, -100),
    }


def tiny_processor(config: triptych.GrrCocaConfig | None = None) -> triptych.GrrCocaProcessor:
    """CLIP image processor at the config's size, and a tokenizer trained on five captions."""
    config = config or tiny_config()
    size = config.vision_config.image_size
    image_processor = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    tokenizer = train_tokenizer(CAPTIONS, vocab_size=300, max_length=config.text_config.max_position_embeddings)
    return triptych.GrrCocaProcessor(image_processor, tokenizer)


@pytest.fixture(params=list(VARIANTS))
def variant(request) -> str:
    return request.param


# Sparse tubes that fit eight frames of 16 x 16 pixels
TINY_TUBES = [[[2, 4, 4], [4, 8, 8], [0, 0, 0]], [[4, 2, 2], [2, 8, 8], [1, 2, 2]]]

MAMMUT_VARIANTS = {
    "paper": {"vision_config": {}, "text_config": {}},
    "laion": {
        "vision_config": {
            "use_cls_token": True,
            "pre_layernorm": True,
            "patch_bias": False,
            "image_pool": "all_mean",
            "norm_before_pool": False,
            "norm_decoder_tokens": False,
        },
        "text_config": {"self_mlp_at_cross": False, "text_pool": "all_mean", "mask_padding": False},
        "shared_image_projection": False,
        "contrastive_loss_type": "softmax",
        "caption_loss_weight": 2.0,
    },
    "video": {
        "vision_config": {
            "use_cls_token": True,
            "use_tubes": True,
            "tubes": TINY_TUBES,
            "tube_kernel_size": [2, 2, 2],
            "frame_stride": 4,
            "use_fixed_positions": True,
            "position_gate_init_value": 0.5,
        },
        "text_config": {"cross_attn_every": 3, "cross_attn_offset": 1, "norm_memory": False},
        "use_logit_bias": True,
    },
}


def tiny_mammut_config(variant: str = "paper", **overrides) -> triptych.MammutConfig:
    """As `tiny_config`, for MaMMUT: 16 x 16 pixels, 16 patches, texts of up to 12 tokens, 4 text layers."""
    chosen = MAMMUT_VARIANTS[variant]
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
        **chosen["vision_config"],
        **overrides.pop("vision_config", {}),
    }
    text = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "max_position_embeddings": 12,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **chosen["text_config"],
        **overrides.pop("text_config", {}),
    }
    others = {key: value for key, value in chosen.items() if not key.endswith("_config")}
    return triptych.MammutConfig(vision_config=vision, text_config=text, **{**others, **overrides})


def tiny_mammut(variant: str = "paper", attn_implementation: str = "sdpa", seed: int = 0, **overrides):
    """A MaMMUT whose every parameter is random."""
    torch.manual_seed(seed)
    config = tiny_mammut_config(variant, **overrides)
    model = triptych.MammutForConditionalGeneration._from_config(config, attn_implementation=attn_implementation)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "logit_" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.15)
    return model.eval()


def tiny_mammut_processor(max_length: int = 40, **kwargs) -> triptych.MammutProcessor:
    """CLIP image processor at 16 x 16 pixels, and a tokenizer trained on captions and questions."""
    image_processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    texts = [*CAPTIONS, "question: what is it? answer: red blue"]
    return triptych.MammutProcessor(image_processor, train_tokenizer(texts, 300, max_length), **kwargs)


@pytest.fixture(params=list(MAMMUT_VARIANTS))
def mammut_variant(request) -> str:
    return request.param


def write_clip(path: Path, num_frames: int = 20, codec: str = "mpeg4") -> None:
    """A video file of 10 frames per second whose frames of 32 x 32 pixels grow brighter by 8 levels each, from 40."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 2_000_000
        for index in range(num_frames):
            picture = np.full((32, 32, 3), 40 + 8 * index, dtype=np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def run_card_snippet(repository: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the code that a repository's card shows, in a folder with a picture and a clip of the card's names."""
    run_snippets((repository / "README.md").read_text(encoding="utf-8"), repository, folder, monkeypatch)


def run_snippets(card: str, repository: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the Python blocks of a card one after another, with `repository` for the one that the card names."""
    Image.new("RGB", (40, 30)).save(folder / "picture.png")
    write_clip(folder / "clip.mp4")
    monkeypatch.chdir(folder)
    namespace: dict = {}
    for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        exec(re.sub(r'repo = ".+?"', f"repo = {str(repository)!r}", code), namespace)


def tiny_vw_lmm_config(**overrides) -> triptych.VwLmmConfig:
    """CLIP tower of 16 x 16 pixels and 4 patches, 2 Llama layers, 64 words, then the placeholder and a row that rounds up."""
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
        **overrides.pop("vision_config", {}),
    }
    text = {
        "model_type": "llama",
        "vocab_size": 66,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **overrides.pop("text_config", {}),
    }
    if "image_token_id" not in overrides:
        overrides = {"image_token_id": 64, "num_reserved_tokens": 2, **overrides}
    return triptych.VwLmmConfig(vision_config=vision, text_config=text, **overrides)


def tiny_vw_lmm(attn_implementation: str = "sdpa", seed: int = 0, **overrides) -> triptych.VwLmmForCausalLM:
    """A VW-LMM whose every parameter is random and large enough to matter."""
    torch.manual_seed(seed)
    config = tiny_vw_lmm_config(**overrides)
    model = triptych.VwLmmForCausalLM._from_config(config, attn_implementation=attn_implementation)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model.eval()


def vw_lmm_batch(seed: int = 0) -> dict[str, torch.Tensor]:
    """Three texts, padded on the right: one image, none, two images. The last three tokens of each are the answer."""
    generator = torch.Generator().manual_seed(seed)
    image, pad, ignored = 64, 0, -100
    rows, labels = [], []
    for layout in ([2, image, 5], [6], [1, image, 2, image, 4]):
        row = [1]
        for part in layout:
            if part == image:
                row += [image] * 4
            else:
                row += torch.randint(3, 64, (part,), generator=generator).tolist()
        rows.append(row)
        labels.append([ignored] * (len(row) - 3) + row[-3:])
    length = max(map(len, rows))
    return {
        "input_ids": torch.tensor([row + [pad] * (length - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows]),
        "labels": torch.tensor([row + [ignored] * (length - len(row)) for row in labels]),
        "pixel_values": torch.randn(3, 3, 16, 16, generator=generator),
    }


def tiny_vw_lmm_processor(
    chat_template: str | None = "vicuna_v1",
    eos_token: str | None = None,
    tokenizer_template: str | None = None,
    image_seq_length: int = 4,
) -> triptych.VwLmmProcessor:
    """Squares of 16 x 16 pixels and 4 patches, and a tokenizer trained on captions."""
    image_processor = LlavaImageProcessor(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, do_pad=True
    )
    tokenizer = train_tokenizer([*CAPTIONS, "USER: what is it? ASSISTANT: red blue"], 300, 512)
    tokenizer.add_tokens([AddedToken("<image>", special=True, normalized=False)])
    tokenizer.chat_template = tokenizer_template
    if eos_token is not None:
        tokenizer.add_special_tokens({"eos_token": eos_token})
    return triptych.VwLmmProcessor(image_processor, tokenizer, chat_template, image_seq_length)


# A model with the processor that fits it, as a checkpoint has them.


def grr_coca_pair(variant: str = "grr") -> tuple:
    processor = tiny_processor(tiny_config(text_config={"max_position_embeddings": 40}))
    text = {"vocab_size": len(processor.tokenizer), "max_position_embeddings": 40}
    return tiny_model(variant, text_config=text), processor


def mammut_pair(variant: str = "paper", **overrides) -> tuple:
    processor = tiny_mammut_processor()
    text = {"vocab_size": len(processor.tokenizer), "max_position_embeddings": 40}
    return tiny_mammut(variant, text_config=text, **overrides), processor


def vw_lmm_pair(**overrides) -> tuple:
    processor = tiny_vw_lmm_processor()
    text = {"vocab_size": len(processor.tokenizer), "max_position_embeddings": 256}
    return tiny_vw_lmm(text_config=text, image_token_id=processor.image_token_id, **overrides), processor


PAIRS = {"grr_coca": grr_coca_pair, "mammut": mammut_pair, "vw_lmm": vw_lmm_pair}


def save_pair(name: str, folder: Path) -> tuple:
    """A pair, saved to a folder."""
    model, processor = PAIRS[name]()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor
