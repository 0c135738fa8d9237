# What a developer types. `python` is whichever environment is active.
PYTHON ?= python
LONG ?= long or hypothesis or program or gpu

.PHONY: check check-all format lint types test long matrix mutate prove fuzz stages figures bench

check: lint types test  ## everything that must be green before a commit

check-all: lint types long matrix  ## every test there is, and what CI runs: some 15 minutes

format:
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

lint:
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m check_jsonschema --builtin-schema vendor.github-workflows .github/workflows/tests.yml
	$(PYTHON) -m check_jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml

types:
	$(PYTHON) -m mypy

test:
	$(PYTHON) -m pytest -q

long:  ## what `test` or `matrix` leaves out, and 100 examples per Hypothesis test instead of 15
	HYPOTHESIS_PROFILE=ci $(PYTHON) -m pytest -q -m "$(LONG)"

matrix:  ## the numeric tests under the kernels that OpenBLAS and NumPy take on other processors
	$(PYTHON) tests/matrix.py $(MATRIX)

mutate:  ## plant some 7300 small mistakes in the ops and in gpt/; the tests must notice each: 20 minutes. Writes docs/mutation.md
	$(PYTHON) tests/mutation/mutate.py ops
	$(PYTHON) tests/mutation/mutate.py gpt

prove:  ## the proofs of docs/reliability.md at full count; tests/repo/test_prove.py runs a part of each
	for proof in bits mutations syscalls kills resume nans endurance alarms; do PYTHONPATH=.:tests/support $(PYTHON) -m prove.$$proof || exit 1; done

fuzz:  ## search 20 seconds each for inputs that break what reads files: guided by coverage where atheris is installed
	for target in checkpoint description text; do PYTHONPATH=.:tests/support $(PYTHON) -m prove.fuzz $$target || exit 1; done

stages:  ## train the lecture's six small stages, three seeds each, and compare with the lecture's losses
	$(PYTHON) benchmarks/stages.py

figures:  ## draw docs/figures again. It trains the models whose runs are missing below runs/: two to three minutes at first
	for figure in loss_stages loss_full_model attention_maps gradcheck_step attention_backward time_and_memory; do \
		$(PYTHON) docs/figures/$$figure.py || exit 1; done

bench:  ## time the CPU backends beside PyTorch on this machine: 12 minutes (benchmarks/cpu.py --quick: a few seconds)
	$(PYTHON) benchmarks/cpu.py
