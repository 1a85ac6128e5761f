"""What the common tests want to know of every model: small configurations, inputs, sizes, and which tests do not fit."""

import copy
import unittest
from collections.abc import Callable

import pytest
import torch
from transformers.models.auto import modeling_auto
from transformers.testing_utils import torch_device

from tests.common.upstream import (
    ConfigTester,
    GenerationTesterMixin,
    ModelTesterMixin,
    TensorParallelTesterMixin,
)


# Their tests look up by the name of a class what it is for; ours are registered, but not in these tables.
modeling_auto.MODEL_MAPPING_NAMES |= {
    "grr_coca_text_model": "GrrCocaTextModel",
    "grr_coca_vision_model": "GrrCocaVisionModel",
    "mammut_text_model": "MammutTextModel",
    "mammut_vision_model": "MammutVisionModel",
    "vw_lmm": "VwLmmModel",
}
modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES["vw_lmm"] = "VwLmmForCausalLM"
# Not the same table: of the models there, `generate` repeats `pooler_output` for beams, as the tokens of an image. Captioners
# repeat `image_tokens` themselves, and pool an image to one vector, as CLIP does.
modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES |= {
    "grr_coca": "GrrCocaForConditionalGeneration",
    "mammut": "MammutForConditionalGeneration",
}


def skip_as_in(model: str, why: str) -> Callable:
    """Leave a test out that `tests/models/<model>` of transformers leaves out, too.

    Args:
        model (`str`): Folder of that model's tests.
        why (`str`): The reason, which is the same there.
    """
    skip = unittest.skip(f"as in {model}: {why}")
    return lambda test: pytest.mark.overridden(skip(test))


def replaced_as_in(model: str) -> Callable:
    """Write a test anew that `tests/models/<model>` of transformers writes anew, too."""
    return pytest.mark.overridden(model)


class ModelTester:
    """A configuration and inputs for it.

    Args:
        config: Of a model of few and narrow layers.
        inputs (`dict`): A batch.
        is_training (`bool`): Whether the model computes a loss.
        sizes: What tests compare outputs with: `seq_length`, `hidden_size`, `num_hidden_layers`, ...
    """

    batch_size = 7  # as many as tests of attention take: they fill up smaller batches with texts that have no images
    num_attention_heads = 2
    num_hidden_layers = 2
    hidden_size = 32

    def __init__(self, config, inputs: dict, is_training: bool = False, **sizes):
        self.config, self.inputs, self.is_training = config, inputs, is_training
        vars(self).update(sizes)

    def get_config(self):
        return copy.deepcopy(self.config)

    def prepare_config_and_inputs_for_common(self) -> tuple:
        inputs = {name: value.clone() if hasattr(value, "clone") else value for name, value in self.inputs.items()}
        return self.get_config(), inputs


class CommonModelTests(ModelTesterMixin, TensorParallelTesterMixin):
    """All common tests of models, and those of the class's configuration."""

    additional_model_inputs = ("pixel_values", "pixel_values_videos", "encoder_hidden_states")
    test_can_init_all_missing_weights_before_2023 = True  # by the year at the top of a file; ours name none
    has_text_modality = False
    common_properties: tuple[str, ...] = ()

    def make_tester(self) -> ModelTester:
        raise NotImplementedError

    def setUp(self):
        torch.manual_seed(0)
        self.model_tester = self.make_tester()
        config_class = self.all_model_classes[0].config_class
        self.config_tester = ConfigTester(
            self, config_class, self.has_text_modality, common_properties=list(self.common_properties)
        )

    def test_config(self):
        self.config_tester.run_common_tests()


class CommonTowerTests(CommonModelTests):
    """Of vision towers, whose embeddings are a convolution."""

    test_resize_embeddings = False
    common_properties = ("hidden_size", "num_attention_heads", "num_hidden_layers")

    @replaced_as_in("clip")
    def test_model_get_set_embeddings(self):
        model = self.all_model_classes[0](self.model_tester.get_config())
        assert isinstance(model.get_input_embeddings(), torch.nn.Conv2d)


class CommonDualEncoderTests(CommonModelTests):
    """Of models that compare images with texts. Their outputs hold those of both towers."""

    _is_composite = True
    test_all_params_have_gradient = False  # as in neomme: not of what the batch leaves unused

    @skip_as_in("clip", "hidden states are tested with the towers")
    def test_hidden_states_output(self):
        pass

    @skip_as_in("clip", "attentions are tested with the towers")
    def test_attention_outputs(self):
        pass

    @skip_as_in("clip", "gradients of hidden states are tested with the towers")
    def test_retain_grad_hidden_states_attentions(self):
        pass


class CommonGenerationTests(CommonModelTests, GenerationTesterMixin):
    """Of models that continue texts and are trained with `labels`."""

    _is_composite = True

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if torch.is_grad_enabled() and not return_labels:
            inputs["use_cache"] = False  # says that a missing loss is meant
        return inputs


def images(batch_size: int = 7, size: int = 16) -> torch.Tensor:
    return torch.rand(batch_size, 3, size, size, device=torch_device)


def texts(batch_size: int = 7, length: int = 7, vocab_size: int = 64) -> dict[str, torch.Tensor]:
    """Texts without special tokens and padding."""
    ids = torch.randint(3, vocab_size, (batch_size, length), device=torch_device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
