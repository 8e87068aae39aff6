#!/usr/bin/env python3
"""One whole transformer block, forward and backward, side by side with PyTorch (rows 7, 8 and 10 of
docs/speed.md). Same weights and inputs, outputs compared first, then runs in turn (A B A B), each in
a process of its own so that the peak memory is its own.

  scripts/bench_block.py [--threads N] [--rounds N] [--runs N] [--bf16-tokens N] [--cpu-time]
                         [CASE-PART ...]
  --cpu-time: seconds of processor time of one thread in place of those of the clock: what to
  compare where other work shares the cores.

Needs `./osp`; without torch (or build/venv, see scripts/bench_cpu.py) it prints our numbers alone.
"""
import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, "build/venv/bin/python")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # huge pages for PyTorch too, as we have them
try:
    import torch
    import torch.nn.functional as F
except ImportError:
    torch = None
    if os.path.exists(VENV) and not sys.prefix.startswith(os.path.join(ROOT, "build/venv")):
        os.execv(VENV, [VENV] + sys.argv)

DIM, FFN, HEADS, TEXT = 1536, 8960, 12, 512


def read(folder, name, shape, dtype=None):
    x = torch.frombuffer(bytearray(open(f"{folder}/{name}.f32", "rb").read()), dtype=torch.float32)
    return x.reshape(shape).to(dtype or torch.float32, copy=True)  # in memory of PyTorch's own


class Block:
    """The Wan block of docs/spec/model.md 1.4-5 over the weights that `osp bench out=` wrote."""

    def __init__(self, folder, dtype, sequences):
        self.dtype, self.sequences = dtype, sequences
        self.p = {}
        for name in sorted(os.listdir(folder)):
            if name.startswith("param."):
                key = name[6:-4]
                n = os.path.getsize(f"{folder}/{name}") // 4
                fan = {"ffn.0.weight": (FFN, DIM), "ffn.2.weight": (DIM, FFN)}.get(key)
                shape = fan or ((6, DIM) if key == "modulation" else (DIM, DIM) if n == DIM * DIM else (n,))
                exact = key.startswith(("modulation", "norm3")) or "norm_" in key
                self.p[key] = read(folder, name[:-4], shape, torch.float32 if exact else dtype).requires_grad_()
        pos = torch.frombuffer(bytearray(open(f"{folder}/pos.i16", "rb").read()), dtype=torch.int16)
        pos = pos.reshape(-1, 3).double()
        half = DIM // HEADS // 2
        third = half // 3
        parts = (half - 2 * third, third, third)
        angle = torch.cat([pos[:, a:a + 1] / 10000 ** (torch.arange(n).double() / n)
                           for a, n in enumerate(parts)], 1)
        self.cos, self.sin = angle.cos().float()[:, None], angle.sin().float()[:, None]

    def linear(self, name, x):
        return F.linear(x, self.p[name + ".weight"], self.p[name + ".bias"])

    def rms(self, x, name):
        x32 = x.float()
        return (x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + 1e-6) * self.p[name]).to(x.dtype)

    def rope(self, x):
        y = x.float().reshape(x.shape[0], HEADS, -1, 2)
        a, b = y[..., 0], y[..., 1]
        y = torch.stack((a * self.cos - b * self.sin, a * self.sin + b * self.cos), -1)
        return y.reshape(x.shape).to(x.dtype)

    def attention(self, q, k, v, sequences):
        split = lambda t: t.reshape(sequences, -1, HEADS, DIM // HEADS).transpose(1, 2)
        y = F.scaled_dot_product_attention(split(q), split(k), split(v))
        return y.transpose(1, 2).reshape(q.shape)

    def modulate(self, x, scale, shift):
        return (F.layer_norm(x.float(), (DIM,), eps=1e-6) * (1 + scale) + shift).to(x.dtype)

    def forward(self, x, text, e0):
        m = self.p["modulation"] + e0
        a = self.modulate(x, m[1], m[0])
        q = self.rope(self.rms(self.linear("self_attn.q", a), "self_attn.norm_q.weight"))
        k = self.rope(self.rms(self.linear("self_attn.k", a), "self_attn.norm_k.weight"))
        y = self.attention(q, k, self.linear("self_attn.v", a), self.sequences)
        x = x + (self.linear("self_attn.o", y) * m[2]).to(x.dtype)
        b = F.layer_norm(x.float(), (DIM,), self.p["norm3.weight"], self.p["norm3.bias"], 1e-6).to(x.dtype)
        q = self.rms(self.linear("cross_attn.q", b), "cross_attn.norm_q.weight")
        k = self.rms(self.linear("cross_attn.k", text), "cross_attn.norm_k.weight")
        y = self.attention(q, k, self.linear("cross_attn.v", text), 1)
        x = x + self.linear("cross_attn.o", y)
        f = self.modulate(x, m[4], m[3])
        h = F.gelu(self.linear("ffn.0", f), approximate="tanh")
        return x + (self.linear("ffn.2", h) * m[5]).to(x.dtype)


def run_block(folder, dtype, sequences, runs, clock=time.perf_counter):
    """Seconds of each run, and the results of the last: y and all gradients."""
    block = Block(folder, dtype, sequences)
    x = read(folder, "x", (-1, DIM), dtype).requires_grad_()
    text, e0 = read(folder, "text", (TEXT, DIM), dtype), read(folder, "e0", (6, DIM))
    text.requires_grad_()
    e0.requires_grad_()
    dy, seconds = read(folder, "dy", (-1, DIM), dtype), []
    for _ in range(runs):
        for t in [x, text, e0, *block.p.values()]:
            t.grad = None
        start = clock()
        y = block.forward(x, text, e0)
        y.backward(dy)
        seconds.append(clock() - start)
    return seconds, {"y": y.detach(), "dx": x.grad, **{"grad." + k: p.grad for k, p in block.p.items()}}


def worker(folder, dtype, sequences, runs, threads, cpu_time):
    """Child process: prints seconds and peak memory, or with runs = 0 the errors of both sides
    against PyTorch in f32 on the same numbers, as JSON."""
    torch.set_num_threads(threads)
    dtype = torch.bfloat16 if dtype == "bf16" else torch.float32
    if runs:
        clock = time.process_time if cpu_time else time.perf_counter
        seconds, _ = run_block(folder, dtype, sequences, runs, clock)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return print(json.dumps({"seconds": seconds, "peak_rss_mb": peak}))
    _, exact = run_block(folder, torch.float32, sequences, 1)
    _, theirs = run_block(folder, dtype, sequences, 1)
    norm = lambda a, b: float((a.double() - b.double()).norm() / b.double().norm())
    errors = {k: (norm(read(folder, k, v.shape), v), norm(theirs[k], v)) for k, v in exact.items()}
    print(json.dumps(errors))


def judge(errors, limit):
    """A gradient that nearly cancels (a bias before the softmax) is noise in bf16: there we must
    not be farther from the f32 result than PyTorch in bf16 is, by half."""
    bad = [k for k, (a, b) in errors.items() if not (a <= limit or a <= 1.5 * b)]
    worst = max(errors, key=lambda k: errors[k][0])
    return bad, (f"error y {errors['y'][0]:.1e} (PyTorch {errors['y'][1]:.1e}), worst {worst}"
                 f" {errors[worst][0]:.1e} ({errors[worst][1]:.1e})")


def ours(case, args, runs, out=None):
    cmd = [os.path.join(ROOT, "osp"), "bench", f"runs={runs}", f"threads={args.threads}", *case]
    lines = subprocess.run(cmd + ([f"out={out}"] if out else []), check=True, capture_output=True, text=True)
    rows = [json.loads(x) for x in lines.stdout.splitlines()]
    return [r["cpu_s" if args.cpu_time else "total_s"] for r in rows], max(r["peak_rss_mb"] for r in rows)


def theirs(folder, dtype, sequences, runs, args):
    cmd = [sys.executable, os.path.abspath(__file__), "--worker", folder, dtype, str(sequences), str(runs),
           str(args.threads), str(int(args.cpu_time))]
    return json.loads(subprocess.run(cmd, check=True, capture_output=True, text=True).stdout)


def main():
    if len(sys.argv) > 1 and sys.argv[1] == "--worker":
        f, dtype = sys.argv[2:4]
        return worker(f, dtype, *map(int, sys.argv[4:8]))
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--runs", type=int, default=3, help="runs of each in one turn; the first is not counted")
    p.add_argument("--bf16-tokens", type=int, default=4096,
                   help="4096 as in the table; 1024 where PyTorch has no fast bf16")
    p.add_argument("--cpu-time", action="store_true", help="one thread, its processor time")
    p.add_argument("case", nargs="*")
    args = p.parse_args()
    if args.cpu_time:
        args.threads = 1
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    side = {4096: 64, 1024: 32}[args.bf16_tokens]
    square = [f"t=1", f"h={side}", f"w={side}"]
    cases = [("7 block f32 1536 full", "fp32", 1, ["dtype=fp32"], 1.0),
             (f"8 block bf16 {args.bf16_tokens} full", "bf16", 1, ["dtype=bf16", *square], 1.2),
             (f"8 block bf16 {args.bf16_tokens} sparse P=2", "bf16", 4, ["dtype=bf16", *square, "ratio=2"], 1.2)]
    print(f"{args.threads} threads{' (their processor time)' if args.cpu_time else ''}; {args.rounds} rounds of {args.runs} runs, in turn;"
          + (f" PyTorch {torch.__version__} {torch.backends.cpu.get_cpu_capability()}" if torch else " no torch"))
    bad = 0
    for name, dtype, sequences, case, goal in cases:
        if args.case and not any(c in name for c in args.case):
            continue
        a, b, mem_a, mem_b = [], [], 0, 0
        with tempfile.TemporaryDirectory() as folder:
            ours(case, args, 1, folder)
            errors = theirs(folder, dtype, sequences, 0, args) if torch else None
            for _ in range(args.rounds):
                s, rss = ours(case, args, args.runs)
                a += s[1:] or s
                mem_a = max(mem_a, rss)
                if torch:
                    run = theirs(folder, dtype, sequences, args.runs, args)
                    b += run["seconds"][1:] or run["seconds"]
                    mem_b = max(mem_b, run["peak_rss_mb"])
        text = f"{name:32} ours {statistics.median(a):7.3f} s ({min(a):.3f}-{max(a):.3f}) {mem_a:6.0f} MB"
        if b:
            wrong, text_errors = judge(errors, 6e-2 if dtype == "bf16" else 2e-4)
            bad += bool(wrong)
            text += (f" | PyTorch {statistics.median(b):7.3f} s ({min(b):.3f}-{max(b):.3f}) {mem_b:6.0f} MB"
                     f" | speed {statistics.median(b) / statistics.median(a):.2f}x (goal {goal}), memory"
                     f" {mem_a / mem_b:.2f}x | {text_errors}{' WRONG: ' + ' '.join(wrong) if wrong else ''}")
        print(text, flush=True)
    return f"{bad} cases disagree" if bad else 0


if __name__ == "__main__":
    sys.exit(main())
