"""Speed of `sluice serve` beside the engine alone, and how long others keep a short request waiting.

measure_serve.py SLUICE MODEL. For 1, 8 and 64 conversations, with a cache for all experts and for
a quarter of them: tokens a second of the server and of `bench decode` with as many texts, with its
limit, and the part of the time that the server's engine was in no step, which is what HTTP and
scheduling cost. Both begin alike: all experts are in the cache, or what is left in a new one after
as many tokens of the same texts as are measured. Then the time to the first token of a short
request: alone, and beside a long prompt and 64 prompts that are being taken in, with the time of a
layer of theirs. Where there is no MODEL it is made: four layers of V4-Flash with 64 experts each,
6 GB, which must fit into memory.

PARTS ("1 0.25 waits") names what is measured: caches by their share, and the waits; some minutes
each. ROUNDS (3) runs are made of each, and medians printed.
"""
import asyncio
import atexit
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import httpx

SLUICE, MODEL = sys.argv[1:3]
FOLDER = tempfile.TemporaryDirectory()
SOCKET = FOLDER.name + "/socket"
PAST_TOKENS, ROUNDS = 16, int(os.environ.get("ROUNDS", 3))
RUN_TOKENS = {1: 8, 8: 4, 64: 2} # of each of so many texts, in one run
LONG_TOKENS, MANY_TOKENS = 4000, 200

# Decode of the same length as bench decode's, on prompts of the same length, in the same threads.
SERVE = [SLUICE, "serve", MODEL, "--socket", SOCKET, "--no-hot-list", "--quiet", "--kv", "1G",
         "--state", "none",
         "--context", "8192", "--parallel", "96", "--keep-prompt", "0"]


def make_slice():
    with open("tools/configs/v4-flash.json") as file:
        config = json.load(file)
    config.update(num_hidden_layers=4, n_routed_experts=64, num_hash_layers=1,
                  num_nextn_predict_layers=0, compress_ratios=config["compress_ratios"][:4])
    with open(FOLDER.name + "/config.json", "w") as file:
        json.dump(config, file)
    subprocess.run([SLUICE, "synth", FOLDER.name + "/config.json", MODEL, "--no-mtp"], check=True)


if not os.path.exists(MODEL):
    make_slice()
with open(MODEL + "/config.json") as file:
    CONFIG = json.load(file)
plan = json.loads(subprocess.run([SLUICE, "inspect", MODEL, "--json"], capture_output=True,
                                 text=True, check=True).stdout)["memory"]
chance = random.Random(1)


def ids(n):
    return [chance.randrange(10, CONFIG["vocab_size"]) for _ in range(n)]


def client():
    return httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=SOCKET), base_url="http://x",
                             timeout=3600, limits=httpx.Limits(max_connections=None))


async def counters(http):
    lines = (await http.get("/metrics")).text.splitlines()
    return {"s": time.monotonic()} | {
        name.removeprefix("sluice_").removesuffix("_total"): float(value) for name, value in
        (line.split()[:2] for line in lines if line.startswith("sluice_") and "{" not in line)}


async def talk(http, n_new, on_token):
    body = {"prompt": ids(PAST_TOKENS), "max_tokens": n_new, "stream": True, "temperature": 1}
    async with http.stream("POST", "/v1/completions", json=body) as reply:
        async for line in reply.aiter_lines():
            if line.startswith("data: {"):
                on_token()


async def decode(http, n_texts):
    """What the counters add in each run: from where all texts are so far to where all are further.
    As many runs go before as count."""
    run_tokens = RUN_TOKENS[n_texts]
    n_new = 4 * ROUNDS * run_tokens # some are ahead of others, and not each token brings text
    seen, borders = [0] * n_texts, [asyncio.Event() for _ in range(ROUNDS + 1)]

    def on_token(i):
        seen[i] += 1
        for n, border in enumerate(borders):
            if min(seen) >= (ROUNDS + n) * run_tokens:
                border.set()

    texts = asyncio.gather(*(talk(http, n_new, lambda i=i: on_token(i)) for i in range(n_texts)))
    texts.add_done_callback(lambda _: [border.set() for border in borders]) # also if they end
    at = []
    for border in borders:
        await border.wait()
        at.append(await counters(http))
    texts.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await texts
    return [{key: to[key] - of[key] for key in to if key in of} for of, to in zip(at, at[1:])]


def bench(n_texts, cache, warm):
    made = subprocess.run([SLUICE, "bench", "decode", MODEL, "--tokens", str(RUN_TOKENS[n_texts]),
                           "--sequences", str(n_texts), "--cache", cache, "--runs", str(ROUNDS),
                           "--json", *(["--warm"] if warm else [])],
                          capture_output=True, text=True, check=True).stdout
    return next(f for f in map(json.loads, made.splitlines()) if f["what"] == "decode")


async def start(cache):
    server = subprocess.Popen([*SERVE, "--cache", cache])
    atexit.register(server.kill)
    async with client() as http:
        while True:
            try:
                if (await http.get("/health")).status_code == 200:
                    return server
            except httpx.TransportError:
                pass
            if server.poll() is not None:
                sys.exit("the server does not start")
            await asyncio.sleep(0.2)


def stop(server):
    server.terminate()
    server.wait()


async def measure_decode(share, n_texts):
    cache = str(max(plan["slots_min"], int(plan["slots_max"] * share)) * plan["slot_bytes"])
    server = await start(cache)
    async with client() as http:
        if share == 1:
            await take_in(http, 8, 100) # fills the cache
        runs = await decode(http, n_texts)
    stop(server)
    if min(run["new_tokens"] for run in runs) < n_texts:
        sys.exit(f"{n_texts} texts: one ended by itself; measure again")
    rate = statistics.median(run["new_tokens"] / run["s"] for run in runs)
    outside = 1 - sum(run["busy_seconds"] for run in runs) / sum(run["s"] for run in runs)
    alone = bench(n_texts, cache, share < 1)
    print(f"cache for {share:4.0%}  {n_texts:2} texts: {rate:8.2f} tokens/s, outside of steps "
          f"{outside:.2%}; bench decode {alone['value']:8.2f} ({rate / alone['value']:.1%})"
          f" of {alone['limit']:.2f} ({rate / alone['limit']:.1%})"
          + (", disturbed" if alone["disturbed"] else ""), flush=True)


# ---- the first token of a short request ---------------------------------------------------------

async def first_token(http):
    began = time.monotonic()
    await http.post("/v1/completions", json={"prompt": ids(PAST_TOKENS), "max_tokens": 1})
    return time.monotonic() - began


async def take_in(http, n_prompts, n_tokens):
    await asyncio.gather(*(http.post("/v1/completions", json={"prompt": ids(n_tokens),
                                                              "max_tokens": 1})
                           for _ in range(n_prompts)))


async def layer_s(http, n_prompts, n_tokens):
    """Seconds of a layer of the large steps that take these prompts in, with nobody beside them."""
    first = await counters(http)
    await take_in(http, n_prompts, n_tokens)
    last = await counters(http)
    n_steps = max(1, last["steps_large"] - first["steps_large"])
    return (last["busy_seconds"] - first["busy_seconds"]) / n_steps / CONFIG["num_hidden_layers"]


async def measure_first_token(http, alone, what, n_prompts, n_tokens):
    layer = await layer_s(http, n_prompts, n_tokens)
    others = asyncio.create_task(take_in(http, n_prompts, n_tokens))
    waits = []
    await asyncio.sleep(layer)
    while True:
        wait = await first_token(http)
        if others.done():
            break
        waits.append(wait)
        await asyncio.sleep(chance.random() * layer)
    await others
    if not waits:
        sys.exit(f"beside {what}: over before a request could be made")
    print(f"first token beside {what}: {statistics.median(waits):.3f} s, at most {max(waits):.3f} of "
          f"{len(waits)}; alone {alone:.3f}; a layer {layer:.3f}: at most "
          f"{(max(waits) - alone) / layer:.2f} layers more", flush=True)


async def measure_waits():
    server = await start(str(plan["slots_max"] * plan["slot_bytes"]))
    async with client() as http:
        await take_in(http, 8, 100) # fills the cache
        alone = statistics.median([await first_token(http) for _ in range(2 * ROUNDS)])
        await measure_first_token(http, alone, f"a prompt of {LONG_TOKENS} tokens", 1, LONG_TOKENS)
        await measure_first_token(http, alone, f"64 prompts of {MANY_TOKENS} tokens", 64,
                                  MANY_TOKENS)
    stop(server)


async def main():
    with open("/proc/cpuinfo") as file:
        print(next(line.split(": ")[1].strip() for line in file if line.startswith("model name")))
    for part in os.environ.get("PARTS", "1 0.25 waits").split():
        if part == "waits":
            await measure_waits()
        else:
            for n_texts in RUN_TOKENS:
                await measure_decode(float(part), n_texts)


signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)) # so that the server ends, too
asyncio.run(main())
