#!/usr/bin/env bash
# The shipped model pusht-64 from nothing: record, train a tokenizer and a transformer, round them to bf16, evaluate.
# Interrupt it at any time and run it again, with the same variables: every part continues where it was.
#
#   make pusht-64            (or: bash recipes/pusht_64.sh WORK_FOLDER)
#
# Variables, with what they are where left out:
#   SCALE=1           the steps of both trainings, times this: 0.01 for a rehearsal
#   EPISODES=6000     recorded episodes
#   EVALUATED=64      episodes of each evaluation
#   MINUTES=          the longest that a training may take in this run. One that is not done by then ends the script with
#                     code 3, and the next run goes on with it: a long training in slices
#   START=, TRANSFORMER_START=    models that tokenizer and transformer start from, instead of nothing
#   PROCESSES=        recorders at a time; as many as there are cores
#   PYTHON=           the interpreter that has the package
#   TOKENIZER_MORE=, TRANSFORMER_MORE=    further options of the trainings, which win over those below
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tokenizer_steps=20000
tokenizer=(
  --states --prior-weight 0.5 --static-weight 0.1 --future-frames 4 --batch-size 8
  --optimizer muon --learning-rate 1e-3 --warmup 100 --schedule cosine --ema 0.99
  --save-every 500 --validate-every 1000 --cache-mb 4096
)
transformer_steps=30000
transformer=(
  --states --rewards --action-limit 1 --temperature 0.5 --batch-size 8
  --optimizer muon --learning-rate 1.5e-3 --warmup 100 --schedule cosine --ema 0.99
  --save-every 500 --validate-every 1000 --cache-mb 4096
)
if [ -n "${START:-}" ]; then tokenizer+=(--start-from "$START"); else tokenizer+=(--preset nano-64); fi
if [ -n "${TRANSFORMER_START:-}" ]; then
  transformer+=(--start-from "$TRANSFORMER_START")
else
  transformer+=(--preset nano)
fi
# shellcheck disable=SC2206
tokenizer+=(${TOKENIZER_MORE:-}) transformer+=(${TRANSFORMER_MORE:-})

work=${1:-runs/pusht-64}
python=${PYTHON:-.venv/bin/python}
episodes=${EPISODES:-6000} evaluated=${EVALUATED:-64}
processes=${PROCESSES:-$(env -u OMP_NUM_THREADS nproc)} # which nproc would give instead of the cores
recorder=()
limit=() # how long a training may take
if [ -n "${MINUTES:-}" ]; then limit=(--max-minutes "$MINUTES"); fi

say() { echo "$(date +%T) $*" >&2; }

# Everything that takes long runs as a job, in a process group of its own. So a Ctrl-C reaches nobody but this script,
# which asks each job once to stop, whatever the signal was, and gives a training the time to save.
set -m
trap stop TERM INT
stop() {
  local job jobs
  trap - TERM INT
  say "stopping; run the same again to go on"
  jobs=$(jobs -pr)
  for job in $jobs; do kill -TERM "$job" || true; done
  for job in $jobs; do wait "$job" 2>/dev/null || true; done
  exit 143
}
run() { "$@" & wait "$!"; }

record() {
  local i first count job jobs=()
  if [ -e "$work/recorded-$episodes" ]; then return; fi # looking through the episodes again would take a minute
  mkdir -p "$work/data" "$work/logs"
  rm -f "$work"/data/.writing-* # left by recorders that were killed
  say "recording $episodes episodes in $processes processes"
  for ((i = 0; i < processes; i++)); do
    first=$((i * episodes / processes)) count=$(((i + 1) * episodes / processes - i * episodes / processes))
    if ((count == 0)); then continue; fi
    "${recorder[@]}" "$python" -m ivideogpt record pusht --episodes "$count" --seed "$first" --out "$work/data" --resume \
      >"$work/logs/record-$i.log" 2>&1 &
    jobs+=("$!")
  done
  for job in "${jobs[@]}"; do
    wait "$job" || { tail -n 3 "$work"/logs/record-*.log >&2; return 1; }
  done
  touch "$work/recorded-$episodes"
}

scaled() { awk -v steps="$1" -v scale="${SCALE:-1}" 'BEGIN { n = int(steps * scale + 0.5); print (n < 1 ? 1 : n) }'; }

finished() { # tokenizer or transformer, steps in all
  [ -e "$work/$1/checkpoints/step_$(printf %08d "$2")" ]
}

train() { # tokenizer or transformer, steps in all, then its options
  local out=$work/$1 what=$1 steps=$2 begun=--overwrite # of what a kill left before there was a run
  shift 2
  if finished "$what" "$steps"; then return; fi
  if [ -e "$out/training.json" ]; then begun=--resume; fi
  say "training the $what"
  run "$python" -m ivideogpt train "$what" --data "$work/data" --out "$out" "$begun" --steps "$steps" "${limit[@]}" "$@"
}

ship() { # model, out
  run "$python" recipes/ship.py --model "$1" --out "$2" --overwrite
}

evaluate() { # set, out, then options; as a job, whose process becomes the evaluation
  local set=$1 out=$2
  shift 2
  if [ -e "$out/episodes.png" ]; then return; fi # which is written last
  say "evaluating on $set"
  exec "$python" recipes/evaluate_pusht.py --model "$work/pusht-64" --set "$set" --out "$out" --overwrite \
    --episodes "$evaluated" "$@"
}

unfinished() {
  say "the training of the $1 is not done yet; run the same again to go on"
  exit 3
}

main() {
  tokenizer_steps=$(scaled "$tokenizer_steps") transformer_steps=$(scaled "$transformer_steps")
  record
  train tokenizer "$tokenizer_steps" "${tokenizer[@]}"
  finished tokenizer "$tokenizer_steps" || unfinished tokenizer
  train transformer "$transformer_steps" --tokenizer "$work/tokenizer/model" "${transformer[@]}"
  finished transformer "$transformer_steps" || unfinished transformer
  if [ ! -e "$work/pusht-64/config.json" ]; then ship "$work/transformer/model" "$work/pusht-64"; fi
  run evaluate pusht "$work/evaluation"
  run evaluate pusht-fast "$work/evaluation-fast"
  say "done: $work/pusht-64, $work/evaluation/card.md, $work/evaluation-fast/card.md"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then main; fi # recipes/pusht_64_gpu.sh takes the parts from here
