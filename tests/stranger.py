"""What a process without triptych gets out of checkpoints: `python stranger.py CHECKPOINTS RESULTS [--save-to FOLDER]`.

CHECKPOINTS holds one folder per model, of which every Auto class is loaded. Captions, answers, boxes, a training step and
what the two other files of this folder say are written to RESULTS. It runs with any transformers that the package supports, so it
imports nothing of the package and nothing of the other tests.
"""

import argparse
import json
import os
from pathlib import Path


os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import without_triptych  # noqa: F401, I001  (before anything that could import it)
import deprecations
import torch
import transformers
from PIL import Image
from transformers import AutoConfig, AutoProcessor, pipeline
from transformers.utils import logging


PICTURES = [Image.linear_gradient("L").convert("RGB").resize(size) for size in ((20, 20), (40, 30))]
QUESTION = "what is it?"


def chat(processor, **options):
    content = [{"type": "image", "image": PICTURES[0]}, {"type": "text", "text": QUESTION}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt", **options
    )


def inputs_for(processor, kind: str):
    """A batch that every class of a checkpoint can read."""
    if kind == "detector":
        return processor(images=PICTURES, text=[["bus", "red apple"], ["key"]], return_tensors="pt")
    texts = [QUESTION, "a red heart"]
    if kind.startswith("vw_lmm"):
        texts = [f"<image>{text}" for text in texts]
    return processor(images=PICTURES, text=texts, padding=True, return_tensors="pt")


def train_one_step(model, inputs) -> torch.Tensor:
    """The loss before and after one step of gradient descent."""
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels = labels.masked_fill(labels >= model.config.get_text_config().vocab_size, -100)
    losses = []
    with torch.enable_grad():
        for _ in range(2):
            loss = model.train()(**inputs, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    model.eval()
    return torch.stack(losses)


def generated(model, processor, inputs, kind: str) -> dict[str, torch.Tensor]:
    if kind.startswith("vw_lmm"):
        prompt = chat(processor, add_generation_prompt=True)
        return {
            "answer": model.generate(**prompt, max_new_tokens=6),
            "static": model.generate(**prompt, max_new_tokens=6, cache_implementation="static", disable_compile=True),
            "visual words": model.get_visual_words(inputs["pixel_values"], top_k=3).ids,
        }
    found = {
        "caption": model.generate(pixel_values=inputs["pixel_values"], max_new_tokens=6),
        "beams": model.generate(**inputs, num_beams=3, max_new_tokens=6),
        "static": model.generate(**inputs, max_new_tokens=6, cache_implementation="static", disable_compile=True),
    }
    if kind == "mammut":
        questions = processor(images=PICTURES, questions=[QUESTION, "is it red?"], return_tensors="pt")
        found["answer"] = model.generate(**questions, max_new_tokens=6)
    return found


def texts_of_pipelines(folder: Path, kind: str) -> list[str]:
    options = {"max_new_tokens": 4, "generate_kwargs": {"num_beams": 1, "do_sample": False}}
    describe = pipeline("image-to-text", model=str(folder), trust_remote_code=True)
    ask = pipeline("visual-question-answering", model=str(folder), trust_remote_code=True)
    texts = [describe(PICTURES[0], **options)[0]["generated_text"]]
    return [*texts, ask(image=PICTURES[0], question=QUESTION, **options)[0]["answer"]]


def meet(folder: Path, save_to: Path | None) -> dict:
    """Load one checkpoint through every Auto class, and use it."""
    kind = folder.name
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    inputs = inputs_for(processor, kind)
    found = {f"inputs {name}": value for name, value in inputs.items()}
    for name in AutoConfig.from_pretrained(folder, trust_remote_code=True).auto_map:
        if name == "AutoConfig" or (kind == "detector") != (name == "AutoModelForZeroShotObjectDetection"):
            continue
        if kind == "vw_lmm_pif" and name == "AutoModel":
            continue  # whose pseudo image features only the whole model makes
        model = getattr(transformers, name).from_pretrained(folder, trust_remote_code=True).eval()
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()  # aligned: else a product may differ in its last bit
        outputs = model(**inputs)
        keys = ("logits", "logits_per_image", "last_hidden_state", "pred_boxes")
        found |= {f"{name} {key}": outputs[key] for key in keys if outputs.get(key) is not None}
        if model.can_generate():
            found |= {f"{name} {key}": ids for key, ids in generated(model, processor, inputs, kind).items()}
        is_whole = model.can_generate() or kind == "detector"
        if is_whole and save_to is not None:  # as this version saves it
            model.save_pretrained(save_to / kind)
            processor.save_pretrained(save_to / kind)
        if model.can_generate():
            found[f"{name} losses"] = train_one_step(model, inputs)
    if kind != "detector":
        found["texts"] = texts_of_pipelines(folder, kind)
    return found


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--save-to", type=Path, help="write every checkpoint again, as this transformers does")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # sums depend on how many share them
    logging.disable_progress_bar()
    deprecations.watch()
    found = {folder.name: meet(folder, arguments.save_to) for folder in sorted(arguments.checkpoints.iterdir())}
    torch.save(found, arguments.results)
    print(json.dumps({"transformers": transformers.__version__, "torch": torch.__version__}))


if __name__ == "__main__":
    main()
