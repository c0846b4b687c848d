# Everything a fresh machine needs besides Python 3.10 to 3.12 and make is installed by the targets.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
HUGGINGFACE := .venv-huggingface
FITS := import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.10; do \
	"$$p" -c '$(FITS)' 2>/dev/null && echo "$$p" && break; done)
# Debian's names of what the tests and benchmarks run besides Python.
PROGRAMS := curl:curl chromium:chromium chromedriver:chromium-driver prometheus:prometheus \
	nginx:nginx-light wrk:wrk
MINUTES ?= 30
# TORCH=cpu installs torch without CUDA, a fifth of the size, from PyTorch's own index.
TORCH ?=
RUNTIME := $(if $(TORCH),--torch-backend $(TORCH) -r tinyvit/requirements.txt -c,-r) tinyvit/requirements.lock
# Shows what it does; a download that breaks is tried again, and what has come is kept for the next run.
INSTALL = $(BIN)/uv pip install --python
export UV_HTTP_RETRIES ?= 10
WEIGHTS ?= timm/tiny_vit_5m_224.dist_in22k

.DEFAULT_GOAL := help
.PHONY: help install demo serve test lint bench soak lock weights programs \
	demo-huggingface test-huggingface clean

help: ## This text
	@echo "make demo             serve TinyViT on this machine and name the cat on imgs/cat.jpg"
	@echo "make test             prove it: all tests, against real servers"
	@echo "make serve            the server on http://127.0.0.1:8080 until Ctrl-C"
	@echo "make bench            measure it beside its peers; writes imgs/benchmark.svg (10 minutes)"
	@echo "make soak MINUTES=30  mixed good and bad requests for so long, every answer checked"
	@echo "make lint             ruff and mypy"
	@echo "make weights          fetch the hub's weights into weights/, for parameters.uri or an image"
	@echo "make demo-huggingface the same cat by MLServer's Hugging Face runtime (9.4 GB more)"
	@echo "make test-huggingface prove that both agree"
	@echo "make install          only install, into $(VENV) (5.3 GB); TORCH=cpu leaves CUDA out"
	@echo "make lock             resolve the locks anew from the requirements.txt beside them"
	@echo "make clean            remove the environments and caches"
	@echo
	@echo "Then, with the server running:  $(BIN)/python client/classify.py imgs/cat.jpg"

install: $(VENV)/.runtime ## The runtime and the client

$(VENV)/.python:
	@test -n "$(PYTHON)" || { echo "Python 3.10, 3.11 or 3.12 is needed, and none is on the PATH; make PYTHON=/path/to/python names one." >&2; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version) ..."
	@$(PYTHON) -m venv $(VENV) || { echo "Python's venv module does not work here; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@$(BIN)/python -m pip install -qq --disable-pip-version-check uv
	@touch $@

$(VENV)/.runtime: $(VENV)/.python tinyvit/requirements.lock
	@echo "Installing the runtime$(if $(TORCH), with torch for $(TORCH),: 5 GB, half a minute to five by the network) ..."
	@$(INSTALL) $(BIN)/python $(RUNTIME)
	@touch $@

$(VENV)/.tests: $(VENV)/.runtime tests/requirements.lock
	@echo "Installing what the tests need ..."
	@$(INSTALL) $(BIN)/python -r tests/requirements.lock
	@touch $@

$(HUGGINGFACE)/.installed: $(VENV)/.python huggingface/requirements.lock
	@echo "Installing the Hugging Face runtime into $(HUGGINGFACE): 9.4 GB more ..."
	@$(PYTHON) -m venv $(HUGGINGFACE)
	@$(INSTALL) $(HUGGINGFACE)/bin/python -r huggingface/requirements.lock
	@touch $@

programs: ## The programs from Debian that tests and benchmarks run
	@missing=""; for p in $(PROGRAMS); do command -v "$${p%%:*}" >/dev/null || missing="$$missing $${p##*:}"; done; \
	test -z "$$missing" && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "Installing from Debian:$$missing ..."; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	else \
		echo "These programs are missing; on Debian or Ubuntu: sudo apt-get install$$missing" >&2; exit 1; \
	fi

demo: $(VENV)/.runtime
	@$(BIN)/python client/demo.py

serve: $(VENV)/.runtime
	@MLSERVER_HOST=$${MLSERVER_HOST:-127.0.0.1} exec $(BIN)/mlserver start tinyvit

test: $(VENV)/.tests programs
	@$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.tests
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy tinyvit/serve-model.py tinyvit/timm_runtime client/*.py

bench: $(VENV)/.tests programs
	@$(BIN)/python benchmarks/bench.py $(ARGS)

soak: $(VENV)/.tests
	@MINUTES=$(MINUTES) $(BIN)/python benchmarks/soak.py $(ARGS)

demo-huggingface: $(HUGGINGFACE)/.installed
	@$(HUGGINGFACE)/bin/python huggingface/demo.py

test-huggingface: $(VENV)/.runtime $(HUGGINGFACE)/.installed
	@$(HUGGINGFACE)/bin/python -m pytest tests/huggingface --confcutdir=tests/huggingface $(ARGS)

weights: $(VENV)/.runtime
	@$(BIN)/python deploy/weights.py $(WEIGHTS) weights

lock: $(VENV)/.python
	@for d in tinyvit tests huggingface; do $(BIN)/uv pip compile --quiet --universal --python-version 3.10 \
		--no-emit-index-url --no-header $$d/requirements.txt -o $$d/requirements.lock; done

clean:
	rm -rf .venv .venv-* .pytest_cache .mypy_cache .ruff_cache .hypothesis weights
