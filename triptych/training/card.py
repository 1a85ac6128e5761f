"""What a model card says about a training run. Every number in it was measured by that run."""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from huggingface_hub import ModelCard
from transformers import PreTrainedModel, SchedulerType, TrainerState, TrainingArguments

from triptych.hub import describe_machine
from triptych.training import easy_vqa, openmoji
from triptych.training.optimization import TrainingState


_SOURCES = {
    "grr_coca": """\
- GRR-CoCa: Patock et al. 2025, [arXiv 2507.18009](https://arxiv.org/abs/2507.18009). The dimensions and the recipe of
  the paper are not known to us; this checkpoint reproduces none of its numbers.
- CoCa: Yu et al. 2022, [arXiv 2205.01917](https://arxiv.org/abs/2205.01917).
- Code: triptych, Apache-2.0.

```bibtex
@article{patock2025grrcoca,
  title={GRR-CoCa: Leveraging LLM Mechanisms in Multimodal Model Architectures},
  author={Patock, Jake R. and Lewis, Nicole Catherine and McCoy, Kevin and Gomez, Christina and Chen, Canling and Luzi, Lorenzo},
  journal={arXiv preprint arXiv:2507.18009},
  year={2025}
}
```""",
    "mammut": """\
- MaMMUT: Kuo et al. 2023, [arXiv 2303.16839](https://arxiv.org/abs/2303.16839). This checkpoint is far smaller than the
  paper's models and reproduces none of their numbers.
- TubeViT: Piergiovanni et al. 2022, [arXiv 2212.03229](https://arxiv.org/abs/2212.03229), for the video tubes.
- Code: triptych, Apache-2.0.

```bibtex
@article{kuo2023mammut,
  title={MaMMUT: A Simple Architecture for Joint Learning for MultiModal Tasks},
  author={Kuo, Weicheng and Piergiovanni, AJ and Kim, Dahun and Luo, Xiyang and Caine, Ben and Li, Wei and Ogale, Abhijit and
    Zhou, Luowei and Dai, Andrew and Chen, Zhifeng and Cui, Claire and Angelova, Anelia},
  journal={Transactions on Machine Learning Research},
  year={2023}
}
```""",
    "vw_lmm": """\
- VW-LMM: Peng et al. 2024, [arXiv 2403.07720](https://arxiv.org/abs/2403.07720). This checkpoint is far smaller than the
  paper's models and reproduces none of their numbers; the authors published no training code.
- Code: triptych, Apache-2.0.

```bibtex
@article{peng2024visualwords,
  title={Multi-modal Auto-regressive Modeling via Visual Words},
  author={Peng, Tianshuo and Li, Zuchao and Zhang, Lefei and Zhao, Hai and Wang, Ping and Du, Bo},
  journal={arXiv preprint arXiv:2403.07720},
  year={2024}
}
```""",
}

_DETECTION_SOURCES = """\
- F-VLM (Kuo et al. 2022, [arXiv 2209.15639](https://arxiv.org/abs/2209.15639)) and RO-ViT (Kim et al. 2023,
  [arXiv 2305.07011](https://arxiv.org/abs/2305.07011)), for head and score fusion; ViTDet (Li et al. 2022,
  [arXiv 2203.16527](https://arxiv.org/abs/2203.16527)); OLN (Kim et al. 2021, [arXiv 2108.06753](https://arxiv.org/abs/2108.06753)).
"""

_CHAT_USAGE = """\
messages = [
    {{"role": "user", "content": [{{"type": "image", "path": "picture.png"}}, {{"type": "text", "text": {question}}}]}}
]
inputs = processor.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)
ids = model.generate(**inputs, max_new_tokens=24)
print(processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True))"""

_QUESTION_USAGE = """\
inputs = processor(images=Image.open("picture.png"), questions={question}, return_tensors="pt")
ids = model.generate(**inputs, max_new_tokens=10)
print(processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True))"""

_QUESTION_METRICS = """\
`vqa_accuracy` compares greedily decoded answers, normalised as in the VQA challenge, with the true ones; no list of answers
restricts them. The other accuracies are over one kind of answer each."""


def _portable(name: str) -> str:
    """A path without the folders of this machine; anything else as it is."""
    return Path(name).name if Path(name).is_absolute() else name


def training_command() -> str:
    """How this run was started, for the card: without access tokens and the folders of this machine."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    words = ["python"] if processes == 1 else ["accelerate", "launch", "--num_processes", str(processes)]
    words.append(f"examples/{Path(sys.argv[0]).name}")
    arguments = iter(sys.argv[1:])
    for word in arguments:
        name, _, value = word.partition("=")
        if name.startswith("--") and name.endswith("token"):
            if not value:
                next(arguments, None)
            continue
        words.append(_portable(word))
    return shlex.join(words)


_PERMISSIVE = ("apache-2.0", "bsd-3-clause", "cc-by-4.0", "cc0-1.0", "mit")


def combined_license(data: str | None, base: str | None) -> tuple[str | None, str]:
    """Licence of a checkpoint that was trained on data with one licence from a checkpoint with another, and a sentence on it.

    Args:
        data (`str`, *optional*): Licence of the data.
        base (`str`, *optional*): Folder or Hub name of the checkpoint it started from, whose card is read.

    Returns:
        `tuple`: The stricter of the two if the other is permissive, `None` if neither is; and the sentence.
    """
    if base is None:
        return data, ""
    try:
        licence = ModelCard.load(Path(base) / "README.md" if Path(base).is_dir() else base).data.license
    except (OSError, ValueError):  # no card, no network
        licence = None
    origin = f" The checkpoint it started from, {_portable(base)}, states {f'the licence {licence}' if licence else 'no licence'}."
    if licence is None or licence in (data, *_PERMISSIVE):
        return data, origin
    return (licence if data in _PERMISSIVE else None), origin


def pretraining_card(
    model: PreTrainedModel,
    metrics: dict[str, float],
    arguments: dict[str, Any],
    state: TrainingState,
    train_seconds: float,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """Fields of the card template for a run of `examples/pretrain.py`."""
    is_openmoji = arguments["dataset"] in ("openmoji", "openmoji-scenes")
    grounds = "white" if arguments["dataset"] == "openmoji" else "plain and patterned grounds"
    source = arguments["model_name_or_path"]
    origin = f"from {_portable(source)}" if source else f"preset {arguments['preset']}, from scratch"
    dataset = "OpenMoji captions" if is_openmoji else _portable(arguments["dataset"])
    name = Path(arguments["output_dir"]).resolve().name
    batch_size = arguments["batch_size"] * accelerator.num_processes * arguments["gradient_accumulation_steps"]
    if is_openmoji:
        license_id = openmoji.LICENSE
        data_statement = (
            f"Drawings: OpenMoji ({openmoji.SOURCE_URL}). {openmoji.ATTRIBUTION}. Captions: Unicode CLDR short names. "
            "The weights were trained on CC BY-SA 4.0 material and are published under the same licence."
        )
        limits = (
            f"The model knows flat emoji drawings on {grounds} and their names, nothing else: photographs are out of its "
            "domain. A concept without a relative in the training split is named wrongly. Skin tones and genders in its "
            "captions are those of Unicode's names, not statements about people."
        )
    else:
        license_id = arguments["dataset_license"]
        data_statement = f"Trained on {dataset}; licence of the data: {license_id}."
        limits = "Not assessed beyond the numbers above. Expect the biases of the training captions."
    return {
        "name": name,
        "repo": name,
        "license": license_id if license_id != "unknown" else None,
        "language": "en" if is_openmoji else None,
        "dataset_ids": None if is_openmoji or Path(arguments["dataset"]).exists() else [dataset],
        "summary": (
            f"A contrastive captioner ({model.config.model_type}, {model.num_parameters() / 1e6:.1f} M parameters, {origin}), "
            f"trained on {dataset}: it writes captions, and embeds images and texts in one space."
        ),
        "command": training_command(),
        "training": {
            "data": f"{dataset}, training split",
            "pairs seen": f"{state.step * batch_size:,} ({arguments['num_epochs']} epochs, batch {batch_size})",
            "optimiser": (
                f"AdamW, peak learning rate {arguments['learning_rate']}, weight decay {arguments['weight_decay']} on "
                f"matrices, cosine schedule with {arguments['warmup_ratio']:.0%} warm-up"
            ),
            "loss": (
                f"{model.config.contrastive_loss_weight:g} x contrastive + {model.config.caption_loss_weight:g} x captioning"
            ),
            "precision": accelerator.mixed_precision if accelerator.mixed_precision != "no" else "fp32",
            "seed": arguments["seed"],
            "corrupt images skipped": state.num_skipped,
            "time": f"{train_seconds / 60:.1f} min on {describe_machine()}",
        },
        "evaluation_data": f"the held-out split of {dataset} ({metrics['num_eval_images']} pairs)",
        "metrics": metrics,
        "data_statement": data_statement,
        "limits": limits,
        "sources": _SOURCES[model.config.model_type],
    }


_QUESTION_DATA: dict[str, tuple[str | None, str]] = {
    "easy-vqa": (easy_vqa.LICENSE, f"{easy_vqa.ATTRIBUTION}, {easy_vqa.SOURCE_URL}, MIT licence."),
    "moving-emoji": (
        openmoji.LICENSE,
        f"Clips rendered from OpenMoji ({openmoji.SOURCE_URL}). {openmoji.ATTRIBUTION}. The weights are published under the "
        "same licence.",
    ),
}


def question_card(
    model: PreTrainedModel,
    metrics: dict[str, float],
    arguments: dict[str, Any],
    training_args: TrainingArguments,
    state: TrainerState,
    minutes: float,
) -> dict[str, Any]:
    """Fields of the card template for a run of `examples/finetune_vqa.py` or `examples/finetune_video_qa.py`."""
    batch_size = training_args.train_batch_size * training_args.world_size * training_args.gradient_accumulation_steps
    dataset = _portable(arguments["dataset"])
    data_license = arguments["dataset_license"]
    default = (data_license, f"Trained on {dataset}; licence of the data: {data_license or 'unknown'}.")
    license_id, statement = _QUESTION_DATA.get(dataset, default)
    license_id, origin_licence = combined_license(license_id, arguments["model_name_or_path"])
    usage = _QUESTION_USAGE.format(question=json.dumps(arguments["example_question"]))
    if arguments["kind"] == "video":
        usage = usage.replace('images=Image.open("picture.png")', 'videos="clip.mp4"')
    name = Path(str(training_args.output_dir)).resolve().name
    source = arguments["model_name_or_path"]
    origin = f"from {_portable(source)}" if source else f"preset {arguments['preset']}, from scratch"
    return {
        "name": name,
        "repo": name,
        "license": license_id,
        "language": "en" if dataset in _QUESTION_DATA else None,
        "pipeline_tag": "visual-question-answering" if arguments["kind"] == "image" else "video-text-to-text",
        "tags": ["visual-question-answering"],
        "dataset_ids": None if dataset in _QUESTION_DATA or Path(arguments["dataset"]).exists() else [dataset],
        "summary": (
            f"MaMMUT ({model.num_parameters() / 1e6:.1f} M parameters, {origin}), trained on {dataset}: it answers "
            f"questions about {arguments['kind']}s in its own words."
        ),
        "command": training_command(),
        "training": {
            "data": f"{dataset}, training split",
            "epochs and batch": f"{state.epoch:g} epochs ({state.global_step} steps), batch {batch_size}",
            "optimiser": (
                f"AdamW, peak learning rate {training_args.learning_rate:g}, weight decay {training_args.weight_decay:g}, "
                f"{SchedulerType(training_args.lr_scheduler_type).value} schedule"
            ),
            "loss": "captioning loss on the answer alone",
            "precision": "bf16" if training_args.bf16 else "fp16" if training_args.fp16 else "fp32",
            "seed": training_args.seed,
            "time": f"{minutes:.1f} min on {describe_machine()}",
        },
        "evaluation_data": f"the held-out split of {dataset} ({metrics['num_questions']} questions)",
        "metrics": metrics,
        "metrics_note": _QUESTION_METRICS,
        "usage": usage,
        "data_statement": statement + origin_licence,
        "limits": "Knows nothing but pictures and questions like those of its data; other ones get an answer all the same.",
        "sources": _SOURCES[model.config.model_type],
    }


def visual_words_card(
    model: PreTrainedModel,
    metrics: dict[str, float],
    arguments: dict[str, Any],
    training_args: TrainingArguments,
    minutes: float,
) -> dict[str, Any]:
    """Fields of the card template for a run of `examples/train_vw_lmm.py`."""
    dataset = _portable(arguments["dataset"])
    is_default = dataset == "openmoji-questions"
    name = Path(str(training_args.output_dir)).resolve().name
    text = arguments["text"] or "SmolLM2-135M-Instruct"
    batch_size = training_args.train_batch_size * training_args.world_size * training_args.gradient_accumulation_steps
    return {
        "name": name,
        "repo": name,
        "license": openmoji.LICENSE if is_default else arguments["dataset_license"],
        "language": "en" if is_default else None,
        "pipeline_tag": "image-text-to-text",
        "tags": ["visual-question-answering"],
        "dataset_ids": None if is_default or Path(arguments["dataset"]).exists() else [dataset],
        "summary": (
            f"VW-LMM ({model.num_parameters() / 1e6:.1f} M parameters): {text}, which reads images through the tower of "
            f"{arguments['vision']} and was also trained to predict them as visual words. It answers questions about images; "
            "`triptych visual-words` draws what it sees."
        ),
        "command": training_command(),
        "training": {
            "data": "pictures of OpenMoji drawings and easy-VQA, training splits" if is_default else dataset,
            "stages and steps": arguments["steps"],
            "batch": batch_size,
            "optimiser": (
                f"AdamW, peak learning rates {arguments['learning_rates']}, "
                f"{SchedulerType(training_args.lr_scheduler_type).value} schedule"
            ),
            "loss": f"language loss + {model.config.visual_loss_weight:g} x visual loss in the last stage",
            "precision": "bf16" if training_args.bf16 else "fp16" if training_args.fp16 else "fp32",
            "seed": training_args.seed,
            "time": f"{minutes:.1f} min on {describe_machine()}, all stages",
        },
        "evaluation_data": (
            f"{metrics['num_questions']} questions about held-out drawings and easy-VQA's test split"
            if metrics
            else "nothing yet"
        ),
        "metrics": metrics,
        "metrics_note": _QUESTION_METRICS,
        "usage": _CHAT_USAGE.format(question=json.dumps("What is this?")),
        "data_statement": (
            f"Drawings: OpenMoji ({openmoji.SOURCE_URL}). {openmoji.ATTRIBUTION}. {easy_vqa.ATTRIBUTION}, MIT licence. Language "
            "model: SmolLM2-135M-Instruct, Apache-2.0. The weights are published under the licence of the drawings."
            if is_default
            else f"Trained on {dataset}; see its own licence, and that of {text}."
        ),
        "limits": "Knows nothing but pictures and questions like those of its data; other ones get an answer all the same.",
        "sources": _SOURCES[model.config.model_type],
    }


_DETECTION_METRICS = """\
Average precision of boxes as COCO reports it: `ap` is the mean over IoU 0.50 to 0.95, `ap50` at 0.50. Base classes had boxes in training,
novel ones had none. `_without_fusion` is the detector's own opinion of the same regions, without the image-text scores."""


def detection_card(
    model: PreTrainedModel,
    metrics: dict[str, float],
    arguments: dict[str, Any],
    num_classes: dict[str, int],
    state: TrainingState,
    seconds: float,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """Fields of the card template for a run of `examples/finetune_detection.py`."""
    dataset = _portable(arguments["dataset"])
    is_default = dataset == "emoji-scenes"
    name = Path(arguments["output_dir"]).resolve().name
    source = "random weights" if arguments["random_weights"] else _portable(arguments["model_name_or_path"])
    data_license = openmoji.LICENSE if is_default else arguments["dataset_license"]
    license_id, origin_licence = combined_license(data_license, arguments["model_name_or_path"])
    backbone = arguments["backbone_learning_rate"]
    classes = ", ".join(f"{count} {group}" for group, count in num_classes.items()) or "all base"
    return {
        "name": name,
        "repo": name,
        "license": license_id,
        "language": "en" if is_default else None,
        "pipeline_tag": "zero-shot-object-detection",
        "tags": ["object-detection", "open-vocabulary"],
        "dataset_ids": None if is_default or Path(arguments["dataset"]).exists() else [dataset],
        "summary": (
            f"An open-vocabulary detector: MaMMUT ({model.num_parameters() / 1e6:.1f} M parameters, from {source}) with a feature "
            f"pyramid and detection heads, trained on the boxes of {dataset}. Any words are classes."
        ),
        "is_detector": True,
        "command": training_command(),
        "training": {
            "data": f"{dataset}, training split; classes: {classes}",
            "epochs and batch": (
                f"{arguments['num_epochs']} epochs ({state.step} steps), batch "
                f"{arguments['batch_size'] * accelerator.num_processes}"
            ),
            "optimiser": (
                f"AdamW, peak learning rate {arguments['learning_rate']:g} (heads), "
                f"{f'{backbone:g} (ViT)' if backbone else 'ViT frozen'}, text side frozen, weight decay "
                f"{arguments['weight_decay']:g}, cosine schedule"
            ),
            "loss": "centerness, proposal box, classification, box"
            + (", mask" if model.mask_head is not None else ""),
            "precision": accelerator.mixed_precision,
            "seed": arguments["seed"],
            "time": f"{seconds / 60:.1f} min on {describe_machine()}",
        },
        "evaluation_data": f"the held-out split of {dataset}",
        "metrics": metrics,
        "metrics_note": _DETECTION_METRICS,
        "data_statement": (
            f"Drawings: OpenMoji ({openmoji.SOURCE_URL}). {openmoji.ATTRIBUTION}."
            if is_default
            else f"Trained on {dataset}; licence of the data: {data_license}."
        )
        + origin_licence,
        "limits": "Knows nothing but pictures like those of its data.",
        "sources": _DETECTION_SOURCES + _SOURCES[model.config.model_type],
    }


def adapter_card(
    arguments: dict[str, Any],
    training_args: TrainingArguments,
    state: TrainerState,
    before: dict[str, float],
    after: dict[str, float],
    num_rows: int,
) -> dict[str, Any]:
    """Fields of the adapter's card template for a run of `examples/finetune_lora.py`."""
    is_vqa = arguments["task"] == "vqa"
    default, known = ("easy-vqa", easy_vqa) if is_vqa else ("openmoji", openmoji)
    dataset = _portable(arguments["dataset"] or default)
    name = Path(str(training_args.output_dir)).resolve().name
    license_id: str | None = arguments["dataset_license"]
    statement = f"Trained on {dataset}; licence of the data: {license_id or 'unknown'}."
    if dataset == default:
        license_id, statement = known.LICENSE, f"{known.ATTRIBUTION}, {known.SOURCE_URL}."
    license_id, origin = combined_license(license_id, arguments["model_name_or_path"])
    batch_size = training_args.train_batch_size * training_args.world_size * training_args.gradient_accumulation_steps
    log = next((row for row in state.log_history if "train_runtime" in row), {})
    shape = "" if arguments["method"] == "ia3" else f" of rank {arguments['rank']}"
    return {
        "name": name,
        "repo": name,
        "license": license_id,
        "pipeline_tag": "visual-question-answering" if is_vqa else "image-to-text",
        "tags": ["visual-question-answering" if is_vqa else "image-captioning"],
        "dataset_ids": None if dataset == default or Path(arguments["dataset"]).exists() else [dataset],
        "summary": (
            f"An adapter ({arguments['method']}{shape} on {arguments['target_modules']}) for "
            f"{_portable(arguments['model_name_or_path'])}, trained on {dataset}: it "
            f"{'answers questions about images' if is_vqa else 'writes captions'}."
        ),
        "training": {
            "data": f"{dataset}, training split",
            "epochs and batch": f"{state.epoch:g} epochs ({state.global_step} steps), batch {batch_size}",
            "optimiser": (
                f"AdamW, peak learning rate {training_args.learning_rate:g}, "
                f"{SchedulerType(training_args.lr_scheduler_type).value} schedule"
            ),
            "loss": "language loss on the answer alone"
            if is_vqa
            else "that of the captions, and of the pairs if there is one",
            "precision": "bf16" if training_args.bf16 else "fp16" if training_args.fp16 else "fp32",
            "seed": training_args.seed,
            "time": f"{log.get('train_runtime', 0) / 60:.1f} min on {describe_machine()}",
        },
        "evaluation_data": f"{num_rows} rows of the held-out split of {dataset}",
        "before": before,
        "metrics": after,
        "data_statement": statement + origin,
        "limits": "Knows nothing but pictures and texts like those of its data.",
    }


__all__ = [
    "adapter_card",
    "combined_license",
    "detection_card",
    "pretraining_card",
    "question_card",
    "training_command",
    "visual_words_card",
]
