# What a developer types. `python` is whichever environment is active.
PYTHON ?= python

.PHONY: check format lint types test mutate stages bench

check: lint types test  ## everything that must be green before a commit

format:
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

lint:
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .

types:
	$(PYTHON) -m mypy

test:
	$(PYTHON) -m pytest -q

mutate:  ## plant some 1800 small mistakes in the ops and the optimizer; the tests must notice each. Writes docs/mutation.md
	$(PYTHON) tests/mutation/mutate.py

stages:  ## train the lecture's six small stages, three seeds each, and compare with the lecture's losses
	$(PYTHON) benchmarks/stages.py

bench:  ## race the CPU backends against PyTorch on this machine: 12 minutes (benchmarks/cpu.py --quick: a few seconds)
	$(PYTHON) benchmarks/cpu.py
