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

tokenizer() { # name, then what differs
  local out=$work/$1
  shift
  # shellcheck disable=SC2046
  "$bin/ivideogpt" train tokenizer --data "$work/data" --out "$out" $(continued "$out") --batch-size 8 \
    --future-frames 4 --motion-weight 6 --mse-weight 4 --learning-rate 1e-3 --schedule cosine --ema 0.99 \
    --validation-batches 2 --cache-mb 4096 "$@"
}

# First plain pixels; then the small things that were lost, and one code for patches in which nothing happens.
tokenizer tokenizer-1 --preset nano-64 --steps 2800 --warmup 100 --rarity-weight 0 --rest-weight 0 \
  --validate-every 400 --save-every 400
tokenizer tokenizer-2 --start-from "$work/tokenizer-1/model" --steps 3600 --warmup 50 --seed 1 --rarity-weight 8 \
  --rest-weight 0.1 --validate-every 300 --save-every 300

transformer() { # name, then what differs
  local out=$work/$1
  shift
  # shellcheck disable=SC2046
  "$bin/ivideogpt" train transformer --data "$work/data" --out "$out" $(continued "$out") \
    --tokenizer "$work/tokenizer-2/model" --schedule cosine --temperature 0.5 --cache-mb 4096 "$@"
}

# Short segments first: the hard step, from the context's tokens to those of the first future frame, is half of their
# work, and a fourteenth of that of whole ones.
TRANSFORMER_STAGES

"$bin/python" recipes/ship.py --model "$work/final/model" --out "$work/pusht-64"
"$bin/python" recipes/evaluate_pusht.py --model "$work/pusht-64" --out "$work/evaluation" --overwrite
