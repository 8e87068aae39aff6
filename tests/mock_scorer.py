#!/usr/bin/env python3
"""The scorer of tests/fake_scorer.c once more, in Python: the same scores from the same clips, and
those of its faults that a scorer behind osp_reward.serve can have. Arguments are not looked at; they
are for whoever searches the list of processes."""
import os
import random
import signal
import sys
import time
import zlib

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "scripts"))
sys.dont_write_bytecode = True
import osp_reward  # noqa: E402


def scores(clip):
    p, size = bytes(clip.frames), clip.height * clip.width * 3
    luma = 299 * sum(p[0::3]) + 587 * sum(p[1::3]) + 114 * sum(p[2::3])
    change = sum(abs(a - b) for a, b in zip(p[size:], p))
    crc = zlib.crc32(clip.prompt.encode(), zlib.crc32(p))
    return [luma / (255000.0 * (len(p) // 3)),
            change / (255.0 * (len(p) - size)) if clip.count > 1 else 0.0, crc / 2.0**31 - 1]


def first_time(path):
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        return True
    except FileExistsError:
        return False


def spoil(how, clip):
    """Before the answer: what no scorer should do."""
    whole = osp_reward.pack(osp_reward.RESULT, clip.ident, osp_reward.result(
        osp_reward.OK, clip.crc, [0.0] * 3, [0.0] * 3))
    if how == "crash":
        os.abort()
    elif how == "exit":
        os._exit(3)
    elif how == "late":
        time.sleep(100)
    elif how == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif how in ("slow", "tardy"):
        time.sleep(0.3 if how == "slow" else 0.1)
    elif how == "noise":
        sys.stdout.buffer.write(bytes(range(256)) * 100 + b"OSPR\n")
        sys.stdout.flush()
    elif how == "random":
        os.write(3, random.randbytes(5000))
    elif how == "count":
        payload = b"\2" + whole[osp_reward.HEADER + 1:]
        os.write(3, osp_reward.pack(osp_reward.RESULT, clip.ident, payload))
    elif how == "half":
        os.write(3, whole[:50])
        os._exit(0)
    elif how == "oom":
        raise MemoryError("by request")
    elif how == "raise":
        raise ValueError("by request")
    elif how == "bad":
        raise osp_reward.BadInput("not my kind of prompt")


class Mock:
    dims = ("VQ", "MQ", "TA")

    def load(self, config):
        del config

    def info(self):
        return {"scorer": "mock"}

    def selftest(self):
        return []

    def score(self, clip):
        how, _, path = clip.prompt.partition(" ")
        if path.startswith("/") and not first_time(path.split()[0]):
            how = ""
        spoil(how, clip)
        raw = scores(clip)
        if how == "nan":
            raw[1] = float("nan")
        return (raw[:2] if how == "dims" else raw), raw[:2] if how == "dims" else raw, clip.count, 0


if __name__ == "__main__":
    osp_reward.serve(Mock())
