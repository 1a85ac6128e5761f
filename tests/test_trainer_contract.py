"""What transformers' `Trainer` asks of a model: predictions that are logits, and losses that are whole or refused."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments, default_data_collator

from tests.conftest import PAIRS
from tests.test_peft import batch_of
from triptych.modeling.contrastive_captioner import CaptionerOutput
from triptych.modeling.modeling_vw_lmm import VwLmmCausalLMOutputWithPast


def trainer_of(model, batch: dict[str, torch.Tensor], folder, compute_metrics=None, **arguments) -> Trainer:
    """A trainer over the rows of a batch, some of them twice, so that the last batch is smaller than the others."""
    rows = [{name: value[index] for name, value in batch.items()} for index in (0, 1, 2, 0, 1)]
    options = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2, "max_steps": 2, "report_to": "none"}
    return Trainer(
        model,
        TrainingArguments(str(folder), use_cpu=True, logging_steps=1, save_strategy="no", **options, **arguments),
        train_dataset=rows,
        eval_dataset=rows,
        compute_metrics=compute_metrics,
    )


@pytest.mark.parametrize("name", PAIRS)
def test_predictions_are_logits_beside_their_labels(tmp_path, name):
    model, processor = PAIRS[name]()
    batch = batch_of(model, processor)
    seen = []

    def compute_metrics(prediction) -> dict[str, float]:
        seen.append((prediction.predictions.shape, prediction.label_ids.shape))
        return {"accuracy": (prediction.predictions.argmax(-1) == prediction.label_ids).mean()}

    trainer = trainer_of(model, batch, tmp_path, compute_metrics)
    assert 0 <= trainer.evaluate()["eval_accuracy"] <= 1
    found = trainer.predict(trainer.eval_dataset)
    with torch.no_grad():
        expected = model.eval()(**batch).logits.numpy()
    rows, tokens, vocabulary = expected.shape
    assert seen == [((5, tokens, vocabulary), (5, tokens))] * 2
    np.testing.assert_allclose(found.predictions[:rows], expected, atol=1e-5)
    np.testing.assert_array_equal(found.label_ids[:rows], batch["labels"].numpy())
    assert np.isfinite(found.metrics["test_loss"])


@pytest.mark.parametrize("name", PAIRS)
def test_predictions_know_every_output_that_is_none(name):
    output = VwLmmCausalLMOutputWithPast if name == "vw_lmm" else CaptionerOutput
    config = PAIRS[name]()[0].config
    others = {field.name for field in fields(output)} - {"loss", "logits"}
    assert others <= set(config.keys_to_ignore_at_inference)
    assert list(output(loss=torch.ones(1), logits=torch.ones(1)))[:2] == ["loss", "logits"]
    assert "keys_to_ignore_at_inference" not in config.to_dict()


@pytest.mark.parametrize("adapted", [False, True], ids=["plain", "adapter"])
@pytest.mark.parametrize("name", PAIRS)
def test_smoothed_labels_are_refused_because_the_loss_would_be_half_of_it(tmp_path, name, adapted):
    model, processor = PAIRS[name]()
    batch = batch_of(model, processor)
    if adapted:
        model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    arguments = {"label_names": ["labels"], "remove_unused_columns": False}  # PEFT's signature hides them
    trainer = trainer_of(model, batch, tmp_path, label_smoothing_factor=0.1, **arguments)
    with pytest.raises(ValueError, match=r"`labels` must be given while training, got None.*`label_smoothing_factor`"):
        trainer.train()
    trainer_of(model, batch, tmp_path, **arguments).train()
    del batch["labels"]
    assert model.train()(**batch, use_cache=False).logits.requires_grad  # for a loss of one's own
    assert model.eval()(**batch).logits is not None


@pytest.mark.parametrize("kind", ["captioner", "dual encoder"])
@pytest.mark.parametrize("name", ["grr_coca", "mammut"])
def test_no_training_step_sees_a_larger_scale_than_the_maximum(tmp_path, name, kind):
    model, processor = PAIRS[name]()
    batch = batch_of(model, processor)
    encoder, seen = model.model, []
    maximum = model.config.logit_scale_max
    encoder.logit_scale.data.fill_(maximum)
    encoder.logit_scale.register_hook(lambda gradient: -torch.ones_like(gradient))  # every step asks for a larger one
    similarity = encoder.similarity
    encoder.similarity = lambda *embeds: seen.append(encoder.logit_scale.item()) or similarity(*embeds)
    if kind == "dual encoder":
        model = encoder
        del batch["labels"]
    trainer = trainer_of(model, batch, tmp_path, learning_rate=5.0, lr_scheduler_type="constant", optim="sgd")
    if kind == "dual encoder":
        trainer.data_collator = lambda rows: {**default_data_collator(rows), "return_loss": True}
    trainer.train()
    assert seen == pytest.approx([maximum, maximum])
    assert encoder.logit_scale.item() > maximum  # since the last step, until the next one begins or somebody clamps it
    encoder.logit_scale.data.fill_(-1.0)
    encoder.clamp_logit_scale()
    assert encoder.logit_scale.item() == 0


@pytest.mark.parametrize("name", PAIRS)
def test_labels_that_are_shifted_already_give_the_same_loss(name):
    """`Trainer` shifts them where several processes share a sequence; `labels` have no say then."""
    model, processor = PAIRS[name]()
    batch = batch_of(model, processor)
    labels = batch["labels"]
    shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    batch["attention_mask"][0, 3] = 0  # predicts nothing
    with torch.no_grad():
        expected = model(**batch).loss
        torch.testing.assert_close(
            model(**{**batch, "labels": labels.clamp(min=3)}, shift_labels=shifted).loss, expected
        )
        row, place = (shifted != -100).nonzero()[0]
        shifted[row, place] = 3 + (shifted[row, place] == 3)
        assert not torch.isclose(model(**batch, shift_labels=shifted).loss, expected)
    with pytest.raises(ValueError, match="`shift_labels` need `labels`"):
        model(**{**batch, "labels": None}, shift_labels=shifted)


@pytest.mark.parametrize("name", PAIRS)
def test_what_no_part_of_a_model_reads_is_refused_at_every_entrance(name):
    model, processor = PAIRS[name]()
    batch = batch_of(model, processor)
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    texts = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    entrances = [(model, inputs), (model, batch), (model.get_image_features, {"pixel_values": inputs["pixel_values"]})]
    if name != "vw_lmm":
        entrances += [(model.model, inputs), (model.get_text_features, texts), (model.generate, inputs)]
        entrances.append((model.model.vision_model, {"pixel_values": inputs["pixel_values"]}))
    for entrance, arguments in entrances:
        with pytest.raises(ValueError, match="num_items"):
            entrance(**arguments, num_items_in_batch=3)
