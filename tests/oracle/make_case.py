#!/usr/bin/python3
"""Make a test case, or find it made: a checkpoint and its tokens, in a folder of their own.

    make_case.py CONFIG.json CASES_DIR [--seed N] [--tokens N] [--references]

Prints the case's folder: checkpoint/, tokens.txt and, with --references, the oracle's logits in
all three numerics (compare.py --cache). The folder's name holds a hash of everything that the case
is made from, so a changed config or script makes a new one; it is renamed into place when whole,
so cases can be made side by side.
"""
import argparse
import hashlib
import json
import os
import shutil

import numpy as np

import compare
import make_checkpoint

HERE = os.path.dirname(os.path.abspath(__file__))


def case_name(config, seed, n_tokens):
    h = hashlib.sha256(f"{seed} {n_tokens}".encode())
    for path in (config, *(os.path.join(HERE, n) for n in ("v4ref.py", "make_checkpoint.py", "make_case.py"))):
        h.update(open(path, "rb").read())
    return os.path.splitext(os.path.basename(config))[0] + "-" + h.hexdigest()[:16]


def make(config, folder, seed, n_tokens):
    cfg = json.load(open(config))
    part = f"{folder}.{os.getpid()}"
    checkpoint = os.path.join(part, "checkpoint")
    os.makedirs(checkpoint)
    make_checkpoint.build(cfg, seed).save(checkpoint, 8 << 20)
    json.dump(cfg, open(os.path.join(checkpoint, "config.json"), "w"), indent=2)
    ids = np.random.default_rng(seed + 1000).integers(0, cfg["vocab_size"], n_tokens)
    open(os.path.join(part, "tokens.txt"), "w").write(" ".join(map(str, ids)) + "\n")
    try:
        os.rename(part, folder)
    except OSError:  # another process was first; its case is the same
        shutil.rmtree(part)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("config")
    ap.add_argument("cases")
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--tokens", type=int, default=300)
    ap.add_argument("--references", action="store_true")
    args = ap.parse_args()
    folder = os.path.join(args.cases, case_name(args.config, args.seed, args.tokens))
    if not os.path.isdir(folder):
        make(args.config, folder, args.seed, args.tokens)
    if args.references:
        ids = np.array(open(os.path.join(folder, "tokens.txt")).read().split(), np.int64)
        for mode in ("exact", "stored", "official"):
            compare.references(os.path.join(folder, "checkpoint"), ids, mode, folder)
    print(folder)


if __name__ == "__main__":
    main()
