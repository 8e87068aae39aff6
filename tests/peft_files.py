"""Files by the real libraries, for tests/test_import.c.  peft_files.py tensors|peft FOLDER

tensors: FOLDER/tensors.{safetensors,bin} by safetensors and torch, FOLDER/tensors.json with all values.
peft: reads FOLDER/base.safetensors (weights by module), puts adapters on it and writes folders as
peft (plain, bin, bf16) and as the official code does (official), and FOLDER/merged.safetensors:
the weights after peft has merged the adapters of `plain`.
"""
import json
import os
import sys

import torch
from safetensors.torch import load_file, save_file


def tensors(folder):
    torch.manual_seed(1)
    t = {"f32": torch.randn(3, 4), "f16": torch.randn(5).half(), "bf16": torch.randn(2, 2, 2).bfloat16(),
         "f64": torch.randn(7).double(), "i64": torch.arange(5), "bool": torch.tensor([True, False]),
         "scalar": torch.tensor(3.5), "empty": torch.zeros(0, 4)}
    save_file(t, folder + "/tensors.safetensors")
    base = torch.randn(6, 8)
    t.update(transposed=base.t(), window=base[1:3, 2:5], strided=base[:, ::3], same=base,
             parameter=torch.nn.Parameter(torch.randn(2, 3)))
    torch.save(t, folder + "/tensors.bin")
    state = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).state_dict()
    torch.save(state, folder + "/state.bin", pickle_protocol=4)
    torch.save(t, folder + "/old.bin", _use_new_zipfile_serialization=False)
    torch.save(torch.nn.Linear(3, 2), folder + "/module.bin")
    with open(folder + "/tensors.json", "w", encoding="utf-8") as f:
        json.dump({k: v.double().reshape(-1).tolist() for k, v in t.items()}, f)
    with open(folder + "/state.json", "w", encoding="utf-8") as f:
        json.dump({k: v.double().reshape(-1).tolist() for k, v in state.items()}, f)


def module_tree(weights):
    root = torch.nn.Module()
    for name, w in weights.items():
        at = root
        *path, last = name.split(".")
        for p in path:
            if not hasattr(at, p):
                at.add_module(p, torch.nn.Module())
            at = getattr(at, p)
        linear = torch.nn.Linear(w.shape[1], w.shape[0], bias=False)
        linear.weight.data.copy_(w)
        at.add_module(last, linear)
    return root


def peft(folder):
    from peft import LoraConfig, get_peft_model
    torch.manual_seed(2)
    targets = [a + "." + x for a in ("self_attn", "cross_attn") for x in "qkvo"]
    model = get_peft_model(module_tree(load_file(folder + "/base.safetensors")),
                           LoraConfig(r=3, lora_alpha=5, target_modules=targets, init_lora_weights="gaussian"))
    live = {k: v for k, v in model.state_dict().items() if ".lora_" in k}
    for k, v in live.items():
        v.copy_(torch.randn_like(v) * 0.3)
    model.save_pretrained(folder + "/plain")
    config = folder + "/plain/adapter_config.json"
    for name, write in (("bin", lambda d: torch.save(
            {k.replace(".default", ""): v for k, v in live.items()}, d + "/adapter_model.bin")),
                        ("official", lambda d: torch.save(live, d + "/adapter_model.bin")),
                        ("bf16", lambda d: save_file({k: v.bfloat16().contiguous() for k, v in live.items()},
                                                     d + "/adapter_model.safetensors"))):
        os.makedirs(folder + "/" + name)
        write(folder + "/" + name)
        with open(config, encoding="utf-8") as f:
            c = json.load(f)
        if name == "official": # its writer turns the set into one text
            c["target_modules"] = str(set(targets))
        with open(folder + "/" + name + "/adapter_config.json", "w", encoding="utf-8") as f:
            json.dump(c, f)
    # in f64, so that what is compared with it has all the error
    merged = model.double().merge_and_unload()
    save_file({k[:-len(".weight")]: v.contiguous() for k, v in merged.state_dict().items()},
              folder + "/merged.safetensors")


{"tensors": tensors, "peft": peft}[sys.argv[1]](sys.argv[2])
