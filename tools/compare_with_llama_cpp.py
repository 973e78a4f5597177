#!/usr/bin/env python3
"""Speed of `kvmix bench` beside llama.cpp's llama-bench, on this machine, the same weights, in turns.

Needs a build of llama.cpp (targets llama-bench and llama-quantize, GGML_NATIVE=ON) and a GGUF model, for a table of
weights in 16 bits:
  llama-quantize --allow-requantize "$(tools/fetch_smollm2.sh)" smollm2-bf16.gguf BF16
  bazel build //experiments:kvmix
  tools/compare_with_llama_cpp.py --llama_bench=PATH --model=smollm2-bf16.gguf

Every round runs the one program, then the other; a row shows the median of the rounds, and the lowest and highest. Both
decode with as many threads, llama.cpp with flash attention. llama-bench fills its cache by prefill, which takes long for
quantized caches: those are measured at --quantized_depth only. Prints Markdown.
"""
import argparse
import json
import statistics
import subprocess
import sys

PEER_TYPES = ["q8_0", "q4_0"]
OUR_KINDS = ["fp16", "4bit_g32", "2bit_g32"]


def run(command):
    print(" ".join(command), file=sys.stderr, flush=True)
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if result.returncode:
        sys.exit(f"{command[0]} failed:\n{result.stderr}")
    return json.loads(result.stdout)


def peer_round(args, kind, depths, prompt):
    """{("prefill" | "decode", depth): tokens a second} of llama-bench with a cache of `kind`."""
    rows = run([args.llama_bench, "-m", args.model, "-t", str(args.threads), "-fa", "1", "-ctk", kind, "-ctv", kind, "-p",
                str(prompt), "-n", str(args.generate), "-d", ",".join(map(str, depths)), "-r", "1", "-o", "json"])
    return {("prefill" if row["n_prompt"] else "decode", row["n_depth"]): row["avg_ts"] for row in rows}


def our_round(args, depths, prompt):
    """{(kind, "prefill" | "decode", depth): tokens a second} of kvmix bench."""
    report = run([args.kvmix, "bench", f"--model={args.model}", "--compute=bfloat16", f"--arithmetic={args.arithmetic}",
                  "--kv=" + ",".join(OUR_KINDS), "--depth=" + ",".join(map(str, depths)), f"--threads={args.threads}",
                  f"--prompt={prompt}", f"--generate={args.generate}", "--repeat=1", "--output=json"])
    speeds = {}
    for row in report["rows"]:
        for what in ("prefill", "decode"):
            speed = row[f"{what}_tokens_per_second"]
            if speed:
                speeds[row["kv"], what, row["depth"]] = speed
    return speeds


def cell(speeds):
    return f"{statistics.median(speeds):.1f} ({min(speeds):.1f}-{max(speeds):.1f})"


def print_table(title, depth, peers, ours):
    """peers, ours: {cache: speeds of the rounds}. The last column is against llama.cpp's f16."""
    base = statistics.median(peers["f16"])
    for program, caches in (("llama.cpp", peers), ("KVmix", ours)):
        for kind, speeds in caches.items():
            print(f"| {title} | {depth} | {program} | {kind} | {cell(speeds)} | {statistics.median(speeds) / base:.2f} |")


def step_growth(speeds, depth):
    """us that a decode step takes for each 1000 cached tokens: attention alone, weights are read at every depth."""
    step = {d: 1 / statistics.median(speeds[d]) for d in (0, depth)}
    return 1e9 * (step[depth] - step[0]) / depth


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama_bench", required=True, help="program")
    parser.add_argument("--model", required=True, help="GGUF")
    parser.add_argument("--kvmix", default="bazel-bin/experiments/kvmix")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--depths", default="0,8000", help="cached tokens before; with 0")
    parser.add_argument("--quantized_depth", type=int, default=2048)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=32)
    parser.add_argument("--arithmetic", default="int8", help="of our attention over packed codes")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    depths = [int(d) for d in args.depths.split(",")]
    if 0 not in depths:
        parser.error("--depths needs 0")
    quantized = args.quantized_depth

    peers, ours = {}, {}  # {(kind, what, depth): speeds}
    for _ in range(args.rounds):
        found = {("f16", *key): x for key, x in peer_round(args, "f16", [*depths, quantized], 0).items()}
        found |= {("f16", *key): x for key, x in peer_round(args, "f16", [0], args.prompt).items() if key[0] == "prefill"}
        for kind in PEER_TYPES:
            found |= {(kind, *key): x for key, x in peer_round(args, kind, [quantized], 0).items()}
        for key, x in found.items():
            peers.setdefault(key, []).append(x)
        found = our_round(args, [*depths, quantized], 0)
        found |= {key: x for key, x in our_round(args, [0], args.prompt).items() if key[1] == "prefill"}
        for key, x in found.items():
            ours.setdefault(key, []).append(x)

    def of(speeds, what, depth):
        return {kind: x for (kind, w, d), x in speeds.items() if (w, d) == (what, depth)}

    print("| what | depth | program | cache | tok/s | against llama.cpp f16 |\n|---|---:|---|---|---:|---:|")
    print_table(f"prefill {args.prompt}", 0, of(peers, "prefill", 0), of(ours, "prefill", 0))
    for depth in sorted({*depths, quantized}):
        print_table("decode", depth, of(peers, "decode", depth), of(ours, "decode", depth))

    print("\n| program | cache | a step's us for each 1000 cached tokens | llama.cpp f16 against it |\n|---|---|---:|---:|")
    by_depth = {(program, kind): {d: speeds[kind, "decode", d] for d in (0, max(depths))}
                for program, speeds in (("llama.cpp", peers), ("KVmix", ours))
                for kind in sorted({k for k, what, d in speeds if (what, d) == ("decode", max(depths))})}
    base = step_growth(by_depth["llama.cpp", "f16"], max(depths))
    for (program, kind), speeds in by_depth.items():
        growth = step_growth(speeds, max(depths))
        print(f"| {program} | {kind} | {growth:.0f} | {base / growth:.1f} |")


if __name__ == "__main__":
    main()
