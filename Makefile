# `make run` and `make test` are all that a fresh Debian or Ubuntu machine needs; setup.sh says what
# it installs. PYTHON=/path/to/python3 chooses the interpreter, ARGS are handed on.

SOURCES := $(wildcard headstart proxy mount tests bench)
BIN := .venv/bin
export PYTHON

.NOTPARALLEL:
.PHONY: help setup setup-mount run test check bench lock clean

help:
	@echo "make setup   .venv with the locked packages; missing system packages"
	@echo "make setup-mount   the same with what the containerd snapshotter and the mount need"
	@echo "make run     setup, then the mirror in the foreground with config.yaml"
	@echo "make test    setup, make check and the whole suite; ARGS='-k name' for a part"
	@echo "make check   format, lint, types, import contracts"
	@echo "make bench   every benchmark; tables here and in bench/results/"
	@echo "make lock    resolve the dependencies again"
	@echo "make clean   remove what the above made, caches of images excepted"

setup:
	@./setup.sh run

setup-mount:
	@./setup.sh mount

run: setup
	@exec $(BIN)/headstart --config config.yaml serve $(ARGS)

test:
	@./setup.sh test
	@$(MAKE) --no-print-directory check
	$(BIN)/python -m $(if $(ARGS),pytest $(ARGS),tests.halves)

check:
	@./setup.sh check
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy $(SOURCES)
	$(BIN)/lint-imports

bench:
	@./setup.sh bench
	$(BIN)/python -m bench $(ARGS)

COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-config --custom-compile-command "make lock" --group build
lock:
	@./setup.sh check
	$(COMPILE) --upgrade --output-file requirements.lock pyproject.toml
	$(COMPILE) --upgrade --constraints requirements.lock --extra mount --group build-mount \
		--output-file requirements-mount.lock pyproject.toml
	$(COMPILE) --upgrade --constraints requirements-mount.lock --extra dev --group build-mount \
		--output-file requirements-dev.lock pyproject.toml

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
