#!/bin/bash
# Runs every config of experiments/configs/paper and writes one report of all: bazel run //experiments:paper
set -euo pipefail
usage="usage: paper.sh [--output=FOLDER] [--model=PATH --text=FILE [--tokens=N]] [--documents=N] [--jobs=N] [--dry_run]
  output  default out/paper, relative to where the command was typed
  model   instead of the embedded one, as smollm2; it is measured on windows of the text. The configs whose tasks are
          made for the embedded model (table_tasks, needle_map) keep their tasks
  tokens  of the text that every method is measured on, default 8192
  documents  of each task, default what table_tasks and needle_map say: a larger model takes minutes for each
  jobs    cells of a sweep that run at a time"
kvmix=experiments/kvmix
output=out/paper model= text= tokens=8192 documents= jobs=1 dry_run=
for argument in "$@"; do
  case $argument in
    --output=*) output=${argument#*=} ;;
    --model=*) model=${argument#*=} ;;
    --text=*) text=${argument#*=} ;;
    --tokens=*) tokens=${argument#*=} ;;
    --documents=*) documents=${argument#*=} ;;
    --jobs=*) jobs=${argument#*=} ;;
    --dry_run) dry_run=--dry_run ;;
    *) echo "$usage" >&2; exit 2 ;;
  esac
done
[[ -z $model || -n $text ]] || { echo "--model needs --text" >&2; exit 2; }

for config in experiments/configs/paper/*.textproto; do
  name=$(basename "$config" .textproto)
  set=(--set "profile.folder=$output/profiles")  # one for all: most configs ask for the same
  if [[ -n $model ]]; then
    set+=(--set "model.path=$model")
    if ! grep -q 'task {' "$config"; then
      # The text in place of all datasets; profiles are made from behind what is scored.
      set+=(--set "dataset=[{ name: \"text\" path: \"$text\" context_length: 1024 max_tokens: $tokens }]")
      set+=(--set "profile.dataset={ path: \"$text\" context_length: 1024 }")
    fi
  fi
  if [[ -n $documents ]]; then
    for ((i = 0; i < $(grep -c '^  task {' "$config"); ++i)); do
      set+=(--set "dataset[$i].task.options.documents=$documents")
    done
  fi
  echo "=== $name"
  if grep -q '^sweep' "$config"; then
    "$kvmix" sweep "$config" "${set[@]}" --folder="$output/$name" --jobs="$jobs" $dry_run
  else
    "$kvmix" run "$config" "${set[@]}" --output="$output" $dry_run
  fi
done
[[ -z $dry_run ]] || exit 0

table=experiments/configs/paper/table_methods.textproto
"$kvmix" magnitudes --config=$table ${model:+--model="$model" --prompts="$text"} --set profile.num_prompts=4 \
  --output="$output/magnitudes.textproto"
bench=$output/bench.json
[[ $bench == /* ]] || bench=${BUILD_WORKING_DIRECTORY:-$PWD}/$bench
"$kvmix" bench --model="${model:-embedded}" --kv=fp16,4bit_g32,2bit_g32,kvmix --depth=1024 --batch=1,2,4,8,16 \
  --prompt=16 --generate=8 --repeat=3 --output=json > "$bench"
# The paper's throughput: batches of 688 tokens in, 1024 out, until memory is full.
"$kvmix" bench --throughput --model="${model:-embedded}" --kv=fp16,2bit_g32,kvmix --batch=1,2,4,8,max \
  --memory_limit=${model:+4}48 --prompt=688 --generate=1024 --repeat=1 --output=json > "${bench%.json}_throughput.json"
"$kvmix" report "$output" --output="$output/report" --title="KVmix: tables, figures and ablations"
