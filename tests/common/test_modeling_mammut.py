"""MaMMUT and its detector in transformers' common tests."""

import unittest

import torch

import triptych
from tests.common.model_testers import (
    CommonDualEncoderTests,
    CommonGenerationTests,
    CommonModelTests,
    CommonTowerTests,
    ModelTester,
    images,
    skip_as_in,
    texts,
)
from tests.conftest import tiny_mammut_config
from tests.test_detection import SMALL


def two_layers(variant: str = "paper", **overrides) -> triptych.MammutConfig:
    return tiny_mammut_config(variant, text_config={"num_hidden_layers": 2}, **overrides)


def videos() -> torch.Tensor:
    return torch.rand(7, 8, 3, 16, 16)


class Videos:
    """For models that read videos, too."""

    def _video_features_prepare_config_and_inputs(self):
        return self.model_tester.get_config(), {"pixel_values_videos": videos()}

    def _image_features_prepare_config_and_inputs(self):
        return self.model_tester.get_config(), {"pixel_values": images()}


class MammutVisionModelTest(CommonTowerTests, unittest.TestCase):
    all_model_classes = (triptych.MammutVisionModel,)

    def make_tester(self):
        return ModelTester(two_layers().vision_config, {"pixel_values": images()}, seq_length=16)


class MammutTextModelTest(CommonModelTests, unittest.TestCase):
    all_model_classes = (triptych.MammutTextModel,)
    has_text_modality = True

    def make_tester(self):
        inputs = {**texts(), "encoder_hidden_states": torch.rand(7, 5, 32)}
        return ModelTester(two_layers().text_config, inputs, seq_length=7)


class MammutModelTest(Videos, CommonDualEncoderTests, unittest.TestCase):
    all_model_classes = (triptych.MammutModel,)

    def make_tester(self):
        inputs = {"pixel_values": images(), **texts(), "return_loss": True}
        return ModelTester(two_layers(), inputs, is_training=True, seq_length=7)


class MammutForConditionalGenerationTest(Videos, CommonGenerationTests, unittest.TestCase):
    all_model_classes = (triptych.MammutForConditionalGeneration,)

    def make_tester(self):
        return ModelTester(two_layers(), {"pixel_values": images(), **texts()}, is_training=True, seq_length=7)


class MammutForConditionalGenerationWithVideosTest(MammutForConditionalGenerationTest):
    """Tubes, a class token, fixed positions."""

    def make_tester(self):
        inputs = {"pixel_values_videos": videos(), **texts()}
        return ModelTester(two_layers("video"), inputs, is_training=True, seq_length=7)


class MammutForObjectDetectionTest(CommonModelTests, unittest.TestCase):
    all_model_classes = (triptych.MammutForObjectDetection,)
    _is_composite = True
    test_all_params_have_gradient = False  # as in neomme: not of what the batch leaves unused

    def make_tester(self):
        names = {name: value.repeat(7, 1) for name, value in texts(batch_size=2).items()}  # the same classes for all
        inputs = {"pixel_values": images(size=64), **names}
        all_of_them = {"rpn_samples": 10_000, "box_samples": 10_000}  # no random choice
        config = two_layers(detection_config={**SMALL, **all_of_them})
        return ModelTester(config, inputs, is_training=True, seq_length=7)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if return_labels:
            boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4]])
            inputs["labels"] = [{"class_labels": torch.tensor([1]), "boxes": boxes} for _ in inputs["pixel_values"]]
        return inputs

    @skip_as_in("owlv2", "hidden states are tested with the towers")
    def test_hidden_states_output(self):
        pass

    @skip_as_in("owlv2", "attentions are tested with the towers")
    def test_attention_outputs(self):
        pass

    @skip_as_in("owlv2", "gradients of hidden states are tested with the towers")
    def test_retain_grad_hidden_states_attentions(self):
        pass
