#!/usr/bin/env python3
"""CPU speed side by side with PyTorch: the same inputs, the outputs compared first, then runs in
turn (A B A B). Prints the median, the range and the ratio of the medians for each case.

  scripts/bench_cpu.py [--threads N] [--rounds N] [--runs N] [--cpu-time] [CASE-PART ...]
  --cpu-time: seconds of processor time of one thread in place of those of the clock: what to
  compare where other work shares the cores.

Installs nothing. Without torch it says so and prints our numbers alone. For a venv with torch:
  python3 -m venv build/venv && build/venv/bin/pip install torch==2.13.0
This script runs itself again with build/venv/bin/python when the calling python has no torch.
"""
import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BENCH = os.path.join(ROOT, "build/release/tests/bench/bench_ops")
VENV = os.path.join(ROOT, "build/venv/bin/python")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # huge pages for PyTorch too, as we have them
try:
    import torch
    import torch.nn.functional as F
except ImportError:
    torch = None
    if os.path.exists(VENV) and os.path.realpath(sys.prefix) != os.path.realpath(os.path.dirname(os.path.dirname(VENV))):
        os.execv(VENV, [VENV] + sys.argv)

# name, row of the table, ratio aimed at, FLOPs, kind, dtype, shape
CASES = []
for row, dtype, goal in ((1, "f32", 0.95), (2, "bf16", 0.95)):
    for n, k in ((1536, 1536), (8960, 1536)):
        for kind in ("fwd", "dx", "dw"):
            CASES.append((f"linear_{dtype}_4096x{n}x{k}_{kind}", row, goal, 2 * 4096 * n * k,
                          kind, dtype, (4096, n, k)))
HEADS, HEAD_DIM = 12, 128
for name, row, goal, s, kind, dtype in (
        ("attn_f32_4096_fwd", 3, 1.3, 4096, "attn", "f32"),
        ("attn_bf16_4096_fwd", 4, 1.5, 4096, "attn", "bf16"),
        ("attn_f32_2048_fwdbwd", 5, None, 2048, "attn_both", "f32"),
        ("attn_bf16_2048_fwdbwd", 5, None, 2048, "attn_both", "bf16")):
    flops = (4 if kind == "attn" else 14) * s * s * HEADS * HEAD_DIM
    CASES.append((name, row, goal, flops, kind, dtype, (s,)))
# Rows 7, 8 and 10 (a whole block forward and backward, f32 and bf16, and its peak memory) enter
# here as further kinds, with a bench program of the model layer on our side.


def load(folder, case, i, dtype, shape):
    raw = bytearray(open(os.path.join(folder, f"{case}.{i}.bin"), "rb").read())
    t = torch.frombuffer(raw, dtype=torch.bfloat16 if dtype == "bf16" else torch.float32)
    return t.reshape(shape).clone()  # in memory of PyTorch's own


def worst(got, want):
    """max |got - want| / max |want|; a NaN gives NaN, which no limit accepts"""
    got, want = got.double(), want.double()
    return float((got - want).abs().max() / want.abs().max())


def gemm_case(kind, dtype, shape, folder, name):
    m, n, k = shape
    dims = {"fwd": ((m, n), (m, k), (n, k)), "dx": ((m, k), (m, n), (n, k)),
            "dw": ((n, k), (m, n), (m, k))}[kind]
    out, a, b = (load(folder, name, i, dtype, d) for i, d in enumerate(dims))
    run = {"fwd": lambda: F.linear(a, b), "dx": lambda: a @ b, "dw": lambda: a.t() @ b}[kind]
    exact = {"fwd": lambda x, y: x @ y.t(), "dx": lambda x, y: x @ y, "dw": lambda x, y: x.t() @ y}
    return run, worst(out, exact[kind](a.float(), b.float()))


def attn_case(kind, dtype, shape, folder, name):
    dims = (shape[0], HEADS, HEAD_DIM)
    heads = lambda t: t.transpose(0, 1).unsqueeze(0)
    q, k, v = (heads(load(folder, name, i, dtype, dims)) for i in (2, 3, 4))
    ours = [load(folder, name, 0, dtype, dims)]
    exact = [x.detach().float() for x in (q, k, v)]
    if kind == "attn":
        def run():
            with torch.no_grad():
                return F.scaled_dot_product_attention(q, k, v)
        want = [F.scaled_dot_product_attention(*exact)]
    else:
        ours += [load(folder, name, i, dtype, dims) for i in (5, 6, 7)]
        grad = heads(load(folder, name, 8, dtype, dims))
        leaf = [x.detach().clone().requires_grad_() for x in (q, k, v)]

        def run():
            for x in leaf:
                x.grad = None
            F.scaled_dot_product_attention(*leaf).backward(grad)
        exact = [x.requires_grad_() for x in exact]
        o = F.scaled_dot_product_attention(*exact)
        o.backward(grad.float())
        want = [o.detach()] + [x.grad for x in exact]
    error = max(worst(x, y[0].transpose(0, 1)) for x, y in zip(ours, want))
    return run, error


def ours_once(name, args, folder=None):
    cmd = [BENCH, "-t", str(args.threads), "-n", "1" if folder else str(args.runs)]
    cmd += (["-o", folder] if folder else []) + [name]
    line = json.loads(subprocess.run(cmd, check=True, capture_output=True, text=True).stdout)
    return line["cpu_seconds" if args.cpu_time else "seconds"], line["device"]


def torch_once(run, n, args):
    clock = time.process_time if args.cpu_time else time.perf_counter
    seconds = []
    for i in range(n + 1):
        t = clock()
        run()
        if i:
            seconds.append(clock() - t)
    return seconds


def rates(flops, seconds):
    r = sorted(flops / s / 1e9 for s in seconds)
    return statistics.median(r), r[0], r[-1]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--rounds", type=int, default=3, help="times that A and B take turns")
    p.add_argument("--runs", type=int, default=3, help="runs of each in one turn")
    p.add_argument("case", nargs="*", help="only cases whose name contains this")
    p.add_argument("--cpu-time", action="store_true", help="one thread, its processor time")
    args = p.parse_args()
    if args.cpu_time:
        args.threads = 1
    if subprocess.run(["make", "-s", BENCH[len(ROOT) + 1:]], cwd=ROOT).returncode:
        return "bench_ops does not build"
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    cpu = next((x.split(":")[1].strip() for x in open("/proc/cpuinfo") if "model name" in x),
               platform.machine())
    print(f"CPU {cpu}, {args.threads} threads{' (their processor time)' if args.cpu_time else ''}; {args.rounds} rounds of {args.runs} runs, in turn")
    if torch:
        torch.set_num_threads(args.threads)
        print(f"PyTorch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
    else:
        print("torch is not importable: our numbers alone")
    print(f"{'row':>3} {'case':34} {'ours GF/s':>22} {'PyTorch GF/s':>22} {'ratio':>6} {'goal':>5}"
          f" {'error':>8}")
    bad = 0
    for name, row, goal, flops, kind, dtype, shape in CASES:
        if args.case and not any(c in name for c in args.case):
            continue
        run, error = None, None
        if torch:
            with tempfile.TemporaryDirectory() as folder:
                _, device = ours_once(name, args, folder)
                make = attn_case if kind.startswith("attn") else gemm_case
                run, error = make(kind, dtype, shape, folder, name)
        a, b = [], []
        for _ in range(args.rounds):
            seconds, device = ours_once(name, args)
            a += seconds
            if run:
                slow = len(b) and max(b) > 5  # one run a turn is enough of what takes seconds
                b += torch_once(run, 1 if slow else args.runs, args)
        med, low, high = rates(flops, a)
        text = f"{row:3} {name:34} {med:8.1f} ({low:5.1f}-{high:5.1f})"
        if run:
            tmed, tlow, thigh = rates(flops, b)
            ok = error <= (2e-2 if dtype == "bf16" else 2e-5)
            bad += not ok
            text += (f" {tmed:8.1f} ({tlow:5.1f}-{thigh:5.1f}) {med / tmed:6.2f}"
                     f" {goal if goal else '-':>5} {error:8.1e}{'' if ok else ' WRONG'}")
        print(text, flush=True)
    print(f"ours: {device.split(' | gemm')[0]}; error: ours against PyTorch in f32, max norm")
    return f"{bad} cases disagree" if bad else 0


if __name__ == "__main__":
    sys.exit(main())
