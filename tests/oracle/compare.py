#!/usr/bin/python3
"""Hold an engine's logits against the reference.

    compare.py CHECKPOINT TOKENS.txt LOGITS.npy [--against exact|stored] [--mtp] [--cache DIR]
    compare.py CHECKPOINT TOKENS.txt DRAFTS --dspark [--against exact|stored]

TOKENS.txt holds token ids separated by white space; LOGITS.npy is float32 [T, vocab], row t being
the engine's logits after token t. Prints the figures and exits 0 where they hold:

  exact   for an engine run with nothing rounded: worst relative error of a row <= 1e-3
  stored  for the engine as it ships: mean KL divergence from `stored` no larger than that of the
          released code's own numerics (`official`), and top-1 agreement no lower

The reference's own logits are kept in DIR and taken from there; who names DIR sees to it that it
belongs to this checkpoint and these tokens (make_case.py does). Drafts are not kept: they follow
the engine's own tokens.

DRAFTS, of the DSpark head, is a folder of .npy files, or one .npz: positions [P] (ascending),
anchors [P], logits [P, B, vocab], tokens [P, B], conf [P, B]. The reference takes the engine's
anchors, and its tokens as those before each row, so that one draw of equals does not spoil the rows
behind it. The logits are held as above; besides, tokens must be the engine's own greedy ones, and
conf be within 1e-3 (exact), or on the average no farther off than the released numerics (stored).
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
    if model.cfg.get("num_nextn_predict_layers", 0) and "dspark_block_size" not in model.cfg:
        made["mtp"] = model.mtp(ids, model.streams)
    if path:
        part = f"{path}.{os.getpid()}.npz"
        np.savez(part, **made)
        os.replace(part, path)
    return made["logits"], made.get("mtp")


def load_drafts(path):
    names = ("positions", "anchors", "logits", "tokens", "conf")
    if os.path.isdir(path):
        return {n: np.load(os.path.join(path, n + ".npy")) for n in names}
    file = np.load(path)
    return {n: file[n] for n in names}


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("checkpoint")
    ap.add_argument("tokens")
    ap.add_argument("logits")
    ap.add_argument("--against", choices=("exact", "stored"), default="stored")
    ap.add_argument("--mtp", action="store_true", help="the logits are the MTP head's, [T-1, vocab]")
    ap.add_argument("--cache", metavar="DIR")
    ap.add_argument("--dspark", action="store_true", help="they are the DSpark head's drafts")
    args = ap.parse_args()
    ids = np.array(open(args.tokens).read().split(), np.int64)
    drafts = load_drafts(args.logits) if args.dspark else None
    got = drafts["logits"] if args.dspark else np.load(args.logits)

    def reference(mode):
        """Logits, and confidences where there are drafts."""
        if args.dspark:
            d = v.Model(args.checkpoint, mode).drafts(ids, drafts["positions"], drafts["anchors"],
                                                      drafts["tokens"])
            return d["logits"], d["conf"]
        return references(args.checkpoint, ids, mode, args.cache)[args.mtp], None

    want, want_conf = reference(args.against)
    if got.shape != want.shape or not np.isfinite(got).all():
        print(f"FAIL: logits are {got.shape}, finite: {np.isfinite(got).all()}; expected {want.shape}")
        return 1
    got, want = (x.reshape(-1, x.shape[-1]) for x in (got, want))
    error = np.linalg.norm(got - want, axis=1) / np.linalg.norm(want, axis=1)
    top1 = float((got.argmax(1) == want.argmax(1)).mean())
    print(f"rows {len(want)}  relative error median {np.median(error):.2e} worst {error.max():.2e} "
          f"(row {error.argmax()})  top-1 agreement {top1:.4f}  KL {kl(want, got):.3e}")
    conf_bar = 1e-3
    if args.against == "exact":
        ok = error.max() <= 1e-3
    else:
        official, conf = reference("official")
        official = official.reshape(want.shape)
        noise, agree = kl(want, official), float((official.argmax(1) == want.argmax(1)).mean())
        print(f"the released numerics: KL {noise:.3e}, top-1 agreement {agree:.4f}")
        ok = kl(want, got) <= noise and top1 >= agree
        if args.dspark:
            conf_bar = np.abs(conf - want_conf).mean()
    if args.dspark:
        off = np.abs(drafts["conf"] - want_conf)
        off = off.max() if args.against == "exact" else off.mean()
        greedy = bool((drafts["tokens"] == drafts["logits"].argmax(-1)).all())
        print(f"confidence off by {off:.2e} (bar {conf_bar:.2e})  tokens greedy: {greedy}")
        ok = ok and greedy and off <= conf_bar
    print("ok" if ok else "FAIL")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
