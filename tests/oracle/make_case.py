#!/usr/bin/python3
"""Make a test case, or find it made: a checkpoint and its tokens, in a folder of their own.

    make_case.py CONFIG.json CASES_DIR [--tokens N] [--references] [options of make_checkpoint.py]

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


def case_name(args):
    made_of = {k: v for k, v in vars(args).items() if k not in ("config", "cases", "references")}
    h = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode())
    scripts = (os.path.join(HERE, n) for n in ("v4ref.py", "make_checkpoint.py", "make_case.py"))
    for path in (args.config, *scripts):
        h.update(open(path, "rb").read())
    return os.path.splitext(os.path.basename(args.config))[0] + "-" + h.hexdigest()[:16]


def make(args, folder):
    cfg = json.load(open(args.config))
    part = f"{folder}.{os.getpid()}"
    make_checkpoint.save(cfg, os.path.join(part, "checkpoint"), args)
    ids = np.random.default_rng(args.seed + 1000).integers(0, cfg["vocab_size"], args.tokens)
    open(os.path.join(part, "tokens.txt"), "w").write(" ".join(map(str, ids)) + "\n")
    try:
        os.rename(part, folder)
    except OSError:  # another process was first; its case is the same
        shutil.rmtree(part)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("config")
    ap.add_argument("cases")
    ap.add_argument("--tokens", type=int, default=300)
    ap.add_argument("--references", action="store_true")
    make_checkpoint.add_arguments(ap)
    args = ap.parse_args()
    folder = os.path.join(args.cases, case_name(args))
    if not os.path.isdir(folder):
        make(args, folder)
    if args.references:
        ids = np.array(open(os.path.join(folder, "tokens.txt")).read().split(), np.int64)
        for mode in ("exact", "stored", "official"):
            compare.references(os.path.join(folder, "checkpoint"), ids, mode, folder)
    print(folder)


if __name__ == "__main__":
    main()
