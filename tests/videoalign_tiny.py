"""A VideoAlign of a few thousand random weights, in the files of the real one: OUT/base (Qwen2-VL),
OUT/align (model_config.json, checkpoint-7/model.pth with LoRA), OUT/prompt_template.py."""
import json
import os
import sys

import tokenizers
import torch
import transformers
from tokenizers import models, pre_tokenizers, trainers
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

CHAT = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
        "{% if c['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
        "{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
           "<|image_pad|>", "<|video_pad|>"]
TEMPLATE = '''"""A file of the shape of the real one; importing it would stop the test."""
raise SystemExit("executed")
DETAILED_PROMPT_WITH_SPECIAL_TOKEN = """
Rate {{this}} video.
Picture: <|VQ_reward|>
Motion: <|MQ_reward|>  \n\
Words - {text_prompt}
Text: <|TA_reward|>
"""
'''
LORA = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
RANK, ALPHA = 4, 8


def tokenizer(folder):
    tok = tokenizers.Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = tokenizers.decoders.ByteLevel()
    tok.train_from_iterator(["a video of two dogs in the snow"], trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    t = transformers.PreTrainedTokenizerFast(tokenizer_object=tok, eos_token="<|im_end|>",
                                             pad_token="<|endoftext|>",
                                             additional_special_tokens=SPECIAL[1:])
    t.chat_template = CHAT
    t.save_pretrained(folder)
    return t


def base(folder, tok):
    rope = {"rope_type": "default", "type": "default", "mrope_section": [2, 3, 3],
            "rope_theta": 10000.0}
    text = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
                num_key_value_heads=1, vocab_size=len(tok), max_position_embeddings=4096,
                tie_word_embeddings=True, rope_theta=10000.0)
    text["rope_parameters" if int(transformers.__version__.split(".")[0]) > 4 else
         "rope_scaling"] = rope
    ids = {n + "_token_id": tok.convert_tokens_to_ids("<|%s|>" % t) for n, t in
           (("image", "image_pad"), ("video", "video_pad"), ("vision_start", "vision_start"),
            ("vision_end", "vision_end"))}
    vision = dict(depth=2, embed_dim=32, hidden_size=32, num_heads=2, mlp_ratio=2, patch_size=14,
                  spatial_merge_size=2, temporal_patch_size=2, in_channels=3)
    config = Qwen2VLConfig(text_config=text, vision_config=vision, **ids)
    m = Qwen2VLForConditionalGeneration(config).float()
    for p in m.parameters():
        torch.nn.init.normal_(p, std=0.2)
    m.save_pretrained(folder, safe_serialization=True)
    return m


def checkpoint(folder, model, vocab):
    """Names as the LoRA library of the original leaves them."""
    os.makedirs(os.path.join(folder, "checkpoint-7"))
    state = {}
    for name, p in model.state_dict().items():
        old = name.replace("model.language_model.", "model.", 1)
        old = old.replace("model.visual.", "visual.", 1)
        t = p.detach().clone()
        if old.endswith("embed_tokens.weight") or old == "lm_head.weight":
            t = torch.cat([t, 0.2 * torch.randn(vocab + 3 - len(t), t.shape[1])])
        module = old[:-len(".weight")]
        if old.startswith("model.layers.") and module.endswith(LORA):
            stem = "base_model.model." + module
            state[stem + ".base_layer.weight"] = t
            state[stem + ".lora_A.default.weight"] = 0.2 * torch.randn(RANK, t.shape[1])
            state[stem + ".lora_B.default.weight"] = 0.2 * torch.randn(t.shape[0], RANK)
        else:
            state["base_model.model." + old] = t
    for name in list(state):  # biases of wrapped layers move along
        if name.endswith(".bias") and name[:-len(".bias")].endswith(LORA):
            state[name[:-len("bias")] + "base_layer.bias"] = state.pop(name)
    state["base_model.model.rm_head.weight"] = torch.randn(1, 32)
    torch.save(state, os.path.join(folder, "checkpoint-7", "model.pth"))
    with open(os.path.join(folder, "model_config.json"), "w", encoding="utf-8") as f:
        json.dump({"data_config": {"meta_data": "x", "data_dir": "y", "fps": 2.0,
                                   "max_frame_pixels": 200704, "sample_type": "uniform",
                                   "prompt_template_type": "detailed_special"},
                   "model_config": {"output_dim": 1, "reward_token": "special",
                                    "use_special_tokens": True},
                   "peft_lora_config": {"lora_r": RANK, "lora_alpha": ALPHA},
                   "inference_config": {"VQ_mean": 3.6757, "VQ_std": 2.2476, "MQ_mean": 1.1646,
                                        "MQ_std": 1.3811, "TA_mean": 2.8105, "TA_std": 2.5121}}, f)


def make(out):
    torch.manual_seed(3)
    tok = tokenizer(os.path.join(out, "base"))
    model = base(os.path.join(out, "base"), tok)
    checkpoint(os.path.join(out, "align"), model, len(tok))
    with open(os.path.join(out, "prompt_template.py"), "w", encoding="utf-8") as f:
        f.write(TEMPLATE)


if __name__ == "__main__":
    make(sys.argv[1])
