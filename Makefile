# make setup   the environment, in .venv
# make demo    a small trained checkpoint to a verified bundle on three platforms, its report, its pictures
# make test    the whole test suite, in WORKERS processes (2); prints the slowest twenty
# make test-fast  the tests that need no export and no golden
# make readers TensorFlow, OpenVINO, optimum and the oldest runtimes, in an environment of their own, read the demo's bundle
# make conformance  coremltools' own tests, predicted by the MIL interpreter: a table by operator
# make golden  the demo's golden anew, and how far it was from it; 'make golden-check' only says that
# make demo-checkpoint  trains the demo's checkpoint again
# make check   lint, format and types
PYTHON ?= python3
# Many processes start here, and each would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo
NAMES := coreml-ane litert-cpu tensorrt-orin
TARGETS := $(foreach name,$(NAMES),--target $(name))
CHECKPOINT := examples/demo_checkpoint/checkpoint
WORKERS := 2
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --durations=20
PROMPT := --prompt "a red circle to the left of a blue square"

READERS := .venv-readers
TRAINING := training

.PHONY: setup demo golden golden-check demo-checkpoint test test-fast readers conformance check format clean

setup: $(VENV)/.ready

# torch is installed by its exact version first: asked for by a range, pip takes the CUDA build.
$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not ((3, 11) <= sys.version_info < (3, 14)))' \
	  || { echo "Python 3.11 to 3.13 is needed; say which with PYTHON=python3.12"; exit 3; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing (a few minutes the first time) …"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt torch==2.13.0
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	@rm -rf $(DEMO)
	@mkdir -p $(DEMO)/pictures
	@echo "# 1. a small checkpoint that was trained on coloured shapes"
	@$(BIN)/mobile-o-export inspect $(CHECKPOINT)
	@echo; echo "# 2. what an export would do"
	@$(BIN)/mobile-o-export plan $(CHECKPOINT) $(TARGETS)
	@echo; echo "# 3. three platforms, parity with PyTorch's golden, bundle"
	@$(BIN)/mobile-o-export export $(CHECKPOINT) $(TARGETS) --golden golden/demo --bundle-version 0.1.0 \
	  --out $(DEMO)/bundle
	@echo; echo "# 4. what is in it"
	@cd $(DEMO)/bundle && find . -maxdepth 2 | LC_ALL=C sort
	@echo; echo "# 5. verified again, as CI would, from the bundle alone: every function, then whole chains"
	@$(BIN)/mobile-o-export verify $(DEMO)/bundle --pipeline
	@echo; echo "# 6. a drawing, a change of it, a question about it"
	@$(BIN)/mobile-o-export generate $(DEMO)/bundle --target litert-cpu $(PROMPT) --seed 1 \
	  --out $(DEMO)/pictures/drawn.png
	@$(BIN)/mobile-o-export edit $(DEMO)/bundle --target tensorrt-orin --image $(DEMO)/pictures/drawn.png \
	  --prompt "make the circle green" --seed 1 --out $(DEMO)/pictures/edited.png
	@$(BIN)/mobile-o-export describe $(DEMO)/bundle --target coreml-ane --image $(DEMO)/pictures/edited.png \
	  --question "What colour is the circle?"
	@echo; echo "# 7. does it still do its tasks? a few of the 200 prompts and 500 questions that it never saw"
	@$(BIN)/mobile-o-export evaluate $(DEMO)/bundle --limit 10 --out $(DEMO)/evaluation
	@echo; echo "# 8. all of it on one page"
	@$(BIN)/mobile-o-export report $(DEMO)/bundle --evaluation $(DEMO)/evaluation --out $(DEMO)/report.html
	@echo; echo "# 9. one prompt, PyTorch and each target side by side"
	@$(BIN)/mobile-o-export compare $(DEMO)/bundle --checkpoint $(CHECKPOINT) $(PROMPT) --seed 1 \
	  --out $(DEMO)/pictures/side-by-side.png
	@echo; echo "The bundle is in $(DEMO)/bundle, its report is $(DEMO)/report.html."

# The same machine and versions record the same bytes. Elsewhere they differ: the comparison says how far.
golden: $(DEMO)/golden
	@$(BIN)/mobile-o-export golden compare golden/demo $(DEMO)/golden || echo "golden/demo is replaced all the same"
	@rm -rf golden/demo
	@cp -r $(DEMO)/golden golden/demo

golden-check: $(DEMO)/golden
	@$(BIN)/mobile-o-export golden compare golden/demo $(DEMO)/golden

.PHONY: $(DEMO)/golden
$(DEMO)/golden: setup
	@rm -rf $@
	@$(BIN)/mobile-o-export golden record $(CHECKPOINT) --prompts golden/demo-prompts.toml --out $@

# Interrupted, it goes on where it stopped.
demo-checkpoint: setup
	$(BIN)/python examples/demo_checkpoint/train.py --work $(TRAINING) --out $(TRAINING)/checkpoint
	$(BIN)/python examples/demo_checkpoint/plot_losses.py $(TRAINING) $(TRAINING)/losses.png

test: setup
	$(PYTEST)

test-fast: setup
	$(PYTEST) -m "not slow"

# optimum needs a transformers before 5, TensorFlow its own protobuf: neither can live with the converters.
$(READERS)/.ready: tests/readers/requirements.txt
	@test -x $(READERS)/bin/python || $(PYTHON) -m venv $(READERS)
	@echo "installing TensorFlow, OpenVINO and optimum (a few minutes the first time) …"
	@$(READERS)/bin/python -m pip install -qq --disable-pip-version-check -r tests/readers/requirements.txt
	@touch $@

readers: $(READERS)/.ready
	@test -f $(DEMO)/bundle/manifest.json || $(MAKE) demo
	$(READERS)/bin/python tests/readers/with_tensorflow.py $(DEMO)/bundle
	$(READERS)/bin/python tests/readers/with_openvino.py $(DEMO)/bundle
	$(READERS)/bin/python tests/readers/with_optimum.py $(DEMO)/bundle
	$(READERS)/bin/python tests/readers/with_runtimes.py $(DEMO)/bundle

# About ten minutes; CASES=0 runs every case of every test, for hours.
CASES := 2
conformance: setup
	$(BIN)/python benchmarks/conformance.py --cases $(CASES) --workers $(WORKERS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(READERS) $(DEMO) build dist .mypy_cache .ruff_cache .pytest_cache
