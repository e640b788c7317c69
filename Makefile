PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Tests that open a window need a display; a virtual one serves.
XVFB := $(shell command -v xvfb-run 2>/dev/null)
PYTEST := $(if $(XVFB),$(XVFB) -a -s "-screen 0 1280x1024x24") $(BIN)/pytest

.PHONY: install demo test lint figures clean distclean

install: $(INSTALLED)

$(INSTALLED): setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -c constraints.txt -e '.[dev]'
	touch $@

demo: install
	$(BIN)/evenflow train cart-pole --poles 2 --gradients R C --seeds 4 --epochs 200 --out runs/demo-$$(date +%Y%m%d-%H%M%S)

# Backend and precision are settled once per process, hence three runs.
test: lint
	$(PYTEST) --backend cpu --precision float64
	$(PYTEST) --backend cpu --precision float32
	$(PYTEST) --backend vulkan --precision float32

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

figures: install
	$(BIN)/evenflow bench figures

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
	find . -path './$(VENV)' -prune -o -type d -name __pycache__ -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
