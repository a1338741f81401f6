# Two set-up commands do everything on a fresh machine with Python 3.11 and pip: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := opflow examples benchmarks datasets tests
# One thread a worker: two workers on two cores must not fight for them.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --timeout=300
# Progress shows at once, also where the output goes to a file.
export PYTHONUNBUFFERED := 1
# The GPU machine brings its own Python with torch; nothing is installed there.
GPU_PYTHON ?= python3

# petsc4py has no wheel: Debian's belongs to the system's Python. Where /usr/lib/petsc is not set, its real build is named.
PETSC_PYTHON ?= /usr/bin/python3
PETSC_VENV := .venv-petsc
PETSC_DIR ?= $(lastword $(wildcard /usr/lib/petscdir/*/*-real /usr/lib/petsc))
PETSC_ENV := PETSC_DIR=$(PETSC_DIR) OMP_NUM_THREADS=1

.PHONY: help demo test test-slow test-gpu check format bench bench-gpu accuracy inverse docs petsc clean

help:
	@echo "demo       install, generate, train, evaluate, draw, call the result from SciPy"
	@echo "test       install and run the fast test suite (under 8 minutes on 2 cores)"
	@echo "check      lint, types, floors"
	@echo "test-slow  the long tests        test-gpu   the tests that need a CUDA device"
	@echo "bench      benchmarks, on a CPU  bench-gpu  benchmarks, on a CUDA device"
	@echo "accuracy   what the accuracy table lacks: hours on a CPU, resumable"
	@echo "inverse    what the table of inverse problems lacks: hours on a CPU, resumable"
	@echo "docs       the documentation     format     format the code"
	@echo "petsc      the PETSc example and tests, beside Debian's petsc4py and NumPy 1.26"

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "opflow needs Python 3.11 or later, but $(PYTHON) is older; run: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "Python's venv module is missing; on Debian: apt install python3-venv"; exit 1; }

# One stamp an extra; each is made again when the requirements change.
$(VENV)/.installed-%: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(subst -,$(comma),$*)]'
	@touch $@
comma := ,

demo: $(VENV)/.installed-viz-cli
	$(BIN)/python examples/darcy_fno.py --resume

test: $(VENV)/.installed-test
	$(PYTEST) -n 2 --dist worksteal

test-slow: $(VENV)/.installed-test
	$(PYTEST) -m slow --timeout=3600

test-gpu:
	PYTHONPATH=. $(GPU_PYTHON) -m pytest -m gpu

check: $(VENV)/.installed-dev
	$(BIN)/ruff check $(SOURCES) docs
	$(BIN)/ruff format --check $(SOURCES) docs
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix $(SOURCES) docs
	$(BIN)/ruff format $(SOURCES) docs

bench: $(VENV)/.installed-viz-cli-fem-bench
	$(BIN)/python -m benchmarks.spectral_conv
	$(BIN)/python -m benchmarks.train_step
	$(BIN)/python -m benchmarks.darcy_generation
	$(BIN)/python -m benchmarks.darcy_fno
	$(BIN)/python -m benchmarks.evolution
	$(BIN)/python -m benchmarks.mgno_step
	$(BIN)/python examples/poisson_conjugate_direction.py --resume
	$(BIN)/python examples/poisson_conjugate_direction.py --dim 3 --resume --out runs/poisson_conjugate_direction_3d
	$(BIN)/python -m benchmarks.solvers
	$(BIN)/python -m benchmarks.learned_multigrid
	$(BIN)/python -m benchmarks.pinn_cost
	$(BIN)/python -m benchmarks.pinn

accuracy: $(VENV)/.installed-viz-cli
	$(BIN)/python -m benchmarks.accuracy --row all

inverse: $(VENV)/.installed-viz-cli
	$(BIN)/python -m benchmarks.inverse --jobs 2

bench-gpu:
	PYTHONPATH=. $(GPU_PYTHON) -m benchmarks.spectral_conv --device cuda
	PYTHONPATH=. $(GPU_PYTHON) -m benchmarks.train_step --device cuda
	PYTHONPATH=. $(GPU_PYTHON) -m benchmarks.darcy_generation --device cuda
	PYTHONPATH=. $(GPU_PYTHON) -m benchmarks.darcy_fno --device cuda
	PYTHONPATH=. $(GPU_PYTHON) -m benchmarks.evolution --device cuda
	PYTHONPATH=. $(GPU_PYTHON) -m benchmarks.mgno_step --device cuda
	PYTHONPATH=. $(GPU_PYTHON) -m benchmarks.multigrid_device --device cuda

docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx -W -b html docs docs/_build/html

# Debian's petsc4py wants NumPy 1, so this is also the test that opflow runs on it.
$(PETSC_VENV)/.installed: pyproject.toml constraints.txt
	@$(PETSC_ENV) $(PETSC_PYTHON) -c 'from petsc4py import PETSc' 2>/dev/null || \
		{ echo "$(PETSC_PYTHON) has no petsc4py; on Debian: apt install python3-petsc4py python3-venv, elsewhere: make petsc PETSC_PYTHON=..."; exit 1; }
	$(PETSC_PYTHON) -m venv --system-site-packages $(PETSC_VENV)
	grep -v '^numpy=' constraints.txt > $(PETSC_VENV)/constraints.txt
	$(PETSC_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c $(PETSC_VENV)/constraints.txt \
		-e '.[viz,cli,amg,fast]' 'numpy>=1.26,<2' pytest pytest-timeout
	@touch $@

petsc: $(PETSC_VENV)/.installed
	$(PETSC_ENV) $(PETSC_VENV)/bin/python examples/petsc_shell.py --overwrite
	$(PETSC_ENV) $(PETSC_VENV)/bin/python -m pytest tests/interop/test_petsc_bridge.py tests/interop/test_scipy_bridge.py \
		tests/solvers/test_implicit.py tests/solvers/test_algebraic_multigrid.py tests/test_import_is_light.py \
		tests/test_examples.py::test_petsc_shell_takes_the_same_iterations_in_petsc_and_torch

clean:
	rm -rf $(VENV) $(PETSC_VENV) docs/_build docs/gallery .pytest_cache .mypy_cache .ruff_cache
