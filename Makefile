# make train    set up .venv and train the default model, or another: make train ARGS="experiment=debug"
# make test     lint, format, types, and the quick tests
# make thorough tests that take seconds each; continuous integration runs them, too
# make numerics the numerically sensitive tests, with the sums of another kind of CPU
# make slow     the tests that take minutes, and the thorough ones
# make docs     build the documentation, in both languages, into build/docs
# make clean    remove .venv, caches and builds; runs and prepared data stay
# On Windows use the pip commands of README.md.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
DEV_INSTALLED := .venv/dev_installed
DOCS_INSTALLED := .venv/docs_installed
# Every warning is an error: a link that leads nowhere, a page in no menu, a block that cannot be highlighted.
SPHINX := $(BIN)/python -m sphinx --fail-on-warning --keep-going --nitpicky --quiet --conf-dir docs

.PHONY: train test thorough numerics slow docs clean

train: $(INSTALLED)
	$(BIN)/python -m azllm_lightning.train $(ARGS)

test: $(DEV_INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n auto --maxprocesses 4

thorough: $(DEV_INSTALLED)
	$(BIN)/pytest -n auto --maxprocesses 4 -m thorough

# Without vector instructions, PyTorch and MKL add up in another order: other last digits, other trajectories.
numerics: $(DEV_INSTALLED)
	ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE $(BIN)/pytest -n auto --maxprocesses 4 -m "numerics and (thorough or not slow)"

slow: $(DEV_INSTALLED)
	$(BIN)/pytest -m slow --timeout 1800

docs: $(DOCS_INSTALLED)
	$(SPHINX) --define language=en --doctree-dir build/doctrees/en docs/en build/docs/en
	$(SPHINX) --define language=az --doctree-dir build/doctrees/az docs/az build/docs/az
	cp docs/index.html build/docs/index.html
	@echo "open build/docs/index.html"

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -e .
	touch $@

$(DEV_INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]'
	touch $@ $(INSTALLED)

$(DOCS_INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[docs]'
	touch $@

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -prune -exec rm -rf {} +
