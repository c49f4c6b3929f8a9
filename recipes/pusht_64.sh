#!/usr/bin/env bash
# The shipped model pusht-64 from nothing: record, train tokenizer and transformer, round to bf16, evaluate.
# Interrupt it at any time and run it again: every part continues where it was.
#
#   make pusht-64            (or: bash recipes/pusht_64.sh WORK_FOLDER)
#
# SCALE=10 bash recipes/pusht_64.sh runs/better     takes ten times the steps in every part: for a GPU, or a patient CPU.
set -euo pipefail
cd "$(dirname "$0")/.."
work=${1:-runs/pusht-64}
bin=${BIN:-.venv/bin}
scale=${SCALE:-1}

continued() { if [ -e "$1/training.json" ]; then echo --resume; fi; }

"$bin/ivideogpt" record pusht --episodes 1500 --out "$work/data" --resume

tokenizer() { # name, steps, then what differs
  local out=$work/$1 steps=$(($2 * scale))
  shift 2
  # shellcheck disable=SC2046
  "$bin/ivideogpt" train tokenizer --data "$work/data" --out "$out" $(continued "$out") --steps "$steps" \
    --batch-size 8 --future-frames 4 --motion-weight 6 --mse-weight 4 --learning-rate 1e-3 --warmup 50 \
    --schedule cosine --ema 0.99 --validation-batches 2 --validate-every 300 --save-every 300 --cache-mb 4096 "$@"
}

# First plain pixels; then the small things that were lost, and one code for patches in which nothing happens: gently,
# hard, which costs quality, and gently again until the quality is back.
tokenizer tokenizer-1 2800 --preset nano-64 --warmup 100 --rarity-weight 0 --rest-weight 0
tokenizer tokenizer-2 3600 --start-from "$work/tokenizer-1/model" --seed 1 --rest-weight 0.1
tokenizer tokenizer-3 1300 --start-from "$work/tokenizer-2/model" --seed 2 --rest-weight 1 --learning-rate 7e-4
tokenizer tokenizer-4 3000 --start-from "$work/tokenizer-3/model" --seed 3 --rest-weight 0.3

transformer() { # name, steps, segments tokenized once, then what differs
  local out=$work/$1 steps=$(($2 * scale)) segments=$(($3 * scale))
  shift 3
  # shellcheck disable=SC2046
  "$bin/ivideogpt" train transformer --data "$work/data" --out "$out" $(continued "$out") --steps "$steps" \
    --tokenizer "$work/tokenizer-4/model" --cache-tokens "$segments" --schedule cosine --ema 0.99 --rewards \
    --action-limit 1 --temperature 0.5 --validation-batches 2 --validate-every 250 --save-every 250 \
    --cache-mb 4096 "$@"
}

# Short segments first: the hard step, from the context's tokens to those of the first future frame, is half of their
# work, and a fourteenth of that of whole ones.
transformer short 1500 12000 --preset nano --segment-frames 4 --batch-size 16 --learning-rate 1e-3 --warmup 100
transformer middle 1000 8000 --start-from "$work/short/model" --segment-frames 8 --batch-size 12 --seed 1 \
  --learning-rate 1e-3 --warmup 30
transformer whole 2500 6000 --start-from "$work/middle/model" --batch-size 8 --seed 2 \
  --learning-rate 8e-4 --warmup 30

"$bin/python" recipes/ship.py --model "$work/whole/model" --out "$work/pusht-64" --overwrite
"$bin/python" recipes/evaluate_pusht.py --model "$work/pusht-64" --out "$work/evaluation" --overwrite
