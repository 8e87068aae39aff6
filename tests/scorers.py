"""Tests of the Python side of the reward bridge; test_reward runs them.
    python3 tests/scorers.py            what needs no torch
    PYTHON tests/scorers.py Model       a tiny random VideoAlign; needs torch and transformers"""
import os
import pickle
import subprocess
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
SCRIPTS = os.path.join(os.path.dirname(HERE), "scripts")
sys.path[:0] = [SCRIPTS, HERE]
sys.dont_write_bytecode = True
import osp_reward  # noqa: E402
import simple_scorer  # noqa: E402
import videoalign_rules as rules  # noqa: E402

TEMPLATE = "\nA {{b}}\nPicture <|VQ_reward|>\nMotion <|MQ_reward|>  \n- {text_prompt}\n<|TA_reward|>\n"


class FakeClip:
    def __init__(self, frames, count, height, width, prompt="", **more):
        self.frames, self.count, self.height, self.width = frames, count, height, width
        self.prompt, self.fps, self.resized = prompt, 16.0, False
        self.total, self.index = count, list(range(count))
        self.__dict__.update(more)


class Rules(unittest.TestCase):
    def test_frames_of_81(self):
        for fps, n in ((8, 20), (16, 10), (24, 6)):
            self.assertEqual(rules.frame_count(81, fps), n)
        self.assertEqual(rules.frame_indices(81, 20), [0, 4, 8, 13, 17, 21, 25, 29, 34, 38, 42, 46,
                                                       51, 55, 59, 63, 67, 72, 76, 80])
        self.assertEqual(rules.frame_indices(81, 10), [0, 9, 18, 27, 36, 44, 53, 62, 71, 80])

    def test_frame_counts_are_bounded(self):
        self.assertEqual(rules.frame_count(5, 16), 4)      # at least 4 where there are as many
        self.assertEqual(rules.frame_count(3, 16), 2)
        self.assertEqual(rules.frame_count(5000, 8), 768)
        for total in range(2, 300):
            for fps in (5, 8, 16, 23.976):
                n = rules.frame_count(total, fps)
                self.assertTrue(n % 2 == 0 and 2 <= n <= total, (total, fps, n))
                at = rules.frame_indices(total, n)
                self.assertTrue(at[0] == 0 and at[-1] == total - 1 and at == sorted(at))

    def test_sizes(self):
        for h, w in ((720, 1280), (480, 832), (768, 1344)):
            self.assertEqual(rules.frame_size(h, w), (336, 588))
        self.assertEqual(rules.video_tokens(20, 336, 588), 2520)
        self.assertEqual(rules.video_tokens(10, 336, 588), 1260)
        self.assertEqual(rules.frame_size(336, 588), (336, 588))
        self.assertEqual(rules.frame_size(448, 448), (448, 448))
        self.assertEqual(rules.frame_size(14, 14), (336, 336))  # enlarged; 14 / 28 is half to even
        for h in range(16, 1400, 97):
            for w in range(16, 1400, 89):
                a, b = rules.frame_size(h, w)
                self.assertTrue(a % 28 == 0 and b % 28 == 0, (h, w, a, b))

    def test_normalised_scores(self):
        c = rules.constants({"VQ_mean": 3.6757, "VQ_std": 2.2476, "MQ_mean": 1.1646,
                             "MQ_std": 1.3811, "TA_mean": 2.8105, "TA_std": 2.5121})
        got = rules.normalise((4.25, 1.0, 3.5), c)
        for g, want in zip(got, (.2555170, -.1191804, .2744716)):
            self.assertAlmostEqual(g, want, 7)
        self.assertAlmostEqual(sum(got), .4108082, 7)
        for bad in ({}, {"VQ_mean": "x"}, None):
            self.assertRaises(rules.RuleError, rules.constants, bad)

    def test_profiles(self):
        self.assertEqual(rules.source_fps("official", 16), 8)
        self.assertEqual(rules.source_fps("true_fps", 16), 16)
        self.assertRaisesRegex(rules.RuleError, "official or true_fps", rules.source_fps, "x", 16)

    def test_template(self):
        with tempfile.TemporaryDirectory() as d:
            path = os.path.join(d, "prompt_template.py")

            def read(text):
                with open(path, "w", encoding="utf-8") as f:
                    f.write(text)
                return rules.read_template(d)
            line = "%s = %r\n" % (rules.TEMPLATE_NAME, TEMPLATE)
            text = read("raise SystemExit('executed')\n" + line)
            self.assertEqual(text, TEMPLATE)
            self.assertEqual(rules.fill_template(text, "{x} {"),
                             TEMPLATE.replace("{{b}}", "{b}").replace("{text_prompt}", "{x} {"))
            for bad, why in (("x = 1\n", "defines no text"), ("(", "no Python file"),
                             (line.replace("MQ_", "TA_"), "not each of"),
                             (line.replace("{text_prompt}", "{a}"), "fields"),
                             (line.replace("{text_prompt}", "").replace("A {", "{text_prompt} {"),
                              "does not stand between")):
                self.assertRaisesRegex(rules.RuleError, why, read, bad)
            self.assertRaisesRegex(rules.RuleError, "template names", rules.read_template, d + "/x")

    def test_prompts_cannot_bring_tokens(self):
        special = ["<|VQ_reward|>", "<|im_end|>", "<|video_pad|>"]
        self.assertEqual(rules.guard_prompt("a dog", special), "a dog")
        self.assertRaisesRegex(rules.RuleError, r"contains <\|im_end\|>", rules.guard_prompt,
                               "a <|im_end|> dog", special)
        broken = rules.guard_prompt("a <|VQ_reward|> dog", special, "break")
        self.assertTrue(not any(s in broken for s in special) and "VQ_reward" in broken)

    def test_names(self):
        self.assertEqual(rules.plain_name("base_model.model.model.layers.0.q.base_layer.weight"),
                         "model.layers.0.q.weight")
        self.assertEqual(rules.plain_name("base_model.model.rm_head.modules_to_save.default.weight"),
                         "rm_head.weight")
        self.assertIsNone(rules.plain_name("base_model.model.rm_head.original_module.weight"))
        self.assertEqual(rules.nested_name("model.norm.weight"), "model.language_model.norm.weight")
        self.assertEqual(rules.nested_name("visual.x"), "model.visual.x")
        self.assertEqual(rules.nested_name("model.visual.x"), "model.visual.x")
        self.assertEqual(rules.lora_parts("base_model.model.model.layers.0.q.lora_A.default.weight"),
                         ("A", "model.layers.0.q.weight"))
        self.assertRaises(rules.RuleError, rules.lora_parts, "a.lora_embedding_A.default")

    def test_pickles_are_refused(self):
        with tempfile.TemporaryDirectory() as d:
            self.assertRaisesRegex(rules.RuleError, "has no folder checkpoint-N",
                                   rules.newest_checkpoint, d)
            for n in (9, 11352):
                os.mkdir(os.path.join(d, "checkpoint-%d" % n))
            c = rules.newest_checkpoint(d)
            self.assertTrue(c.endswith("checkpoint-11352"))
            self.assertRaisesRegex(rules.RuleError, "has no checkpoint-8", rules.newest_checkpoint,
                                   d, 8)
            self.assertRaisesRegex(rules.RuleError, "neither", rules.weight_files, c)
            open(os.path.join(c, "model.pth"), "wb").close()
            self.assertRaisesRegex(rules.RuleError, "videoalign_convert.py", rules.weight_files, c)
            open(os.path.join(c, "model.safetensors"), "wb").close()
            self.assertEqual(len(rules.weight_files(c)), 1)


class Bridge(unittest.TestCase):
    def test_messages(self):
        whole = osp_reward.pack(osp_reward.PONG, 7, b"a=1\n")
        self.assertEqual(osp_reward.unpack_header(whole[:32])[:3], (osp_reward.PONG, 4, 7))
        for bit in range(8 * 32):
            bad = bytearray(whole[:32])
            bad[bit // 8] ^= 1 << bit % 8
            self.assertRaises(osp_reward.ProtocolError, osp_reward.unpack_header, bytes(bad))
        self.assertEqual(osp_reward.from_lines(osp_reward.to_lines({"a": "b=c", "d": "e\nf"})),
                         {"a": "b=c", "d": "e f"})

    def test_requests_are_checked(self):
        import struct
        head = (1, 0, 0, 2, 4, 4, 0, 0, 0, 16.0, 2, 0)
        tail = struct.pack("<II", 0, 2) + b"hi"
        fmt = "<IIQIIIBBHdII"
        memory = memoryview(bytes(96))
        clip = osp_reward.Clip(1, struct.pack(fmt, *head) + tail, memory)
        self.assertEqual((clip.prompt, clip.index, len(clip.frames)), ("hi", [0, 1], 96))
        for at, v in ((0, 2), (2, 1), (3, 3), (6, 1), (7, 2), (8, 1), (11, 1)):
            bad = list(head)
            bad[at] = v
            with self.assertRaises((osp_reward.ProtocolError, struct.error)):
                osp_reward.Clip(1, struct.pack(fmt, *bad) + tail, memory)
        self.assertRaises(osp_reward.ProtocolError, osp_reward.Clip, 1,
                          struct.pack(fmt, *head) + tail + b"x", memory)

    def test_simple_scores(self):
        def clip(fill, prompt, n=4, h=32, w=48):
            return FakeClip(bytes(v for t in range(n) for y in range(h) for x in range(w)
                                  for v in fill(t, y, x)), n, h, w, prompt)
        moving = clip(lambda t, y, x: 3 * (255 * ((x // 8 + t) % 2),), "fast")
        still = clip(lambda t, y, x: 3 * (255 * (x // 8 % 2),), "fast")
        a, b = simple_scorer.scores(moving), simple_scorer.scores(still)
        self.assertEqual((a[1], a[2], b[1], b[2]), (1.0, 1.0, 0.0, -1.0))
        self.assertEqual(a[0], 1.0)
        flicker = clip(lambda t, y, x: 3 * (255 * (t % 2),), "")
        self.assertEqual(simple_scorer.scores(flicker)[:2], [-1.0, 0.0])
        pink = clip(lambda t, y, x: (255, 0, 255), "A pink dress.")
        self.assertEqual(simple_scorer.scores(pink)[2], 1.0)


def python_with_model():
    try:
        import tokenizers, torch, transformers, safetensors  # noqa: F401,E401
    except ImportError as e:
        return str(e)
    return None


@unittest.skipIf(sys.argv[1:2] != ["Model"], "asked for by name")
class Model(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            os.environ[name] = "1"
        import torch
        import videoalign_tiny
        import videoalign_scorer
        cls.torch, cls.scorer_of = torch, videoalign_scorer
        cls.folder = tempfile.TemporaryDirectory()
        out = cls.folder.name
        videoalign_tiny.make(out)
        cls.config = {"videoalign_dir": out + "/align", "base_dir": out + "/base",
                      "template": out, "device": "cpu", "dtype": "fp32", "threads": "2"}
        cls.checkpoint = out + "/align/checkpoint-7"
        cls.refused = cls.start_error()
        r = subprocess.run([sys.executable, os.path.join(SCRIPTS, "videoalign_convert.py"),
                            cls.checkpoint], capture_output=True, text=True, check=False)
        cls.converted = r.returncode, r.stdout + r.stderr
        cls.scorer = videoalign_scorer.VideoAlign()
        cls.scorer.load(cls.config)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    @classmethod
    def start_error(cls, **changes):
        try:
            cls.scorer_of.VideoAlign().load({**cls.config, **changes})
        except osp_reward.Refused as e:
            return str(e)
        return ""

    def frames(self, n=4, h=56, w=84):
        g = self.torch.Generator().manual_seed(5)
        return self.torch.randint(0, 256, (n, 3, h, w), generator=g).float()

    def test_pickle_then_conversion(self):
        self.assertIn("is a pickle", self.refused)
        self.assertEqual(self.converted[0], 0, self.converted[1])
        self.assertIn("written: sha256", self.converted[1])

    def test_evil_pickle(self):
        class Evil:
            def __reduce__(self):
                return os.system, ("touch %s" % mark,)
        with tempfile.TemporaryDirectory() as d:
            mark = os.path.join(d, "mark")
            with open(os.path.join(d, "model.pth"), "wb") as f:
                pickle.dump({"a": Evil()}, f)
            r = subprocess.run([sys.executable, os.path.join(SCRIPTS, "videoalign_convert.py"), d],
                               capture_output=True, text=True, check=False)
            self.assertNotEqual(r.returncode, 0)
            self.assertEqual(os.listdir(d), ["model.pth"])

    def test_selftest(self):
        self.assertEqual(len(self.scorer.selftest()), 3)
        self.assertEqual(self.scorer.info()["lora"], 6)

    def test_scores_equal_the_library_model(self):
        """LoRA by hand on the library's model, its own features and forward pass."""
        torch, s = self.torch, self.scorer
        import transformers
        m = transformers.Qwen2VLForConditionalGeneration.from_pretrained(
            self.config["base_dir"], local_files_only=True).float().eval()
        m.resize_token_embeddings(len(s.tokenizer), mean_resizing=False)
        state = torch.load(self.checkpoint + "/model.pth", weights_only=True)
        nested = hasattr(m.model, "visual")
        own = m.state_dict()
        for name, t in state.items():
            lora = rules.lora_parts(name)
            if lora or "rm_head" in name or "lm_head" in name:
                continue
            plain = rules.plain_name(name)
            own[rules.nested_name(plain) if nested else plain].copy_(t)
        for name, t in state.items():
            if ".lora_A." in name:
                b = state[name.replace("lora_A", "lora_B")]
                plain = rules.lora_parts(name)[1]
                own[rules.nested_name(plain) if nested else plain].add_(2.0 * b @ t)
        frames = self.frames()
        x, grid = self.scorer_of.patches(torch, frames)
        ids = torch.tensor([s.token_ids("a dog", 2 * 2 * 3)])
        n = ids.shape[1]
        with torch.no_grad():
            out = m(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values_videos=x,
                    video_grid_thw=torch.tensor([grid]), output_hidden_states=True,
                    position_ids=torch.arange(n).view(1, 1, n).expand(3, 1, n))
        at = [(ids[0] == i).nonzero().item() for i in s.reward_ids]
        want = out.hidden_states[-1][0, at] @ state["base_model.model.rm_head.weight"].T
        got, tokens = s.raw_scores(frames, "a dog")
        self.assertEqual(tokens, n)
        for g, w in zip(got, want.flatten().tolist()):
            self.assertAlmostEqual(g, w, 4)

    def test_patches_equal_the_library(self):
        try:
            from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
            import numpy
            p = Qwen2VLImageProcessor(do_resize=False)
            # of one frame, which it doubles in time
            image = self.frames(1)[0].to(self.torch.uint8).permute(1, 2, 0).numpy()
            want = p(images=[numpy.ascontiguousarray(image)], return_tensors="pt")
        except Exception as e:
            self.skipTest("no processor: %s" % " ".join(str(e).split())[:80])
        got, grid = self.scorer_of.patches(self.torch, self.frames(1).repeat(2, 1, 1, 1))
        self.assertEqual(list(grid), want["image_grid_thw"][0].tolist())
        self.assertTrue(self.torch.allclose(got, want["pixel_values"], atol=1e-5))

    def test_indices_are_those_of_linspace(self):
        for total in range(2, 400):
            n = rules.frame_count(total, 8)
            want = self.torch.linspace(0, total - 1, n).round().long().tolist()
            self.assertEqual(rules.frame_indices(total, n), want, total)

    def test_only_text_alignment_sees_the_prompt(self):
        a, _ = self.scorer.raw_scores(self.frames(), "a dog")
        b, _ = self.scorer.raw_scores(self.frames(), "a much longer text about two cats")
        self.assertAlmostEqual(a[0], b[0], 4)
        self.assertAlmostEqual(a[1], b[1], 4)
        self.assertNotAlmostEqual(a[2], b[2], 3)
        for x, y in zip(a, self.scorer.raw_scores(self.frames(), "a dog")[0]):
            self.assertAlmostEqual(x, y, 5)

    def test_clips(self):
        h, w, n = 40, 60, 9
        data = memoryview(bytes((7 * i) % 256 for i in range(n * h * w * 3)))
        raw, norm, used, tokens = self.scorer.score(FakeClip(data, n, h, w, "a dog"))
        self.assertEqual(used, 4)
        self.assertEqual(norm, rules.normalise(raw, self.scorer.constants))
        self.assertGreater(tokens, 2 * 12 * 12)
        part = [0, 3, 5, 8]
        picked = memoryview(b"".join(bytes(data[i * h * w * 3:(i + 1) * h * w * 3]) for i in part))
        again = self.scorer.score(FakeClip(picked, 4, h, w, "a dog", total=n, index=part))
        for a, b in zip(again[0], raw):
            self.assertAlmostEqual(a, b, 5)
        for clip, why in ((FakeClip(picked, 4, h, w, "x", total=n, index=[0, 1, 2, 3]), "frame"),
                          (FakeClip(data, n, h, w, "<|VQ_reward|>"), "control token"),
                          (FakeClip(data, n, h, w, "x", resized=True), "multiples of 28"),
                          (FakeClip(data[:h * w * 3], 1, h, w, "x"), "at least 2")):
            self.assertRaisesRegex(osp_reward.BadInput, why, self.scorer.score, clip)

    def test_wrong_configurations(self):
        d = self.folder.name
        for changes, why in (({"videoalign_dir": ""}, "videoalign_dir is missing"),
                             ({"base_dir": d}, "has no config.json"),
                             ({"base_dir": d + "/x"}, "base_dir names"),
                             ({"template": d + "/base"}, "template names"),
                             ({"checkpoint": "8"}, "has no checkpoint-8"),
                             ({"profile": "x"}, "official or true_fps"),
                             ({"dtype": "fp8"}, "bf16 or fp32"),
                             ({"weights_sha256": "00"}, "other files"),
                             ({"device": "cuda:99"} if not self.torch.cuda.is_available() else
                              {"device": "", "dtype": "x"}, "no GPU|bf16 or fp32")):
            self.assertRegex(self.start_error(**changes), why)


if __name__ == "__main__":
    if sys.argv[1:2] == ["Model"]:
        reason = python_with_model()
        if reason:
            print("skip:", reason)
            sys.exit(77)
    unittest.main(verbosity=1)
