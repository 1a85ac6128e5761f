"""Tiny models learn a batch by heart, in transformers' common test of that, and then say it."""

import unittest

import triptych
from tests.common.model_testers import ModelTester, images, texts
from tests.common.test_modeling_vw_lmm import VwLmmTester
from tests.common.upstream import TrainingTesterMixin
from tests.conftest import tiny_config, tiny_mammut_config


class VwLmmForCausalLMTrainingTest(TrainingTesterMixin, unittest.TestCase):
    """Texts without images."""

    @property
    def model_tester(self):
        tester = VwLmmTester()
        tester.config.vocab_size = tester.config.text_config.vocab_size
        return tester


class CommonCaptionerTraining(TrainingTesterMixin):
    """Texts with an image each. They are all the same, which no contrastive loss could tell apart."""

    training_overfit_seq_length = 12

    def setUp(self):
        self.picture = images(1)

    @property
    def model_tester(self):
        config = self.make_config(contrastive_loss_weight=0.0)
        config.vocab_size = config.text_config.vocab_size
        return ModelTester(config, texts(), is_training=True)

    def _create_text_training_batch(self, batch_size, seq_length, vocab_size):
        batch = super()._create_text_training_batch(batch_size, seq_length, vocab_size)
        return {**batch, "pixel_values": self.picture.expand(batch_size, -1, -1, -1)}

    def _get_trainable_model_class(self):
        picture = self.picture

        class Captioner(self.model_class):
            def generate(self, inputs, **kwargs):
                return super().generate(inputs, picture, **kwargs)

        return Captioner


class GrrCocaForConditionalGenerationTrainingTest(CommonCaptionerTraining, unittest.TestCase):
    model_class = triptych.GrrCocaForConditionalGeneration
    make_config = staticmethod(tiny_config)


class MammutForConditionalGenerationTrainingTest(CommonCaptionerTraining, unittest.TestCase):
    model_class = triptych.MammutForConditionalGeneration
    make_config = staticmethod(tiny_mammut_config)
