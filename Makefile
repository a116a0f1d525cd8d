# make demo is all a newcomer needs. Another interpreter: make PYTHON=python3.12.
# Options for the installation of torch alone, such as an index with its small CPU build: make TORCH_OPTIONS="..."

PYTHON ?= python3
TORCH_OPTIONS ?=

VENV := .venv
BIN := $(VENV)/bin
# Written last, so that it stands only for an installation that was finished.
STAMP := $(VENV)/.installed
DEMO := out/demo

.PHONY: install demo test test-long notebooks lint format types wheel bench clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("clsprobe needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=..." if sys.version_info < (3, 11) else 0)'
	@# Without the stamp the last installation broke off half-way: begin again.
	@{ test -f $@ && $(BIN)/python -m pip --version >/dev/null 2>&1; } || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install $(TORCH_OPTIONS) -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	@touch $@

demo: install
	$(BIN)/clsprobe demo --out $(DEMO) --overwrite
	@echo "The report: $(CURDIR)/$(DEMO)/report.html"

# As many processes as there are cores, one thread each, or they would wait for each other; tests of threads ask for more.
# The tests of one file stay together.
test: install
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile

test-long: install
	$(BIN)/python -m pytest -q -m long

# Writes the notebooks of examples/ anew, and runs them: copies with outputs in build/notebooks.
notebooks: install
	$(BIN)/python examples/build_notebooks.py --execute build/notebooks

lint: install types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# A type checker cannot follow pyproject's package-dir: it gets a folder laid out as the package is installed, a link for
# every file of scripts/ and one for every other package.
types: install
	@rm -rf build/types && mkdir -p build/types/clsprobe
	@for path in scripts/*.py* scripts/py.typed probes analysis reports; do ln -s ../../../$$path build/types/clsprobe/; done
	$(BIN)/mypy

# The wheel in an environment of its own, used from a folder that has packages called as ours are.
wheel: install
	@rm -rf build/wheel && mkdir -p build/wheel/user/probes build/wheel/user/reports
	@echo 'raise SystemExit("the analysis of a user")' | tee build/wheel/user/analysis.py build/wheel/user/probes/__init__.py build/wheel/user/reports/__init__.py >/dev/null
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	$(PYTHON) -m venv build/wheel/environment
	build/wheel/environment/bin/python -m pip install --quiet $(TORCH_OPTIONS) -c constraints.txt torch==2.13.0
	build/wheel/environment/bin/python -m pip install --quiet -c constraints.txt build/wheel/*.whl
	cd build/wheel/user && ../environment/bin/python -c 'import clsprobe; clsprobe.load_encoder'
	cd build/wheel/user && ../environment/bin/clsprobe list readouts
	cd build/wheel/user && ../environment/bin/python -m clsprobe demo --dry-run

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install
	@for file in benchmarks/*.py; do test -e "$$file" || continue; echo "$$file"; $(BIN)/python "$$file" || exit 1; done

# Leaves out/ alone: runs are yours.
clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find probes analysis reports scripts examples tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
