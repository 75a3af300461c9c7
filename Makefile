# `make demo` and `make test` need nothing but Python 3.10 to 3.13, make and a package index.

VENV ?= .venv
PYTHON := $(VENV)/bin/python
PIP := $(PYTHON) -m pip --disable-pip-version-check --quiet
METADATA := setup.cfg pyproject.toml

# TensorFlow has no wheels outside this range. Each candidate is run, for some are only shims.
in_range = import sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, $(1)))
CANDIDATES := python3.11 python3.12 python3.13 python3.10 python3

.PHONY: demo test test-matrix test-oldest test-newest lint soak benchmark figures docs clean
.DEFAULT_GOAL := test

# $(call created,FOLDER,MINOR): an environment of Python 3.10 to 3.MINOR.
created = found=; for candidate in $(CANDIDATES); do \
	    if $$candidate -c '$(call in_range,$(2))' >/dev/null 2>&1; then found=$$candidate; break; fi; \
	done; \
	if [ -z "$$found" ]; then echo 'Python 3.10 to 3.$(2) is needed.' >&2; exit 1; fi; \
	$$found -m venv $(1)

$(VENV)/.created:
	@$(call created,$(VENV),13)
	@touch $@

# One stamp for each extra: a second run installs nothing until the metadata change.
$(VENV)/.installed-%: $(METADATA) | $(VENV)/.created
	$(PIP) install --editable '.[$*]'
	@touch $@

demo: $(VENV)/.installed-demo
	$(PYTHON) examples/digits.py

test: lint
	$(PYTHON) -m pytest -n 2

# The oldest and the newest releases that are supported, each in an environment of its own.
RELEASES_oldest := 'tensorflow==2.16.*' 'keras==3.4.*'
RELEASES_newest := 'tensorflow<2.22' 'keras>=3.4'
LAST_PYTHON_oldest := 12
LAST_PYTHON_newest := 13

test-matrix: test-oldest test-newest

test-oldest test-newest: test-%:
	@$(call created,.venv-$*,$(LAST_PYTHON_$*))
	.venv-$*/bin/python -m pip --disable-pip-version-check --quiet install --upgrade \
	    --editable '.[test]' $(RELEASES_$*)
	.venv-$*/bin/python -m pytest -n 2

lint: $(VENV)/.installed-test
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

soak: $(VENV)/.installed-test
	HYPOTHESIS_PROFILE=soak $(PYTHON) -m pytest -m soak

benchmark: $(VENV)/.installed-test
	$(PYTHON) benchmarks/run.py

figures: $(VENV)/.installed-test
	$(PYTHON) benchmarks/figures.py

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --site-dir build/docs

clean:
	rm -rf $(VENV) .venv-oldest .venv-newest build dist *.egg-info demo_output
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
