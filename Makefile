# For Linux and macOS; on Windows use WSL 2. The targets install everything a fresh machine needs
# besides Python 3.10 to 3.12 and make.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
HUGGINGFACE := .venv-huggingface
KSERVE := .venv-kserve
FITS := import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.10; do \
	"$$p" -c '$(FITS)' 2>/dev/null && echo "$$p" && break; done)
# Programs that the tests and benchmarks run, and their packages in Debian; Homebrew has other names
# for some, and no package for ss, which only a command for Linux in the README needs.
PROGRAMS := curl:curl chromium:chromium chromedriver:chromium-driver prometheus:prometheus \
	nginx:nginx-light wrk:wrk ss:iproute2
HOMEBREW := s/chromium-driver/chromedriver/; s/nginx-light/nginx/; s/golang-go/go/; \
	s/openjdk-17-jdk-headless/openjdk@17/; s/ iproute2//
# More programs for test-image: Docker builds the images, Podman runs them.
IMAGE_PROGRAMS := dockerd:docker.io debootstrap:debootstrap podman:podman runc:runc conmon:conmon \
	catatonit:catatonit /usr/lib/podman/netavark:netavark nsenter:util-linux ip:iproute2
PYTEST = $(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile --no-loadscope-reorder --max-worker-restart 0 --durations 10 --timeout 1200 \
	--junit-xml .pytest_cache/$@.xml
PROCESSES ?= 2
TESTS ?= tests
MINUTES ?= 30
# TORCH=cpu installs torch without CUDA, a fifth of the size, from PyTorch's own index.
TORCH ?=
RUNTIME := $(if $(TORCH),--torch-backend $(TORCH) -r <(sed '/^\# --- As tested/,$$d' tinyvit/requirements.txt) -c,-r) tinyvit/requirements.lock
# uv tries a broken download again, and keeps complete ones for the next run.
INSTALL = $(BIN)/uv pip install --python
export UV_HTTP_RETRIES ?= 10
# Without bytecode files every start compiles all imports, which takes five seconds.
unexport PYTHONDONTWRITEBYTECODE

LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.10 --no-emit-index-url --no-header

.DEFAULT_GOAL := help
.PHONY: help install demo serve test test-all test-zoo fuzz lint bench bench-peers soak export wheel lock programs \
	demo-huggingface test-huggingface test-image clean

help: ## This text
	@echo "make demo             start the server, classify imgs/cat.jpg, stop"
	@echo "make test             test the protocol, the client, the page, the lab, load and stop (4 minutes)"
	@echo "make test-all         run the slow tests: documents, floods, fuzzing, nginx, Prometheus, manifests,"
	@echo "                      exported networks, benchmarks (half an hour)"
	@echo "make serve            run the server on http://127.0.0.1:8080 until Ctrl-C"
	@echo "make bench            measure this runtime and its peers, and write imgs/benchmark.svg (50 minutes;"
	@echo "                      make bench ARGS=--quick takes 10 and writes nothing)"
	@echo "make soak MINUTES=30  send valid and invalid requests for 30 minutes and check every answer"
	@echo "make fuzz MINUTES=30  fuzz the image decoders and the request reader, 30 minutes each"
	@echo "make test-zoo         test one or two timm architectures of each kind (20 minutes)"
	@echo "make lint             run ruff, mypy and import-linter"
	@echo "make export CHECKPOINT=timm/... OUT=folder  convert a checkpoint, to serve it without torch"
	@echo "make wheel            build the package mlserver-timm into dist/"
	@echo "make demo-huggingface classify the cat with MLServer's Hugging Face runtime (9.4 GB more)"
	@echo "make test-huggingface test that both runtimes agree"
	@echo "make test-image       build the image and run it with Docker and Podman (as root)"
	@echo "make install          install only, into $(VENV) (5 GB); TORCH=cpu skips the CUDA libraries"
	@echo "make lock             resolve all pins again"
	@echo "make clean            remove the environments and caches"
	@echo
	@echo "Then, while make serve runs:  $(BIN)/python client/classify.py imgs/cat.jpg"

install: $(VENV)/.runtime ## The runtime and the client

$(VENV)/.python:
	@test -n "$(PYTHON)" || { echo "There is no Python 3.10, 3.11 or 3.12 on the PATH: install one, or use make PYTHON=/path/to/python." >&2; exit 1; }
	@$(PYTHON) -c '$(FITS)' 2>/dev/null || { echo "$(PYTHON) is not Python 3.10, 3.11 or 3.12." >&2; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version) ..."
	@$(PYTHON) -m venv $(VENV) || { echo "Python's venv module does not work here; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@$(BIN)/python -m pip install -qq --disable-pip-version-check uv
	@touch $@

$(VENV)/.runtime: $(VENV)/.python tinyvit/requirements.lock
	@echo "Installing the runtime$(if $(TORCH), with torch for $(TORCH),: 5 GB, half a minute to five by the network) ..."
	@$(INSTALL) $(BIN)/python $(RUNTIME)
	@touch $@

$(VENV)/.tests: $(VENV)/.runtime tests/requirements.lock
	@echo "Installing the requirements of the tests ..."
	@$(INSTALL) $(BIN)/python -r tests/requirements.lock
	@touch $@

$(HUGGINGFACE)/.installed: $(VENV)/.python huggingface/requirements.lock
	@echo "Installing the Hugging Face runtime into $(HUGGINGFACE): 9.4 GB more ..."
	@$(PYTHON) -m venv $(HUGGINGFACE)
	@$(INSTALL) $(HUGGINGFACE)/bin/python -r huggingface/requirements.lock
	@touch $@

$(KSERVE)/.installed: $(VENV)/.python tests/kserve_sdk/requirements.lock
	@echo "Installing KServe's client into $(KSERVE) ..."
	@$(PYTHON) -m venv $(KSERVE)
	@$(INSTALL) $(KSERVE)/bin/python -r tests/kserve_sdk/requirements.lock
	@touch $@

programs: ## The programs that tests and benchmarks run, from Debian; elsewhere it names the packages
	@missing=""; for p in $(PROGRAMS); do command -v "$${p%%:*}" >/dev/null || missing="$$missing $${p##*:}"; done; \
	test -z "$$missing" && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "Installing from Debian:$$missing ..."; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	elif [ "$$(uname)" = Darwin ]; then \
		missing=$$(echo "$$missing" | sed '$(HOMEBREW)'); test -z "$$missing" && exit 0; \
		echo "These programs are missing; with Homebrew: brew install$$missing" >&2; exit 1; \
	else \
		echo "These programs are missing; on Debian or Ubuntu: sudo apt-get install$$missing" >&2; exit 1; \
	fi

demo: $(VENV)/.runtime
	@$(BIN)/python client/demo.py

serve: $(VENV)/.runtime
	@MLSERVER_HOST=$${MLSERVER_HOST:-127.0.0.1} exec $(BIN)/mlserver start tinyvit

# make test WITHOUT_LINUX=1 hides what only Linux has, so that the decoders work as on macOS.
ifdef WITHOUT_LINUX
test: export PYTHONPATH := $(CURDIR)/tests/support/without_linux
endif
test: $(VENV)/.tests programs
	@$(PYTEST) $(TESTS) $(ARGS)

test-all: PROGRAMS += javac:openjdk-17-jdk-headless go:golang-go
test-all: $(VENV)/.tests $(KSERVE)/.installed programs
	@$(PYTEST) -m slow $(TESTS) $(ARGS)

test-zoo: $(VENV)/.tests
	@$(BIN)/python -m pytest -m slow tests/zoo $(ARGS)

fuzz: $(VENV)/.tests
	@$(INSTALL) $(BIN)/python -q -r tests/fuzz/requirements.txt
	@for target in decoders request-reader; do \
		$(BIN)/python tests/fuzz/fuzz.py $$target -max_total_time=$$((60 * $(MINUTES))) $(ARGS) || exit 1; \
	done

lint: $(VENV)/.tests
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@PYTHONPATH=tinyvit $(BIN)/lint-imports --no-cache
	@$(BIN)/mypy tinyvit/serve-model.py tinyvit/mlserver_timm client/*.py

bench: $(VENV)/.tests programs
	@PYTHONPATH=tinyvit $(BIN)/python -m benchmarks.bench $(ARGS)

bench-peers: $(VENV)/.python
	@$(BIN)/python -m benchmarks.environments

soak: $(VENV)/.tests
	@MINUTES=$(MINUTES) PYTHONPATH=tinyvit $(BIN)/python -m benchmarks.soak $(ARGS)

demo-huggingface: $(HUGGINGFACE)/.installed
	@$(HUGGINGFACE)/bin/python huggingface/demo.py

test-huggingface: $(VENV)/.runtime $(HUGGINGFACE)/.installed
	@$(HUGGINGFACE)/bin/python -m pytest tests/huggingface --confcutdir=tests/huggingface $(ARGS)

test-image: PROGRAMS += $(IMAGE_PROGRAMS)
test-image: $(VENV)/.tests programs
	@$(BIN)/python -m pytest tests/deploy/image --confcutdir=tests/deploy/image $(ARGS)

export: $(VENV)/.runtime
	@test -n "$(CHECKPOINT)" -a -n "$(OUT)" || { echo "make export CHECKPOINT=timm/tiny_vit_5m_224.dist_in22k OUT=exported; CHECKPOINT may be a folder too" >&2; exit 2; }
	@PYTHONPATH=tinyvit $(BIN)/python -m mlserver_timm.checkpoints.export "$(CHECKPOINT)" "$(OUT)"

wheel: $(VENV)/.python
	@$(BIN)/uv build --quiet --wheel --out-dir dist $(ARGS)
	@ls dist/*.whl

lock: $(VENV)/.python
	@sed -i.bak '/^# --- As tested/,$$d' tinyvit/requirements.txt && rm tinyvit/requirements.txt.bak  # BSD's sed needs a suffix
	@$(LOCK) tinyvit/requirements.txt -o tinyvit/requirements.lock
	@$(LOCK) tinyvit/requirements-serve.txt -c tinyvit/requirements.lock -o tinyvit/requirements-serve.lock
	@echo "# --- As tested: written by \`make lock\`, for \`mlserver build\`, which installs this file alone." >> tinyvit/requirements.txt
	@grep -v '^ *#' tinyvit/requirements.lock >> tinyvit/requirements.txt
	@for r in tests/requirements tests/kserve_sdk/requirements huggingface/requirements $(basename $(wildcard benchmarks/peers/*/requirements.txt)); do $(LOCK) $$r.txt -o $$r.lock || exit 1; done

clean:
	rm -rf .venv .venv-* .pytest_cache .mypy_cache .ruff_cache .hypothesis
