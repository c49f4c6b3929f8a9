#!/usr/bin/env bash
# The shipped model pusht-64 from nothing: record, train the tokenizer, train the transformer, round to bf16, evaluate.
# Interrupt it at any time and run it again: every part continues where it was.
#
#   make pusht-64            (or: bash recipes/pusht_64.sh WORK_FOLDER)
set -euo pipefail
cd "$(dirname "$0")/.."
work=${1:-runs/pusht-64}
bin=${BIN:-.venv/bin}

continued() { if [ -e "$1/training.json" ]; then echo --resume; fi; }

"$bin/ivideogpt" record pusht --episodes 1500 --out "$work/data" --resume

# shellcheck disable=SC2046
"$bin/ivideogpt" train tokenizer --data "$work/data" --out "$work/tokenizer" $(continued "$work/tokenizer") \
  --preset nano-64 --steps 2800 --batch-size 8 --future-frames 4 --motion-weight 6 --mse-weight 4 \
  --learning-rate 1e-3 --warmup 100 --schedule cosine --ema 0.99 \
  --validate-every 400 --validation-batches 2 --save-every 400 --cache-mb 4096

# shellcheck disable=SC2046
"$bin/ivideogpt" train transformer --data "$work/data" --out "$work/transformer" $(continued "$work/transformer") \
  --tokenizer "$work/tokenizer/model" --preset nano --steps 1500 --batch-size 8 --cache-tokens 8000 \
  --learning-rate 1e-3 --warmup 100 --schedule cosine --ema 0.99 --temperature 0.5 \
  --validate-every 300 --validation-batches 2 --save-every 200 --cache-mb 4096

"$bin/python" recipes/ship.py --model "$work/transformer/model" --out "$work/pusht-64"
"$bin/python" recipes/evaluate_pusht.py --model "$work/pusht-64" --out "$work/evaluation" --overwrite
