#!/usr/bin/python3
"""What the trained small model does on text that it was not trained on.

    evaluate.py CORPUS_DIR RUN_DIR [--every N] [--window 2048]

From RUN_DIR/state.pt and CORPUS_DIR/heldout.jsonl, prints one JSON object: bits per byte with none,
each and all of the release's roundings; of the routing, by layer, the share of load of the busiest
experts and the reuse between consecutive tokens, and the hit rate that a least-recently-used cache of
several sizes would have; how often the draft head's first choice is the model's own; and the share of
attention that the entries chosen by the indexer would get if all were seen.
"""
import argparse
import collections
import json
import math
import os
import re

import numpy as np
import torch
import torch.nn.functional as F

import train
import v4torch

SHARES = (0.05, 0.12, 0.25, 0.5)


class Text:
    """Documents cut into pieces of at most `window` tokens, each behind a begin-of-sentence token, as
    `sluice perplexity --jsonl --special --window` cuts them."""

    def __init__(self, corpus, sluice, window, every):
        ids = train.token_ids(corpus, "heldout", sluice).astype(np.int64)
        with open(os.path.join(corpus, "heldout.jsonl")) as f:
            texts = [json.loads(line) for line in f]
        starts = np.flatnonzero(ids == 0)
        assert len(starts) == len(texts)
        self.pieces, self.n_bytes = [], 0
        for text, start, end in list(zip(texts, starts, [*starts[1:], len(ids)]))[::every]:
            self.n_bytes += len(re.sub("<｜[^｜]*｜>|</?think>", "", text).encode())
            rest = ids[start + 1:end]
            for at in range(0, len(rest), window - 1):
                self.pieces.append(torch.from_numpy(np.append([0], rest[at:at + window - 1]))[None])


def bits_per_byte(model, text):
    nats = 0.0
    for ids in text.pieces:
        hidden, _, _ = model(ids[:, :-1])
        nats += F.cross_entropy(model.logits(hidden), ids[0, 1:], reduction="sum").item()
    return nats / math.log(2) / text.n_bytes


def by_rounding(model, text):
    each = {"none": ()} | {part: (part,) for part in v4torch.PARTS} | {"all": v4torch.PARTS}
    out = {}
    for name, parts in each.items():
        model.num.parts = frozenset(parts)
        out[name] = round(bits_per_byte(model, text), 5)
    return out


def lru_hits(accesses, slots):
    cache, hits = collections.OrderedDict(), 0
    for key in accesses:
        if key in cache:
            hits += 1
            cache.move_to_end(key)
        else:
            cache[key] = None
            if len(cache) > slots:
                cache.popitem(last=False)
    return hits / len(accesses)


def routing_facts(model, routing):
    """routing [layers][tokens, K]: experts picked, tokens one after the other."""
    E, facts = model.cfg["n_routed_experts"], []
    for picked in routing:
        load = np.sort(np.bincount(picked.reshape(-1), minlength=E))[::-1] / picked.size
        same = (picked[1:, :, None] == picked[:-1, None, :]).any(-1).mean()
        facts.append({"busiest": round(float(load[0]), 4), "busiest_quarter": round(float(load[:E // 4].sum()), 4),
                      "idlest": round(float(load[-1]), 5), "reuse": round(float(same), 4)})
    keys = np.stack([layer * E + picked for layer, picked in enumerate(routing)], 1).reshape(-1).tolist()
    total = E * len(routing)
    return {"by_layer": facts, "lru_hits": {s: round(lru_hits(keys, int(s * total)), 4) for s in SHARES}}


def drafts_and_recall(model, text):
    """Share of drafts that are the model's own first choice; attention that the chosen entries hold."""
    same, n, held, paid, routing = 0, 0, 0.0, 0.0, []
    for ids in text.pieces:
        hidden, streams, notes = model(ids, select=False, train_indexer=True)
        routing.append(notes["routing"][:len(model.layers)])
        own = model.logits(hidden).argmax(-1)
        draft = model.logits(model.draft(ids, streams, notes)).argmax(-1)
        same += (draft[:-1] == own[1:]).sum().item()
        n += len(own) - 1
        for score, mass, seen in notes["indexer"]:
            many = (seen.sum(-1) > 2 * model.cfg["index_topk"]).expand(score.shape[:2])
            best = score[many].topk(min(model.cfg["index_topk"], score.shape[-1]), -1).indices
            held += mass[many].gather(1, best).sum().item()
            paid += mass[many].sum().item()
    routing = [np.concatenate([piece[i].numpy() for piece in routing]) for i in range(len(model.layers))]
    return {"draft_accepted": round(same / n, 4), "indexer_recall": round(held / paid, 4) if paid else None}, routing


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("corpus")
    ap.add_argument("run")
    ap.add_argument("--every", type=int, default=1, help="take every Nth document alone")
    ap.add_argument("--window", type=int, default=2048)
    ap.add_argument("--config", default=os.path.join(here, "small.json"))
    ap.add_argument("--sluice", default=os.path.join(here, "../../build/release/sluice"))
    args = ap.parse_args()
    train.tune_process()
    torch.set_num_threads(1)
    with open(args.config) as f:
        model = v4torch.Model(json.load(f), v4torch.Numerics())
    model.load_state_dict(torch.load(os.path.join(args.run, "state.pt"))["model"])
    text = Text(args.corpus, args.sluice, args.window, args.every)
    with torch.no_grad():
        rounded = by_rounding(model, text)
        facts, routing = drafts_and_recall(model, text)
    print(json.dumps({"every": args.every, "bytes": text.n_bytes, "tokens": sum(p.numel() for p in text.pieces),
                      "bits_per_byte": rounded, **facts, **routing_facts(model, routing)}, indent=1))


if __name__ == "__main__":
    main()
