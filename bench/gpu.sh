#!/usr/bin/env bash
# The measurements that need a GPU, in one go: bash bench/gpu.sh [folder of a Llama-3-8B-shaped model] > gpu.log
# Needs requirements-bench.txt. Without a model of one's own, a random one of Llama-3-8B's shape is made (16 GB, no download).
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
BIG=${1:-}
nvidia-smi --query-gpu=name,memory.total --format=csv,noheader
git rev-parse --short HEAD
# mixed precision: bfloat16 against float32 log-probabilities, ln 2 at step 0, a short real run
"$PYTHON" bench/precision.py --device cuda
"$PYTHON" codelutra.py --limit 32 --validation 16 --eval-limit 32 --iterations 1 --out "$(mktemp -d)/gpu"
"$PYTHON" bench/sampling.py --precision bfloat16 --device cuda --lengths 300 1500
"$PYTHON" bench/training.py --precision bfloat16 --device cuda --cases 300x40 1000x60
if [ -z "$BIG" ]; then
  BIG=$(mktemp -d)/llama3-8b-shape
  "$PYTHON" bench/precision.py --make-llama3-8b "$BIG"
fi
"$PYTHON" bench/sampling.py --model "$BIG" --precision bfloat16 --device cuda --lengths 1500
"$PYTHON" bench/training.py --model "$BIG" --precision bfloat16 --device cuda --cases 1500x100
