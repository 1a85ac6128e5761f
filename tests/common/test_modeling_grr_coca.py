"""GRR-CoCa in transformers' common tests."""

import unittest

import triptych
from tests.common.model_testers import (
    CommonDualEncoderTests,
    CommonGenerationTests,
    CommonModelTests,
    CommonTowerTests,
    ModelTester,
    images,
    texts,
)
from tests.conftest import tiny_config


class GrrCocaVisionModelTest(CommonTowerTests, unittest.TestCase):
    all_model_classes = (triptych.GrrCocaVisionModel,)

    def make_tester(self):
        return ModelTester(tiny_config().vision_config, {"pixel_values": images()}, seq_length=16)


class GrrCocaTextModelTest(CommonModelTests, unittest.TestCase):
    all_model_classes = (triptych.GrrCocaTextModel,)
    has_text_modality = True

    def make_tester(self):
        return ModelTester(tiny_config().text_config, texts(), seq_length=8)  # with the CLS token


class GrrCocaModelTest(CommonDualEncoderTests, unittest.TestCase):
    all_model_classes = (triptych.GrrCocaModel,)

    def make_tester(self):
        inputs = {"pixel_values": images(), **texts(), "return_loss": True}
        return ModelTester(tiny_config(), inputs, is_training=True, seq_length=7)


class GrrCocaForConditionalGenerationTest(CommonGenerationTests, unittest.TestCase):
    all_model_classes = (triptych.GrrCocaForConditionalGeneration,)

    def make_tester(self):
        return ModelTester(tiny_config(), {"pixel_values": images(), **texts()}, is_training=True, seq_length=7)
