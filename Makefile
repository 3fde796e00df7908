# Everything runs in a virtual environment of its own: VENV=elsewhere make test
VENV   ?= .venv
PYTHON ?= python3
# The build of PyTorch. On Linux without a GPU you may want the smaller CPU build:
#   make setup TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
TORCH  ?= torch==2.13.0
JOBS   ?= 2

PY   = $(VENV)/bin/python
PIP  = $(PY) -m pip --disable-pip-version-check install --quiet
TEST = $(PY) -m pytest -n $(JOBS) -q

.PHONY: setup demo test slow lint check bench bench-long docs pictures wheel fuzz stress audit messages notebooks clean

setup: $(VENV)/.ready

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	touch $@

$(VENV)/.ready: $(VENV)/.torch pyproject.toml
	$(PIP) -e ".[all,dev,docs]"
	touch $@

$(VENV)/.bench: $(VENV)/.ready
	$(PIP) -e ".[bench]"
	touch $@

demo: setup
	$(VENV)/bin/tersor demo

test: setup
	$(TEST) -m "not slow"

slow: setup
	$(TEST) -m slow

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright --pythonpath $(PY)
	$(VENV)/bin/lint-imports

# 10,000 mutations over every reader, in processes of their own: about 15 minutes.
fuzz: setup
	OMP_NUM_THREADS=1 $(PY) -m tests.fuzz

docs: setup
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

# The pictures of README and documentation, from a fresh demo; needs Chromium.
pictures: setup
	$(PY) scripts/screenshots.py

# dist/tersor-*.whl, with templates, translations and the data of the demo in it.
wheel: setup
	$(PY) -m pip --disable-pip-version-check wheel --quiet --no-deps --wheel-dir dist .
	@ls dist/*.whl

# Every sentence into src/tersor/words, where a test wants its translation.
messages: setup
	$(PY) scripts/messages.py

# The stored outputs of the documentation's notebooks, anew: about six minutes on two idle cores.
notebooks: setup
	$(PY) scripts/run_notebooks.py

# Tests last: their summary is the last line.
check: lint docs slow

# Known advisories of what is installed here; outside of `check`, since it asks the network and changes by the day.
audit: setup
	-@$(PIP) -e ".[audit]"
	@$(PY) scripts/audit.py

# Half an hour on two idle cores: threads, compressions in a row, kills. `make slow` runs a slice of a minute.
stress: setup
	$(PY) -m tests.stress

# About an hour on two idle cores; one of them: $(PY) -m benchmarks speed_openvino
bench: $(VENV)/.bench
	$(PY) -m benchmarks

# Twelve hours on two idle cores, resumable row by row and epoch by epoch; `make bench` shows what is done.
# Some rows: $(PY) -m benchmarks.train_cifar w4a4 w3a3, or $(PY) -m benchmarks.contracts contract-resnet20-0.5
bench-long: $(VENV)/.bench
	$(PY) -m benchmarks.train_cifar
	$(PY) -m benchmarks.contracts

clean:
	rm -rf build dist site .pytest_cache .ruff_cache .hypothesis
