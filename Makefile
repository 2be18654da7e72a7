# Habits of this project; `make demo` and `make test` make their own environment.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check

# One torch thread a process: the processes share the cores, and sums come out the same on every machine.
export OMP_NUM_THREADS = 1

.PHONY: demo test check slow bench lock clean

demo: $(VENV)/.fishery
	$(BIN)/szilard fishery run configs/fishery/quick.yaml --out runs/demo

test: $(VENV)/.all
	$(BIN)/python -m pytest -n auto

slow: $(VENV)/.all
	$(BIN)/python -m pytest -n auto -m slow

check: $(VENV)/.all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.all
	$(BIN)/python -m benchmarks

# Each extra installs the tested versions; --editable, so that the configs and the code are the checkout's.
$(VENV)/.fishery: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt --editable ".[fishery]"
	touch $@

$(VENV)/.all: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt --editable ".[all,test]"
	touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

# The newest versions that resolve together, without local labels (a CPU build satisfies torch==X) and without the CUDA
# packages of one platform.
lock:
	$(PYTHON) -m venv --clear build/lock
	build/lock/bin/python -m pip install --editable ".[all,test]"
	echo "# Tested versions, written by make lock." > constraints.txt
	build/lock/bin/python -m pip freeze --exclude-editable | grep -E '^[A-Za-z0-9._-]+==' \
	  | grep -v -i -E '^(nvidia|triton|cuda)' | sed -E 's/\+[A-Za-z0-9.]+$$//' >> constraints.txt
	rm -rf build/lock

clean:
	rm -rf $(VENV) build dist runs
