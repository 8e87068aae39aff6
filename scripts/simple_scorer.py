#!/usr/bin/env python3
"""A scorer that needs nothing but Python: brightness, motion and colour of the frames against the
words of the prompt. For the demo and the tests; the same clip gives the same scores everywhere.

From every frame it takes a grid of at most 24 x 24 pixels (rows and columns at (i + 1/2) n / 24), and
at most 24 frames, evenly spread. With values of 0..1:
    light   mean of all channels                     red, green, blue   means of the channels
    spread  standard deviation of the pixels' means, averaged over the frames
    motion  mean |difference| of a pixel between neighbouring frames
    flicker mean |difference| of a frame's mean between neighbouring frames

    VQ = 2 min(1, spread / 0.25) - 1                 a picture with light and dark parts
    MQ = min(1, 20 motion) - min(1, 20 flicker)      moves, without flicker
    TA = mean of the agreement of every known word of the prompt; 0 without one
         bright, day, sunny, light        2 light - 1
         dark, night, shadow              1 - 2 light
         fast, running, runs, moving      2 min(1, 20 motion) - 1
         still, static, slow, calm        1 - 2 min(1, 20 motion)
         red, green, blue                 2 (that channel - mean of the others), cut to -1..1
         yellow, cyan, pink, magenta, purple    2 (mean of its two - the third), cut to -1..1
         white, black                     as bright, dark; grey, gray: 1 - 2 min(1, 2 colourfulness)
The normalised scores are the raw ones. VQ and MQ do not depend on the prompt."""
import math
import re

import osp_reward

GRID, FRAMES = 24, 24
PAIRS = {"yellow": (0, 1), "cyan": (1, 2), "pink": (0, 2), "magenta": (0, 2), "purple": (0, 2)}


def centres(n, most):
    m = min(n, most)
    return [(2 * i + 1) * n // (2 * m) for i in range(m)]


def grid(clip):
    """[frame][pixel] = (r, g, b), bytes."""
    columns = [3 * x for x in centres(clip.width, GRID)]
    rows, out = centres(clip.height, GRID), []
    for t in centres(clip.count, FRAMES):
        pixels = []
        for y in rows:
            at = (t * clip.height + y) * clip.width * 3
            line = bytes(clip.frames[at:at + 3 * clip.width])
            pixels += [(line[x], line[x + 1], line[x + 2]) for x in columns]
        out.append(pixels)
    return out


def measure(clip):
    frames = grid(clip)
    n = len(frames[0])
    total, spread, motion, flicker, means = [0, 0, 0], 0.0, 0, 0.0, []
    for f, pixels in enumerate(frames):
        grey = [r + g + b for r, g, b in pixels]
        mean = sum(grey) / n
        means.append(mean)
        spread += math.sqrt(sum((v - mean) ** 2 for v in grey) / n)
        for c in range(3):
            total[c] += sum(p[c] for p in pixels)
        if f:
            motion += sum(abs(a - b) for p, q in zip(frames[f - 1], pixels) for a, b in zip(p, q))
            flicker += abs(mean - means[f - 1])
    steps = max(1, len(frames) - 1)
    rgb = [t / (255.0 * n * len(frames)) for t in total]
    return {"rgb": rgb, "light": sum(rgb) / 3, "spread": spread / (765.0 * len(frames)),
            "motion": motion / (765.0 * n * steps), "flicker": flicker / (765.0 * steps)}


def clip1(v):
    return max(-1.0, min(1.0, v))


def agreement(word, m):
    """-1..1, or None for a word that says nothing here."""
    light, moving = 2 * m["light"] - 1, 2 * min(1.0, 20 * m["motion"]) - 1
    if word in ("bright", "day", "sunny", "light", "white"):
        return light
    if word in ("dark", "night", "shadow", "black"):
        return -light
    if word in ("fast", "running", "runs", "moving"):
        return moving
    if word in ("still", "static", "slow", "calm"):
        return -moving
    rgb = m["rgb"]
    if word in ("red", "green", "blue"):
        c = ("red", "green", "blue").index(word)
        return clip1(2 * (rgb[c] - (sum(rgb) - rgb[c]) / 2))
    if word in PAIRS:
        a, b = PAIRS[word]
        return clip1(2 * ((rgb[a] + rgb[b]) / 2 - rgb[3 - a - b]))
    if word in ("grey", "gray"):
        return 1 - 2 * min(1.0, 2 * (max(rgb) - min(rgb)))
    return None


def scores(clip):
    m = measure(clip)
    known = [a for a in (agreement(w, m) for w in re.findall("[a-z]+", clip.prompt.lower()))
             if a is not None]
    return [2 * min(1.0, m["spread"] / 0.25) - 1,
            min(1.0, 20 * m["motion"]) - min(1.0, 20 * m["flicker"]),
            sum(known) / len(known) if known else 0.0]


class Made:
    """A clip of formulas for the self-test: a gradient that moves to the right."""
    count, height, width = 5, 16, 24

    def __init__(self, prompt):
        self.prompt = prompt
        self.frames = bytes((8 * x + 16 * t, 10 * y, 3 * (x + y) + 20 * t)[c] % 256
                            for t in range(5) for y in range(16) for x in range(24)
                            for c in range(3))


class SimpleScorer:
    dims = ("VQ", "MQ", "TA")

    def load(self, config):
        del config

    def info(self):
        return {"scorer": "simple 1"}

    def selftest(self):
        first, other = scores(Made("a bright red picture")), scores(Made("a dark night"))
        if first[:2] != other[:2] or first[2] == other[2]:
            raise osp_reward.Refused("the self-test depends wrongly on the prompt",
                                     osp_reward.EX_SOFTWARE)
        return first

    def score(self, clip):
        raw = scores(clip)
        return raw, raw, min(clip.count, FRAMES), 0


if __name__ == "__main__":
    osp_reward.serve(SimpleScorer())
