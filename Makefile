# Everything a fresh machine needs is set up by the target that needs it: python3, make, a compiler.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The programs that tests start are then compiled once, also where containers ask for no bytecode.
export PYTHONDONTWRITEBYTECODE :=
RUN_PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet

.PHONY: demo test compile-kernels test-js test-page lint soak soak-batch storm bench-step bench-grammars bench-queue bench-kernels bench-engine bench-engine-cpu bench-gateway fuzz-api gpu clean

demo: $(VENV)/.installed $(VENV)/.native
	$(BIN)/penstock demo

# Three at once on two cores: a third of the tests wait, for leases and processes. Files in their own order, as those
# with most tests are not those that take longest.
test: $(VENV)/.installed-dev $(VENV)/.native
	$(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder -rfER --rerun-show-tracebacks

# Every Triton kernel ahead of time for sm_80 and sm_90; `make test` compiles a few. Minutes.
compile-kernels: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -n 2 tests/kernels/triton/compile_all.py

# OpenAI's JavaScript client against the gateway; wants node and npm, and the network the first time.
test-js: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -rs tests/producer/gateway/javascript/drive.py

# The page in a headless Chromium of this machine (CHROMIUM names another); pictures go to PENSTOCK_SCREENSHOTS.
test-page: $(VENV)/.installed-dev
	$(RUN_PIP) -e '.[browser]'
	$(BIN)/python -m pytest -q -rs tests/producer/gateway/page/drive.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

soak: $(VENV)/.installed-dev
	$(BIN)/python -m tests.engine.soak

soak-batch: $(VENV)/.installed-dev
	$(BIN)/python -m tests.producer.gateway.soak_batch

storm: $(VENV)/.installed-dev
	$(BIN)/python -m tests.storm

bench-step: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.step_overhead

bench-grammars: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.grammar_masks

bench-queue: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.queue

bench-kernels: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.kernels

bench-engine: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.engine --verify

# VLLM: a Python that has vLLM; LLAMA_CPP: the folder of llama.cpp's built programs; ARGS: what else to say,
# such as --workload peers --repeat 3. A peer that is not named is left out.
bench-engine-cpu: $(VENV)/.installed-dev $(VENV)/.native
	$(BIN)/python -m benchmarks.engine --plan cpu --out benchmarks/results/engine-cpu.json --peer transformers generate \
		$(if $(VLLM),vllm=$(VLLM)) $(if $(LLAMA_CPP),llama.cpp=$(LLAMA_CPP)) $(ARGS)

# ARGS: what else to say, such as --path /v1/chat/completions --streams 1000.
bench-gateway: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.gateway $(ARGS)

# EXAMPLES: of each operation of the served OpenAPI document.
EXAMPLES ?= 200
fuzz-api: $(VENV)/.installed-dev
	PENSTOCK_FUZZ_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest -q --timeout 3600 tests/producer/gateway/test_fuzz.py

gpu: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.gpu

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	@echo "Installing penstock into $(VENV) (torch is most of it; a minute or two the first time)"
	$(RUN_PIP) -e '.[all]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	@echo "Installing penstock and its development tools into $(VENV)"
	$(RUN_PIP) -e '.[dev]'
	@touch $@ $(VENV)/.installed

# Compiled at install; again where their sources have changed since. Without a compiler torch computes.
$(VENV)/.native: $(wildcard $(addprefix kernels/cpu/native/*.,cpp inc h py)) | $(VENV)/.installed
	-$(BIN)/python kernels/cpu/native/build.py
	@touch $@

clean:
	rm -rf kernels/cpu/native/*.so $(VENV) .penstock build dist
