#!/usr/bin/python3
"""Judge a checkpoint that `sluice synth` wrote.

    judge_synth.py CHECKPOINT [--tokens N] [--share-layers N]

It has the tensors that make_checkpoint.py gives its config, in the release's order in each shard;
its index is right; its tokenizer covers every id once; and the oracle runs it: finite logits of
the usual size, routing that is varied. --tokens 0 leaves the run out. Where layers share, each
quantised linear has the values of one of the first N blocks that have it, and all else its own.
"""
import argparse
import json
import os
import sys

import numpy as np

import make_checkpoint
import v4ref as v


def empty_codes(cols_per_byte, block_rows, block_cols, scale_type):
    """A stand-in for quantisation: only the shapes are of interest here, and it is much quicker."""
    def quantise(w, *_):
        rows, cols = w.shape
        return (np.zeros((rows, cols // cols_per_byte), np.uint8),
                np.ones((-(-rows // block_rows), -(-cols // block_cols)), scale_type))
    return quantise


def layout(folder):
    make_checkpoint.quantise_fp8 = empty_codes(1, 128, 128, np.float32)
    make_checkpoint.quantise_fp4 = empty_codes(2, 1, 32, np.uint8)
    cfg = json.load(open(os.path.join(folder, "config.json")))
    base = cfg.get("expert_dtype") == "fp8"
    want = {name: (dtype, list(a.shape)) for name, dtype, a in make_checkpoint.build(cfg, 1, base).tensors}
    where = v.Checkpoint(folder).where
    got = {name: (t["dtype"], t["shape"]) for name, (_, _, t) in where.items()}
    for name in want.keys() | got.keys():
        if want.get(name) != got.get(name):
            return f"{name} is {got.get(name)}, expected {want.get(name)}"
    index = json.load(open(os.path.join(folder, "model.safetensors.index.json")))
    if index["weight_map"] != {n: os.path.basename(path) for n, (path, _, _) in where.items()}:
        return "the index names other tensors or files"
    if index["metadata"]["total_size"] != sum(t["data_offsets"][1] - t["data_offsets"][0]
                                              for _, _, t in where.values()):
        return "the index has another total_size"
    order = make_checkpoint.Writer.DTYPE_ORDER
    for file in set(index["weight_map"].values()):
        mine = sorted(((t["data_offsets"], order.index(t["dtype"]), n, base) for n, (p, base, t) in where.items()
                       if os.path.basename(p) == file))
        if [m[1:3] for m in mine] != sorted(m[1:3] for m in mine):
            return f"{file}: tensors are not ordered by dtype and name"
        if mine[-1][0][1] + mine[-1][3] != os.path.getsize(os.path.join(folder, file)):
            return f"{file}: the file does not end with its last tensor"
    return None


def tokenizer(folder):
    cfg = json.load(open(os.path.join(folder, "config.json")))
    t = json.load(open(os.path.join(folder, "tokenizer.json")))
    ids = {a["content"]: a["id"] for a in t["added_tokens"]}
    ids.update(t["model"]["vocab"])
    if sorted(ids.values()) != list(range(cfg["vocab_size"])):
        return "tokenizer.json does not cover every id once"
    if (ids["<｜begin▁of▁sentence｜>"], ids["<｜end▁of▁sentence｜>"]) != (cfg["bos_token_id"], cfg["eos_token_id"]):
        return "tokenizer.json and config.json name other ids for begin and end of sentence"
    for merge in t["model"]["merges"]:
        left, right = merge.split(" ")
        if not {left, right, left + right} <= t["model"]["vocab"].keys():
            return f"merge \"{merge}\" needs tokens that there are not"
    return None


def forward(folder, n_tokens):
    model = v.Model(folder, "official")
    ids = np.random.default_rng(1).integers(0, model.cfg["vocab_size"], n_tokens)
    picked = {}

    def log(name, layer, value):
        if name == "router_experts":
            picked[layer] = value

    logits = model(ids, log)
    if not np.isfinite(logits).all() or not 1 < logits.std() < 4:
        return f"logits: finite {np.isfinite(logits).all()}, standard deviation {logits.std()}"
    if model.cfg["num_nextn_predict_layers"] and not np.isfinite(model.mtp(ids, model.streams)).all():
        return "the MTP head's logits are not finite"
    n = model.cfg["n_routed_experts"]
    for layer, experts in picked.items():
        if (np.sort(experts, 1)[:, 1:] == np.sort(experts, 1)[:, :-1]).any():
            return f"layer {layer}: an expert is chosen twice for one token"
        if len(np.unique(experts)) < 0.9 * n:
            return f"layer {layer}: only {len(np.unique(experts))} of {n} experts are ever chosen"
    return None


def sharing(folder, n_layers):
    checkpoint = v.Checkpoint(folder)
    blocks = {}  # the names that follow a block's prefix, and the blocks that have them, in order
    for name in sorted(checkpoint.where, key=lambda n: [int(p) if p.isdigit() else p for p in n.split(".")]):
        block = ".".join(name.split(".")[:2])
        if name.split(".")[0] in ("layers", "mtp"):
            blocks.setdefault(name.removeprefix(block), []).append(block)
    for suffix, names in blocks.items():
        data = [checkpoint.raw(block + suffix)[1].tobytes() for block in names]
        is_code = checkpoint.where[names[0] + suffix][2]["dtype"] in ("I8", "F8_E4M3", "F8_E8M0")
        for i, values in enumerate(data):
            if is_code and i >= n_layers and values not in data[:n_layers]:
                return f"{names[i]}{suffix} is of none of the first {n_layers} blocks"
            if not (is_code and i >= n_layers) and values in data[:i] and len(values) > 64:
                return f"{names[i]}{suffix} is another block's"
    return None


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("checkpoint")
    ap.add_argument("--tokens", type=int, default=0)
    ap.add_argument("--share-layers", type=int)
    args = ap.parse_args()
    problem = layout(args.checkpoint) or tokenizer(args.checkpoint)
    if args.share_layers and not problem:
        problem = sharing(args.checkpoint, args.share_layers)
    if args.tokens and not problem:
        problem = forward(args.checkpoint, args.tokens)
    print(problem or "ok")
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
