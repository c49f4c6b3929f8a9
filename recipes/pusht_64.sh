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

record() { # episodes in all
  "$bin/ivideogpt" record pusht --episodes "$1" --out "$work/data" --resume
}

tokenizer() { # name, steps, then what differs
  local out=$work/$1 steps=$(($2 * scale))
  shift 2
  # shellcheck disable=SC2046
  "$bin/ivideogpt" train tokenizer --data "$work/data" --out "$out" $(continued "$out") --steps "$steps" \
    --batch-size 8 --future-frames 4 --motion-weight 6 --mse-weight 4 --learning-rate 1e-3 --warmup 50 \
    --schedule cosine --ema 0.99 --validation-batches 2 --validate-every 200 --save-every 200 --cache-mb 4096 "$@"
}

transformer() { # name, tokenizer, steps, segments tokenized once (0: none), then what differs
  local out=$work/$1 codes=$work/$2/model steps=$(($3 * scale)) segments=$(($4 * scale))
  shift 4
  # shellcheck disable=SC2046
  "$bin/ivideogpt" train transformer --data "$work/data" --out "$out" $(continued "$out") --steps "$steps" \
    --tokenizer "$codes" --cache-tokens "$segments" --schedule cosine --ema 0.99 --rewards \
    --action-limit 1 --temperature 0.5 --validation-batches 2 --validate-every 150 --save-every 150 \
    --cache-mb 4096 "$@"
}

# The first round, with attention from zero and AdamW, as the paper has them. First plain pixels; then the small things
# that were lost, and one code for patches in which nothing happens: gently, hard, which costs quality, and gently again
# until the quality is back.
record 1500
tokenizer tokenizer-1 2800 --preset nano-64 --attention-start zero --warmup 100 --rarity-weight 0 --rest-weight 0
tokenizer tokenizer-2 3600 --start-from "$work/tokenizer-1/model" --seed 1 --rest-weight 0.1
tokenizer tokenizer-3 1300 --start-from "$work/tokenizer-2/model" --seed 2 --rest-weight 1 --learning-rate 7e-4
tokenizer tokenizer-4 3000 --start-from "$work/tokenizer-3/model" --seed 3 --rest-weight 0.3

# Short segments first: the hard step, from the context's tokens to those of the first future frame, is half of their
# work, and a fourteenth of that of whole ones.
transformer short-1 tokenizer-4 1500 12000 --preset nano --segment-frames 4 --batch-size 16 --learning-rate 1e-3 \
  --warmup 100
transformer middle-1 tokenizer-4 1000 8000 --start-from "$work/short-1/model" --segment-frames 8 --batch-size 12 \
  --seed 1 --learning-rate 1e-3 --warmup 30
transformer whole-1 tokenizer-4 2500 6000 --start-from "$work/middle-1/model" --batch-size 8 --seed 2 \
  --learning-rate 8e-4 --warmup 30

# The second round: the attention starts anew, near, Muon takes over from AdamW, there are more episodes, and no segment
# is tokenized to be seen twice. It gained far more than the first, which a training from nothing had better leave out.
record 2791
tokenizer tokenizer-5 3000 --start-from "$work/tokenizer-4/model" --seed 4 --rest-weight 0.1 --attention-start near
tokenizer tokenizer-6 1400 --start-from "$work/tokenizer-5/model" --seed 5 --rest-weight 0.2 --warmup 30 \
  --optimizer muon
transformer short-2 tokenizer-6 550 0 --start-from "$work/whole-1/model" --segment-frames 4 --batch-size 16 --seed 3 \
  --learning-rate 2e-3 --warmup 40 --optimizer muon
transformer whole-2 tokenizer-6 2100 0 --start-from "$work/short-2/model" --batch-size 8 --seed 4 \
  --learning-rate 1.5e-3 --warmup 30 --optimizer muon

# The third: twice the episodes, and longer.
record 6000
transformer whole-3 tokenizer-6 3000 0 --start-from "$work/whole-2/model" --batch-size 8 --seed 5 \
  --learning-rate 1.5e-3 --warmup 30 --optimizer muon

"$bin/python" recipes/ship.py --model "$work/whole-3/model" --out "$work/pusht-64" --overwrite
"$bin/python" recipes/evaluate_pusht.py --model "$work/pusht-64" --out "$work/evaluation" --overwrite
