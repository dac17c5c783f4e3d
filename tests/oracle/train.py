#!/usr/bin/python3
"""Train the small V4 on the CPU, and export it.

    train.py CORPUS_DIR RUN_DIR [--steps N] [--processes P] [--seed S]

CORPUS_DIR holds train.jsonl, heldout.jsonl (corpus.py) and tokenizer.json (train_tokenizer.py). RUN_DIR
gets log.jsonl, state.pt every few minutes and at the end, and `model`, the checkpoint in the official
layout. Started again, it goes on from state.pt. One process a core, each with one thread: gradients are
averaged through shared memory, so that a core busy with something else only costs its own time.

The run has three stretches (STRETCHES): attention over all compressed entries, while the indexer learns
from what it pays; then over the entries that the indexer selects; then with the release's roundings in
the forward pass. The learning rate rises for WARMUP steps, stays, and falls to zero over the last 40 %.
"""
import argparse
import glob
import json
import os
import subprocess
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import multiprocessing

import export
import v4torch

SEQUENCE = 1024             # tokens; LONG_SEQUENCE once the indexer selects
LONG_SEQUENCE = 2048
BATCH_TOKENS = 4096         # a process and step
WARMUP = 60
LEARNING_RATE = 5e-3
DECAY = 0.4                 # the last part of the run, over which the learning rate falls to zero
STRETCHES = {"select": 0.6, "roundings": 0.75}      # share of the run after which each begins
MTP_WEIGHT = 0.3
BIAS_STEP = 2e-3            # how far a router's bias moves in a step towards even load
STATE_EVERY_S = 300


def tune_process():
    """Starts this program again with what can only be set before it starts: one thread a process, the
    widest vectors, and a heap that keeps its pages (a fifth of the time went into clearing them)."""
    if "OMP_NUM_THREADS" in os.environ:
        return
    env = dict(os.environ, OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    with open("/proc/cpuinfo") as f:
        if "avx512bw" in f.read():
            env["ATEN_CPU_CAPABILITY"] = "avx512"
    heap = glob.glob("/usr/lib/*/libjemalloc.so.2")
    if heap:
        env.update(LD_PRELOAD=heap[0], MALLOC_CONF="oversize_threshold:0,dirty_decay_ms:-1,muzzy_decay_ms:-1,thp:always")
    os.execve(sys.executable, [sys.executable] + sys.argv, env)


# --------------------------------------------------------------------------- data

def token_ids(corpus, name, sluice):
    """The documents of a file one after the other, as uint16; tokenised once, then kept."""
    kept = os.path.join(corpus, name + ".u16")
    source = os.path.join(corpus, name + ".jsonl")
    if not os.path.exists(kept) or os.path.getmtime(kept) < os.path.getmtime(source):
        command = [sluice, "tokenize", os.path.join(corpus, "tokenizer.json"), "--special", "--jsonl", source]
        lines = subprocess.run(command, check=True, capture_output=True).stdout.splitlines()
        np.concatenate([np.array(json.loads(line), np.uint16) for line in lines]).tofile(kept + ".part")
        os.replace(kept + ".part", kept)
    return np.fromfile(kept, np.uint16)


class Batches:
    """Sequences that together cover the text once an epoch, in an order set by the seed."""

    def __init__(self, ids, seed):
        self.ids, self.seed = ids, seed

    def __call__(self, first_token, length, count):
        """`count` sequences of `length` + 1 tokens, from token number first_token of the run on."""
        out = []
        for i in range(count):
            at = first_token + i * length
            n = (len(self.ids) - 1 - SEQUENCE * 2) // length
            epoch, slot = divmod(at // length, n)
            rng = np.random.default_rng([self.seed, epoch, length])
            start = rng.permutation(n)[slot] * length + rng.integers(SEQUENCE * 2)
            out.append(self.ids[start:start + length + 1])
        return torch.from_numpy(np.stack(out).astype(np.int64))


# --------------------------------------------------------------------------- optimizer

def orthogonalise(m):
    """Newton-Schulz iteration towards the nearest semi-orthogonal matrix, as Muon does; m [n, r, c]."""
    x = m.bfloat16()
    if m.shape[1] > m.shape[2]:
        x = x.transpose(1, 2)
    x = x / (x.float().flatten(1).norm(dim=1)[:, None, None] + 1e-7).bfloat16()
    for _ in range(5):
        a = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
    return (x.transpose(1, 2) if m.shape[1] > m.shape[2] else x).to(m.dtype)


class Optimizer:
    """Muon for the matrices inside the blocks, AdamW for all else. State lies in shared memory; a
    process updates the parameters that are its own."""

    ADAM_RATE = {"embed": 8.0, "head": 1.0, "gate": 1.0, "weights_proj": 1.0, "fn": 0.5}

    def __init__(self, model):
        self.params = dict(model.named_parameters())
        self.muon = {name: self.is_muon(name, p) for name, p in self.params.items()}
        self.first = {n: torch.zeros_like(p).share_memory_() for n, p in self.params.items()}
        self.second = {n: torch.zeros_like(p).share_memory_() for n, p in self.params.items() if not self.muon[n]}

    @staticmethod
    def is_muon(name, p):
        last = name.split(".")[-1]
        return p.ndim >= 2 and last not in ("embed", "head", "gate", "weights_proj", "fn", "ape")

    def shares(self, processes):
        """Names by process, so that each has about the same work."""
        work = lambda n: self.params[n].numel() * (8 if self.muon[n] else 1)
        shares, load = [[] for _ in range(processes)], [0] * processes
        for name in sorted(self.params, key=work, reverse=True):
            least = load.index(min(load))
            shares[least].append(name)
            load[least] += work(name)
        return shares

    def update(self, name, grad, rate, step):
        p, first = self.params[name].data, self.first[name]
        if self.muon[name]:
            first.mul_(0.95).add_(grad)
            m = grad.add(first, alpha=0.95)
            m = m.reshape(-1, *m.shape[-2:])
            if name.endswith("w13"):                # two matrices that lie one after the other
                m = m.reshape(-1, m.shape[1] // 2, m.shape[2])
            change = orthogonalise(m) * 0.2 * max(m.shape[1:]) ** 0.5
            p.mul_(1 - 0.1 * rate).sub_(change.reshape(p.shape), alpha=rate)
            return
        second = self.second[name]
        first.mul_(0.9).add_(grad, alpha=0.1)
        second.mul_(0.95).addcmul_(grad, grad, value=0.05)
        change = (first / (1 - 0.9 ** step)) / ((second / (1 - 0.95 ** step)).sqrt() + 1e-10)
        p.sub_(change, alpha=rate * self.ADAM_RATE.get(name.split(".")[-1], 2.0))


def learning_rate(step, steps):
    left = (steps - step) / (DECAY * steps)
    return LEARNING_RATE * min(1.0, (step + 1) / WARMUP, left)


# --------------------------------------------------------------------------- loss

def losses(model, ids, select):
    """ids [B, T + 1] -> (loss to minimise, figures for the log, experts picked by layer)"""
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:]
    hidden, streams, notes = model(inputs, select=select, train_indexer=True)
    main = F.cross_entropy(model.logits(hidden), targets.reshape(-1))
    # The draft sees half of the sequences: it is one block more and needs less.
    B, T = len(ids) // 2, inputs.shape[1]
    drafted = model.draft(inputs[:B], streams[:B * T], notes).reshape(B, T, -1)[:, :-1]
    draft = F.cross_entropy(model.logits(drafted.flatten(0, 1)), ids[:B, 2:].reshape(-1))
    index, recall = indexer_loss(model, notes["indexer"])
    figures = {"loss": main.item(), "draft": draft.item(), "index": index.item(), "recall": recall}
    return main + MTP_WEIGHT * draft + index, figures, notes["routing"]


def indexer_loss(model, notes):
    """How far the indexer's scores are from the attention that the layer pays to the entries; and
    the share of that attention which the index_topk best by score get."""
    loss, recalls = torch.zeros(()), []
    for score, mass, seen in notes:
        enough = seen.sum(-1) >= 2
        seen = seen.expand_as(score)[enough.expand(score.shape[:2])]
        score, mass = (t[enough.expand(t.shape[:2])] for t in (score, mass))
        target = mass / mass.sum(-1, keepdim=True).clamp(min=1e-20)
        guess = torch.log_softmax(score.masked_fill(~seen, -torch.inf), -1).masked_fill(~seen, 0)
        loss = loss + F.kl_div(guess, target, reduction="batchmean")
        many = seen.sum(-1) > 2 * model.cfg["index_topk"]
        if many.any():
            best = score.detach()[many].topk(model.cfg["index_topk"], -1).indices
            recalls.append(target[many].gather(1, best).sum(-1).mean().item())
    return loss, float(np.mean(recalls)) if recalls else None


def balance(model, loads):
    """DeepSeek-V3's balancing: only the bias that picks experts moves, by a fixed step."""
    blocks = list(model.layers) + [m.block for m in model.mtp]
    for block, load in zip(blocks, loads):
        if hasattr(block.ffn, "bias"):
            block.ffn.bias += BIAS_STEP * torch.sign(load.mean() - load)


def hash_tables(model, ids, generator):
    """Experts by token id for the first layers: at random, the most frequent tokens spread evenly."""
    counts = np.bincount(ids, minlength=model.cfg["vocab_size"])
    for layer in model.layers:
        if hasattr(layer.ffn, "tid2eid"):
            load = np.zeros(layer.ffn.E)
            for token in np.argsort(-counts, kind="stable"):
                picked = np.argsort(load + generator.random(len(load)))[:layer.ffn.k]
                load[picked] += counts[token]
                layer.ffn.tid2eid[token] = torch.from_numpy(picked)


# --------------------------------------------------------------------------- the run

class Shared:
    """What the processes have in common."""

    def __init__(self, model, processes):
        self.grads = [{n: torch.zeros_like(p).share_memory_() for n, p in model.named_parameters()}
                      for _ in range(processes)]
        blocks = len(model.layers) + len(model.mtp)
        self.loads = torch.zeros(processes, blocks, model.cfg["n_routed_experts"]).share_memory_()
        self.squares = torch.zeros(processes).share_memory_()
        self.barrier = multiprocessing.get_context("fork").Barrier(processes)


def parts_at(step, steps):
    """(the indexer selects, the forward pass rounds) at this step"""
    return step >= STRETCHES["select"] * steps, step >= STRETCHES["roundings"] * steps


def work(rank, args, model, optimizer, shared, batches, at):
    """One process of the run: from step at["step"] to the end."""
    torch.set_num_threads(1)
    mine = optimizer.shares(args.processes)[rank]
    for name, p in model.named_parameters():
        p.grad = shared.grads[rank][name]
    seen_tokens, log_time, state_time = at["tokens"], time.time(), time.time()
    for step in range(at["step"], args.steps):
        select, rounded = parts_at(step, args.steps)
        model.num.parts = frozenset(v4torch.PARTS if rounded else ())
        length = LONG_SEQUENCE if select else SEQUENCE
        ids = batches(seen_tokens + rank * BATCH_TOKENS, length, BATCH_TOKENS // length)
        seen_tokens += args.processes * BATCH_TOKENS
        for grad in shared.grads[rank].values():
            grad.zero_()
        loss, figures, routing = losses(model, ids, select)
        loss.backward()
        for layer, picked in enumerate(routing):
            shared.loads[rank, layer] = torch.bincount(picked.reshape(-1), minlength=shared.loads.shape[2])
        shared.barrier.wait()
        grads = {n: sum(g[n] for g in shared.grads) / args.processes for n in mine}
        shared.squares[rank] = sum(g.square().sum() for g in grads.values())
        shared.barrier.wait()
        norm = float(shared.squares.sum().sqrt())
        rate = learning_rate(step, args.steps)
        for name, grad in grads.items():
            optimizer.update(name, grad * min(1.0, 1.0 / (norm + 1e-6)), rate, step + 1)
        if rank == 0:
            balance(model, shared.loads.sum(0))
        shared.barrier.wait()
        if rank == 0:
            now = time.time()
            uneven = (shared.loads.sum(0).amax(1) / shared.loads.sum(0).mean(1)).tolist()
            log(args.run, step=step + 1, tokens=seen_tokens, seconds=round(now - log_time, 2), rate=rate,
                norm=norm, select=select, rounded=rounded, load_max=[round(u, 2) for u in uneven], **figures)
            log_time = now
            if now - state_time > STATE_EVERY_S or step + 1 == args.steps:
                save_state(args.run, model, optimizer, {"step": step + 1, "tokens": seen_tokens})
                state_time = now
    shared.barrier.wait()


def log(run, **entry):
    with open(os.path.join(run, "log.jsonl"), "a") as f:
        f.write(json.dumps(entry) + "\n")


def save_state(run, model, optimizer, at):
    path = os.path.join(run, "state.pt")
    torch.save({"model": model.state_dict(), "first": optimizer.first, "second": optimizer.second, **at}, path + ".part")
    os.replace(path + ".part", path)


def load_state(run, model, optimizer):
    path = os.path.join(run, "state.pt")
    if not os.path.exists(path):
        return {"step": 0, "tokens": 0}
    state = torch.load(path)
    model.load_state_dict(state["model"])
    for mine, kept in ((optimizer.first, state["first"]), (optimizer.second, state["second"])):
        for name, tensor in mine.items():
            tensor.copy_(kept[name])
    return {"step": state["step"], "tokens": state["tokens"]}


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("corpus")
    ap.add_argument("run")
    ap.add_argument("--steps", type=int, default=2000)
    ap.add_argument("--processes", type=int, default=os.cpu_count())
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--config", default=os.path.join(here, "small.json"))
    ap.add_argument("--sluice", default=os.path.join(here, "../../build/release/sluice"))
    args = ap.parse_args()
    tune_process()
    os.makedirs(args.run, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    ids = token_ids(args.corpus, "train", args.sluice)
    with open(args.config) as f:
        model = v4torch.Model(json.load(f), v4torch.Numerics())
    hash_tables(model, ids, np.random.default_rng(args.seed))
    optimizer = Optimizer(model)
    at = load_state(args.run, model, optimizer)
    model.share_memory()
    shared = Shared(model, args.processes)
    fork = multiprocessing.get_context("fork")
    job = (args, model, optimizer, shared, Batches(ids, args.seed), at)
    others = [fork.Process(target=work, args=(rank, *job), daemon=True) for rank in range(1, args.processes)]
    for process in others:
        process.start()
    work(0, *job)
    for process in others:
        process.join()
    export.save(model, os.path.join(args.run, "model"))


if __name__ == "__main__":
    main()
