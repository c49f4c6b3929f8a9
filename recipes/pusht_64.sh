#!/usr/bin/env bash
# The shipped model pusht-64 from nothing: record, train tokenizer and transformer, round to bf16, evaluate.
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

# The transformer first learns whole segments; then short ones, in which the step that is hard, from the context's
# tokens to those of the first future frame, is half of the work instead of a fourteenth; then whole ones again.
transformer() { # name, then what differs
  local out=$work/$1
  shift
  # shellcheck disable=SC2046
  "$bin/ivideogpt" train transformer --data "$work/data" --out "$out" $(continued "$out") \
    --tokenizer "$work/tokenizer/model" --schedule cosine --temperature 0.5 --validation-batches 2 --cache-mb 4096 "$@"
}

transformer whole --preset nano --steps 1500 --batch-size 8 --cache-tokens 8000 --learning-rate 1e-3 --warmup 100 \
  --ema 0.99 --validate-every 300 --save-every 200
transformer short-1 --start-from "$work/whole/model" --segment-frames 4 --steps 420 --batch-size 16 \
  --cache-tokens 6720 --learning-rate 7e-4 --warmup 20 --ema 0.98 --validate-every 140 --save-every 140
transformer short-2 --start-from "$work/short-1/model" --segment-frames 4 --seed 1 --steps 600 --batch-size 16 \
  --cache-tokens 9600 --learning-rate 1e-3 --warmup 20 --ema 0.98 --validate-every 300 --save-every 300
transformer final --start-from "$work/short-2/model" --seed 2 --steps 160 --batch-size 8 \
  --cache-tokens 1280 --learning-rate 5e-4 --warmup 10 --ema 0.95 --validate-every 160 --save-every 160

"$bin/python" recipes/ship.py --model "$work/final/model" --out "$work/pusht-64"
"$bin/python" recipes/evaluate_pusht.py --model "$work/pusht-64" --out "$work/evaluation" --overwrite
