# Every target makes its own environment: `make demo` and `make test` work on a fresh clone.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PREPARED := $(VENV)/.prepared
PREPARED_DEV := $(VENV)/.prepared-dev
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e

.PHONY: demo test test-common test-versions lint bench clean

$(PREPARED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) ".[train,demo,video]"
	touch $@

# What tests compare with and integrate, which a demo does not need.
$(PREPARED_DEV): $(PREPARED)
	$(INSTALL) ".[train,demo,study,video,detection,sft,quantization,serving,ray,dev]"
	touch $@

# `make demo DEMO_ARGS="--model mammut"` goes on with questions, which GRR-CoCa does not answer.
ANSWERS := $(findstring mammut,$(DEMO_ARGS))
# On 3,300 pairs GRR-CoCa grows too sure of itself at a larger scale: docs/grr_coca.md.
SETTINGS := $(if $(ANSWERS),,--batch_size 64 --learning_rate 1e-3 --num_epochs 10 --eval_epochs 2 \
	--config_overrides '{"logit_scale_init_value": 2.0, "logit_scale_max": 2.0}')

demo: $(PREPARED)  ## Train a tiny captioner on OpenMoji, write outputs/demo and its report
	$(BIN)/python examples/pretrain.py --output_dir outputs/demo $(SETTINGS) $(DEMO_ARGS)
ifneq ($(ANSWERS),)
	$(BIN)/python examples/finetune_vqa.py --output_dir outputs/demo-questions --model_name_or_path outputs/demo \
		--num_epochs 3
endif
	$(BIN)/python examples/report.py outputs/demo $(if $(ANSWERS),--questions outputs/demo-questions)

# The oldest transformers supported and the newest there is, beside the other packages of the tests and without triptych.
OTHER_VERSIONS := $(VENV)/versions/5.16.1/.prepared $(VENV)/versions/newest/.prepared
PACKAGES_OF = $(1)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))"

$(VENV)/versions/%/.prepared: | $(PREPARED_DEV)
	$(BIN)/python -m venv --clear $(@D)
	$(call PACKAGES_OF,$(VENV)) > $$($(call PACKAGES_OF,$(@D)))/packages_of_the_tests.pth
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade transformers$(if $(filter newest,$*),,==$*)
	touch $@

# What evaluates models in the field, beside the packages of the tests. lmms-eval asks for an older PyAV and much that its tasks alone
# need, so each comes without its dependencies but for what it imports.
HARNESSES := $(VENV)/harnesses/.prepared

$(HARNESSES): pyproject.toml constraints.txt | $(PREPARED_DEV)
	$(BIN)/python -m venv --clear $(@D)
	$(call PACKAGES_OF,$(VENV)) > $$($(call PACKAGES_OF,$(@D)))/packages_of_the_tests.pth
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps lmms-eval==0.7.3 clip-benchmark==1.6.2 open-clip-torch
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check "setuptools>=77.0.1" "filelock<4" ftfy loguru pytablewriter pytz \
		sacrebleu tenacity webdataset
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

test: $(PREPARED_DEV) $(OTHER_VERSIONS) $(HARNESSES)  ## Run the tests, one process per core
	$(BIN)/python -m pytest -n auto --dist worksteal --durations 15 $(TEST_ARGS)

# Out of its source distribution, which pip fetches once per version; `COMMON_ARGS="--write"` writes the table of docs/reliability.md.
test-common: $(PREPARED_DEV)  ## Run transformers' own common tests on our classes
	$(BIN)/python -m tests.common -n auto --dist worksteal -q $(COMMON_ARGS)

# About an hour and 30 GB; finished parts are kept, `VERSIONS_ARGS="--only newest --again"` repeats some.
test-versions: $(PREPARED_DEV)  ## Run the tests with every supported transformers, and write the table of docs/hub.md
	$(BIN)/python -m tests.every_version $(VERSIONS_ARGS)

lint: $(PREPARED_DEV)  ## Lint, format check, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(PREPARED_DEV)  ## Measure speed and memory as ratios
	$(BIN)/python benchmarks/speed.py --parts families passes captions
	$(BIN)/python benchmarks/losses.py

clean:  ## Remove the environment and caches; outputs stay
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache
