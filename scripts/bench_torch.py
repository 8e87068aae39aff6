#!/usr/bin/env python3
"""The PyTorch side of `osp bench gpu`: the same cases, timed the same way, one JSON line each.

  scripts/bench_torch.py [--part all|A|BD|...] [--variant full|short] [--scale full|tiny]
                         [--device cuda|cpu] [--dtype bf16|fp32] [--sdpa cudnn,flash]
                         [--runs N] [--no-compile] [--threads N] [--osp ./osp]
  scripts/bench_torch.py --serve ...: told what to do on stdin, a JSON object a line; how
  `osp bench gpu torch=python3` runs it.

The model is scripts/bench_torch_model.py under torch.compile (once per shape), with attention by
one named kernel: cudnn, flash, fa3 (when flash_attn_interface is importable); default: PyTorch's
choice (CPU). A training step recomputes every block (checkpointing), holds float32 masters and
updates them by the fused AdamW. The list of cases is that of `osp bench gpu cases=1`.
"""
import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
import traceback

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, "build/venv/bin/python")
try:
    import torch
except ImportError:
    if os.path.exists(VENV) and not sys.prefix.startswith(os.path.join(ROOT, "build/venv")):
        os.execv(VENV, [VENV] + sys.argv)
    sys.exit("bench_torch: this python has no torch; give one that does (or make build/venv)")
import torch.nn.functional as F

sys.path.insert(0, os.path.join(ROOT, "scripts"))
import bench_torch_model as model

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class Bench:
    def __init__(self, args):
        self.device, self.compile = args.device, not args.no_compile
        self.open_cases, self.net, self.checking = [], None, False
        if args.threads:
            torch.set_num_threads(args.threads)
        if self.compile:
            limit = "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"
            setattr(torch._dynamo.config, limit, 128)  # kinds of blocks times shapes
        self.block = model.run_block
        self.compiled = torch.compile(model.run_block, dynamic=False) if self.compile else None

    def about(self):
        text = f"torch {torch.__version__}, {'torch.compile' if self.compile else 'not compiled'}"
        if self.device == "cuda":
            text += (f", CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()},"
                     f" {torch.cuda.get_device_name()}")
        else:
            text += f", CPU {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
        return text + (", FA3" if model.fa3() else "")

    def sync(self):
        if self.device == "cuda":
            torch.cuda.synchronize()

    # ---- what a case does ------------------------------------------------------------------------
    def weights(self, case, train):
        """The model of a case; the last one is kept while it is asked for again."""
        key = (json.dumps(case["model"], sort_keys=True), len(case["blocks"]), case["dtype"], case["seed"], train)
        if not self.net or self.net[0] != key:
            self.net = None
            self.free()
            self.net = (key, *model.build(case["model"], len(case["blocks"]), DTYPES[case["dtype"]],
                                          self.device, case["seed"], train))
        return self.net[1:]

    def copy(self, case):
        n = case["bytes"] // (2 if case["dtype"] == "bf16" else 4)
        x = model.normal(case["seed"], model.X, (n,), self.device, DTYPES[case["dtype"]])
        y = torch.empty_like(x)
        return (lambda: y.copy_(x)), (lambda: {"out": y})

    def gemm(self, case):
        (rows, out, inner), dtype, seed = case["shape"], DTYPES[case["dtype"]], case["seed"]
        draw = lambda item, shape, std=1.0: model.normal(seed, item, shape, self.device, dtype, std)
        x = draw(model.X, (rows, inner)) if case["product"] != "dx" else None
        w = draw(model.W, (out, inner), 1 / math.sqrt(inner)) if case["product"] != "dw" else None
        dy = draw(model.DY, (rows, out)) if case["product"] != "y" else None
        work = {"y": lambda: F.linear(x, w), "dx": lambda: dy @ w, "dw": lambda: dy.t() @ x}[case["product"]]
        return work, (lambda: {"out": work()})

    def attention(self, case, sdpa):
        rows, heads, d = sum(case["lens"]), case["heads"], case["head_dim"]
        draw = lambda i: model.normal(case["seed"], model.Q + i, (rows, heads * d), self.device, DTYPES[case["dtype"]])
        q, k, v = (draw(i).requires_grad_(case["backward"]) for i in range(3))
        runs = model.equal_runs(case["lens"])
        forward = lambda: model.attend(q, k, v, runs, heads, sdpa)
        if not case["backward"]:
            return forward, (lambda: {"out": forward()})
        o, do = forward(), draw(3)
        work = lambda: torch.autograd.grad(o, (q, k, v), do, retain_graph=True)
        return work, (lambda: {"out": o.detach(), **dict(zip(("dq", "dk", "dv"), work()))})

    def kinds(self, case, warm=False):
        """The blocks in order; warm: the first of each kind."""
        all_kinds = list(enumerate(case["blocks"]))
        return [next(b for b in all_kinds if b[1] == c) for c in "FTG" if c in case["blocks"]] if warm else all_kinds

    def forward(self, case, variant, sdpa):
        net, _ = self.weights(case, False)
        layout = model.LAYOUTS[variant](case["grid"], case["ratio"], case["model"], sdpa, self.device)
        rows, _, text = model.inputs(case, self.device, DTYPES[case["dtype"]])
        result = {}

        def work(warm=False):
            with torch.no_grad():
                result["out"] = net(rows, text, 1000 * model.SIGMA, self.kinds(case, warm), layout, self.block)
        return work, (lambda: result)

    def step(self, case, variant, sdpa):
        net, masters = self.weights(case, True)
        layout = model.LAYOUTS[variant](case["grid"], case["ratio"], case["model"], sdpa, self.device)
        rows, target, text = model.inputs(case, self.device, DTYPES[case["dtype"]])
        params = dict(net.named_parameters())
        optimizer = torch.optim.AdamW(masters.values(), lr=1e-6, betas=(0.9, 0.999), eps=1e-15, weight_decay=1e-3,
                                      fused=True)
        apart = [n for n in params if masters[n] is not params[n]]
        result = {}

        def work(warm=False):
            net.zero_grad(set_to_none=True)
            out = net(rows, text, 1000 * model.SIGMA, self.kinds(case, warm), layout, self.block, again=True)
            loss = (out.float() - target).pow(2).mean()
            loss.backward()
            with torch.no_grad():
                for n in params:  # blocks that a warm-up left out
                    if params[n].grad is None:
                        params[n].grad = torch.zeros_like(params[n])
                if self.checking:
                    result["grads"] = {"grad." + n: p.grad.clone() for n, p in params.items()}
                for n in apart:
                    masters[n].grad = params[n].grad.float()
                torch.nn.utils.clip_grad_norm_(masters.values(), 1.0)
                optimizer.step()
                if apart:
                    torch._foreach_copy_([params[n] for n in apart], [masters[n] for n in apart])
            result["out"] = out.detach()
        return work, (lambda: {"out": result["out"], **result.get("grads", {})})

    def one_block(self, case, variant, sdpa):
        net, _ = self.weights(case, True)
        m, grid, seed, dtype = case["model"], case["grid"], case["seed"], DTYPES[case["dtype"]]
        ssp, sp = case["parts"]["ssp"], case["parts"]["sp"]
        pos = model.plain_positions(grid)
        lens, order = [len(pos) // sp], torch.arange(len(pos) // sp)
        if case["ratio"] > 1:
            token = model.classes(pos, case["ratio"])[0]
            order = torch.argsort(token, stable=True)
            lens = torch.bincount(token, minlength=case["ratio"] ** 2).tolist()
            lens = lens[:len(lens) // ssp]
            order = order[:sum(lens)]
        place = model.Place(pos[order], lens, m, sdpa, self.device, ranks=sp)
        order = order.to(self.device)
        rows = lambda item: model.normal(seed, item, (len(pos), m["dim"]), self.device, dtype).index_select(0, order)
        x, dy = rows(model.BX).requires_grad_(), rows(model.BDY)
        text = model.normal(seed, model.BTEXT, (m["text"], m["dim"]), self.device, dtype).requires_grad_()
        e0 = model.normal(seed, model.BE0, (1, 6 * m["dim"]), self.device, torch.float32, 0.5).requires_grad_()
        block, result = net.blocks[0], {}

        def work(warm=False):
            for t in [x, text, e0, *block.parameters()]:
                t.grad = None
            result["y"] = self.block(block, x, text, e0, place)
            result["y"].backward(dy)

        def results():
            plain = lambda t: torch.empty_like(t).index_copy(0, order, t)
            return {"out": plain(result["y"].detach()), "dx": plain(x.grad), "dtext": text.grad, "de0": e0.grad,
                    **{"grad.blocks.0." + n: p.grad for n, p in block.named_parameters()}}
        return work, results

    def prepare(self, case, variant, sdpa):
        kind = case["kind"]
        if kind in ("copy", "gemm"):
            return getattr(self, kind)(case)
        if kind == "attention":
            return self.attention(case, sdpa)
        return {"forward": self.forward, "step": self.step, "block": self.one_block}[kind](case, variant, sdpa)

    # ---- commands --------------------------------------------------------------------------------
    def check(self, case, variant, sdpa, folder):
        """How far the files of the other side are from what this side computes, by norm. Outputs
        count each for itself. Gradients count each for itself in fp32, and all together in bf16,
        where one that nearly cancels is noise on both sides. Not compiled: that each compiled block
        computes the same is seen at the size that is timed, by open."""
        self.net = None  # a step changes weights: each comparison draws its own
        self.block = model.run_block
        work, results = self.prepare(case, variant, sdpa)
        self.checking = True  # a step keeps its gradients as they are before clipping
        work()
        self.checking = False
        got = results()
        names = sorted(n[:-4] for n in os.listdir(folder) if n.endswith(".f32"))
        missing = set(got) ^ set(names)
        if missing:
            raise ValueError(f"one side has no {sorted(missing)[:3]}")
        ours = {n: torch.frombuffer(bytearray(open(f"{folder}/{n}.f32", "rb").read()), dtype=torch.float32)
                .to(self.device) for n in names}
        each, part, whole = {}, 0.0, 0.0
        for n in names:
            a, b = ours[n].double(), got[n].reshape(-1).double()
            if a.shape != b.shape:
                raise ValueError(f"{n}: {a.numel()} numbers there, {b.numel()} here")
            d, size = float((a - b).norm()), float(b.norm())
            each[n] = d / size if size > 0 else math.inf
            if n.startswith("grad."):
                part, whole = part + d * d, whole + size * size
        bad = [n for n in names if not math.isfinite(each[n])]
        worst = bad[0] if bad else max(each, key=each.get)
        error = max((e for n, e in each.items() if case["dtype"] == "fp32" or not n.startswith("grad.")), default=0.0)
        if whole:
            error = max(error, math.sqrt(part / whole))
        error = 1e9 if bad else error
        return {"error": error, "worst": f"most in {worst}: {each[worst]:.1e}"}

    def open(self, case, variant, sdpa):
        work, results = self.prepare(case, variant, sdpa)
        self.block = model.run_block
        if case["kind"] in ("forward", "step", "block"):
            work(warm=True)
            if self.compile:
                self.same_compiled(work, results)
            inner = 1
        else:
            work()
            inner = max(1, min(100, int(0.05 / max(self.seconds(work, 1), 1e-9))))
        self.sync()
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.open_cases.append((work, inner))
        return {"handle": len(self.open_cases) - 1}

    def same_compiled(self, work, results):
        """Compiles; then one block of each kind must give what it gave before."""
        want = results()["out"].double()
        self.block = self.compiled
        work(warm=True)
        error = float((results()["out"].double() - want).norm() / want.norm())
        if not error <= 2e-2:
            raise ValueError(f"the compiled blocks differ from the plain ones by {error:.1e}")
        work(warm=True)  # what the first pass after compiling still chooses

    def seconds(self, work, inner):
        self.sync()
        start = time.perf_counter()
        for _ in range(inner):
            work()
        self.sync()
        return (time.perf_counter() - start) / inner

    def run(self, handle):
        work, inner = self.open_cases[handle]
        answer = {"seconds": self.seconds(work, inner)}
        answer["bytes"] = torch.cuda.max_memory_allocated() if self.device == "cuda" else -1
        return answer

    def free(self):
        self.open_cases = []
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def command(self, c):
        if c["cmd"] == "hello":
            return {"about": self.about(), "sdpa": model.backends(self.device)}
        if c["cmd"] == "check":
            return self.check(c["case"], c["variant"], c["sdpa"], c["folder"])
        if c["cmd"] == "open":
            return self.open(c["case"], c["variant"], c["sdpa"])
        if c["cmd"] == "run":
            return self.run(c["handle"])
        if c["cmd"] == "close":
            self.free()
            return {}
        raise ValueError(f"no command {c['cmd']}")


def serve(args):
    """Answers go to what stdout was; prints of libraries go to stderr."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    bench = Bench(args)
    for line in sys.stdin:
        try:
            answer = bench.command(json.loads(line))
        except Exception as e:
            traceback.print_exc()
            answer = {"error": f"{type(e).__name__}: {e}"[:800]}
        print(json.dumps(answer), file=out, flush=True)


def variants(case, names):
    if case["kind"] in ("copy", "gemm"):
        return [("", "")]
    if case["kind"] == "attention":
        return [("", s) for s in names]
    sparse = "T" in case["blocks"]
    forms = ["full"] if not sparse else ["free"] if case["kind"] == "block" else ["padded", "free"]
    return [(f, s) for s in names for f in forms]


def alone(args):
    cmd = [args.osp, "bench", "gpu", "cases=1", f"part={args.part}", f"variant={args.variant}",
           f"scale={args.scale}", f"dtype={args.dtype}"] + ([f"runs={args.runs}"] if args.runs else [])
    listed = subprocess.run(cmd, check=True, capture_output=True, text=True).stdout
    bench = Bench(args)
    print(bench.about(), file=sys.stderr)
    names = args.sdpa.split(",") if args.sdpa else model.backends(args.device)
    for case in map(json.loads, listed.splitlines()):
        for form, sdpa in variants(case, names):
            handle = bench.open(case, form, sdpa)["handle"]
            runs = [bench.run(handle) for _ in range(case["runs"])]
            s = [r["seconds"] for r in runs]
            line = {"bench": "gpu", "part": case["part"], "case": case["case"], "side": "torch", "variant": form,
                    "sdpa": sdpa, "seconds": statistics.median(s), "min": min(s), "max": max(s), "runs": len(s)}
            if case["flops"]:
                rate = case["flops"] / line["seconds"] / 1e12
                line.update(flops=case["flops"], tflops=rate, mfu=rate / 989)
            else:
                line["gb_s"] = 2e-9 * case["bytes"] / line["seconds"]
            if runs[-1]["bytes"] >= 0:
                line["bytes"] = runs[-1]["bytes"]
            print(json.dumps(line), flush=True)
            bench.free()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--serve", action="store_true")
    p.add_argument("--part", default="all")
    p.add_argument("--variant", default="full", choices=("full", "short"))
    p.add_argument("--scale", default="full", choices=("full", "tiny"))
    p.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    p.add_argument("--dtype", default="bf16", choices=tuple(DTYPES))
    p.add_argument("--sdpa", default="")
    p.add_argument("--runs", type=int, default=0)
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--no-compile", action="store_true")
    p.add_argument("--osp", default=os.path.join(ROOT, "osp"))
    args = p.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        return "bench_torch: PyTorch sees no GPU (--device cpu --scale tiny --no-compile runs anywhere)"
    torch.manual_seed(1)
    return serve(args) if args.serve else alone(args)


if __name__ == "__main__":
    sys.exit(main())
