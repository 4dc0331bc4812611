# One virtual environment serves every target; it is made when it is missing or out of date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-gpu check docs clean

demo: $(VENV)/.installed
	$(BIN)/python demo/inputs.py
	$(BIN)/pressroom run demo
	$(BIN)/python demo/check.py

test: $(VENV)/.installed
	$(BIN)/python -m pytest -m "not gpu" -n 2 --dist loadfile --no-loadscope-reorder

test-gpu: $(VENV)/.installed
	$(BIN)/python -m pytest -m gpu

docs: $(VENV)/.installed
	WRITE_DOCS=1 $(BIN)/python -m pytest tests/test_reference.py tests/test_errors.py tests/test_planner_published.py tests/test_requests.py

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The stamp is written last, so an interrupted installation is done again.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,demo]"
	touch $@

clean:
	rm -rf $(VENV) .cache data runs *.egg-info
