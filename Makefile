# Everything that is installed goes below STATE, except Debian packages. See scripts/setup.

SHELL := /bin/bash
.DEFAULT_GOAL := help

ifeq ($(shell id -u),0)
STATE ?= /var/lib/qemuspawner
else
STATE ?= $(HOME)/.local/state/qemuspawner
endif
PORT ?= 8000
TESTS ?= tests
# So many processes run the tests; 0: in one, as a debugger needs it.
PROCESSES ?= 2

# Absolute: it goes into scripts that are run from anywhere.
override STATE := $(abspath $(STATE))
export STATE PORT
BIN := $(STATE)/venv/bin
TOOLS := $(STATE)/node/bin:$(STATE)/node/node_modules/.bin:$(BIN)

.PHONY: help demo test prove bench test-gpu test-builds check golden messages docs wheel clean

help: ## list what can be made
	@echo "make TARGET [STATE=$(STATE)] [PORT=$(PORT)] [TESTS=$(TESTS)] [PROCESSES=$(PROCESSES)]"
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS=$$'\t' read -r name text; do printf '  %-12s%s\n' "$$name" "$$text"; done

demo: ## install everything, build the demo machine, run a hub on 127.0.0.1:PORT
	@scripts/setup demo
	@scripts/demo

# A short folder: sockets of sessions lie in it, and their paths end at 107 bytes.
test: ## install everything, build the demo machine, run the tests (or those named by TESTS)
	@scripts/setup test
	base=$$(mktemp -d /tmp/qs-XXXXXX); trap 'rm -rf "$$base"' EXIT; \
	PATH="$(TOOLS):$$PATH:/usr/sbin:/sbin" QEMUSPAWNER_TEST_IMAGES="$(STATE)/images" \
		QEMUSPAWNER_TEST_FAST="$(STATE)/fast" $(BIN)/pytest -n $(PROCESSES) \
		--no-loadscope-reorder --basetemp="$$base/t" $(TESTS)

# In one process, as figures are taken; hours. GOALS names some of them: make prove GOALS="R1 S4"
prove: ## as test, but prove each promise in full, and write bench/PROOF.md
	@scripts/setup test
	base=$$(mktemp -d /tmp/qs-XXXXXX); trap 'rm -rf "$$base"' EXIT; \
	PATH="$(TOOLS):$$PATH:/usr/sbin:/sbin" QEMUSPAWNER_TEST_IMAGES="$(STATE)/images" \
		$(BIN)/pytest --full --timeout 7200 --basetemp="$$base/t" $(if $(GOALS),--goals "$(GOALS)") tests/proof

# About an hour, on a host that does nothing else. ONLY names some of them: make bench ONLY="darts relay"
bench: ## measure beside DARTS and websockify, and write bench/TABLE.md and the manual's plots
	@scripts/setup bench
	PATH="$(TOOLS):$$PATH:/usr/sbin:/sbin" QEMUSPAWNER_TEST_IMAGES="$(STATE)/images" \
		$(BIN)/python -m bench --darts-root "$(STATE)/darts" $(if $(ONLY),--only $(ONLY))

# Apart from the others: it takes 3 to 6 minutes without KVM, as guests run by emulated virtualization in an emulated host.
test-gpu: ## as test, but pass GPUs on in an emulated host that has an IOMMU and KVM
	@scripts/setup test
	PATH="$(TOOLS):$$PATH:/usr/sbin:/sbin" QEMUSPAWNER_TEST_IMAGES="$(STATE)/images" $(BIN)/pytest tests/nested/gpu.py

# Apart from the others, too: gigabytes of packages are downloaded and installed.
test-builds: ## as test, but build the machine photon-science and one with a container, and use them
	@scripts/setup test
	$(BIN)/qemuspawner --state "$(STATE)" --machines machines machines build photon-science
	PATH="$(TOOLS):$$PATH:/usr/sbin:/sbin" QEMUSPAWNER_TEST_IMAGES="$(STATE)/images" \
		$(BIN)/pytest tests/builds/photon.py tests/builds/container.py

check: ## check format, style and types
	@scripts/setup check
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

golden: ## rewrite the expected outputs in tests/golden
	@scripts/setup check
	GOLDEN=1 $(BIN)/pytest -q $$(grep -rl --include='test_*.py' compare_with_golden tests)

messages: ## collect what pages say into share/locale, for translators
	@scripts/setup check
	$(BIN)/python scripts/messages.py

docs: ## make the manual, build/docs/index.html, with the screenshots of the last `make test`
	@scripts/setup docs
	$(BIN)/python -m sphinx -W --keep-going -n -q -b html docs build/docs
	@echo "The manual is build/docs/index.html"

wheel: ## make dist/qemuspawner-VERSION.whl
	@scripts/setup wheel
	PATH="$(TOOLS):$$PATH" $(BIN)/pip wheel --no-deps --wheel-dir dist .

clean: ## remove what was made in this folder (STATE stays)
	rm -rf dist build node_modules share/static/vendor share/static/built .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
