"""What VideoAlign's scorer does to frames, text and numbers (docs/spec/rl.md 3.2 to 3.4), without
torch: which frames, which size, where the template is, how scores are normalised."""
import ast
import json
import math
import os
import re
import string
import struct

FACTOR = 28                     # a patch of 14 pixels, merged by twos
MIN_PIXELS, MAX_PIXELS = 128 * 28 * 28, 448 * 448
MIN_FRAMES, MAX_FRAMES, PAIR = 4, 768, 2
TARGET_FPS = 2.0
DIMS = ("VQ", "MQ", "TA")
REWARD_TOKENS = tuple("<|%s_reward|>" % d for d in DIMS)
TEMPLATE_NAME = "DETAILED_PROMPT_WITH_SPECIAL_TOKEN"
PROFILES = ("official", "true_fps")


class RuleError(Exception):
    """A mistake of whoever configured the scorer; the text has the remedy."""


def f32(v):
    return struct.unpack("f", struct.pack("f", v))[0]


def frame_count(total, fps, target=TARGET_FPS):
    """Frames to look at: an even number, at least 4 where there are as many."""
    most = min(MAX_FRAMES, total) // PAIR * PAIR
    n = min(max(total / fps * target, MIN_FRAMES), most)
    return min(PAIR * round(n / PAIR), total)


def frame_indices(total, n):
    """round(linspace(0, total - 1, n)) in single precision, from both ends, halves to even."""
    if n == 1:
        return [0]
    step, end = f32((total - 1) / (n - 1)), float(total - 1)
    return [round(f32(step * i)) if 2 * i < n else round(f32(end - f32(step * (n - 1 - i))))
            for i in range(n)]


def source_fps(profile, true_fps):
    """The frame rate that the scorer is told: the official trainer always says 8."""
    if profile not in PROFILES:
        raise RuleError("profile is \"%s\"; it can be %s" % (profile, " or ".join(PROFILES)))
    return 8.0 if profile == "official" else true_fps


def frame_size(height, width, smallest=MIN_PIXELS, largest=MAX_PIXELS):
    """Sides in multiples of 28 with an area between the two limits."""
    h, w = max(FACTOR, round(height / FACTOR) * FACTOR), max(FACTOR, round(width / FACTOR) * FACTOR)
    if h * w > largest:
        beta = math.sqrt(height * width / largest)
        h = max(FACTOR, math.floor(height / beta / FACTOR) * FACTOR)
        w = max(FACTOR, math.floor(width / beta / FACTOR) * FACTOR)
    elif h * w < smallest:
        beta = math.sqrt(smallest / (height * width))
        h, w = (math.ceil(s * beta / FACTOR) * FACTOR for s in (height, width))
    return h, w


def video_tokens(n, height, width):
    return n // PAIR * (height // FACTOR) * (width // FACTOR)


def normalise(raw, constants):
    """constants: [(mean, std)] in the order of the scores."""
    return [(v - mean) / std for v, (mean, std) in zip(raw, constants)]


def constants(inference):
    """[(mean, std)] of the section inference_config of model_config.json."""
    try:
        out = [(float(inference[d + "_mean"]), float(inference[d + "_std"])) for d in DIMS]
    except (KeyError, TypeError, ValueError) as e:
        raise RuleError("inference_config of model_config.json has no number %s" % e) from e
    if not all(math.isfinite(m) and math.isfinite(s) and s > 0 for m, s in out):
        raise RuleError("inference_config of model_config.json: %s is no scale" % (out,))
    return out


def read_template(path):
    """The text of the template, taken out of prompt_template.py of a VideoAlign checkout as a
    literal; nothing of that file is executed. path: the file or the checkout."""
    if os.path.isdir(path):
        path = os.path.join(path, "prompt_template.py")
    try:
        with open(path, encoding="utf-8") as f:
            tree = ast.parse(f.read(), path)
    except OSError as e:
        raise RuleError("%s: %s; template names prompt_template.py of a VideoAlign checkout" %
                        (path, e.strerror)) from e
    except (SyntaxError, ValueError) as e:
        raise RuleError("%s is no Python file: %s" % (path, e)) from e
    for node in tree.body:
        if (isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and
                isinstance(node.value.value, str) and
                any(isinstance(t, ast.Name) and t.id == TEMPLATE_NAME for t in node.targets)):
            return check_template(node.value.value, path)
    raise RuleError("%s defines no text %s" % (path, TEMPLATE_NAME))


def check_template(text, path):
    fields = [f for _, f, _, _ in string.Formatter().parse(text) if f is not None]
    if fields != ["text_prompt"]:
        raise RuleError("%s: the template has the fields %s, not text_prompt alone" % (path, fields))
    at = [text.find(t) for t in REWARD_TOKENS]
    if min(at) < 0 or at != sorted(at) or any(text.count(t) != 1 for t in REWARD_TOKENS):
        raise RuleError("%s: the template has not each of %s once, in this order" %
                        (path, " ".join(REWARD_TOKENS)))
    if not at[1] < text.find("{text_prompt}") < at[2]:
        raise RuleError("%s: the prompt does not stand between the second and the third token" % path)
    return text


def fill_template(text, prompt):
    return text.format(text_prompt=prompt)


def guard_prompt(prompt, special, how="reject"):
    """Strings that mean something to the tokenizer must not come from a prompt: they would move the
    positions at which scores are read. Returns the prompt to use."""
    found = sorted(s for s in special if s and s in prompt)
    if not found:
        return prompt
    if how == "reject":
        raise RuleError("the prompt contains %s, which is a control token of the scorer; remove it "
                        "or set special=break" % found[0])
    for s in sorted(found, key=len, reverse=True):
        prompt = prompt.replace(s, s[0] + "\u200b" + s[1:])
    return prompt


def newest_checkpoint(folder, number=None):
    """Path of checkpoint-N below the folder; the highest N when none is given."""
    try:
        names = os.listdir(folder)
    except OSError as e:
        raise RuleError("%s: %s; videoalign_dir names the folder with model_config.json and "
                        "checkpoint-N" % (folder, e.strerror)) from e
    found = {int(m.group(1)): n for n in names for m in [re.fullmatch(r"checkpoint-(\d+)", n)] if m}
    if not found:
        raise RuleError("%s has no folder checkpoint-N" % folder)
    if number is not None and number not in found:
        raise RuleError("%s has no checkpoint-%d, but %s" %
                        (folder, number, ", ".join(found[n] for n in sorted(found))))
    return os.path.join(folder, found[max(found) if number is None else number])


def weight_files(checkpoint):
    """Safetensors files of a checkpoint folder. Pickles are refused: loading one can run any code."""
    def have(name):
        return os.path.exists(os.path.join(checkpoint, name))
    for whole in (["model.safetensors"], ["adapter_model.safetensors",
                                          "non_lora_state_dict.safetensors"]):
        if all(have(n) for n in whole):
            return [os.path.join(checkpoint, n) for n in whole]
    pickles = [n for n in ("model.pth", "non_lora_state_dict.pth", "adapter_model.bin") if have(n)]
    if pickles:
        raise RuleError("%s is a pickle, and loading a pickle can run any code; convert it once: "
                        "python3 scripts/videoalign_convert.py %s" %
                        (os.path.join(checkpoint, pickles[0]), checkpoint))
    raise RuleError("%s has neither model.safetensors nor adapter_model.safetensors with "
                    "non_lora_state_dict.safetensors" % checkpoint)


def read_config(folder):
    """(data, model, lora, inference) sections of model_config.json."""
    path = os.path.join(folder, "model_config.json")
    try:
        with open(path, encoding="utf-8") as f:
            c = json.load(f)
    except OSError as e:
        raise RuleError("%s: %s" % (path, e.strerror)) from e
    except ValueError as e:
        raise RuleError("%s is no JSON: %s" % (path, e)) from e
    missing = [k for k in ("data_config", "model_config", "peft_lora_config", "inference_config")
               if not isinstance(c.get(k), dict)]
    if missing:
        raise RuleError("%s has no section %s" % (path, missing[0]))
    data, model = c["data_config"], c["model_config"]
    for section, key, want in ((data, "prompt_template_type", "detailed_special"),
                               (data, "sample_type", "uniform"),
                               (model, "reward_token", "special")):
        if section.get(key, want) != want:
            raise RuleError("%s: %s is \"%s\"; this scorer knows \"%s\" only" %
                            (path, key, section[key], want))
    return data, model, c["peft_lora_config"], c["inference_config"]


# ---- names of tensors ---------------------------------------------------------------------------
def plain_name(name):
    """A name of the checkpoint without what LoRA wrapping added; None: not used for inference."""
    name = re.sub(r"^base_model\.model\.", "", name)
    if ".original_module." in name:
        return None
    return name.replace(".modules_to_save.default.", ".").replace(".base_layer.", ".")


def nested_name(name):
    """The same tensor where the language model and the vision tower are parts of one module."""
    if name.startswith("visual."):
        return "model." + name
    if name.startswith("model.") and not name.startswith(("model.language_model.",
                                                          "model.visual.")):
        return "model.language_model." + name[len("model."):]
    return name


def lora_parts(name):
    """("A" or "B", name of the weight it changes), or None for other tensors."""
    m = re.fullmatch(r"(.*)\.lora_([AB])(?:\.default)?\.weight", name)
    if m:
        return m.group(2), plain_name(m.group(1) + ".weight")
    if ".lora_" in name:
        raise RuleError("the tensor %s of the checkpoint is a kind of LoRA this scorer does not "
                        "know" % name)
    return None
