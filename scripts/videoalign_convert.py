#!/usr/bin/env python3
"""Converts the weights of a VideoAlign checkpoint from pickles to safetensors, once.

    python3 scripts/videoalign_convert.py [--sha256 HEX] CHECKPOINT_FOLDER

A pickle can run any code when it is loaded. This program loads it in a child process with torch's
weights-only reader, an empty environment, no network where the kernel allows it, no new privileges
and limits on the files it writes; the child returns tensors or fails. The original stays."""
import argparse
import ctypes
import hashlib
import os
import resource
import subprocess
import sys

RELEASED = {"48375908e6112de9f0248402db156a23b480709a6960b091c598c6f4c88d21b9":
            "the released VideoReward checkpoint-11352"}
PICKLES = ("model.pth", "non_lora_state_dict.pth", "adapter_model.bin")
CLONE_NEWUSER, CLONE_NEWNET, PR_SET_NO_NEW_PRIVS = 0x10000000, 0x40000000, 38


def sha256(path):
    h = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 22):
            h.update(block)
    return h.hexdigest()


def confine(largest):
    """In the child: what it may no longer do."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.unshare(CLONE_NEWNET) != 0 and libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0:
        print("note: the kernel does not let this process give up the network", file=sys.stderr)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o022)


def child(source, target):
    import torch
    from safetensors.torch import save_file
    version = tuple(int(v) for v in torch.__version__.split("+")[0].split(".")[:2])
    if version < (2, 6):
        sys.exit("torch %s is too old: its weights-only reader can be tricked; 2.6 or newer is "
                 "needed" % torch.__version__)
    confine(2 * os.path.getsize(source) + (64 << 20))
    state = torch.load(source, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(state, dict) or not state:
        sys.exit("%s holds no table of tensors" % source)
    bad = [k for k, v in state.items() if not (isinstance(k, str) and torch.is_tensor(v))]
    if bad:
        sys.exit("%s: %r is no tensor" % (source, bad[0]))
    # clones: tensors that share memory (tied weights) are written each for itself
    save_file({k: v.detach().clone().contiguous() for k, v in state.items()}, target,
              metadata={"format": "pt"})
    print("%d tensors" % len(state))


def convert(source):
    target = os.path.splitext(source)[0] + ".safetensors"
    partial = target + ".tmp"
    print("%s -> %s" % (source, target), flush=True)
    env = {k: os.environ[k] for k in ("LD_LIBRARY_PATH",) if k in os.environ}
    env.update(PATH="/usr/bin:/bin", LANG="C.UTF-8", PYTHONDONTWRITEBYTECODE="1")
    r = subprocess.run([sys.executable, "-I", os.path.abspath(__file__), "--child", source, partial],
                       env=env, stdin=subprocess.DEVNULL, check=False)
    if r.returncode != 0:
        if os.path.exists(partial):
            os.unlink(partial)
        sys.exit("%s was not converted (exit code %d of the reader)" % (source, r.returncode))
    with open(partial, "rb+") as f:
        os.fsync(f.fileno())
    os.replace(partial, target)
    print("written: sha256 %s" % sha256(target))


def main():
    if len(sys.argv) == 4 and sys.argv[1] == "--child":
        child(sys.argv[2], sys.argv[3])
        return
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder")
    p.add_argument("--sha256", help="of the pickle; another one is refused before it is read")
    a = p.parse_args()
    found = [os.path.join(a.folder, n) for n in PICKLES if os.path.exists(os.path.join(a.folder, n))]
    if not found:
        sys.exit("%s: none of %s is there" % (a.folder, ", ".join(PICKLES)))
    for path in found:
        digest = sha256(path)
        print("%s: sha256 %s (%s)" % (path, digest, RELEASED.get(digest, "not a file known here")))
        if a.sha256 and digest != a.sha256.lower():
            sys.exit("%s is not the file with sha256 %s" % (path, a.sha256))
        convert(path)


if __name__ == "__main__":
    main()
