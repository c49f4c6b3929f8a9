#!/usr/bin/env bash
# The shipped model pusht-64 on a GPU machine that has Python and PyTorch but no network, runs commands of up to ten
# minutes, and gives back one folder. The parts are those of recipes/pusht_64.sh, and so are their variables.
#
#   bash recipes/pusht_64_gpu.sh wheels    where there is a network: the packages that the machine lacks, into wheels/
#   bash recipes/pusht_64_gpu.sh OUT       there: install, record, train, round to bf16, evaluate; all to keep is in OUT
#
# A second call goes on where the first stopped, if WORK is still there. Else START=MODEL trains further what came back.
#
# Further variables, with what they are where left out:
#   WORK=runs/pusht-64-gpu    where it works
#   LIMIT=570                 seconds that a call may take; a training that would take longer is cut short
#   RECORD_SECONDS=100        for recording; where EPISODES are not done by then, fewer have to do
#   TOKENIZER_MINUTES=3       for the tokenizer's training; 0 takes the tokenizer of START
#   TRANSFORMER_MINUTES=3.5   for the transformer's training; 0 ends with the tokenizer
#   TOKENIZER_STEPS=, TRANSFORMER_STEPS=    steps, of all calls together. Left out: as many as fit into the minutes, as a
#                             short run measures first, so that the learning rate is back at zero in the end
#   TIMING_SECONDS=35         for that short run, out of the minutes
#   EVALUATION_SECONDS=60     kept free for rounding and evaluating
#   TOKENIZER_BATCH=128, TRANSFORMER_BATCH=64    segments in a batch
#   WORKERS=                  processes that prepare batches; two fewer than there are cores
#   CACHE_MB=40000            memory for episodes, in all workers together
#   KEEP_STATE=0              1: OUT also gets what is needed to go on exactly, 75 MB while the tokenizer is trained, 200
#                             then. STATE=FOLDER brings it back to a machine without WORK
#   PART_MB=15                files above this come back in parts, to be joined with cat
#   PY=3.12, CARRY_MB=64      for `wheels`: the machine's Python, and how much may be carried to it, this tree included
set -euo pipefail
if [ $# != 1 ]; then
  sed -n '2,/^set/ { /^#/ p }' "$0" >&2
  exit 2
fi
back=$(realpath -m "$1") # not called out: the parts have locals of that name, which the trap below would see
cd "$(dirname "${BASH_SOURCE[0]}")/.."

has_transformer() { [ -e "$1/transformer.safetensors" ] || [ -e "src/ivideogpt/models/$1/transformer.safetensors" ]; }

if [ -n "${START:-}" ] && has_transformer "$START"; then TRANSFORMER_START=${TRANSFORMER_START-$START}; fi
PYTHON=${PYTHON:-python3}
# shellcheck source=recipes/pusht_64.sh
source recipes/pusht_64.sh "${WORK:-runs/pusht-64-gpu}"
more=(--workers "${WORKERS:-$((processes > 3 ? processes - 2 : 1))}" --cache-mb "${CACHE_MB:-40000}" --keep 1)
# shellcheck disable=SC2206
tokenizer+=(--batch-size "${TOKENIZER_BATCH:-128}" "${more[@]}" ${TOKENIZER_MORE:-})
# shellcheck disable=SC2206
transformer+=(--batch-size "${TRANSFORMER_BATCH:-64}" "${more[@]}" ${TRANSFORMER_MORE:-})
recorder=(timeout "${RECORD_SECONDS:-100}")

# What recording, training and evaluating import. Left out: torch with CUDA, and numpy, which the machine has; av, for
# videos; opencv, which the simulator does without; huggingface_hub; what only TensorBoard's own server imports.
packages=(
  pydantic pydantic_core annotated-types typing-inspection typing_extensions tyro docstring_parser typeguard
  rich markdown-it-py mdurl Pygments pillow kornia kornia_rs packaging tensorboard absl-py protobuf safetensors
  gymnasium cloudpickle Farama-Notifications gym-pusht pygame pymunk cffi pycparser shapely
)

wheels() {
  local glibc platforms=(--platform manylinux1_x86_64 --platform manylinux2014_x86_64)
  for glibc in 5 17 24 27 28; do platforms+=(--platform "manylinux_2_${glibc}_x86_64"); done
  mkdir -p wheels
  rm -f wheels/*.whl
  "$python" -m pip download --quiet --no-deps --constraint constraints.txt --dest wheels --only-binary=:all: \
    --implementation cp --python-version "${PY:-3.12}" "${platforms[@]}" "${packages[@]}"
  "$python" - wheels/*.whl <<'PYTHON'
import sys, zipfile
from pathlib import Path

UNUSED = (
    "pygame/docs/", "pygame/examples/", "pygame/tests/", "tensorboard/webfiles.zip",
    "tensorboard/plugins/projector/tf_projector_plugin/",
)  # pages and examples, a quarter of all wheels
for path in map(Path, sys.argv[1:]):
    with zipfile.ZipFile(path) as wheel:
        files = {info.filename: wheel.read(info) for info in wheel.infolist() if not info.is_dir()}
    if any(name.startswith(UNUSED) for name in files):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as slim:
            for name, content in files.items():
                if name.endswith(".dist-info/RECORD"):
                    content = b"".join(x for x in content.splitlines(True) if not x.decode().startswith(UNUSED))
                if not name.startswith(UNUSED):
                    slim.writestr(name, content)
PYTHON
  local carried tree
  carried=$(du -cb wheels/*.whl | tail -n 1 | cut -f 1)
  tree=$(git ls-files -z --cached --others --exclude-standard | xargs -0 du -cb 2>/dev/null | tail -n 1 | cut -f 1)
  say "wheels $((carried >> 20)) MiB and this tree $((tree >> 20)) MiB, of ${CARRY_MB:-64} MiB that may be carried"
  ((carried + tree <= ${CARRY_MB:-64} << 20)) || { say "that is too much"; return 1; }
}

install() {
  local site
  site=$(realpath -m "$work/site")
  if [ ! -e "$site/.complete" ] && compgen -G 'wheels/*.whl' >/dev/null; then
    say "installing"
    rm -rf "$site"
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$site" wheels/*.whl
    touch "$site/.complete"
  fi
  export PYTHONPATH=$PWD/src:$site${PYTHONPATH:+:$PYTHONPATH}
}

restore() {
  if [ -n "${STATE:-}" ] && [ ! -e "$work/tokenizer" ]; then cat "$STATE"/state.tar.* | tar -C "$work" -xf -; fi
}

begun() { [ -e "$work/$1/training.json" ]; }

record_in_time() {
  if [ -e "$work/data" ] && { begun tokenizer || begun transformer; }; then
    return # more episodes would change which are held out
  fi
  record || say "recording ended early, with $(find "$work/data" -name 'episode_*.npz' | wc -l) episodes"
}

seconds_for() { # minutes: in seconds, or what is left of this call
  awk -v minutes="$1" -v left="$((${LIMIT:-570} - ${EVALUATION_SECONDS:-60} - SECONDS))" \
    'BEGIN { wanted = int(60 * minutes); print (wanted < left ? wanted : left) }'
}

minutes_until() { awk -v seconds="$(($1 - SECONDS))" 'BEGIN { print (seconds > 1 ? seconds : 1) / 60 }'; } # of SECONDS

steps_of() { "$python" -c 'import json, sys; print(json.load(open(sys.argv[1]))["steps"])' "$work/$1/training.json"; }

nearly_finished() { # tokenizer or transformer: whether its learning rate is near enough to zero to build on it
  local newest
  newest=$(find "$work/$1/checkpoints" -name 'step_*' -printf '%f\n' | sort | tail -n 1)
  ((10#${newest#step_} * 10 >= $(steps_of "$1") * 9))
}

measure_steps() { # tokenizer or transformer, SECONDS when it has to be done, then its options; sets `steps`
  local what=$1 end=$2 folder=$work/timing-$1 log=$work/logs/timing-$1.log started
  shift 2
  say "measuring how many steps of the $what fit"
  started=$(date +%s)
  run "$python" -m ivideogpt train "$what" --data "$work/data" --out "$folder" --overwrite --steps 1000000 "$@" \
    --max-minutes "$(awk -v s="${TIMING_SECONDS:-35}" 'BEGIN { print s / 60 }')" \
    --log-every 5 --validate-every 1000000 --save-every 1000000 >"$log" 2>&1 || { tail "$log"; return 1; }
  steps=$("$python" - "$folder/tensorboard" "$started" "$((end - SECONDS))" <<'PYTHON'
import sys, time
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

folder, started, left = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
events = EventAccumulator(folder).Reload()
entries = events.Scalars("train/loss") if "train/loss" in events.Tags()["scalars"] else []
if len(entries) < 3:
    sys.exit("too slow to be measured: name the steps, or raise TIMING_SECONDS")
first, last = entries[len(entries) // 3], entries[-1]  # the first ones are slow: everything is new
rate = (last.step - first.step) / (last.wall_time - first.wall_time)
begin = entries[0].wall_time - started - entries[0].step / rate
print(f"{rate:.1f} steps/s after {begin:.0f} s", file=sys.stderr)
print(max(1, int(0.95 * rate * (left - begin))))
PYTHON
  )
}

train_in_time() { # tokenizer or transformer, minutes, steps or nothing, then its options
  local what=$1 steps=$3 end
  end=$((SECONDS + $(seconds_for "$2")))
  shift 3
  if begun "$what"; then
    steps=$(steps_of "$what")
  elif [ -z "$steps" ]; then
    measure_steps "$what" "$end" "$@"
  fi
  say "$what: $steps steps"
  limit=(--max-minutes "$(minutes_until "$end")")
  train "$what" "$steps" "$@"
}

give_back() { # a model, rounded: in files that are small enough
  local file
  rm -rf "$back/model"
  cp -r "$1" "$back/model"
  for file in "$back"/model/*.safetensors; do
    if (($(stat -c %s "$file") > ${PART_MB:-15} << 20)); then
      split --bytes "${PART_MB:-15}M" --numeric-suffixes "$file" "$file.part-"
      rm "$file"
    fi
  done
}

give_back_the_rest() { # at every end of this script, a failure too
  local kept=(tokenizer transformer)
  if begun transformer; then kept=(--exclude=tokenizer/checkpoints "${kept[@]}"); fi
  tar -C "$work" --exclude=./data --exclude=./site --exclude='./timing-*' --exclude='*.safetensors' \
    -czf "$back/results.tar.gz" .
  if [ "${KEEP_STATE:-0}" = 1 ]; then
    mkdir -p "$work/tokenizer" "$work/transformer"
    tar -C "$work" -cf - "${kept[@]}" | split --bytes "${PART_MB:-15}M" --numeric-suffixes - "$back/state.tar."
  fi
  say "in $back after $SECONDS s: $(cd "$back" && find . -type f -printf '%P (%s bytes), ' | sed 's/, $//')"
}

evaluate_both() {
  local job jobs=()
  evaluate pusht "$work/evaluation" --batch-size "$evaluated" &
  jobs+=("$!")
  evaluate pusht-fast "$work/evaluation-fast" --batch-size "$evaluated" &
  jobs+=("$!")
  for job in "${jobs[@]}"; do wait "$job"; done
}

everything() {
  local codes=${START:-} minutes=${TOKENIZER_MINUTES:-3}
  mkdir -p "$work/logs"
  install
  restore
  record_in_time
  if [ "$minutes" != 0 ]; then
    codes=$work/tokenizer/model
    if ! begun transformer; then
      train_in_time tokenizer "$minutes" "${TOKENIZER_STEPS:-}" "${tokenizer[@]}"
      ship "$codes" "$work/pusht-64-tokenizer"
      give_back "$work/pusht-64-tokenizer" # now, in case that the rest fails
      nearly_finished tokenizer || unfinished tokenizer
    fi
  fi
  if [ "${TRANSFORMER_MINUTES:-3.5}" = 0 ]; then return; fi
  train_in_time transformer "${TRANSFORMER_MINUTES:-3.5}" "${TRANSFORMER_STEPS:-}" --tokenizer "$codes" "${transformer[@]}"
  ship "$work/transformer/model" "$work/pusht-64"
  give_back "$work/pusht-64"
  rm -rf "$work/evaluation" "$work/evaluation-fast" # of the call before
  evaluate_both
  nearly_finished transformer || unfinished transformer
}

if [ "$1" = wheels ]; then
  wheels
else
  mkdir -p "$back" "$work"
  exec > >(tee "$back/log.txt") 2>&1
  log=$!
  trap 'give_back_the_rest || true; exec >&- 2>&-; wait "$log"' EXIT # the log has to be whole before this process is gone
  everything
fi
