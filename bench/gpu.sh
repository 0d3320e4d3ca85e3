#!/usr/bin/env bash
# The measurements that need a GPU, in one go: bash bench/gpu.sh > gpu.log
# Needs requirements-bench.txt. BIG: folder of a Llama-3-8B-shaped model; without one a random one is made (16 GB, no download).
# SPIDER, BIRD: the data sets' folders, where whole iterations are to be measured too.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
nvidia-smi --query-gpu=name,memory.total --format=csv,noheader
git rev-parse --short HEAD
"$PYTHON" -m pytest -q tests/test_gpu.py
# mixed precision: bfloat16 against float32 log-probabilities, ln 2 at step 0, a short real run
"$PYTHON" bench/precision.py --device cuda
"$PYTHON" codelutra.py --limit 32 --validation 16 --eval-limit 32 --iterations 1 --out "$(mktemp -d)/gpu"
"$PYTHON" bench/sampling.py --precision bfloat16 --lengths 300 1000 1500 --questions 24 --against generate --settings '{"generate": {"questions": 24, "tokens": 1000000}}'
"$PYTHON" bench/training.py --precision bfloat16 --cases 300x40 1000x60 --their-pairs 10
stack="--precision bfloat16 --their-batch 16 --their-pairs 16 --workers 8"
[ -z "${SPIDER:-}" ] || "$PYTHON" bench/iteration.py --spider "$SPIDER" $stack
[ -z "${BIRD:-}" ] || "$PYTHON" bench/iteration.py --bird "$BIRD" $stack
if [ -z "${BIG:-}" ]; then
  BIG=$(mktemp -d)/llama3-8b-shape
  "$PYTHON" bench/precision.py --make-llama3-8b "$BIG"
fi
"$PYTHON" bench/sampling.py --model "$BIG" --precision bfloat16 --lengths 1500 --questions 12 --against generate --settings '{"generate": {"questions": 4}}'
"$PYTHON" bench/training.py --model "$BIG" --precision bfloat16 --cases 1500x100 --their-pairs 1
