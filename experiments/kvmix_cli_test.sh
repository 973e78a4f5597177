#!/bin/bash
# The kvmix program from outside: help, exit codes, and the small commands.
set -uo pipefail
kvmix=experiments/kvmix
work=$(mktemp -d "${TEST_TMPDIR:-/tmp}/cli.XXXXXX")
failures=0

fail() {
  echo "FAILED: $*"
  failures=$((failures + 1))
}

# expect CODE PATTERN args...: the exit code, and what stdout or stderr says.
expect() {
  local code=$1 pattern=$2
  shift 2
  local output
  output=$("$kvmix" "$@" 2>&1)
  local got=$?
  [[ $got -eq $code ]] || fail "kvmix $*: exit code $got instead of $code: $output"
  grep -q -e "$pattern" <<< "$output" || fail "kvmix $*: no \"$pattern\" in: $output"
}

expect 0 "usage: kvmix COMMAND" --help
expect 2 "usage: kvmix COMMAND"
expect 2 'there is no command "fly"' fly
for command in run sweep cell tables report sheet magnitudes exchange profile plan compare_estimators calibrate_codebook generate bench tokenize logits inspect list; do
  expect 0 "usage: kvmix $command" "$command" --help
  expect 2 "unknown flag --nope" "$command" --nope
done

quickstart=experiments/configs/quickstart.textproto
expect 2 "one config file" run
expect 1 "nowhere.textproto does not exist" run nowhere.textproto
expect 0 "method KVmix-20%: gradient_norm > top_fraction" run $quickstart --dry_run
expect 0 "high_fraction: 0.3" run $quickstart --dry_run \
  --set 'method[6].bit_allocator.options.high_fraction=0.3'
expect 1 "has no field" run $quickstart --set 'method[6].size=3'
expect 1 "is not linked" run $quickstart --set 'quantizer=nothing'

expect 0 "top_fraction: high bits" list bit_allocator
expect 0 "Share of layers that get high bits" list bit_allocator
expect 2 "kinds: importance_estimator" list animals
expect 0 "12 layers" inspect --model=embedded
expect 0 "model.layers.3.self_attn.q_proj.weight" inspect --model=embedded --tensors
expect 1 "no/model does not exist" inspect --model=no/model
profile=(profile --set profile.num_prompts=1 --set profile.prompt_tokens=16 --set output="$work/out")
expect 0 "forward passes alone" "${profile[@]}"
expect 0 "read from disk" "${profile[@]}"
expect 0 "none was needed" "${profile[@]}" --estimator=random
expect 0 "KIVI-2bit-r64: K 2 bits nominal, 3 effective" plan --method=KIVI-2bit-r64
# A quarter of the streams at 4 bits instead of 2, chosen by what a format loses.
knapsack='method[2]={name: "knapsack" bit_allocator { name: "knapsack" } importance_estimator { name: "quantization_error" }'
knapsack+=' budget { effective_bits: 3.5 } candidate { bits: 2 } candidate { bits: 4 } }'
expect 0 "chosen  4: -" plan --set profile.num_prompts=1 --set "$knapsack" --method=knapsack
expect 0 "leave_one_out" compare_estimators --set profile.num_prompts=2 --set profile.prompt_tokens=64 \
  --set output="$work/out" --estimator=gradient_norm --estimator='{ name: "isolated_kl" }' --resamples=20
expect 1 "hessian_trace" compare_estimators --estimator=hessian_trace
calibrate=(calibrate_codebook --set profile.num_prompts=1 --set profile.prompt_tokens=96 --output="$work/codebook.textproto")
expect 0 "error / equally spaced" "${calibrate[@]}" --bits=2,3 --outliers=0.01 --pre_rope
expect 0 "level: \[0" run $quickstart --dry_run --set "quantizer={$(< "$work/codebook.textproto")}"
expect 2 "must be numbers from 1 to 6" "${calibrate[@]}" --bits=2,9
expect 2 "must be in \[0, 0.5\]" "${calibrate[@]}" --outliers=0.7
expect 1 "must divide head_dim" "${calibrate[@]}" --group_size=48
expect 0 "packed part" plan --method=KIVI-2bit-r64 --output_file="$work/plan.textproto"
expect 0 "the cache is" generate --prompt="Tom the baker" --max_tokens=5 \
  --plan="$work/plan.textproto" --method=KIVI-2bit-r64
expect 1 "do not fit" generate --prompt="Tom" --max_tokens=5000 \
  --plan="$work/plan.textproto"
expect 1 'no method "best"' generate --prompt="Tom" --method=best

small=(--model=embedded --prompt=4 --generate=2 --repeat=1 --depth=0,40)
expect 0 "| kvmix-2bit |    40 |" bench "${small[@]}" --kv=fp16,kvmix-2bit --batch=1,2
expect 0 "| 2bit_g32 |" bench "${small[@]}" --kv=2bit_g32 --arithmetic=int8
expect 0 "profile / forward" bench --model=embedded --profile=gradient_norm \
  --profile-prompts=1 --profile-tokens=8
expect 2 "one of float, int8" bench "${small[@]}" --arithmetic=int4
expect 2 "one of md, csv, json" bench "${small[@]}" --output=xml
expect 2 "numbers with commas between" bench "${small[@]}" --batch=a
expect 1 "no way to store a cache" bench "${small[@]}" --kv=fp17
expect 1 "no random model of shape" bench --shape=7m
serve=(--model=embedded --throughput --prompt=4 --generate=2 --repeat=1 --kv=fp16)
expect 0 "4 tokens in, 2 out" bench "${serve[@]}" --batch=1,3
expect 1 "needs --memory_limit" bench "${serve[@]}" --batch=max
expect 1 "do not fit --memory_limit" bench "${serve[@]}" --batch=2 --memory_limit=1
expect 1 "need --throughput" bench "${small[@]}" --batch=max
expect 2 "one of cpu, cuda" bench "${serve[@]}" --device=gpu
expect 1 "one of --shape" bench
"$kvmix" bench "${small[@]}" --kv=fp16 --output=csv 2> /dev/null > "$work/bench.csv" || fail "bench --output=csv"
[[ $(wc -l < "$work/bench.csv") -eq 3 ]] || fail "bench --output=csv has other lines than a header and two rows"
"$kvmix" bench "${small[@]}" --kv=fp16 --output=json 2> /dev/null | grep -q '"kv": "fp16"' || fail "bench --output=json"

printf 'Tom found 7 l\303\244mps .\n' > "$work/text"
"$kvmix" tokenize --text-file="$work/text" > "$work/ids" || fail tokenize
"$kvmix" tokenize --decode --ids-file="$work/ids" > "$work/back" || fail decode
cmp "$work/text" "$work/back" || fail "tokenize does not round-trip"
"$kvmix" logits --ids-file="$work/ids" --output="$work/logits.npy" || fail logits
"$kvmix" logits --exact --ids-file="$work/ids" --output="$work/exact.npy" || fail "logits --exact"
[[ $(stat -c %s "$work/exact.npy") -eq $(stat -c %s "$work/logits.npy") ]] || fail "logits --exact has another size"
tokens=$(wc -l < "$work/ids")
size=$(stat -c %s "$work/logits.npy")
[[ $size -eq $((128 + tokens * 512 * 4)) ]] || fail "logits.npy has $size bytes for $tokens tokens"
: > "$work/empty"
expect 1 "is empty" logits --ids-file="$work/empty" --output="$work/x.npy"
echo "12 x" > "$work/bad"
expect 1 '"x" is no token id' logits --ids-file="$work/bad" --output="$work/x.npy"
echo "99999" > "$work/bad"
expect 1 "99999" logits --ids-file="$work/bad" --output="$work/x.npy"

[[ $failures -eq 0 ]] && echo "all passed"
exit $((failures > 0))
