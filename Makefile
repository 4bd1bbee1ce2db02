# make train    set up .venv and train the default model, or another: make train ARGS="+experiment=debug"
# make test     all that must pass: lint, format, types, tests
# make slow     the tests that take minutes
# make clean    remove .venv and caches; runs and prepared data stay
# On Windows use the pip commands of README.md.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: train test slow clean

train: $(INSTALLED)
	$(BIN)/python -m azllm_lightning.train $(ARGS)

test: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n auto --maxprocesses 4

slow: $(INSTALLED)
	$(BIN)/pytest -m slow --timeout 1800

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]'
	touch $@

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -prune -exec rm -rf {} +
