"""Clips that `osp rl` has scored, for a second opinion.
    PYTHON videoalign_clips.py record DIR             a scorer that keeps every clip in DIR
    PYTHON videoalign_clips.py score DIR KEY=VALUE... VideoAlign alone on them; prints the means
The options are those of scripts/videoalign_scorer.py."""
import glob
import json
import os
import sys
import types

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(os.path.dirname(HERE), "scripts")]
sys.dont_write_bytecode = True
import osp_reward  # noqa: E402
import simple_scorer  # noqa: E402


class Recording(simple_scorer.SimpleScorer):
    made = 0

    def score(self, clip):
        Recording.made += 1
        name = os.path.join(sys.argv[2], "%d_%d" % (os.getpid(), self.made))
        with open(name + ".part", "wb") as f:
            f.write(json.dumps([clip.count, clip.height, clip.width, clip.prompt]).encode() + b"\n")
            f.write(bytes(clip.frames))
        os.rename(name + ".part", name + ".clip")
        return super().score(clip)


def read(path):
    with open(path, "rb") as f:
        count, height, width, prompt = json.loads(f.readline())
        frames = memoryview(f.read())
    return types.SimpleNamespace(frames=frames, count=count, height=height, width=width, fps=8.0,
                                 prompt=prompt, total=count, index=list(range(count)),
                                 resized=False)


def score(folder, options):
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        os.environ[name] = "1"
    import torch
    import videoalign_scorer
    scorer = videoalign_scorer.VideoAlign()
    scorer.load(dict(o.split("=", 1) for o in options))
    with torch.no_grad():
        norms = [scorer.score(read(p))[1] for p in sorted(glob.glob(folder + "/*.clip"))]
    print(len(norms), *("%.17g" % (sum(n[d] for n in norms) / len(norms)) for d in range(3)))


if __name__ == "__main__":
    if sys.argv[1] == "record":
        osp_reward.serve(Recording())
    else:
        score(sys.argv[2], sys.argv[3:])
