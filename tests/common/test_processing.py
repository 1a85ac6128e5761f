"""The processors in transformers' common tests."""

import unittest

from tokenizers.processors import TemplateProcessing
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
        tokenizer = tiny_vw_lmm_processor().tokenizer
        # As with language models, and as the processor does: nothing behind a text that is to be continued
        tokens = [(tokenizer.bos_token, tokenizer.bos_token_id)]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{tokens[0][0]} $A", special_tokens=tokens
        )
        return tokenizer

    @staticmethod
    def prepare_processor_dict():
        return {"chat_template": "vicuna_v1", "image_seq_length": 4}
