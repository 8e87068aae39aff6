#!/usr/bin/env python3
"""VideoAlign (VideoReward) as a scorer of the reward bridge: docs/spec/rl.md 3, docs/reward.md.

Everything is read from local folders, weights from safetensors only, nothing from the network.
Options (reward.options of the trainer):
    videoalign_dir   folder with model_config.json and checkpoint-N            required
    base_dir         folder of Qwen2-VL-2B-Instruct (config, tokenizer, safetensors)   required
    template         VideoAlign checkout, or its prompt_template.py             required
    checkpoint       number N [the highest]
    device           cpu, cuda, cuda:N [cuda if there is one]
    dtype            bf16, fp32 [bf16]
    profile          official: frames are declared as 8 per second; true_fps [official]
    special          reject, break: prompts with control tokens of the scorer [reject]
    weights_sha256, base_sha256    of the files, joined by commas, in the order of their names
    threads          of torch on the CPU [its own choice]
Frames are resized here (bicubic, antialiased, rounded to bytes) unless they are declared as resized.
The head and its input are fp32: in bf16 scores near 4 would be multiples of 1/64."""
import hashlib
import os
import sys

import osp_reward
import videoalign_rules as rules
from osp_reward import EX_DATA, EX_SOFTWARE, BadInput, Refused

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
PATCH, MERGE = 14, 2
VIDEO_PAD = "<|video_pad|>"
LIMIT_SELFTEST = {"fp32": 1e-4, "bf16": 0.1}  # VQ, MQ of two prompts: sums of other lengths
LIMIT_AGAIN = {"fp32": 1e-5, "bf16": 0.02}    # the same clip twice: addresses may change sums


def digest(paths):
    out = []
    for path in paths:
        h = hashlib.sha256()
        with open(path, "rb") as f:
            while block := f.read(1 << 22):
                h.update(block)
        out.append(h.hexdigest())
    return ",".join(out)


def patches(torch, frames):
    """[n, 3, h, w] of 0..255 -> ([n/2 * h/14 * w/14, 1176], (n/2, h/14, w/14)): normalised, with the
    four patches that are merged next to each other."""
    n, _, h, w = frames.shape
    mean, std = (torch.tensor(v, device=frames.device).view(1, 3, 1, 1) for v in (MEAN, STD))
    x = (frames / 255 - mean) / std
    t, gh, gw = n // rules.PAIR, h // PATCH, w // PATCH
    x = x.view(t, rules.PAIR, 3, gh // MERGE, MERGE, PATCH, gw // MERGE, MERGE, PATCH)
    x = x.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return x.reshape(t * gh * gw, 3 * rules.PAIR * PATCH * PATCH), (t, gh, gw)


def resize(torch, frames, size):
    """Bytes [n, 3, h, w] as floats -> whole floats of 0..255 of another size."""
    if tuple(frames.shape[2:]) == tuple(size):
        return frames
    x = torch.nn.functional.interpolate(frames, size=size, mode="bicubic", align_corners=False,
                                        antialias=True)
    return x.round().clamp(0, 255)


def merged_state(torch, tensors, scale):
    """Names of the plain model -> tensors, LoRA added to its weights in fp32."""
    plain, parts = {}, {}
    for name, t in tensors.items():
        lora = rules.lora_parts(name)
        if lora:
            parts.setdefault(lora[1], {})[lora[0]] = t
        elif rules.plain_name(name):
            plain[rules.plain_name(name)] = t
    return plain, {name: scale(ab) * (ab["B"].float() @ ab["A"].float())
                   for name, ab in parts.items() if set(ab) == {"A", "B"}}


class VideoAlign:
    dims = rules.DIMS

    def load(self, config):
        try:
            self.start(config)
        except rules.RuleError as e:
            raise Refused(str(e)) from e

    # ---- start ----------------------------------------------------------------------------------
    def start(self, config):
        need = [k for k in ("videoalign_dir", "base_dir", "template") if not config.get(k)]
        if need:
            raise Refused("the option %s is missing (reward.options)" % need[0])
        self.profile = config.get("profile", "official")
        self.special_rule = config.get("special", "reject")
        self.dtype_name = config.get("dtype", "bf16")
        if self.special_rule not in ("reject", "break") or self.dtype_name not in LIMIT_SELFTEST:
            raise Refused("special is reject or break, dtype bf16 or fp32")
        rules.source_fps(self.profile, 1)
        data, model, lora, inference = rules.read_config(config["videoalign_dir"])
        self.constants = rules.constants(inference)
        self.fps = float(data.get("fps", rules.TARGET_FPS))
        self.largest = int(data.get("max_frame_pixels", rules.MAX_PIXELS))
        self.template = rules.read_template(config["template"])
        number = config.get("checkpoint")
        self.checkpoint = rules.newest_checkpoint(config["videoalign_dir"],
                                                  int(number) if number else None)
        self.files = rules.weight_files(self.checkpoint)
        self.base = config["base_dir"]
        self.base_files = self.base_weights()
        self.check_digests(config)
        self.prepare_torch(config)
        self.load_tokenizer()
        self.load_model(int(model.get("output_dim", 1)), lora)

    def base_weights(self):
        try:
            names = sorted(n for n in os.listdir(self.base) if n.endswith(".safetensors"))
        except OSError as e:
            raise Refused("%s: %s; base_dir names the folder of Qwen2-VL-2B-Instruct" %
                          (self.base, e.strerror), osp_reward.EX_NOINPUT) from e
        if not names or not os.path.exists(os.path.join(self.base, "config.json")):
            raise Refused("%s has no config.json with *.safetensors; download Qwen2-VL-2B-Instruct "
                          "there, not as a pickle" % self.base)
        return [os.path.join(self.base, n) for n in names]

    def check_digests(self, config):
        self.sha = {"weights_sha256": digest(self.files), "base_sha256": digest(self.base_files)}
        for key, have in self.sha.items():
            want = config.get(key)
            if want and want.lower() != have:
                raise Refused("%s is %s, the configuration wants %s: these are other files" %
                              (key, have, want), EX_DATA)

    def prepare_torch(self, config):
        os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")  # sums do not depend on addresses
        try:
            import safetensors.torch
            import torch
            import transformers
        except ImportError as e:
            raise Refused("%s; the scorer needs torch, transformers, safetensors: install them for "
                          "the python of reward.command" % e) from e
        self.torch, self.transformers, self.load_file = torch, transformers, safetensors.torch.load_file
        torch.manual_seed(0)
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.set_grad_enabled(False)
        if config.get("threads"):
            torch.set_num_threads(int(config["threads"]))
        device = config.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise Refused("device is %s, but torch finds no GPU; device=cpu works, slowly" % device)
        self.device = torch.device(device)

    def load_tokenizer(self):
        own = os.path.join(self.checkpoint, "tokenizer")
        folder = own if os.path.isdir(own) else self.base
        tok = self.transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True,
                                                              trust_remote_code=False)
        missing = [t for t in rules.REWARD_TOKENS if t not in tok.get_vocab()]
        if missing:
            tok.add_special_tokens({"additional_special_tokens": list(missing)})
        if not tok.chat_template:
            base = self.transformers.AutoTokenizer.from_pretrained(self.base, local_files_only=True)
            tok.chat_template = base.chat_template
        if not tok.chat_template:
            raise Refused("neither %s nor %s has a chat template" % (folder, self.base))
        self.tokenizer = tok
        self.reward_ids = [tok.convert_tokens_to_ids(t) for t in rules.REWARD_TOKENS]
        self.pad_id = tok.convert_tokens_to_ids(VIDEO_PAD)
        if VIDEO_PAD not in tok.get_vocab():
            raise Refused("the tokenizer of %s has no %s" % (folder, VIDEO_PAD))
        added = {str(t) for t in tok.get_added_vocab()}
        self.special = added | {str(t) for t in tok.all_special_tokens} | set(rules.REWARD_TOKENS)

    def load_model(self, output_dim, lora):
        torch, tf = self.torch, self.transformers
        version = tuple(int(v) for v in tf.__version__.split(".")[:2])
        kind = {"dtype" if version >= (4, 56) else "torch_dtype": torch.float32}
        m = tf.Qwen2VLForConditionalGeneration.from_pretrained(
            self.base, local_files_only=True, use_safetensors=True, trust_remote_code=False,
            attn_implementation="sdpa", **kind)
        m.resize_token_embeddings(len(self.tokenizer), mean_resizing=False)
        tensors = {}
        for path in self.files:
            tensors.update(self.load_file(path))
        plain, changes = merged_state(torch, tensors, lambda ab: self.lora_scale(ab, lora))
        head = plain.pop("rm_head.weight", None)
        if head is None or head.shape[0] != output_dim or output_dim not in (1, 3):
            raise Refused("%s has no rm_head.weight of %d rows (1 or 3 are possible)" %
                          (self.checkpoint, output_dim), EX_DATA)
        self.overlay(m, plain, changes)
        self.head = head.float().to(self.device)
        nested = hasattr(m.model, "visual")
        self.visual = (m.model if nested else m).visual
        self.language = m.model.language_model if nested else m.model
        dtype = torch.bfloat16 if self.dtype_name == "bf16" else torch.float32
        for part in (self.visual, self.language):
            part.to(device=self.device, dtype=dtype).eval()
        self.dtype = dtype

    @staticmethod
    def lora_scale(ab, lora):
        r, want, alpha = ab["A"].shape[0], lora.get("lora_r"), lora.get("lora_alpha")
        if not want or not alpha or r != int(want):
            raise Refused("peft_lora_config says lora_r %s, lora_alpha %s; the tensors have rank %d" %
                          (want, alpha, r), EX_DATA)
        return float(alpha) / (r ** 0.5 if lora.get("use_rslora") else r)

    def overlay(self, m, plain, changes):
        """The checkpoint's tensors over the base's; every one must have its place."""
        have = dict(m.state_dict(keep_vars=True))
        nested = any(n.startswith("model.language_model.") for n in have)

        def place(name):
            return have.get(rules.nested_name(name) if nested else name)
        plain.pop("lm_head.weight", None)  # not used, and in the base tied to the embedding
        for name, t in list(plain.items()) + list(changes.items()):
            to = place(name)
            if to is None or tuple(to.shape) != tuple(t.shape):
                raise Refused("the tensor %s %s of the checkpoint has no place in the model (%s)" %
                              (name, tuple(t.shape), to is not None and tuple(to.shape)), EX_DATA)
        for name, t in plain.items():
            place(name).data.copy_(t)
        for name, t in changes.items():
            place(name).data.add_(t)
        self.merged = len(changes)

    # ---- what it is -----------------------------------------------------------------------------
    def info(self):
        return {"scorer": "videoalign 1", "profile": self.profile, "dtype": self.dtype_name,
                "device": self.device, "checkpoint": os.path.basename(self.checkpoint),
                "torch": self.torch.__version__, "transformers": self.transformers.__version__,
                "template_sha256": hashlib.sha256(self.template.encode()).hexdigest(),
                "reward_ids": ",".join(str(i) for i in self.reward_ids),
                "scale": " ".join("%g/%g" % c for c in self.constants), "lora": self.merged,
                **self.sha}

    def selftest(self):
        torch = self.torch
        t, y, x, c = torch.meshgrid(*(torch.arange(n) for n in (4, 336, 448, 3)), indexing="ij")
        made = ((x // 2 + y // 3 + 8 * t + 64 * c) % 256).permute(0, 3, 1, 2).float()
        first, other = (self.raw_scores(made, p)[0] for p in
                        ("a grey gradient that moves to the left", "two dogs in the snow at night"))
        again = self.raw_scores(made, "a grey gradient that moves to the left")[0]
        if max(abs(a - b) for a, b in zip(first, again)) > LIMIT_AGAIN[self.dtype_name]:
            raise Refused("the self-test is not repeatable: %s, then %s" % (first, again), EX_SOFTWARE)
        worst = max(abs(a - b) for a, b in zip(first[:2], other[:2]))
        if not worst <= LIMIT_SELFTEST[self.dtype_name]:
            raise Refused("the self-test: VQ and MQ depend on the prompt (%s, %s); the template or "
                          "the attention mask is wrong" % (first, other), EX_SOFTWARE)
        return rules.normalise(first, self.constants)

    # ---- scores ---------------------------------------------------------------------------------
    def select(self, clip):
        """Which of the delivered frames the scorer looks at."""
        if clip.total < rules.PAIR:
            raise BadInput("a clip of %d frame; at least 2 are needed" % clip.total)
        n = rules.frame_count(clip.total, rules.source_fps(self.profile, clip.fps), self.fps)
        at = {source: i for i, source in enumerate(clip.index)}
        want = rules.frame_indices(clip.total, n)
        missing = [i for i in want if i not in at]
        if missing:
            raise BadInput("frame %d of %d is needed (profile %s), but was not delivered" %
                           (missing[0], clip.total, self.profile))
        return [at[i] for i in want]

    def frames(self, clip):
        torch = self.torch
        if clip.resized and (clip.height % rules.FACTOR or clip.width % rules.FACTOR):
            raise BadInput("frames of %dx%d are declared as resized; the scorer's sides are "
                           "multiples of %d" % (clip.height, clip.width, rules.FACTOR))
        shape = (clip.count, clip.height, clip.width, 3)
        flat = torch.frombuffer(bytearray(clip.frames), dtype=torch.uint8)
        x = flat.view(shape)[self.select(clip)].permute(0, 3, 1, 2).to(self.device).float()
        if clip.resized:
            return x
        size = rules.frame_size(clip.height, clip.width, largest=self.largest)
        return torch.cat([resize(torch, f[None], size) for f in x])

    def token_ids(self, prompt, tokens):
        try:
            prompt = rules.guard_prompt(prompt, self.special, self.special_rule)
        except rules.RuleError as e:
            raise BadInput(str(e)) from e
        text = rules.fill_template(self.template, prompt)
        chat = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": text}]}]
        text = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        if text.count(VIDEO_PAD) != 1:
            raise Refused("the chat template makes %d places for a video" % text.count(VIDEO_PAD))
        ids = self.tokenizer(text.replace(VIDEO_PAD, VIDEO_PAD * tokens), add_special_tokens=False)
        return ids["input_ids"]

    def raw_scores(self, frames, prompt):
        """[VQ, MQ, TA], number of tokens."""
        torch = self.torch
        x, grid = patches(torch, frames.to(self.device))
        tokens = grid[0] * grid[1] * grid[2] // MERGE ** 2
        ids = torch.tensor([self.token_ids(prompt, tokens)], device=self.device)
        video = self.visual(x.to(self.dtype), grid_thw=torch.tensor([grid], device=self.device))
        video = video if torch.is_tensor(video) else video.pooler_output
        at = (ids[0] == self.pad_id).nonzero().flatten()
        if len(at) != len(video):
            raise RuntimeError("%d places for %d video tokens" % (len(at), len(video)))
        embeds = self.language.embed_tokens(ids)
        embeds[0, at] = video.to(embeds.dtype)
        n = ids.shape[1]
        # trained with plain positions 0, 1, 2, ... on all three axes
        positions = torch.arange(n, device=self.device).view(1, 1, n).expand(3, 1, n)
        out = self.language(inputs_embeds=embeds, position_ids=positions, use_cache=False,
                            attention_mask=torch.ones_like(ids))
        where = [(ids[0] == t).nonzero().flatten().tolist() for t in self.reward_ids]
        if [len(w) for w in where] != [1, 1, 1]:
            raise RuntimeError("the text has %s reward tokens, not one each" % [len(w) for w in where])
        rows = out.last_hidden_state[0, [w[0] for w in where]].float() @ self.head.T
        return [rows[i, i if rows.shape[1] == 3 else 0].item() for i in range(3)], n

    def score(self, clip):
        try:
            frames = self.frames(clip)
            raw, tokens = self.raw_scores(frames, clip.prompt)
        except self.torch.cuda.OutOfMemoryError as e:
            self.torch.cuda.empty_cache()
            raise MemoryError(str(e).split("\n")[0]) from e
        return raw, rules.normalise(raw, self.constants), len(frames), tokens


if __name__ == "__main__":
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ[name] = "1"
    sys.dont_write_bytecode = True
    osp_reward.serve(VideoAlign())
