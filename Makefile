# make demo and make test are all a new clone needs; both rest on make install.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check -q

.PHONY: install demo quick test gpu chaos check format schemas wheel clean
.DEFAULT_GOAL := install

install: $(VENV)/.installed

# torch first and alone: the other packages would otherwise choose a build of their own.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt -e '.[dev]'
	touch $@

demo: install
	$(BIN)/lynx-render manifests/demo.yaml

# Everything that starts neither Ray nor several processes, in about a minute.
quick: install
	$(BIN)/python -m pytest -q -n 2 --dist loadscope -m "not ray and not gang and not slow and not gpu"

# Three workers on two cores, because many tests wait for processes.
test: install
	$(BIN)/python -m pytest -q -n 3 --dist loadscope

# Tests and benchmark of one GPU. The budget is 10 minutes, without the installation. REAL=1 uses the published weights,
# which must be installed, and adds a contact sheet. The device is looked for before the installation, because that
# takes minutes. The benchmark also runs if a test fails.
gpu:
	@nvidia-smi -L >/dev/null 2>&1 || test -e /dev/nvidiactl || { echo "make gpu: no CUDA device on this machine. Nothing was run." >&2; exit 1; }
	$(MAKE) install
	$(BIN)/python -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "make gpu: torch " + torch.__version__ + " sees no CUDA device. Nothing was run.")'
	status=0; \
	$(BIN)/python -m pytest -q -m gpu tests/gpu || status=1; \
	$(BIN)/python -m benchmarks.gpu $(if $(REAL),--real lynx-full) || status=1; \
	$(if $(REAL),$(BIN)/python -m benchmarks.contact_sheet || status=1;) \
	exit $$status

# The long storm of faults, half an hour; its figures replace those of the last one.
chaos: install
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos.storm --faults 100 --seed 1 --write benchmarks/results/chaos.md

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The JSON schemas of manifests, pipeline, takes and site files, from the models that read them.
schemas: install
	for kind in manifest pipeline takes site; do $(BIN)/lynx-render schema $$kind > schemas/$$kind.json || exit 1; done

wheel: install
	$(PIP) install -c constraints.txt build
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache
