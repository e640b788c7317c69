PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# An environment without pip, that was moved, or that has lost its Python is made anew.
SOUND := $(shell $(BIN)/python -c 'import os, pip, sys; print(os.path.realpath(sys.prefix))' 2>/dev/null)
MADE := $(shell cat $(INSTALLED) 2>/dev/null)
ifneq ($(or $(MADE),$(SOUND),gone),$(SOUND))
.PHONY: $(INSTALLED)
CLEAR := --clear
endif

# Tests that open a window need a display; a virtual one serves.
XVFB := $(shell command -v xauth >/dev/null 2>&1 && command -v xvfb-run 2>/dev/null)
SCREEN := $(if $(XVFB),$(XVFB) -a -s "-screen 0 1280x1024x24")
# Files are shared among this many processes, since Taichi compiles on one core. By default those of few tests come
# last, and some of these are the longest.
JOBS ?= 2
PYTEST := $(SCREEN) $(BIN)/python -m pytest --numprocesses $(JOBS) --max-worker-restart 0 --dist loadfile \
    --no-loadscope-reorder
# Where Vulkan or a display is missing its tests are left out with a sentence, unless REQUIRE_VULKAN=1 demands both.
REQUIRE := $(if $(filter-out 0 no false,$(REQUIRE_VULKAN)),--require)

.PHONY: install demo test suite processors lint style types figures films docs clean distclean

install: $(INSTALLED)

$(INSTALLED): setup.py constraints.txt
	@command -v $(PYTHON) >/dev/null || { \
	    echo "Expected Python 3.10 to 3.13 as $(PYTHON), got none; on Debian, apt-get install python3-venv." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { \
	    echo "Expected Python 3.10 to 3.13, got `$(PYTHON) -V 2>&1`; choose another by make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "Expected a Python with venv, got $(PYTHON) without; on Debian, apt-get install python3-venv." >&2; exit 1; }
	@rm -f $@
	$(PYTHON) -m venv $(CLEAR) $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	@$(BIN)/python -c 'import os, sys; print(os.path.realpath(sys.prefix))' > $@

demo: install
	$(BIN)/evenflow train cart-pole --poles 2 --gradients R C --seeds 4 --epochs 200 --out runs/demo-$$(date +%Y%m%d-%H%M%S)

# Pyright works beside the tests, on what their processes leave of the cores.
test: style
	@$(MAKE) --no-print-directory --jobs 2 types suite

# Backend and precision are settled once per process, hence three runs.
suite: install
	$(PYTEST) --backend cpu --precision float64 $(REQUIRE)
	$(PYTEST) --backend cpu --precision float32 $(REQUIRE)
	$(PYTEST) --backend vulkan --precision float32 $(REQUIRE)

# What is promised to the bit, as processors with fewer instructions compute it.
BITS := $(BIN)/python -m pytest tests/test_memory.py tests/test_alignment.py tests/test_slots.py -k bit
AVX2 := MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2
SSE4 := MKL_ENABLE_INSTRUCTIONS=SSE4_2 ONEDNN_MAX_CPU_ISA=SSE41 ATEN_CPU_CAPABILITY=default
processors: install
	$(AVX2) $(BITS) --precision float32
	$(SSE4) $(BITS) --precision float32
	$(SSE4) $(BITS) --precision float64

lint: style types

style: install
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

types: install
	$(BIN)/python -m pyright

figures: install
	$(BIN)/evenflow bench figures

# The films and pictures of README.md, in about half an hour of two cores.
films: install
	EVENFLOW=$(BIN)/evenflow sh docs/films.sh

# The site, in docs/_build/html: whatever its builder warns of is an error, and nothing comes from a network.
docs: install
	@$(BIN)/python -c 'import furo, myst_parser, sphinx_gallery' 2>/dev/null || { \
	    echo "Expected the extra docs, which needs Python 3.11, got none; $(BIN)/python -m pip install '.[docs]'." >&2; \
	    exit 1; }
	$(BIN)/python docs/how_it_works.py
	$(BIN)/python -m sphinx -E -W --keep-going -q docs docs/_build/html
	@echo "written: docs/_build/html/index.html"

clean:
	rm -rf build dist *.egg-info docs/_build docs/_notebooks .pytest_cache .ruff_cache
	find . -path './$(VENV)' -prune -o -type d -name __pycache__ -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
