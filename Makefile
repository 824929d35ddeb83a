# Two commands: `make demo` and `make test`. Each sets itself up; nothing but Python 3.11+, a C/C++ compiler and make is needed.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# The first Python on the path that is new enough; `make PYTHON=python3.13` picks another.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
CMAKE := $(BIN)/cmake -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja --log-level=WARNING
PYTEST_FLAGS ?=
# Two workers with one thread each: more threads than cores makes every worker slower.
WORKERS ?= 2
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test slow check format lint types native sanitize wheel constraints clean

help:
	@echo "make demo      train a small supernet, save it, switch it in the engine"
	@echo "make test      build everything and run all tests"
	@echo "make check     format, lint, types and tests"
	@echo "make sanitize  the native tests under address, undefined-behaviour and thread sanitizers"
	@echo "make wheel     dist/*.whl, native library included"

demo: native
	$(BIN)/rheostat demo

test: native
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) $(PYTEST_FLAGS)

slow: native
	$(BIN)/python -m pytest -m slow $(PYTEST_FLAGS)

check: format lint types test

format: .venv/stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix --select I --quiet .

lint: .venv/stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: .venv/stamp
	$(BIN)/basedpyright

.venv/stamp: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Rheostat needs Python 3.11 or newer: none found on the path; pass PYTHON=…"; exit 1; }
	@echo "Setting up .venv: a few minutes, once"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet -c constraints.txt scikit-build-core
	@$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt --no-build-isolation -e ".[dev]"
	@touch $@

# The same CMake install rule as the wheel's. The library is moved into place, never written over: a process may have it open.
native: .venv/stamp
	@test -f build/native/build.ninja || $(CMAKE) -S . -B build/native -DCMAKE_BUILD_TYPE=Release
	@$(BIN)/cmake --build build/native
	@$(BIN)/cmake --install build/native --prefix build/native/stage >/dev/null
	@cd build/native/stage/rheostat/run; for library in *; do \
		here=$(CURDIR)/src/rheostat/run/$$library; \
		cmp -s $$library $$here || { cp $$library $$here.new; mv -f $$here.new $$here; }; \
	done

# Older thread sanitizers cannot place their shadow where addresses are randomised widely; setarch turns that off.
sanitize: .venv/stamp
	@fixed=$$(setarch -R true 2>/dev/null && echo "setarch -R" || true); \
	for kind in address,undefined thread; do \
		build=build/$${kind/,/-}; \
		$(CMAKE) -S . -B $$build -DCMAKE_BUILD_TYPE=RelWithDebInfo -DRHEOSTAT_TESTS=ON -DRHEOSTAT_SANITIZE=$$kind; \
		$(BIN)/cmake --build $$build; \
		$$fixed $(BIN)/ctest --test-dir $$build --parallel 2 --output-on-failure; \
	done

wheel: .venv/stamp
	$(BIN)/python -m pip wheel --quiet --no-build-isolation --no-deps -w dist .

constraints: .venv/stamp
	{ head -1 constraints.txt; $(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//'; } >constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf build dist rheostat-demo src/rheostat/run/librheostat.*
