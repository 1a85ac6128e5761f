# Every target makes its own environment: `make demo` and `make test` work on a fresh clone.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PREPARED := $(VENV)/.prepared
PREPARED_DEV := $(VENV)/.prepared-dev
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e

.PHONY: demo test lint bench clean

$(PREPARED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) ".[train,demo,video]"
	touch $@

# What tests compare with and integrate, which a demo does not need.
$(PREPARED_DEV): $(PREPARED)
	$(INSTALL) ".[train,demo,video,detection,sft,quantization,serving,dev]"
	touch $@

# `make demo DEMO_ARGS="--model mammut"` goes on with questions, which GRR-CoCa does not answer.
ANSWERS := $(findstring mammut,$(DEMO_ARGS))

demo: $(PREPARED)  ## Train a tiny captioner on OpenMoji, write outputs/demo and its report
	$(BIN)/python examples/pretrain.py --output_dir outputs/demo $(DEMO_ARGS)
ifneq ($(ANSWERS),)
	$(BIN)/python examples/finetune_vqa.py --output_dir outputs/demo-questions --model_name_or_path outputs/demo \
		--num_train_epochs 3
endif
	$(BIN)/python examples/report.py outputs/demo $(if $(ANSWERS),--questions outputs/demo-questions)

test: $(PREPARED_DEV)  ## Run the tests, one process per core
	$(BIN)/python -m pytest -n auto --dist worksteal $(TEST_ARGS)

lint: $(PREPARED_DEV)  ## Lint, format check, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(PREPARED_DEV)  ## Measure speed and memory as ratios
	$(BIN)/python benchmarks/captioning_cache.py
	$(BIN)/python benchmarks/training_step.py
	$(BIN)/python benchmarks/two_passes.py
	$(BIN)/python benchmarks/visual_loss.py

clean:  ## Remove the environment and caches; outputs stay
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache
