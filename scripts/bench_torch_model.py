"""The Wan/OSP transformer of docs/spec/model.md 1 and 2 in plain PyTorch, as the other side of
`osp bench gpu`: what a user would write and hand to torch.compile. Three forms of the sparse
blocks: "padded" (the published method: grid padded to multiples of P*P, rearranged, real tokens
gathered around attention), "free" (tokens sorted by class, no padding), and the full model.

Weights and inputs are drawn by the same counters as on our side (core/rng.h), so that nothing has
to be carried over. Rows of results are in the plain token order (t, row, column)."""
import itertools
import math
from contextlib import nullcontext

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

MASK = 0xFFFFFFFF
RNG_INIT, RNG_TEST = 0, 11
LATENT, NOISE, TEXT, BX, BDY, BTEXT, BE0 = 31, 32, 33, 41, 42, 43, 44
X, W, DY, Q = 11, 12, 13, 21  # of part A
SIGMA = 0.6


# ---- random numbers ------------------------------------------------------------------------------
def philox(c, k0, k1):
    """Philox4x32-10 on int64 tensors (or ints) that hold 32-bit words."""
    c0, c1, c2, c3 = c
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2  # the low 64 bits: enough for both words
        c0, c1, c2, c3 = ((p1 >> 32) & MASK) ^ c1 ^ k0, p1 & MASK, ((p0 >> 32) & MASK) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3


def stream(seed, use, item):
    return philox((item & MASK, item >> 32, 0, use), seed & MASK, seed >> 32)[:2]


def words(key, first, count, device):
    """32-bit words first .. first + count of a stream, as doubles in (0, 1)."""
    q = torch.arange(first // 4, (first + count + 3) // 4, device=device)
    zero = torch.zeros_like(q)
    w = torch.stack(philox((q & MASK, q >> 32, zero, zero), *key), 1)
    return (w.double() + 0.5) * 2.0 ** -32


def draw(kind, key, shape, device, dtype, a, b, chunk=1 << 24):
    """uniform: in (a, b); normal: mean a, standard deviation b. Rounded to float, then to dtype."""
    n = math.prod(shape)
    out = torch.empty(n, dtype=dtype, device=device)
    for first in range(0, n, chunk):
        count = min(chunk, n - first)
        u = words(key, first, count, device)
        if kind == "uniform":
            v = a + (b - a) * u
        else:
            r, angle = torch.sqrt(-2 * torch.log(u[:, 0::2])), 2 * math.pi * u[:, 1::2]
            v = a + b * torch.stack((r * torch.cos(angle), r * torch.sin(angle)), 2)
        out[first:first + count] = v.reshape(-1)[:count].float()
    return out.reshape(shape)


def normal(seed, item, shape, device, dtype, std=1.0):
    return draw("normal", stream(seed, RNG_TEST, item), shape, device, dtype, 0.0, std)


def fnv(text):
    h = 0xCBF29CE484222325
    for byte in text.encode():
        h = ((h ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return h


def init_value(seed, name, shape, device):
    """The rule of our side: matrices as they are initialised, norm weights near 1, vectors small;
    sharp attention and open gates, so that a wrong attention shows."""
    low, high = -0.02, 0.02
    if name.endswith(".weight") and len(shape) > 1:
        high = math.sqrt(6 / (shape[0] + math.prod(shape[1:])))
        low = -high
    elif name.endswith(("norm_q.weight", "norm_k.weight")):
        low, high = 1.2, 1.6
    elif name.endswith(".weight"):
        low, high = 0.9, 1.1
    elif name.endswith("modulation"):
        low, high = -1.0, 1.0
    return draw("uniform", stream(seed, RNG_INIT, fnv(name)), shape, device, torch.float32, low, high)


# ---- attention -----------------------------------------------------------------------------------
BACKENDS = {"cudnn": [SDPBackend.CUDNN_ATTENTION], "flash": [SDPBackend.FLASH_ATTENTION]}


def fa3():
    try:
        from flash_attn_interface import flash_attn_func
        return flash_attn_func
    except ImportError:
        return None


def backends(device):
    return (["cudnn", "flash"] + (["fa3"] if fa3() else [])) if device == "cuda" else ["default"]


def sdpa(q, k, v, which):
    """[n, length, heads, head_dim] each; exactly the named kernel, or an error."""
    if which == "fa3":
        y = fa3()(q, k, v)
        return y[0] if isinstance(y, tuple) else y
    if which != "default" and which not in BACKENDS:
        raise ValueError(f"no attention \"{which}\"; there are default, cudnn, flash, fa3")
    with sdpa_kernel(BACKENDS[which]) if which in BACKENDS else nullcontext():
        return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


def equal_runs(lens):
    """(first row, sequences, length): neighbours of equal length run as one batch."""
    first, runs = 0, []
    for n, group in itertools.groupby(lens):
        count = len(list(group))
        if n:
            runs.append((first, count, n))
        first += n * count
    return runs


def attend(q, k, v, runs, heads, which):
    """Attention inside each sequence of rows; q, k, v [rows, C]."""
    parts = []
    for first, count, n in runs:
        z = [t[first:first + count * n].view(count, n, heads, -1) for t in (q, k, v)]
        parts.append(sdpa(*z, which).reshape(count * n, -1))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


# ---- where the rows of a block stand -------------------------------------------------------------
def classes(pos, ratio):
    token = (pos[:, 1] % ratio) * ratio + pos[:, 2] % ratio
    group = (pos[:, 1] // ratio % ratio) * ratio + pos[:, 2] // ratio % ratio
    return token, group


class Place:
    """Rows of one kind of block: their rotary angles, their sequences, and what is real of them."""

    def __init__(self, pos, lens, model, which, device, real=None, ranks=1):
        half = model["dim"] // model["heads"] // 2
        third = half // 3
        parts = (half - 2 * third, third, third)
        p = pos.double().cpu()
        angle = torch.cat([p[:, a:a + 1] / 10000 ** (torch.arange(n).double() / n) for a, n in enumerate(parts)], 1)
        self.cos = angle.cos().float().to(device)[:, None]
        self.sin = angle.sin().float().to(device)[:, None]
        self.runs = equal_runs(lens)
        self.real = None if real is None else real.to(device)
        self.heads, self.which, self.ranks, self.eps = model["heads"], which, ranks, model["eps"]


def plain_positions(grid):
    t, h, w = grid
    n = torch.arange(t * h * w)
    return torch.stack((n // (h * w), n // w % h, n % w), 1)


def padded_place(grid, ratio, phase, model, which, device):
    """Rows [class][place] of the padded grid, and which row of the plain padded grid each one is."""
    t, h, w = grid
    unit = ratio * ratio
    H, Wp = -(-h // unit) * unit, -(-w // unit) * unit
    pos = plain_positions((t, H, Wp))
    cls = classes(pos, ratio)[phase]
    order = torch.argsort(cls, stable=True)
    pos, cls = pos[order], cls[order]
    inside = (pos[:, 1] < h) & (pos[:, 2] < w)
    if inside.all():
        return Place(pos, [len(pos) // (ratio * ratio)] * (ratio * ratio), model, which, device)
    lens = torch.bincount(cls[inside], minlength=ratio * ratio).tolist()
    return Place(pos, lens, model, which, device, real=inside.nonzero()[:, 0])


class Padded:
    """The published layout: the plain grid for full blocks; pad, rearrange, crop around the rest."""

    def __init__(self, grid, ratio, model, which, device):
        self.grid, self.P = grid, ratio
        t, h, w = grid
        unit = ratio * ratio
        self.H, self.W = -(-h // unit) * unit, -(-w // unit) * unit
        pos = plain_positions(grid)
        self.start = self.end = None
        self.place = {"F": Place(pos, [len(pos)], model, which, device),
                      "T": padded_place(grid, ratio, 0, model, which, device),
                      "G": padded_place(grid, ratio, 1, model, which, device)}

    def move(self, x, a, b):
        if a == b:
            return x
        (t, h, w), P, C = self.grid, self.P, x.shape[1]
        u, v = self.H // P // P, self.W // P // P
        if a == "F":
            x = F.pad(x.view(t, h, w, C), (0, 0, 0, self.W - w, 0, self.H - h))
            a = "grid"
            x = x.view(t, u, P, P, v, P, P, C)  # row = (u, p, a), column = (v, q, b)
        elif a == "T":  # [a, b, t, u, p, v, q]
            x = x.view(P, P, t, u, P, v, P, C).permute(2, 3, 4, 0, 5, 6, 1, 7)
        else:  # [p, q, t, u, a, v, b]
            x = x.view(P, P, t, u, P, v, P, C).permute(2, 3, 0, 4, 5, 1, 6, 7)
        if b == "T":
            return x.permute(3, 6, 0, 1, 2, 4, 5, 7).reshape(-1, C)
        if b == "G":
            return x.permute(2, 5, 0, 1, 3, 4, 6, 7).reshape(-1, C)
        return x.reshape(t, self.H, self.W, C)[:, :h, :w].reshape(-1, C)


class Free:
    """Tokens sorted by class, without padding; full blocks run in whatever order there is."""

    def __init__(self, grid, ratio, model, which, device):
        pos = plain_positions(grid)
        kinds = classes(pos, ratio)
        order = [torch.argsort(k, stable=True) for k in kinds]
        back = [torch.argsort(o) for o in order]
        lens = [torch.bincount(k, minlength=ratio * ratio).tolist() for k in kinds]
        self.to = {"TG": back[0][order[1]].to(device), "GT": back[1][order[0]].to(device)}
        self.start = order[0].to(device)  # rows of the first block out of the plain order
        self.home = {"T": back[0].to(device), "G": back[1].to(device)}
        self.place = {c: Place(pos[o], n, model, which, device) for c, o, n in zip("TG", order, lens)}
        for c, o in zip("TG", order):
            self.place["F" + c] = Place(pos[o], [len(pos)], model, which, device)

    def move(self, x, a, b):
        return x if a == b else x.index_select(0, self.to[a + b])


class Plain:
    def __init__(self, grid, ratio, model, which, device):
        pos = plain_positions(grid)
        self.start = None
        self.place = {"F": Place(pos, [len(pos)], model, which, device)}

    def move(self, x, a, b):
        return x


LAYOUTS = {"full": Plain, "padded": Padded, "free": Free}


# ---- the block -----------------------------------------------------------------------------------
class Scale(nn.Module):
    """A weight (and a bias) that stays in float32: norms."""

    def __init__(self, dim, bias=False):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, dtype=torch.float32))
        if bias:
            self.bias = nn.Parameter(torch.empty(dim, dtype=torch.float32))


class Attention(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = Scale(dim), Scale(dim)


def rms(x, weight, eps):
    x32 = x.float()
    return (x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def rope(x, place):
    y = x.float().view(x.shape[0], place.heads, -1, 2)
    a, b = y[..., 0], y[..., 1]
    y = torch.stack((a * place.cos - b * place.sin, a * place.sin + b * place.cos), -1)
    return y.reshape(x.shape).to(x.dtype)


def modulate(x, scale, shift, eps):
    return (F.layer_norm(x.float(), x.shape[-1:], eps=eps) * (1 + scale) + shift).to(x.dtype)


def self_attention(q, k, v, place):
    """Over the real rows alone where there is padding: gather, attend, scatter into zeros. ranks: at
    the load of one of so many ranks, all rows of the sequence for its share of the heads."""
    if place.ranks > 1:
        z = [t.view(1, place.ranks * t.shape[0], place.heads // place.ranks, -1) for t in (q, k, v)]
        return sdpa(*z, place.which).reshape(q.shape)
    if place.real is None:
        return attend(q, k, v, place.runs, place.heads, place.which)
    y = attend(*(t.index_select(0, place.real) for t in (q, k, v)), place.runs, place.heads, place.which)
    return torch.zeros_like(q).index_copy(0, place.real, y)


class Block(nn.Module):
    def __init__(self, m):
        super().__init__()
        dim = m["dim"]
        self.modulation = nn.Parameter(torch.empty(1, 6, dim, dtype=torch.float32))
        self.self_attn, self.cross_attn = Attention(dim), Attention(dim)
        self.norm3 = Scale(dim, bias=True)
        self.ffn = nn.ModuleList([nn.Linear(dim, m["ffn"]), nn.Identity(), nn.Linear(m["ffn"], dim)])

    def forward(self, x, text, e0, place):
        m = (self.modulation + e0.view(1, 6, -1))[0]
        s, c, eps = self.self_attn, self.cross_attn, place.eps
        a = modulate(x, m[1], m[0], eps)
        q, k = rope(rms(s.q(a), s.norm_q.weight, eps), place), rope(rms(s.k(a), s.norm_k.weight, eps), place)
        x = x + (s.o(self_attention(q, k, s.v(a), place)) * m[2]).to(x.dtype)
        b = F.layer_norm(x.float(), x.shape[-1:], self.norm3.weight, self.norm3.bias, eps).to(x.dtype)
        q, k, v = rms(c.q(b), c.norm_q.weight, eps), rms(c.k(text), c.norm_k.weight, eps), c.v(text)
        z = [t.view(1, t.shape[0], place.heads, -1) for t in (q, k, v)]
        x = x + c.o(sdpa(*z, place.which).reshape(q.shape))
        f = modulate(x, m[4], m[3], eps)
        h = F.gelu(self.ffn[0](f), approximate="tanh")
        return x + (self.ffn[2](h) * m[5]).to(x.dtype)


def run_block(block, x, text, e0, place):
    return block(x, text, e0, place)


# ---- the model -----------------------------------------------------------------------------------
def wide_linear(layer, x):
    """float32 out of inputs in the compute type: the time path has one row."""
    return F.linear(x.float(), layer.weight.float(), layer.bias.float())


class Head(nn.Module):
    def __init__(self, m):
        super().__init__()
        self.modulation = nn.Parameter(torch.empty(1, 2, m["dim"], dtype=torch.float32))
        self.head = nn.Linear(m["dim"], 4 * m["out"])


class Dit(nn.Module):
    def __init__(self, m, num_blocks):
        super().__init__()
        self.m = m
        dim = m["dim"]
        mlp = lambda a: nn.ModuleList([nn.Linear(a, dim), nn.Identity(), nn.Linear(dim, dim)])
        self.patch_embedding = nn.Conv3d(m["in"], dim, (1, 2, 2), (1, 2, 2))
        self.text_embedding, self.time_embedding = mlp(m["text_dim"]), mlp(m["freq"])
        self.time_projection = nn.ModuleList([nn.Identity(), nn.Linear(dim, 6 * dim)])
        self.blocks = nn.ModuleList(Block(m) for _ in range(num_blocks))
        self.head = Head(m)

    def time(self, t, dtype):
        half = self.m["freq"] // 2
        w = t * 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
        wave = torch.cat((w.cos(), w.sin()))[None].to(self.head.modulation.device, dtype)
        h = wide_linear(self.time_embedding[0], wave)
        e = wide_linear(self.time_embedding[2], F.silu(h).to(dtype))
        return e, wide_linear(self.time_projection[1], F.silu(e).to(dtype))

    def forward(self, rows, text, t, kinds, layout, block=run_block, again=False):
        """rows [tokens, 4 in], velocities in the same order. kinds: [(block number, "F", "T" or
        "G")]; again: checkpointing of every block."""
        e, e0 = self.time(t, rows.dtype)
        text = self.text_embedding[2](F.gelu(self.text_embedding[0](text), approximate="tanh"))
        x = F.linear(rows, self.patch_embedding.weight.flatten(1), self.patch_embedding.bias)
        free = layout.start is not None
        now = "T" if free else "F"
        if free:
            x = x.index_select(0, layout.start)
        for i, kind in kinds:
            want = now if free and kind == "F" else kind
            x = layout.move(x, now, want)
            now = want
            place = layout.place["F" + now if free and kind == "F" else kind]
            args = (self.blocks[i], x, text, e0, place)
            x = checkpoint(block, *args, use_reentrant=False) if again else block(*args)
        x = x.index_select(0, layout.home[now]) if free else layout.move(x, now, "F")
        mod = self.head.modulation[0] + e
        return self.head.head(modulate(x, mod[1], mod[0], self.m["eps"]))


def build(model, num_blocks, dtype, device, seed, train):
    """On the device, filled; with train also the float32 values that the optimizer holds."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            net = Dit(model, num_blocks)
    finally:
        torch.set_default_dtype(before)
    net.to_empty(device=device)
    masters = {}
    with torch.no_grad():
        for name, p in net.named_parameters():
            value = init_value(seed, name, tuple(p.shape), device)
            p.copy_(value)
            p.requires_grad_(train)
            if train:
                masters[name] = p if p.dtype == torch.float32 else nn.Parameter(value)
    return net, masters


def inputs(case, device, dtype):
    """x_t and target as rows in the plain order, text."""
    m, (t, h, w), seed = case["model"], case["grid"], case["seed"]
    shape = (m["in"], t, 2 * h, 2 * w)
    z = normal(seed, LATENT, shape, device, torch.float32).double()
    noise = normal(seed, NOISE, shape, device, torch.float32).double()
    cut = lambda x: x.view(m["in"], t, h, 2, w, 2)
    rows = cut(SIGMA * noise + (1 - SIGMA) * z).permute(1, 2, 4, 0, 3, 5).reshape(t * h * w, -1)
    target = cut(noise - z).permute(1, 2, 4, 3, 5, 0).reshape(t * h * w, -1)
    return rows.float().to(dtype), target.float(), normal(seed, TEXT, (m["text"], m["text_dim"]), device, dtype)
