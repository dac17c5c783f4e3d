"""DeepSeek-V4 once more, in PyTorch: the form in which the small model is trained.

The arithmetic is v4ref.py's, batched and differentiable; check_torch.py holds the two together. What
the release rounds is rounded here too where Numerics.parts names it, with straight-through
gradients: forward sees the rounded value, backward does not see the rounding.

Shapes: B sequences of T tokens, D hidden size, S residual streams, H heads, E experts, K active
experts, n compressed entries, d one head's size. A linear's weight is [out, in].
"""
import torch
import torch.nn.functional as F
from torch import nn

import v4ref

# --------------------------------------------------------------------------- roundings

PARTS = ("experts",      # routed experts' weights: FP4, a scale for 32 columns of a row
         "dense",        # the other large weights: FP8, a scale for 128 x 128
         "activations",  # what enters an FP4 or FP8 linear: FP8, a scale for 128 values
         "kv",           # KV entries: FP8 in blocks of 64, the rotary part BF16
         "index")        # the indexer's queries and keys: FP4 in blocks of 32, after a Hadamard


def pow2_ceil(x):
    """Smallest power of two >= x, for normal float32 x > 0."""
    bits = x.contiguous().view(torch.int32)
    exponent = (bits >> 23) + ((bits & 0x7FFFFF) != 0)
    return (exponent << 23).view(torch.float32)


def round_e4m3(x):
    """To the nearest e4m3 value (ties to even), |x| <= 448."""
    bits = x.contiguous().view(torch.int32)
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) & ~0xFFFFF).view(torch.float32)
    return torch.where(x.abs() < 2.0 ** -6, torch.round(x * 512) / 512, normal)


def round_e2m1(x):
    """To the nearest of 0, .5, 1, 1.5, 2, 3, 4, 6 (ties to the even code), |x| <= 6."""
    size = x.abs()
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    return torch.round(x / step) * step


def quantise(blocks, dims, top, floor, rounding):
    """Rounds values that share a power-of-two scale along `dims`."""
    amax = blocks.abs().amax(dims, keepdim=True).clamp(min=floor)
    scale = pow2_ceil(amax / top)
    return rounding((blocks / scale).clamp(-top, top)) * scale


def straight_through(function):
    """Forward: the rounded value, in the argument's dtype. Backward: the identity."""
    class Round(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, *args):
            ctx.n_args = len(args)
            return function(x.float(), *args).to(x.dtype)

        @staticmethod
        def backward(ctx, grad):
            return (grad,) + (None,) * ctx.n_args
    return Round.apply


@straight_through
def fp8_blocks(x, block):
    shape = x.shape
    return quantise(x.reshape(*shape[:-1], -1, block), -1, 448.0, 1e-4, round_e4m3).reshape(shape)


@straight_through
def fp4_blocks(x):
    shape = x.shape
    return quantise(x.reshape(*shape[:-1], -1, 32), -1, 6.0, 6 * 2.0 ** -126, round_e2m1).reshape(shape)


@straight_through
def fp8_weight(w):
    """[..., out, in] in tiles of 128 x 128; both are multiples of 128."""
    *lead, rows, cols = w.shape
    tiles = w.reshape(*lead, rows // 128, 128, cols // 128, 128)
    return quantise(tiles, (-3, -1), 448.0, 1e-30, round_e4m3).reshape(w.shape)


@straight_through
def fp4_weight(w):
    shape = w.shape
    return quantise(w.reshape(*shape[:-1], -1, 32), -1, 6.0, 1e-30, round_e2m1).reshape(shape)


class Numerics:
    """What is rounded, and the dtype of the large products (bfloat16 to train, float64 to compare)."""

    def __init__(self, parts=(), dtype=torch.bfloat16):
        assert set(parts) <= set(PARTS)
        self.parts, self.dtype = frozenset(parts), dtype
        self.small = torch.float64 if dtype == torch.float64 else torch.float32

    def linear(self, x, w, kind="dense"):
        """x [..., in] -> [..., out]. kind: "experts", "dense", or "plain" for one never quantised."""
        if kind != "plain":
            if "activations" in self.parts:
                x = fp8_blocks(x, 128)
            w = self.weight(w, kind)
        return F.linear(x.to(self.dtype), w.to(self.dtype))

    def weight(self, w, kind):
        if kind not in self.parts:
            return w
        return fp4_weight(w) if kind == "experts" else fp8_weight(w)

    def kv_entry(self, kv, rope_dim):
        if "kv" not in self.parts:
            return kv
        return torch.cat([fp8_blocks(kv[..., :-rope_dim], 64), kv[..., -rope_dim:].bfloat16().to(kv.dtype)], -1)

    def index_vector(self, x):
        x = hadamard(x)
        return fp4_blocks(x) if "index" in self.parts else x


def hadamard(x):
    n = x.shape[-1]
    matrix = torch.ones(1, 1, dtype=x.dtype)
    while len(matrix) < n:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return x @ matrix * n ** -0.5


# --------------------------------------------------------------------------- pieces

class Unit(torch.autograd.Function):
    """x divided by the root of its mean square along the last axis."""

    @staticmethod
    def forward(ctx, x, eps):
        inverse = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
        y = x * inverse
        ctx.save_for_backward(y, inverse)
        return y

    @staticmethod
    def backward(ctx, grad):
        y, inverse = ctx.saved_tensors
        along = (grad * y).mean(-1, keepdim=True)
        return torch.addcmul(grad, y, along, value=-1).mul_(inverse), None


class Share(torch.autograd.Function):
    """x divided by its sum along an axis."""

    @staticmethod
    def forward(ctx, x, dim, eps):
        total = x.sum(dim, keepdim=True).add_(eps)
        y = x / total
        ctx.save_for_backward(y, total)
        ctx.dim = dim
        return y

    @staticmethod
    def backward(ctx, grad):
        y, total = ctx.saved_tensors
        return grad.sub((grad * y).sum(ctx.dim, keepdim=True)).div_(total), None, None


class Rotate(torch.autograd.Function):
    """Pairs (2i, 2i+1) of the last entries of x turned by the angles of `turn`, a complex factor."""

    @staticmethod
    def forward(ctx, x, turn):
        ctx.turn = turn
        y, n = x.clone(), 2 * turn.shape[-1]
        pairs = x[..., -n:].to(turn.real.dtype).unflatten(-1, (-1, 2))
        y[..., -n:] = torch.view_as_real(torch.view_as_complex(pairs) * turn).flatten(-2)
        return y

    @staticmethod
    def backward(ctx, grad):
        return Rotate.apply(grad, ctx.turn.conj().resolve_conj()), None


class Norm(nn.Module):
    def __init__(self, n, eps, num):
        super().__init__()
        self.weight, self.eps, self.num = nn.Parameter(torch.ones(n)), eps, num

    def forward(self, x):
        return (self.weight * Unit.apply(x.to(self.num.small), self.eps)).to(self.num.dtype)


class Rope:
    """Rotary positions on the last entries of x [B, T, ..., d]."""

    def __init__(self, cfg, compressed):
        self.freqs = torch.from_numpy(v4ref.rope_frequencies(cfg, compressed).astype("float32"))

    def __call__(self, x, positions, inverse=False):
        angle = positions.float()[:, None] * self.freqs
        angle = angle.reshape(len(positions), *(1,) * (x.ndim - 3), len(self.freqs))
        angle = angle.double() if x.dtype == torch.float64 else angle
        return Rotate.apply(x, torch.polar(torch.ones_like(angle), -angle if inverse else angle))


def matrix(*shape, gain=1.0):
    return nn.Parameter(torch.randn(*shape) * gain * shape[-1] ** -0.5)


class Compressor(nn.Module):
    """Pools `ratio` tokens into one entry by a softmax per channel; with ratio 4 windows overlap."""

    def __init__(self, cfg, ratio, d, rotated, num):
        super().__init__()
        D, self.ratio, self.d, self.rotated, self.num = cfg["hidden_size"], ratio, d, rotated, num
        self.rope, self.rope_dim = Rope(cfg, True), cfg["qk_rope_head_dim"]
        self.width = d * (2 if ratio == 4 else 1)
        self.ape = nn.Parameter(torch.zeros(ratio, self.width))
        self.wkv, self.wgate = matrix(self.width, D), matrix(self.width, D, gain=0.1)
        self.norm = Norm(d, cfg["rms_norm_eps"], num)

    def forward(self, x):
        """x [B, T, D] -> [B, T // ratio, d]"""
        B, n, r, d = len(x), x.shape[1] // self.ratio, self.ratio, self.d
        if n == 0:
            return x.new_zeros(B, 0, d)
        x = x[:, :n * r]
        kv = self.num.linear(x, self.wkv, "plain").reshape(B, n, r, self.width)
        score = self.num.linear(x, self.wgate, "plain").reshape(B, n, r, self.width).to(self.num.small) + self.ape
        if r == 4:
            before = lambda t, fill: F.pad(t[:, :-1, :, :d], (0, 0, 0, 0, 1, 0), value=fill)
            kv = torch.cat([before(kv, 0.0), kv[..., d:]], 2)
            score = torch.cat([before(score, -torch.inf), score[..., d:]], 2)
        pooled = (kv * torch.softmax(score, 2)).sum(2)
        pooled = self.rope(self.norm(pooled), torch.arange(n) * r)
        return self.num.index_vector(pooled) if self.rotated else self.num.kv_entry(pooled, self.rope_dim)


class CoreAttention(torch.autograd.Function):
    """Attention of every query over the window before it and the compressed entries it may see, with
    a sink in the denominator. In chunks of one window of queries, so that scores stay in the core's
    cache; backward is written out for the same reason.

    q [B, T, H, d], kv [B, T, d], entries [B, n, d], seen [B or 1, T, n] bool, sink [H]
    -> o [B, T, H, d], and the attention that each entry got, summed over heads [B, T, n] (no gradient)."""

    @staticmethod
    def chunks(q, kv, entries, seen, window):
        """For each sequence and chunk: its tokens, its first key, its entries, keys, mask [t, 1, keys]."""
        B, T = kv.shape[:2]
        for b in range(B):
            for lo in range(0, T, window):
                hi, first = min(lo + window, T), max(0, lo - window + 1)
                rows = seen[b % len(seen), lo:hi]
                n = int(rows.any(0).nonzero().max()) + 1 if rows.any() else 0
                t, key = torch.arange(lo, hi)[:, None], torch.arange(first, hi)[None, :]
                mask = torch.cat([(key <= t) & (key > t - window), rows[:, :n]], 1)
                keys = torch.cat([kv[b, first:hi], entries[b, :n]])
                yield b, slice(lo, hi), slice(first, hi), n, keys, mask[:, None, :]

    @staticmethod
    def forward(ctx, q, kv, entries, seen, sink, window):
        B, T, H, d = q.shape
        o = torch.empty_like(q)
        mass = torch.zeros(B, T, entries.shape[1], dtype=sink.dtype)
        kept, sink_share = [], torch.empty(B, T, H, dtype=sink.dtype)
        for b, rows, _, n, keys, mask in CoreAttention.chunks(q, kv, entries, seen, window):
            s = (q[b, rows].reshape(-1, d) @ keys.T).to(sink.dtype).reshape(-1, H, len(keys)) * d ** -0.5
            s.masked_fill_(~mask, -torch.inf)
            top = torch.maximum(s.amax(-1), sink)
            p = s.sub_(top[..., None]).exp_()
            from_sink = torch.exp(sink - top)
            total = p.sum(-1) + from_sink
            p /= total[..., None]
            sink_share[b, rows] = from_sink / total
            if n:
                mass[b, rows, :n] = p[..., -n:].sum(1)
            p = p.to(q.dtype).reshape(-1, len(keys))
            o[b, rows] = (p @ keys).reshape(-1, H, d)
            kept.append(p)
        ctx.save_for_backward(q, kv, entries, seen, sink_share, o)
        ctx.kept, ctx.window = kept, window
        ctx.mark_non_differentiable(mass)
        return o, mass

    @staticmethod
    def backward(ctx, grad_o, _):
        q, kv, entries, seen, sink_share, o = ctx.saved_tensors
        B, T, H, d = q.shape
        small = sink_share.dtype
        grad_q, grad_kv = torch.empty_like(q), torch.zeros(kv.shape, dtype=small)
        grad_entries = torch.zeros(entries.shape, dtype=small)
        along = (grad_o * o).to(small).sum(-1)
        each = zip(CoreAttention.chunks(q, kv, entries, seen, ctx.window), ctx.kept)
        for (b, rows, window, n, keys, _), p in each:
            go, qq = grad_o[b, rows].reshape(-1, d), q[b, rows].reshape(-1, d)
            grad_s = (go @ keys.T).sub_(along[b, rows].reshape(-1, 1).to(q.dtype)).mul_(p).mul_(d ** -0.5)
            grad_q[b, rows] = (grad_s @ keys).reshape(-1, H, d)
            grad_keys = (grad_s.T @ qq + p.T @ go).to(small)
            grad_kv[b, window] += grad_keys[:len(keys) - n]
            grad_entries[b, :n] += grad_keys[len(keys) - n:]
        return (grad_q, grad_kv.to(kv.dtype), grad_entries.to(kv.dtype), None,
                -(sink_share * along).sum((0, 1)), None)


class Indexer(nn.Module):
    """Scores every compressed entry for every query."""

    def __init__(self, cfg, rope, num):
        super().__init__()
        self.h, self.d = cfg["index_n_heads"], cfg["index_head_dim"]
        self.rope, self.num = rope, num
        self.wq_b = matrix(self.h * self.d, cfg["q_lora_rank"])
        self.weights_proj = matrix(self.h, cfg["hidden_size"])
        self.compressor = Compressor(cfg, 4, self.d, True, num)

    def forward(self, x, qr):
        """x [B, T, D], qr [B, T, q_lora] -> [B, T, n]"""
        B, T, _ = x.shape
        q = self.num.linear(qr, self.wq_b).reshape(B, T, self.h, self.d)
        q = self.num.index_vector(self.rope(q, torch.arange(T)))
        k = self.compressor(x)
        w = self.num.linear(x, self.weights_proj, "plain").to(self.num.small) * (self.d * self.h) ** -0.5
        score = F.relu(q.reshape(B, T * self.h, self.d) @ k.transpose(1, 2)).reshape(B, T, self.h, -1)
        return (score * w[..., None].to(score.dtype)).sum(2).to(self.num.small)


class Attention(nn.Module):
    def __init__(self, cfg, layer, num):
        super().__init__()
        self.cfg, self.num, self.ratio = cfg, num, cfg["compress_ratios"][layer]
        D, self.h, self.d = cfg["hidden_size"], cfg["num_attention_heads"], cfg["head_dim"]
        ql, g, ol, eps = cfg["q_lora_rank"], cfg["o_groups"], cfg["o_lora_rank"], cfg["rms_norm_eps"]
        self.wq_a, self.wq_b, self.wkv = matrix(ql, D), matrix(self.h * self.d, ql), matrix(self.d, D)
        self.wo_a, self.wo_b = matrix(g, ol, self.h * self.d // g), matrix(D, g * ol, gain=0.5)
        self.q_norm, self.kv_norm = Norm(ql, eps, num), Norm(self.d, eps, num)
        self.attn_sink = nn.Parameter(torch.zeros(self.h))
        self.rope, self.rope_dim = Rope(cfg, self.ratio > 0), cfg["qk_rope_head_dim"]
        if self.ratio:
            self.compressor = Compressor(cfg, self.ratio, self.d, False, num)
        if self.ratio == 4:
            self.indexer = Indexer(cfg, self.rope, num)

    def visible(self, x, qr, n, notes):
        """Which entries each query may see: those whole by then, and if select, the indexer's best."""
        T, select, train = x.shape[1], notes["select"], notes["train_indexer"]
        whole = (torch.arange(T) + 1) // max(self.ratio, 1)
        seen = (torch.arange(n)[None, :] < whole[:, None])[None]
        if self.ratio != 4 or not n or not (select or train):
            return seen, None
        with torch.set_grad_enabled(train):
            score = self.indexer(x.detach(), qr.detach()).masked_fill(~seen, -torch.inf)
        if select and n > self.cfg["index_topk"]:
            # Scores of 0 are common (ReLU); of equal ones the lower position goes first.
            best = score.detach().sort(dim=-1, descending=True, stable=True).indices[..., :self.cfg["index_topk"]]
            seen = torch.zeros_like(score, dtype=torch.bool).scatter_(2, best, True) & seen
        return seen, score

    def forward(self, x, notes):
        cfg, num, (B, T, D) = self.cfg, self.num, x.shape
        t = torch.arange(T)
        qr = self.q_norm(num.linear(x, self.wq_a))
        q = num.linear(qr, self.wq_b).reshape(B, T, self.h, self.d).to(num.small)
        q = self.rope(Unit.apply(q, cfg["rms_norm_eps"]).to(num.dtype), t)
        kv = num.kv_entry(self.rope(self.kv_norm(num.linear(x, self.wkv)), t), self.rope_dim)
        entries = self.compressor(x) if self.ratio else kv[:, :0]
        seen, score = self.visible(x, qr, entries.shape[1], notes)
        o, mass = CoreAttention.apply(q, kv, entries, seen, self.attn_sink.to(num.small), cfg["sliding_window"])
        if score is not None:
            notes["indexer"].append((score, mass, seen))
        o = self.rope(o, t, inverse=True).reshape(B, T, len(self.wo_a), -1)
        wo_a = num.weight(self.wo_a, "dense").to(num.dtype)
        o = torch.cat([F.linear(part, w) for part, w in zip(o.unbind(2), wo_a.unbind())], -1)
        return num.linear(o, self.wo_b)


class Gather(torch.autograd.Function):
    """x[index] for an index that names every row `times` times; `back` lists where each went, so that
    backward is a gather too."""

    @staticmethod
    def forward(ctx, x, index, back, times):
        ctx.save_for_backward(back)
        ctx.times = times
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx, grad):
        back, = ctx.saved_tensors
        grad = grad.index_select(0, back)
        return grad.reshape(-1, ctx.times, grad.shape[-1]).sum(1) if ctx.times > 1 else grad, None, None, None


class SwiGLU(torch.autograd.Function):
    """silu(min(gate, limit)) * clamp(up, -limit, limit) * weight for gate_up [N, 2 I], weight [N, 1]."""

    @staticmethod
    def forward(ctx, gate_up, weight, limit):
        ctx.save_for_backward(gate_up, weight)
        ctx.limit = limit
        gate, up = gate_up.chunk(2, -1)
        return F.silu(gate.clamp(max=limit)).mul_(up.clamp(-limit, limit)).mul_(weight)

    @staticmethod
    def backward(ctx, grad):
        (gate_up, weight), limit = ctx.saved_tensors, ctx.limit
        gate, up = gate_up.chunk(2, -1)
        g, u = gate.clamp(max=limit), up.clamp(-limit, limit)
        s = torch.sigmoid(g)
        silu = g * s
        grad_weight = (grad * silu * u).sum(-1, keepdim=True)
        grad = grad * weight
        out = torch.empty_like(gate_up)
        into_gate, into_up = out.chunk(2, -1)
        torch.mul(grad * u, s + silu * (1 - s), out=into_gate)
        torch.mul(grad, silu, out=into_up)
        if gate_up.abs().max() > limit:
            into_gate.mul_(gate <= limit)
            into_up.mul_(up.abs() <= limit)
        return out, grad_weight, None


class MoE(nn.Module):
    def __init__(self, cfg, layer, num):
        super().__init__()
        D, I, self.E = cfg["hidden_size"], cfg["moe_intermediate_size"], cfg["n_routed_experts"]
        self.k, self.num, self.limit = cfg["num_experts_per_tok"], num, cfg.get("swiglu_limit") or torch.inf
        self.scaling = cfg["routed_scaling_factor"]
        self.gate = matrix(self.E, D)
        if layer < cfg["num_hash_layers"]:
            self.register_buffer("tid2eid", torch.zeros(cfg["vocab_size"], self.k, dtype=torch.int64))
        else:
            self.register_buffer("bias", torch.zeros(self.E))
        self.w13, self.w2 = matrix(self.E, 2 * I, D), matrix(self.E, D, I, gain=0.5)
        self.shared_w13, self.shared_w2 = matrix(2 * I, D), matrix(D, I, gain=0.5)

    def forward(self, x, ids, notes):
        num, shape = self.num, x.shape
        x, ids = x.reshape(-1, shape[-1]), ids.reshape(-1)
        scores = torch.sqrt(F.softplus(F.linear(x.to(num.small), self.gate.to(num.small))))
        if hasattr(self, "tid2eid"):
            picked = self.tid2eid[ids]
        else:
            picked = (scores.detach() + self.bias).topk(self.k, -1).indices
        weights = scores.gather(1, picked)
        weights = weights / weights.sum(1, keepdim=True) * self.scaling
        notes["routing"].append(picked)

        # Pairs (token, expert) sorted by expert; each expert multiplies its tokens together.
        flat = picked.reshape(-1)
        order = flat.argsort(stable=True)
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order))
        counts = torch.bincount(flat, minlength=self.E).tolist()
        quantised = "activations" in num.parts
        mine = fp8_blocks(x, 128) if quantised else x
        pairs = Gather.apply(mine.to(num.dtype), order // self.k, back, self.k)
        scale = Gather.apply(weights.reshape(-1, 1), order, back, 1)
        w13, w2 = (num.weight(w, "experts").to(num.dtype).unbind() for w in (self.w13, self.w2))
        each = lambda parts, w: torch.cat([F.linear(p, v) for p, v in zip(parts.split(counts), w)])
        h = SwiGLU.apply(each(pairs, w13), scale.to(num.dtype), self.limit)
        y = each(fp8_blocks(h, 128) if quantised else h, w2)
        y = Gather.apply(y, back, order, 1).reshape(-1, self.k, shape[-1]).sum(1)

        gate_up = F.linear(mine.to(num.dtype), num.weight(self.shared_w13, "dense").to(num.dtype))
        h = SwiGLU.apply(gate_up, torch.ones(1, 1, dtype=num.dtype), self.limit)
        return (y + num.linear(h, self.shared_w2)).reshape(shape)


class HyperConnection(nn.Module):
    """Mixes S residual streams into a block's input, and its output back into the streams."""

    def __init__(self, cfg, number, num):
        super().__init__()
        S, D = cfg["hc_mult"], cfg["hidden_size"]
        self.S, self.num, self.eps, self.norm_eps = S, num, cfg["hc_eps"], cfg["rms_norm_eps"]
        self.iters = cfg["hc_sinkhorn_iters"]
        # At the start a block reads mostly one stream, another each time, and the streams hardly mix.
        base = torch.zeros((2 + S) * S)
        base[:S] = -2.0
        base[number % S] = 1.0
        base[2 * S:] = (4 * torch.eye(S)).flatten()
        self.fn, self.base = matrix((2 + S) * S, S * D), nn.Parameter(base)
        self.scale = nn.Parameter(torch.full((3,), 0.05))

    def forward(self, streams):
        """streams [N, S, D] -> (input [N, D], post [N, S], comb [N, S, S])"""
        S, eps = self.S, self.eps
        m = hyper_mixes(streams, self.fn, self.norm_eps, self.num)
        pre = torch.sigmoid(m[:, :S] * self.scale[0] + self.base[:S]) + eps
        post = 2 * torch.sigmoid(m[:, S:2 * S] * self.scale[1] + self.base[S:2 * S])
        comb = (m[:, 2 * S:] * self.scale[2] + self.base[2 * S:]).t().reshape(S, S, -1)
        comb = torch.softmax(comb, 1) + eps
        comb = Share.apply(comb, 0, eps)
        for _ in range(self.iters - 1):
            comb = Share.apply(Share.apply(comb, 1, eps), 0, eps)
        x = torch.bmm(pre[:, None].to(self.num.dtype), streams)[:, 0]
        return x, post, comb.permute(2, 0, 1)

    def after(self, out, streams, post, comb):
        dtype = self.num.dtype
        mixed = torch.bmm(comb.transpose(1, 2).to(dtype), streams)
        return mixed + post[..., None].to(dtype) * out[:, None, :]


def hyper_mixes(streams, fn, eps, num):
    flat = streams.reshape(len(streams), -1).to(num.small)
    return F.linear(flat, fn) * torch.rsqrt((flat * flat).mean(-1, keepdim=True) + eps)


class HyperHead(nn.Module):
    def __init__(self, cfg, num):
        super().__init__()
        S = cfg["hc_mult"]
        self.num, self.eps, self.norm_eps = num, cfg["hc_eps"], cfg["rms_norm_eps"]
        self.fn = matrix(S, S * cfg["hidden_size"])
        self.base, self.scale = nn.Parameter(torch.full((S,), -1.0)), nn.Parameter(torch.full((1,), 0.05))

    def forward(self, streams):
        pre = torch.sigmoid(hyper_mixes(streams, self.fn, self.norm_eps, self.num) * self.scale + self.base)
        return torch.bmm((pre + self.eps)[:, None].to(self.num.dtype), streams)[:, 0]


class Block(nn.Module):
    def __init__(self, cfg, layer, num):
        super().__init__()
        D, eps = cfg["hidden_size"], cfg["rms_norm_eps"]
        self.attn, self.ffn = Attention(cfg, layer, num), MoE(cfg, layer, num)
        self.attn_norm, self.ffn_norm = Norm(D, eps, num), Norm(D, eps, num)
        self.hc_attn = HyperConnection(cfg, 2 * layer, num)
        self.hc_ffn = HyperConnection(cfg, 2 * layer + 1, num)

    def forward(self, streams, ids, notes):
        """streams [B * T, S, D], ids [B, T]"""
        x, post, comb = self.hc_attn(streams)
        y = self.attn(self.attn_norm(x).reshape(*ids.shape, -1), notes).reshape(x.shape)
        streams = self.hc_attn.after(y, streams, post, comb)
        x, post, comb = self.hc_ffn(streams)
        return self.hc_ffn.after(self.ffn(self.ffn_norm(x), ids, notes), streams, post, comb)


class MultiTokenPrediction(nn.Module):
    def __init__(self, cfg, layer, num):
        super().__init__()
        D, eps = cfg["hidden_size"], cfg["rms_norm_eps"]
        self.e_proj, self.h_proj = matrix(D, D), matrix(D, D)
        self.enorm, self.hnorm, self.norm = (Norm(D, eps, num) for _ in range(3))
        self.block, self.hc_head, self.num = Block(cfg, layer, num), HyperHead(cfg, num), num

    def forward(self, streams, embedded, ids, notes):
        """streams [B * T, S, D] of tokens 0..T-1; embedded and ids of the tokens after them"""
        e = self.num.linear(self.enorm(embedded), self.e_proj).reshape(len(streams), 1, -1)
        x = self.block(e + self.num.linear(self.hnorm(streams), self.h_proj), ids, notes)
        return self.norm(self.hc_head(x))


class Model(nn.Module):
    def __init__(self, cfg, num):
        super().__init__()
        D, n = cfg["hidden_size"], cfg["num_hidden_layers"]
        self.cfg, self.num = cfg, num
        self.embed = nn.Parameter(torch.randn(cfg["vocab_size"], D))
        self.head = matrix(cfg["vocab_size"], D, gain=0.5)
        self.layers = nn.ModuleList(Block(cfg, i, num) for i in range(n))
        self.norm, self.hc_head = Norm(D, cfg["rms_norm_eps"], num), HyperHead(cfg, num)
        self.mtp = nn.ModuleList(MultiTokenPrediction(cfg, n + i, num)
                                 for i in range(cfg["num_nextn_predict_layers"]))

    def forward(self, ids, select=True, train_indexer=False):
        """ids [B, T] -> (normed hidden [B * T, D], streams [B * T, S, D], notes). notes: per layer
        the experts picked, and of each indexer its scores, the attention paid, what was seen."""
        notes = {"select": select, "train_indexer": train_indexer, "routing": [], "indexer": []}
        x = F.embedding(ids.reshape(-1), self.embed).to(self.num.dtype)
        streams = x[:, None, :].expand(-1, self.cfg["hc_mult"], -1).contiguous()
        for layer in self.layers:
            streams = layer(streams, ids, notes)
        return self.norm(self.hc_head(streams)), streams, notes

    def logits(self, hidden):
        return F.linear(hidden, self.head.to(self.num.dtype)).to(self.num.small)

    def draft(self, ids, streams, notes):
        """The MTP block's hidden [B * T, D] for predicting token t + 2. The last token's successor is
        not known; token 0 stands in, and its row is for the caller to drop."""
        after = F.pad(ids[:, 1:], (0, 1))
        embedded = F.embedding(after.reshape(-1), self.embed).to(self.num.dtype)
        return self.mtp[0](streams, embedded, after, notes)
