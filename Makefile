# make test          everything that runs without a GPU and without nvcc
# make demo          the demo, about ten minutes on two cores; QUICK=1 for one minute
# make check         style and types
# make compile       the Triton kernels compiled for every architecture, spills and shared memory checked
# make compile-sweep the same for every row of the settings table
# make core          the CUDA core compiled into the package here, only what has changed; nothing without nvcc
# make test-core     that, and its tests: installed package, wheel, symbols, spills; skipped without nvcc
# make speed         timings of the torch backend on a quiet CPU
# make clean         removes all of it

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
RUN = $(VENV)/bin/python
INSTALLED = $(VENV)/.installed

.PHONY: test demo check compile compile-sweep core test-core speed clean

$(INSTALLED): pyproject.toml setup.py Makefile
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet "$(TORCH)"
	EMA_OPS_BUILD_CUDA=0 $(RUN) -m pip install --quiet --editable ".[triton,demo,dev]"
	touch $@

# two processes of one thread each: most tests are too small for two threads; data workers in processes of their own
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal tests/segmentation
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal tests --ignore=tests/segmentation --ignore=tests/triton --ignore=tests/triton_compile --ignore=tests/building
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(RUN) -m pytest -n 2 --dist worksteal tests/triton

demo: $(INSTALLED)
	$(VENV)/bin/ema-ops demo --out runs/demo $(if $(QUICK),--quick)

check: $(INSTALLED)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

compile: $(INSTALLED)
	$(RUN) -m pytest tests/triton_compile

compile-sweep: $(INSTALLED)
	$(RUN) -m pytest -m sweep tests/triton_compile

core: $(INSTALLED)
	$(RUN) setup.py --quiet build_ext --inplace

test-core: core
	$(RUN) -m pytest -rs -n 2 --dist loadfile tests/building

speed: $(INSTALLED)
	$(RUN) -m pytest -s -m speed tests/test_speed.py

clean:
	rm -rf $(VENV) build dist runs *.egg-info ema_ops/_C.*.so ema_ops/core_build.txt
