# make setup   the environment, in .venv
# make demo    a small checkpoint to a verified bundle on three platforms
# make test    the whole test suite
# make readers TensorFlow and optimum, in an environment of their own, read the demo's bundle
# make check   lint, format and types
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo
NAMES := coreml-ane litert-cpu tensorrt-orin
TARGETS := $(foreach name,$(NAMES),--target $(name))
PICTURE := --prompt "a red cube to the left of a blue sphere" --seed 1 --steps 8

READERS := .venv-readers

.PHONY: setup demo test readers check format clean

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
	@echo "# 1. a small checkpoint: Mobile-O's architecture, random weights"
	@$(BIN)/mobile-o-export init-checkpoint $(DEMO)/checkpoint --size tiny --seed 7
	@$(BIN)/mobile-o-export inspect $(DEMO)/checkpoint
	@echo; echo "# 2. what an export would do"
	@$(BIN)/mobile-o-export plan $(DEMO)/checkpoint $(TARGETS)
	@echo; echo "# 3. golden from PyTorch, three platforms, parity, bundle"
	@$(BIN)/mobile-o-export export $(DEMO)/checkpoint $(TARGETS) --bundle-version 0.1.0 --out $(DEMO)/bundle
	@echo; echo "# 4. what is in it"
	@cd $(DEMO)/bundle && find . -maxdepth 2 | LC_ALL=C sort
	@echo; echo "# 5. verified again, as CI would, from the bundle alone: every function, then whole chains"
	@$(BIN)/mobile-o-export verify $(DEMO)/bundle --pipeline
	@echo; echo "# 6. one prompt and seed on every target, and in PyTorch (random weights draw patterns, all the same one)"
	@mkdir -p $(DEMO)/pictures
	@for target in $(NAMES); do \
	  $(BIN)/mobile-o-export generate $(DEMO)/bundle --target $$target $(PICTURE) --out $(DEMO)/pictures/$$target.png \
	  || exit $$?; \
	done
	@$(BIN)/mobile-o-export generate --target torch --checkpoint $(DEMO)/checkpoint $(PICTURE) \
	  --out $(DEMO)/pictures/torch.png
	@echo; echo "# 7. a question about a picture"
	@$(BIN)/mobile-o-export describe $(DEMO)/bundle --target litert-cpu --image golden/still-life.png \
	  --question "What is on the table?" --max-tokens 16
	@echo; echo "The bundle is in $(DEMO)/bundle, the pictures are in $(DEMO)/pictures."

test: setup
	$(BIN)/python -m pytest

# optimum needs a transformers before 5, TensorFlow its own protobuf: neither can live with the converters.
$(READERS)/.ready: tests/readers/requirements.txt
	@test -x $(READERS)/bin/python || $(PYTHON) -m venv $(READERS)
	@echo "installing TensorFlow and optimum (a few minutes the first time) …"
	@$(READERS)/bin/python -m pip install -qq --disable-pip-version-check -r tests/readers/requirements.txt
	@touch $@

readers: $(READERS)/.ready
	@test -f $(DEMO)/bundle/manifest.json || $(MAKE) demo
	$(READERS)/bin/python tests/readers/with_tensorflow.py $(DEMO)/bundle
	$(READERS)/bin/python tests/readers/with_optimum.py $(DEMO)/bundle

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(READERS) $(DEMO) build dist .mypy_cache .ruff_cache .pytest_cache
