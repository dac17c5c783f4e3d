#!/usr/bin/python3
"""Hold the PyTorch form of the model against the numpy reference, on a checkpoint it exports.

    check_torch.py CONFIG.json [--tokens 300] [--seed 1]

Weights at random, everything in float64, nothing rounded but what the export itself rounds: logits of
the body and of the MTP head must agree to 1e-6. A gradient of the written-out attention is held
against finite differences.
"""
import argparse
import json
import sys
import tempfile

import numpy as np
import torch

import export
import v4ref
import v4torch


def randomise(model, generator):
    """Weights for which every part of the model matters."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=p.dtype)
            p.add_(noise * (0.3 if p.ndim == 1 or name.endswith(("ape", "base")) else 0.0))
        for name, b in model.named_buffers():
            if name.endswith("tid2eid"):
                rows = torch.rand(len(b), model.cfg["n_routed_experts"], generator=generator)
                b.copy_(rows.argsort(1)[:, :b.shape[1]])
            else:
                b.normal_(0, 0.1, generator=generator)


def through_bf16(model):
    """What the export keeps as BF16, rounded in place, so that both sides hold the same weights."""
    bf16 = ("embed", "head", "gate", "norm.weight", "enorm.weight", "hnorm.weight", "q_norm.weight",
            "kv_norm.weight", "attn_norm.weight", "ffn_norm.weight", "weights_proj", "compressor.wkv", "wgate")
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(bf16):
                p.copy_(p.bfloat16())


def worst(got, want):
    return float(np.abs(got - want).max() / np.abs(want).max())


def check_gradient(generator):
    q, kv, entries = (torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True)
                      for s in ((2, 7, 3, 4), (2, 7, 4), (2, 3, 4)))
    sink = torch.randn(3, generator=generator, dtype=torch.float64, requires_grad=True)
    seen = (torch.arange(3)[None, :] < ((torch.arange(7) + 1) // 2)[:, None])[None]
    attend = lambda *args: v4torch.CoreAttention.apply(*args[:3], seen, args[3], 3)[0]
    return torch.autograd.gradcheck(attend, (q, kv, entries, sink))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("config")
    ap.add_argument("--tokens", type=int, default=300)
    ap.add_argument("--seed", type=int, default=1)
    args = ap.parse_args()
    generator = torch.Generator().manual_seed(args.seed)
    torch.manual_seed(args.seed)
    num = v4torch.Numerics(("experts", "dense"), torch.float64)
    with open(args.config) as f:
        model = v4torch.Model(json.load(f), num)
    randomise(model, generator)
    through_bf16(model)
    model.double()
    ids = torch.randint(model.cfg["vocab_size"], (1, args.tokens), generator=generator)
    with torch.no_grad():
        hidden, streams, notes = model(ids)
        logits = model.logits(hidden).numpy()
        draft = model.logits(model.draft(ids, streams, notes)).numpy()[:-1]
    with tempfile.TemporaryDirectory() as folder:
        export.save(model, folder)
        reference = v4ref.Model(folder, "exact")
        want = reference(ids[0].numpy())
        want_draft = reference.mtp(ids[0].numpy(), reference.streams)
    errors = worst(logits, want), worst(draft, want_draft)
    print(f"largest difference, relative: logits {errors[0]:.1e}, draft {errors[1]:.1e}")
    ok = max(errors) < 1e-6 and check_gradient(generator)
    print("torch and numpy agree" if ok else "torch and numpy DISAGREE")
    sys.exit(not ok)


if __name__ == "__main__":
    main()
