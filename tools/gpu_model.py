#!/usr/bin/env python3
"""Predicts the speed of decode attention on an H100 by counting instructions.

Compiles attention/cuda_decode.cu for sm_90a, disassembles it, finds the loop over tiles of 32 tokens in every kernel for
head_dim 128, counts what a wholly packed tile executes, or in half a wholly unquantized one, and compares with what the bytes
of the tile take. Nothing is run.

  tools/gpu_model.py --nvdisasm PATH > docs/results/gpu_model.md

nvdisasm is in NVIDIA's toolkit, and in the Python package nvidia-cuda-nvdisasm.
"""
import argparse
import collections
import re
import subprocess
import sys
import tempfile

SOURCE = "attention/cuda_decode.cu"
HEAD_DIM = 128
TILE = 32  # tokens
WARPS = 4  # of a block of threads
STAGES = 3  # of the ring, one of them being computed with

# H100 SXM. NVIDIA's figures but for the clock, which depends on the load, and the copy, which is what others measured.
SMS = 132
CLOCK_GHZ = 1.7
COPY_TBS = 3.0
REGISTERS = 65536
SHARED_KB = 227
LATENCY_CLOCKS = 800  # of device memory, under load
# Clocks of one multiprocessor for one warp's instruction (CUDA programming guide, throughput of instructions, 9.0; the
# tensor cores at the A100's rate, which mma.sync reaches on an H100 at least).
ISSUE = 1 / 4
TENSOR = 2.0  # m16n8k16: 2048 products, 1024 a clock
MUFU = 2.0
SHUFFLE = 1.0
SHARED_BYTES = 128  # a clock

# What never runs: tiles of both kinds, groups of more than 32, a new largest score; and the other kind of tile.
NEVER = ["Become", "Rescale", "Only", "PartOfLongBlock"]
COLD = {"packed": NEVER + ["ScoreHalf", "AddHalf", "HalfTile"], "half": NEVER + ["ScorePacked", "AddPacked", "CopyPacked"]}

HALF = (16, 16)
KERNELS = [HALF, (2, 2), (3, 3), (4, 4), (2, 4), (3, 4)]
GATES = {HALF: (65, 80), (2, 2): (40, 60), (3, 3): (45, 65), (4, 4): (55, 70)}  # gate, stretch: shares of the copy, in %


def function_lines(source, names):
    """Lines of each function's definition in the source."""
    text = open(source).read()
    ranges = {}
    for name in names:
        for match in re.finditer(r"^[^\n/]*\b%s\([^;{]*\{" % name, text, re.M):
            depth, i = 1, match.end()
            while depth:
                depth += {"{": 1, "}": -1}.get(text[i], 0)
                i += 1
            first = text.count("\n", 0, match.start()) + 1
            ranges.setdefault(name, []).append((first, text.count("\n", 0, i) + 1))
        if name not in ranges:
            sys.exit("%s has no function %s" % (source, name))
    return [r for list in ranges.values() for r in list]


def compile_cubin(nvcc, cubin):
    command = [nvcc, "-std=c++20", "-O3", "-lineinfo", "-I.", "-Xptxas=-v", "-gencode=arch=compute_90a,code=sm_90a", "-cubin",
               SOURCE, "-o", cubin]
    return subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True).stderr


def registers_of(report):
    found = {}
    name = None
    for line in report.splitlines():
        match = re.search(r"Compiling entry function '(\S+)'", line)
        if match:
            name = match.group(1)
        match = re.search(r"Used (\d+) registers", line)
        if match and name:
            found[name] = int(match.group(1))
    return found


class Instruction:
    def __init__(self, address, text, lines):
        self.address, self.lines = address, lines  # of the source, inlined functions' callers included
        self.registers = [int(r) for r in re.findall(r"\bR(\d+)\b", text)]  # of a load the first is where it goes
        text = re.sub(r"^@!?U?P\w+\s+", "", text)
        self.opcode = text.split()[0].rstrip(";")
        target = re.search(r"`\((\.L_x_\d+)\)", text)
        self.target = target.group(1) if target and self.opcode.startswith("BRA") else None
        self.loads = int(self.opcode.split(".")[2]) // 8 if re.match(r"LDG?\.E\.(64|128)", self.opcode) else 0  # bytes of a lane
        self.ends_block = self.opcode.split(".")[0] in ("BRA", "BRX", "BRXU", "EXIT", "RET", "CALL")


def kernels_of(sass):
    """name -> (instructions, label -> address)"""
    kernels = {}
    current = labels = None
    frames, fresh = [], True
    pending = []
    for line in sass.splitlines():
        match = re.match(r"^\.text\.(\S+):", line)
        if match:
            current, labels, pending = [], {}, []
            kernels[match.group(1)] = (current, labels)
            continue
        if current is None:
            continue
        if "//## File" in line:
            if fresh:
                frames, fresh = [], False
            frames += [(f, int(n)) for f, n in re.findall(r'"([^"]+)", line (\d+)', line)]
            continue
        match = re.match(r"^(\.L_x_\d+):", line)
        if match:
            pending.append(match.group(1))
            continue
        match = re.match(r"^\s+/\*([0-9a-f]+)\*/\s+(.*)", line)
        if match:
            fresh = True
            address = int(match.group(1), 16)
            for label in pending:
                labels[label] = address
            pending = []
            current.append(Instruction(address, match.group(2), [n for f, n in frames if f.endswith(SOURCE)]))
    return kernels


def loop_over_tiles(instructions, labels):
    """The instructions of the loop that holds the most products."""
    best, best_products = None, 0
    for branch in instructions:
        start = labels.get(branch.target)
        if start is None or start > branch.address:
            continue
        body = [i for i in instructions if start <= i.address <= branch.address]
        products = sum(i.opcode.startswith("HMMA") for i in body)
        if products > best_products:
            best, best_products = body, products
    return best


def path_of(body, labels, cold):
    """Without the basic blocks most of whose instructions are of cold functions, whose lines these are."""
    is_cold = lambda i: any(a <= n <= b for a, b in cold for n in i.lines)
    leaders = set(labels.values())
    blocks, block = [], []
    for i in body:
        if i.address in leaders and block:
            blocks.append(block)
            block = []
        block.append(i)
        if i.ends_block:
            blocks.append(block)
            block = []
    blocks.append(block)
    return [i for block in blocks if 2 * sum(map(is_cold, block)) <= len(block) for i in block]


def kind_of(opcode):
    base = opcode.split(".")[0]
    if base == "HMMA":
        return "tensor"
    if base in ("LOP3", "SHF", "PRMT", "ULOP3", "USHF"):
        return "masks, shifts"
    if base in ("HMUL2", "HFMA2", "HADD2"):
        return "half2"
    if base == "MUFU":
        return "exp2"
    if base in ("SHFL", "MOVM", "VOTE", "VOTEU"):
        return "shuffles"
    if base in ("LDS", "LDGSTS", "STS", "LDSM"):
        return "shared memory"
    return "other"


KINDS = ["tensor", "masks, shifts", "half2", "shared memory", "exp2", "shuffles", "other"]


def bytes_on_their_way(path):
    """The most that a warp has asked of memory into registers, and not used."""
    most, waiting = 0, {}
    for i in path:
        for r in i.registers[1:] if i.loads else i.registers:
            waiting = {first: bytes for first, bytes in waiting.items() if not first <= r < first + bytes // 4}
        if i.loads:
            waiting[i.registers[0]] = i.loads
        most = max(most, 32 * sum(waiting.values()))
    return most


def tile_bytes(bits):
    """Of one side, groups of 32: codes, and a scale and a zero point, half, a group."""
    if bits == 16:
        return TILE * HEAD_DIM * 2
    return TILE * HEAD_DIM * bits // 8 + TILE * HEAD_DIM // 32 * 4


class Count:
    def __init__(self, path, key_bits, value_bits, registers):
        self.bytes = tile_bytes(key_bits) + tile_bytes(value_bits)
        self.kinds = collections.Counter(kind_of(i.opcode) for i in path)
        self.instructions = len(path)
        loads = sum({"128": 512, "64": 256}.get(i.opcode.split(".")[-1], 128) for i in path if i.opcode.startswith("LDS"))
        self.clocks = {
            "issue": self.instructions * ISSUE,
            "tensor cores": self.kinds["tensor"] * TENSOR,
            "shared memory, shuffles": (loads + self.bytes) / SHARED_BYTES + self.kinds["shuffles"] * SHUFFLE,
            "exp2": self.kinds["exp2"] * MUFU,
        }
        self.registers = registers
        in_half = (key_bits, value_bits) == HALF  # read into registers, not through the ring
        ring = 0 if in_half else WARPS * STAGES * self.bytes
        per_thread = (registers + 7) // 8 * 8
        self.blocks = min(REGISTERS // (per_thread * 32 * WARPS), SHARED_KB * 1024 // (ring + 1024))
        self.in_flight = self.blocks * WARPS * (bytes_on_their_way(path) if in_half else (STAGES - 1) * self.bytes)

    def elements(self):
        return 2 * TILE * HEAD_DIM

    def bandwidth_clocks(self):
        return self.bytes / (COPY_TBS * 1e12 / (SMS * CLOCK_GHZ * 1e9))

    def limit(self):
        return max(self.clocks, key=self.clocks.get)

    def share(self):
        """Of the copy's bandwidth, in %, that the slowest unit leaves room for; beyond 100 it is not what limits."""
        return 100 * self.bandwidth_clocks() / max(self.clocks.values())

    def clocks_of_warp(self, share):
        """Clocks that a warp may take for a tile, waiting included, for `share` % of the copy."""
        return self.blocks * WARPS * self.bandwidth_clocks() * 100 / share


HEAD = """# Decode attention on a GPU, by counting

Written by `tools/gpu_model.py`; nothing here was measured on a device. For every kernel it finds in the machine code of
sm_90a (nvcc {version}) the loop over tiles of 32 tokens and counts what a tile executes whose keys and values are both packed (of 16
bits: both in half), once for all query heads: up to 8 of a KV head share every operand, so **the counts are the same for G = 1, 4 and 8**. Arms of a branch
are both counted, so counts are upper bounds; a new largest score, which rescales the sums, is left out (it becomes rare).

Assumed of an H100 SXM: {sms} multiprocessors at {clock} GHz; a device copy of {copy} TB/s, the yardstick; a clock of a multiprocessor
issues 4 instructions, takes half an m16n8k16 product, {shared} bytes of shared memory, 16 exp2. head_dim {d}, groups of 32, effective bits with scales
and zero points.

## Prediction

"Room" is the share of the copy's bandwidth that the busiest unit allows: above 100 % memory is the limit, not the kernel.

| K, V bits | bytes a token and KV head | instructions an element | busiest unit | room at G = 1, 4, 8 | gate | stretch |
|---|---|---|---|---|---|---|
"""

NO_HALF2 = """
**G = 1 and 2 need no path of their own.** Products of half2 on the other cores would be 32 * 256 / 2 / 32 = 128 instructions of a warp
a tile at G = 1 (32 tokens, 128 numbers of a key and of a value, two at a time, by 32 lanes), 256 at G = 2, besides sums across
lanes; the tensor cores' are 42, whatever G, and their rows of zeros cost 84 clocks where 160 to 204 are spent on issue. Issue is the
busiest unit, so half2 would be slower; and what is there is above every gate and stretch already.
"""


def write(counts, version, out):
    out.write(HEAD.format(version=version, sms=SMS, clock=CLOCK_GHZ, copy=COPY_TBS, shared=SHARED_BYTES, d=HEAD_DIM))
    for key, value in KERNELS:
        c = counts[key, value]
        gate = ["%d %%" % g for g in GATES.get((key, value), ())] or ["", ""]
        out.write("| %d, %d | %d | %.2f | %s | %.0f %% | %s | %s |\n" % (key, value, c.bytes // TILE, 32 * c.instructions / c.elements(),
                                                             c.limit(), c.share(), *gate))
    out.write(NO_HALF2)
    out.write("\n## A tile's instructions (a warp's), and clocks of a multiprocessor\n\n")
    units = list(next(iter(counts.values())).clocks)
    out.write("| K, V bits | %s | all | %s | bytes at the copy's speed |\n" % (" | ".join(KINDS), " | ".join("clocks: " + u for u in units)))
    out.write("|" + "---|" * (len(KINDS) + len(units) + 3) + "\n")
    for key, value in KERNELS:
        c = counts[key, value]
        out.write("| %d, %d | %s | %d | %s | %.0f |\n" % (key, value, " | ".join(str(c.kinds[k]) for k in KINDS), c.instructions,
                                                  " | ".join("%.0f" % c.clocks[u] for u in units), c.bandwidth_clocks()))
    out.write("""
## Latency

Bytes on their way must cover the memory's latency: about %d clocks at the copy's speed are %.1f KB a multiprocessor. And a warp may not
take longer for a tile, all its waiting included, than the last column says. Packed tiles travel through a ring of shared memory, two
ahead; of rows in half, the bytes are those of the most loads that a warp has issued before the first of them is used.

| K, V bits | registers | blocks of %d warps | KB on their way | clocks a warp may take for a tile, at the gate |
|---|---|---|---|---|
""" % (LATENCY_CLOCKS, LATENCY_CLOCKS * COPY_TBS * 1e12 / (SMS * CLOCK_GHZ * 1e9) / 1024, WARPS))
    for key, value in KERNELS:
        c = counts[key, value]
        gate = GATES.get((key, value), (55, 70))[0]
        out.write("| %d, %d | %d | %d | %.0f | %.0f |\n" % (key, value, c.registers, c.blocks, c.in_flight / 1024, c.clocks_of_warp(gate)))
    out.write("""
What this cannot see: dependences between instructions beyond the last column, bank conflicts (there are none by design: a lane's words lie
side by side, scales are read by broadcast), the launch, the combination of ranges, the last wave. `tools/gpu_check.sh` measures.
""")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nvdisasm", default="nvdisasm")
    parser.add_argument("--nvcc", default="/usr/local/cuda/bin/nvcc")
    arguments = parser.parse_args()
    version = re.search(r"release ([\d.]+)", subprocess.run([arguments.nvcc, "--version"], stdout=subprocess.PIPE, text=True).stdout).group(1)
    with tempfile.TemporaryDirectory() as folder:
        cubin = folder + "/decode.cubin"
        registers = registers_of(compile_cubin(arguments.nvcc, cubin))
        sass = subprocess.run([arguments.nvdisasm, "-gi", "-c", cubin], check=True, stdout=subprocess.PIPE, text=True).stdout
    kernels = kernels_of(sass)
    cold = {kind: function_lines(SOURCE, names) for kind, names in COLD.items()}
    counts = {}
    for key, value in KERNELS:
        mark = "DecodeAttentionILi%dELi%dELi%dEE" % (HEAD_DIM // 32, key, value)
        name = next(n for n in kernels if mark in n)
        instructions, labels = kernels[name]
        path = path_of(loop_over_tiles(instructions, labels), labels, cold["half" if (key, value) == HALF else "packed"])
        counts[key, value] = Count(path, key, value, registers[name])
    write(counts, version, sys.stdout)


if __name__ == "__main__":
    main()
