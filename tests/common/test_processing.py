"""The processors in transformers' common tests."""

import unittest

from transformers import CLIPImageProcessor, LlavaImageProcessor

import triptych
from tests.common.upstream import ProcessorTesterMixin
from tests.conftest import CAPTIONS, tiny_vw_lmm_processor
from triptych.training.tokenizer import train_tokenizer


SIZES = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}


class CommonProcessorTests(ProcessorTesterMixin):
    """All common tests of processors, with a small tokenizer and squares of 16 x 16 pixels."""

    @classmethod
    def _setup_image_processor(cls):
        return CLIPImageProcessor(**SIZES)

    @classmethod
    def _setup_tokenizer(cls):
        return train_tokenizer(CAPTIONS, 300, 200)


class GrrCocaProcessorTest(CommonProcessorTests, unittest.TestCase):
    processor_class = triptych.GrrCocaProcessor


class MammutProcessorTest(CommonProcessorTests, unittest.TestCase):
    processor_class = triptych.MammutProcessor


class VwLmmProcessorTest(CommonProcessorTests, unittest.TestCase):
    processor_class = triptych.VwLmmProcessor

    @classmethod
    def _setup_image_processor(cls):
        return LlavaImageProcessor(do_pad=True, **SIZES)

    @classmethod
    def _setup_tokenizer(cls):
        return tiny_vw_lmm_processor().tokenizer

    @staticmethod
    def prepare_processor_dict():
        return {"chat_template": "vicuna_v1", "image_seq_length": 4}
