"""Write a v4torch model in the official layout: FP4 experts, FP8 dense weights, the rest BF16 or F32."""
import json
import os

import torch

import make_checkpoint


def save(model, folder, shard_mib=8):
    os.makedirs(folder, exist_ok=True)
    writer = make_checkpoint.Writer()
    add_model(writer, model)
    writer.save(folder, shard_mib << 20)
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(model.cfg, f, indent=2)


def array(tensor):
    return tensor.detach().to(torch.float32).numpy()


def add_model(w, model):
    w.bf16("embed.weight", array(model.embed))
    for i, layer in enumerate(model.layers):
        add_block(w, f"layers.{i}", layer)
    w.bf16("norm.weight", array(model.norm.weight))
    w.bf16("head.weight", array(model.head))
    add_hyper(w, "hc_head", model.hc_head)
    for i, mtp in enumerate(model.mtp):
        p = f"mtp.{i}"
        w.fp8(p + ".e_proj", array(mtp.e_proj))
        w.fp8(p + ".h_proj", array(mtp.h_proj))
        for name in ("enorm", "hnorm", "norm"):
            w.bf16(f"{p}.{name}.weight", array(getattr(mtp, name).weight))
        add_block(w, p, mtp.block)
        add_hyper(w, p + ".hc_head", mtp.hc_head)


def add_block(w, p, block):
    add_attention(w, p + ".attn", block.attn)
    add_moe(w, p + ".ffn", block.ffn)
    w.bf16(p + ".attn_norm.weight", array(block.attn_norm.weight))
    w.bf16(p + ".ffn_norm.weight", array(block.ffn_norm.weight))
    add_hyper(w, p + ".hc_attn", block.hc_attn)
    add_hyper(w, p + ".hc_ffn", block.hc_ffn)


def add_attention(w, p, attn):
    for name in ("wq_a", "wq_b", "wkv", "wo_b"):
        w.fp8(f"{p}.{name}", array(getattr(attn, name)))
    w.fp8(p + ".wo_a", array(attn.wo_a.flatten(0, 1)))
    w.bf16(p + ".q_norm.weight", array(attn.q_norm.weight))
    w.bf16(p + ".kv_norm.weight", array(attn.kv_norm.weight))
    w.f32(p + ".attn_sink", array(attn.attn_sink))
    if attn.ratio:
        add_compressor(w, p + ".compressor", attn.compressor)
    if attn.ratio == 4:
        w.fp8(p + ".indexer.wq_b", array(attn.indexer.wq_b))
        w.bf16(p + ".indexer.weights_proj.weight", array(attn.indexer.weights_proj))
        add_compressor(w, p + ".indexer.compressor", attn.indexer.compressor)


def add_compressor(w, p, compressor):
    w.f32(p + ".ape", array(compressor.ape))
    w.bf16(p + ".wkv.weight", array(compressor.wkv))
    w.bf16(p + ".wgate.weight", array(compressor.wgate))
    w.bf16(p + ".norm.weight", array(compressor.norm.weight))


def add_moe(w, p, moe):
    w.bf16(p + ".gate.weight", array(moe.gate))
    if hasattr(moe, "tid2eid"):
        w.add(p + ".gate.tid2eid", "i64", moe.tid2eid.numpy())
    else:
        w.f32(p + ".gate.bias", array(moe.bias))
    experts = zip(moe.w13, moe.w2)
    for e, (w13, w2) in enumerate(experts):
        add_expert(w.fp4, f"{p}.experts.{e}", w13, w2)
    add_expert(w.fp8, p + ".shared_experts", moe.shared_w13, moe.shared_w2)


def add_expert(add, p, w13, w2):
    w1, w3 = w13.chunk(2)
    for name, weight in (("w1", w1), ("w2", w2), ("w3", w3)):
        add(f"{p}.{name}", array(weight))


def add_hyper(w, p, hc):
    for name in ("fn", "base", "scale"):
        w.f32(f"{p}_{name}", array(getattr(hc, name)))
