"""VW-LMM in transformers' common tests, with towers of transformers and of this package."""

import unittest
from unittest.mock import patch

import torch

import triptych
from tests.common.model_testers import CommonGenerationTests, CommonModelTests, ModelTester, images, texts
from tests.common.upstream import TensorParallelTesterMixin, modeling
from tests.conftest import tiny_config, tiny_mammut_config, tiny_vw_lmm_config


NARROW = {
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
}


class VwLmmTester(ModelTester):
    """Texts of seven tokens behind one image each."""

    causal_lm_class = triptych.VwLmmForCausalLM

    def __init__(self, vision_config: dict | None = None, **fields):
        vision = vision_config or {"model_type": "clip_vision_model", **NARROW, "patch_size": 8}
        text = {"num_attention_heads": 2, "num_key_value_heads": 2, **fields.pop("text_config", {})}
        # Inside the vocabulary, as in their tests of Llava: they shrink it, and embed ids themselves.
        config = tiny_vw_lmm_config(vision_config=vision, text_config=text, **{"image_token_id": 0, **fields})
        length = config.image_seq_length
        ids = torch.cat([torch.full((7, length), config.image_token_id), texts()["input_ids"]], dim=1)
        inputs = {"pixel_values": images(), "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        super().__init__(config, inputs, is_training=True, seq_length=7 + length)


class VwLmmModelTest(CommonModelTests, unittest.TestCase):
    all_model_classes = (triptych.VwLmmModel,)
    _is_composite = True
    common_properties = ("image_token_id", "image_seq_length", "vision_feature_layer")

    def setUp(self):
        super().setUp()
        # Their random texts are of words: a placeholder without an image is refused, which Llava takes for one.
        draw = modeling.ids_tensor
        words = patch.object(modeling, "ids_tensor", lambda shape, size: 1 + draw(shape, size - 1))
        words.start()
        self.addCleanup(words.stop)

    def make_tester(self):
        return VwLmmTester()


class VwLmmForCausalLMTest(CommonGenerationTests, unittest.TestCase):
    all_model_classes = (triptych.VwLmmForCausalLM,)

    def make_tester(self):
        return VwLmmTester()


class VwLmmForCausalLMInProcessesTest(TensorParallelTesterMixin, unittest.TestCase):
    """What two processes with half a model each compute; transformers runs these tests for a list of its own models."""

    all_model_classes = (triptych.VwLmmForCausalLM,)
    model_tester = None

    def setUp(self):
        # Their random texts, whose seed is theirs, hold many an id of the vocabulary, but not this one.
        self.model_tester = VwLmmTester(image_token_id=1023, text_config={"vocab_size": 1024})

    def _skip_if_tp_distributed_not_enabled(self):
        pass


class VwLmmForCausalLMWithPseudoImageFeaturesTest(VwLmmForCausalLMTest):
    def make_tester(self):
        return VwLmmTester(pseudo_image_features=True)


class VwLmmForCausalLMWithSiglipTest(VwLmmForCausalLMTest):
    def make_tester(self):
        vision = {"model_type": "siglip_vision_model", **NARROW, "patch_size": 8}
        return VwLmmTester(vision, vision_feature_select_strategy="full", vision_feature_layer=-1)


class VwLmmForCausalLMWithGrrCocaTest(VwLmmForCausalLMTest):
    def make_tester(self):
        fields = {"vision_feature_select_strategy": "full", "vision_feature_layer": -1}
        return VwLmmTester(tiny_config().vision_config.to_dict(), **fields)


class VwLmmForCausalLMWithMammutTest(VwLmmForCausalLMTest):
    def make_tester(self):
        fields = {"vision_feature_select_strategy": "full", "vision_feature_layer": -1}
        return VwLmmTester(tiny_mammut_config().vision_config.to_dict(), **fields)
