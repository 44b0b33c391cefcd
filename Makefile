# The usual tasks. `make` alone lists them.

.PHONY: help setup test test-one lint bench gate

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: .venv/ready ## Install Baleen and its development tools into .venv

.venv/ready: requirements-dev.lock pyproject.toml
	python3 -m venv .venv
	.venv/bin/pip install -q --require-hashes -r requirements-dev.lock
	.venv/bin/pip install -q --no-deps --no-build-isolation -e .
	touch $@

test: setup ## Run the quick tests (under five minutes)
	.venv/bin/python -m pytest -n 3

test-one: setup ## Run one test whatever its marks: make test-one T=tests/domain/test_fold.py::test_name
	@test -n "$(T)" || { echo "Name the test: make test-one T=tests/domain/test_fold.py::test_name"; exit 2; }
	.venv/bin/python -m pytest -m "" $(T)

lint: setup ## Check style and types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

bench: setup ## Measure what docs/PERFORMANCE.md shows, quickly: make bench ONLY=mounts
	.venv/bin/python -m bench --quick $(if $(ONLY),--only $(ONLY))

gate: ## Run what CI runs; make gate STAGES="lint tests" runs only these
	.ci/run $(STAGES)
