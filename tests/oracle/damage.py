#!/usr/bin/python3
"""Damage a checkpoint in one way, to see that an engine says so.

    damage.py DIR config KEY VALUE           set a key of config.json (VALUE is JSON; "a.b" goes deeper)
    damage.py DIR config-drop KEY
    damage.py DIR header TENSOR KEY VALUE    set dtype, shape or data_offsets of a tensor
    damage.py DIR rename TENSOR NAME         in its shard and in the index
    damage.py DIR add TENSOR NAME            a copy of it, in its shard and in the index
    damage.py DIR unlist TENSOR              from its shard's header alone
    damage.py DIR overlap TENSOR             move it onto the tensor before it
    damage.py DIR poke TENSOR OFFSET HEX     overwrite bytes of its data
    damage.py DIR header-length TENSOR N     the length that its shard gives for its header
    damage.py DIR header-text TENSOR TEXT    its shard's whole header
    damage.py DIR truncate TENSOR N          its shard, to N bytes; negative: by N bytes
    damage.py DIR delete TENSOR              its shard
    damage.py DIR tokenizer PATH VALUE       set a member of tokenizer.json, as "model.merges"
    damage.py DIR respell                    names, types and config as repacks spell them: no damage
    damage.py DIR unindex TEXT               from the index alone, all tensors with TEXT in their name
"""
import glob
import json
import os
import re
import struct
import sys

import v4ref as v


def edit_json(path, edit):
    data = json.load(open(path))
    edit(data)
    json.dump(data, open(path, "w"))


def set_member(data, path, value):
    *parents, last = [int(k) if k.isdigit() else k for k in path.split(".")]
    for key in parents:
        data = data[key]
    data[last] = value


def edit_header(shard, edit):
    raw = open(shard, "rb").read()
    size, = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8:8 + size])
    edit(header)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    open(shard, "wb").write(struct.pack("<Q", len(text)) + text + raw[8 + size:])


def rename(names, old, new):
    names[new] = names.pop(old)


def overlap(header, tensor):
    lo, hi = header[tensor]["data_offsets"]
    before = [t["data_offsets"][1] - t["data_offsets"][0] for t in header.values() if t["data_offsets"][1] == lo]
    header[tensor]["data_offsets"] = [lo - before[0], hi - before[0]]


def respelled(name):
    name = re.sub(r"\.attn\.", ".self_attn.", re.sub(r"\.ffn\.", ".mlp.", name))
    name = re.sub(r"\.scale$", ".weight_scale_inv", re.sub(r"gate\.bias$", "gate.e_score_correction_bias", name))
    return "model." + name


def respell(folder):
    def header(h):
        for name, t in list(h.items()):
            if t.get("dtype") in ("I8", "F8_E8M0"):
                t["dtype"] = "U8"
            h[respelled(name)] = h.pop(name)

    def index(i):
        i["weight_map"] = {respelled(name): file for name, file in i["weight_map"].items()}

    def config(c):
        c["dtype"] = c.pop("torch_dtype", "bfloat16")
        c.pop("expert_dtype", None)

    for shard in glob.glob(os.path.join(folder, "*.safetensors")):
        edit_header(shard, header)
    edit_json(os.path.join(folder, "model.safetensors.index.json"), index)
    edit_json(os.path.join(folder, "config.json"), config)


def main():
    folder, action, *rest = sys.argv[1:]
    if action == "respell":
        return respell(folder)
    if action == "unindex":
        return edit_json(os.path.join(folder, "model.safetensors.index.json"), lambda i: i.update(
            weight_map={name: file for name, file in i["weight_map"].items() if rest[0] not in name}))
    if action.startswith("config"):
        path = os.path.join(folder, "config.json")
        if action == "config":
            edit_json(path, lambda c: set_member(c, rest[0], json.loads(rest[1])))
        else:
            edit_json(path, lambda c: c.pop(rest[0]))
        return
    if action == "tokenizer":
        edit_json(os.path.join(folder, "tokenizer.json"), lambda t: set_member(t, rest[0], json.loads(rest[1])))
        return
    tensor, *rest = rest
    shard, base, t = v.Checkpoint(folder).where[tensor]
    if action == "header":
        edit_header(shard, lambda h: h[tensor].update({rest[0]: json.loads(rest[1])}))
    elif action == "rename":
        edit_header(shard, lambda h: rename(h, tensor, rest[0]))
        edit_json(os.path.join(folder, "model.safetensors.index.json"),
                  lambda i: rename(i["weight_map"], tensor, rest[0]))
    elif action == "add":
        # At the end of the file, where no other tensor's bytes are.
        lo, hi = t["data_offsets"]
        raw = open(shard, "rb").read()
        end = len(raw) - base
        edit_header(shard, lambda h: h.update({rest[0]: t | {"data_offsets": [end, end + hi - lo]}}))
        open(shard, "ab").write(raw[base + lo:base + hi])
        edit_json(os.path.join(folder, "model.safetensors.index.json"),
                  lambda i: i["weight_map"].update({rest[0]: os.path.basename(shard)}))
    elif action == "unlist":
        edit_header(shard, lambda h: h.pop(tensor))
    elif action == "overlap":
        edit_header(shard, lambda h: overlap(h, tensor))
    elif action == "poke":
        with open(shard, "r+b") as f:
            f.seek(base + t["data_offsets"][0] + int(rest[0]))
            f.write(bytes.fromhex(rest[1]))
    elif action == "header-length":
        with open(shard, "r+b") as f:
            f.write(struct.pack("<Q", int(rest[0])))
    elif action == "header-text":
        raw = open(shard, "rb").read()
        text = rest[0].encode()
        open(shard, "wb").write(struct.pack("<Q", len(text)) + text + raw[base:])
    elif action == "truncate":
        size = int(rest[0])
        os.truncate(shard, size if size >= 0 else os.path.getsize(shard) + size)
    elif action == "delete":
        os.remove(shard)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
