#!/usr/bin/python3
"""Hold an engine's logits against the reference.

    compare.py CHECKPOINT TOKENS.txt LOGITS.npy [--against exact|stored] [--mtp] [--cache DIR]

TOKENS.txt holds token ids separated by white space; LOGITS.npy is float32 [T, vocab], row t being
the engine's logits after token t. Prints the figures and exits 0 where they hold:

  exact   for an engine run with nothing rounded: worst relative error of a row <= 1e-3
  stored  for the engine as it ships: mean KL divergence from `stored` no larger than that of the
          released code's own numerics (`official`), and top-1 agreement no lower

The reference's own logits are kept in DIR and taken from there; who names DIR sees to it that it
belongs to this checkpoint and these tokens (make_case.py does).
"""
import argparse
import os
import sys

import numpy as np

import v4ref as v


def kl(p_logits, q_logits):
    p, q = (v.softmax(np.asarray(x, np.float64), -1) for x in (p_logits, q_logits))
    return float((p * (np.log(p) - np.log(q))).sum(-1).mean())


def references(checkpoint, ids, mode, cache=None):
    """The reference's logits, and those of its MTP head (None where there is none)."""
    path = cache and os.path.join(cache, f"reference-{mode}.npz")
    if path and os.path.exists(path):
        with np.load(path) as kept:
            return kept["logits"], kept["mtp"] if "mtp" in kept else None
    model = v.Model(checkpoint, mode)
    made = {"logits": model(ids)}
    if model.cfg.get("num_nextn_predict_layers", 0):
        made["mtp"] = model.mtp(ids, model.streams)
    if path:
        part = f"{path}.{os.getpid()}.npz"
        np.savez(part, **made)
        os.replace(part, path)
    return made["logits"], made.get("mtp")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("checkpoint")
    ap.add_argument("tokens")
    ap.add_argument("logits")
    ap.add_argument("--against", choices=("exact", "stored"), default="stored")
    ap.add_argument("--mtp", action="store_true", help="the logits are the MTP head's, [T-1, vocab]")
    ap.add_argument("--cache", metavar="DIR")
    args = ap.parse_args()
    ids = np.array(open(args.tokens).read().split(), np.int64)
    got = np.load(args.logits)

    def reference(mode):
        return references(args.checkpoint, ids, mode, args.cache)[args.mtp]

    want = reference(args.against)
    if got.shape != want.shape or not np.isfinite(got).all():
        print(f"FAIL: logits are {got.shape}, finite: {np.isfinite(got).all()}; expected {want.shape}")
        return 1
    error = np.linalg.norm(got - want, axis=1) / np.linalg.norm(want, axis=1)
    top1 = float((got.argmax(1) == want.argmax(1)).mean())
    print(f"rows {len(want)}  relative error median {np.median(error):.2e} worst {error.max():.2e} "
          f"(row {error.argmax()})  top-1 agreement {top1:.4f}  KL {kl(want, got):.3e}")
    if args.against == "exact":
        ok = error.max() <= 1e-3
    else:
        official = reference("official")
        noise, agree = kl(want, official), float((official.argmax(1) == want.argmax(1)).mean())
        print(f"the released numerics: KL {noise:.3e}, top-1 agreement {agree:.4f}")
        ok = kl(want, got) <= noise and top1 >= agree
    print("ok" if ok else "FAIL")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
