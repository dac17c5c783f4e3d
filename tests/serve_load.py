"""Load on `sluice serve`: 64 clients that ask in four protocols, stream or not, hang up, read slowly
and send rubbish, while the server is killed and started again.

serve_load.py SLUICE MODEL REQUESTS [CLIENTS]. Every answer that is read whole must be the text that
`sluice generate` makes with the same seed, and one that is not whole needs a reason: the server was
killed meanwhile, or said 429 or 5xx. Between two thirds of the requests and the end, the server's
memory, threads and open files must not grow, at the end nothing may run, and SIGTERM must end it
with status 0. Where SL_SANITIZED says something, memory is the sanitizer's to look at. SL_REFERENCE
is a faster build that gives the texts to compare with.
"""
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time

import httpx

SLUICE, MODEL, REQUESTS = sys.argv[1], sys.argv[2], int(sys.argv[3])
REFERENCE = os.environ.get("SL_REFERENCE", SLUICE)
CLIENTS = int(sys.argv[4]) if len(sys.argv) > 4 else 64
FOLDER = tempfile.TemporaryDirectory()
SOCKET = FOLDER.name + "/socket"
N_NEW, SEED = 12, 7
KILLS = 3
PROMPT_TIMEOUT_S = 600

# It guesses ahead and goes on from images, as none of the references does. Sequences are few and the queue is short, so that requests wait, and some are refused.
SERVE = [SLUICE, "serve", MODEL, "--socket", SOCKET, "--ram", "2G", "--kv", "64M", "--context", "4096",
         "--parallel", "32", "--queue", "30", "--small-step", "64", "--keep-prompt", "2",
         "--no-hot-list", "--quiet", "--state", FOLDER.name + "/state", "--images",
         FOLDER.name + "/images", "--images-max", "200M", "--draft", "2"]

# ---- what is asked, and what the answers are ----------------------------------------------------

WORDS = ["The river rose in the", "She said", "In the year", "A list of", "When the", "It is",
         "There was once", "The king"]
STORY = "The river ran from the hills to the sea, and nobody had seen where it began. "


def conversation(i):
    """Some share a long beginning; one has been going on; some are long."""
    if i % 4 == 0:
        return [{"role": "system", "content": STORY * 12}, {"role": "user", "content": WORDS[i]}]
    if i % 4 == 1:
        return [{"role": "user", "content": WORDS[i]}, {"role": "assistant", "content": STORY},
                {"role": "user", "content": "Why?"}]
    return [{"role": "user", "content": WORDS[i] + (" " + STORY * 40 if i == 2 else "")}]


def rendered(messages, *options):
    return subprocess.run([REFERENCE, "chat-template", MODEL, "-", "--no-bos", *options], text=True,
                          input=json.dumps(messages), capture_output=True, check=True).stdout


class Case:
    """A request, in one of the protocols, and the text that answers it."""

    def __init__(self, kind, i, index):
        messages, self.seed, self.kind = conversation(i), SEED + index, kind
        common = {"model": "small", "seed": self.seed, "temperature": 1}
        if kind == "completions":
            self.path, self.prompt = "/v1/completions", WORDS[i] + (" " + STORY * 60) * (i == 5)
            self.body = {**common, "prompt": self.prompt, "max_tokens": N_NEW}
            return
        self.prompt = rendered(messages, *([] if kind == "thinking" else ["--no-thinking"]))
        if kind in ("chat", "thinking"):
            self.path = "/v1/chat/completions"
            self.body = {**common, "messages": messages, "max_tokens": N_NEW,
                         "thinking": {"type": "enabled" if kind == "thinking" else "disabled"}}
        elif kind == "messages":
            self.path = "/v1/messages"
            self.body = {**common, "messages": [m for m in messages if m["role"] != "system"],
                         "max_tokens": N_NEW}
            if messages[0]["role"] == "system":
                self.body["system"] = messages[0]["content"]
        else:
            self.path = "/v1/responses"
            self.body = {**common, "input": messages, "max_output_tokens": N_NEW,
                         "reasoning": {"effort": "none"}}

    def whole(self, reply):
        if self.kind == "completions":
            return reply["choices"][0]["text"]
        if self.kind in ("chat", "thinking"):
            message = reply["choices"][0]["message"]
            return (message.get("reasoning_content") or "") + (message["content"] or "")
        if self.kind == "messages":
            return "".join(block["text"] for block in reply["content"])
        return "".join(part["text"] for item in reply["output"] for part in item["content"])

    def streamed(self, text):
        """The text of a whole stream; None where it has no end."""
        events = [line[6:].strip() for line in text.splitlines() if line.startswith("data: ")]
        if self.kind in ("messages", "responses"):
            events = [json.loads(event) for event in events]
            ends = ("message_stop", "response.completed", "response.incomplete")
            if not events or events[-1]["type"] not in ends:
                return None
            if self.kind == "messages":
                return "".join(e["delta"].get("text", "") for e in events
                               if e["type"] == "content_block_delta")
            return "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta")
        if not events or events.pop() != "[DONE]":
            return None
        choices = [c for event in events for c in json.loads(event)["choices"]]
        if self.kind == "completions":
            return "".join(c["text"] for c in choices)
        return "".join((c["delta"].get("reasoning_content") or "") + (c["delta"].get("content") or "")
                       for c in choices)


CASES = []
for kind in "completions", "chat", "thinking", "messages", "responses":
    CASES += [Case(kind, i, len(CASES) + i) for i in range(len(WORDS))]
made = subprocess.run(
    [REFERENCE, "generate", MODEL, "--jsonl", "-", "--special", "-n", str(N_NEW), "--seed", str(SEED),
     "--context", "4096", "--no-hot-list"], input="".join(json.dumps(c.prompt) + "\n" for c in CASES),
    capture_output=True, text=True, check=True)
for case, line in zip(CASES, made.stdout.splitlines(), strict=True):
    case.expected = json.loads(line)["text"].replace("</think>", "") # a protocol's own mark

# ---- the server ---------------------------------------------------------------------------------


class Server:
    n_killed, is_up = 0, False

    async def start(self):
        self.process = subprocess.Popen(SERVE)
        end = time.monotonic() + 120
        async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=SOCKET)) as client:
            while True:
                try:
                    if (await client.get("http://x/health")).status_code == 200:
                        self.is_up = True
                        return
                except httpx.TransportError:
                    pass
                assert self.process.poll() is None and time.monotonic() < end, "it does not start"
                await asyncio.sleep(0.05)

    async def kill(self):
        self.n_killed += 1 # before: whoever fails from now on has a reason,
        self.is_up = False # and whoever asks before there is another one
        self.process.kill()
        self.process.wait()
        await self.start()

    def figures(self):
        folder = f"/proc/{self.process.pid}/"
        with open(folder + "status") as status:
            lines = dict(line.split(":", 1) for line in status)
        return {"RSS kB": int(lines["VmRSS"].split()[0]), "threads": int(lines["Threads"]),
                "files": len(os.listdir(folder + "fd"))}


async def serving():
    async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=SOCKET)) as client:
        return (await client.get("http://x/status")).json()["serving"]


server = Server()

# ---- clients ------------------------------------------------------------------------------------

counts = dict.fromkeys(["whole", "streamed", "slow", "left", "rubbish", "refused", "killed"], 0)
failures = []


def check(case, text, how):
    if text is None:
        raise AssertionError(f"{case.path}: no whole answer ({how})")
    if text != case.expected:
        raise AssertionError(f"{case.path} ({case.kind}, {how}): {text!r}, not {case.expected!r}")
    counts[how] += 1


async def ask(client, case, stream):
    """Asks until there is room for it in the queue."""
    while (reply := await client.post(case.path, json={**case.body, "stream": stream})
           ).status_code in (429, 503):
        counts["refused"] += 1
        await asyncio.sleep(0.1)
    if reply.status_code != 200:
        raise AssertionError(f"{case.path}: {reply.status_code} {reply.text[:300]}")
    elif stream:
        check(case, case.streamed(reply.text), "streamed")
    else:
        check(case, case.whole(reply.json()), "whole")


async def open_raw(case, **more):
    """A connection of its own, HTTP/1.0, so that the answer is what comes until it ends."""
    text = json.dumps({**case.body, **more}).encode()
    reader, writer = await asyncio.open_unix_connection(SOCKET, limit=4096)
    writer.write(f"POST {case.path} HTTP/1.0\r\nHost: x\r\nContent-Type: application/json\r\n"
                 f"Content-Length: {len(text)}\r\n\r\n".encode() + text)
    return reader, writer


async def hang_up(case, chance):
    longer = {key: 400 for key in case.body if key.startswith("max_")}
    reader, writer = await open_raw(case, stream=chance.random() < 0.6, **longer)
    if chance.random() < 0.5:
        await asyncio.sleep(chance.random() * 0.2)
    else:
        await reader.read(1 + chance.randrange(600))
    writer.close()
    counts["left"] += 1


async def read_slowly(case, chance):
    reader, writer = await open_raw(case, stream=True)
    data = b""
    while piece := await reader.read(chance.randrange(1, 200)):
        data += piece
        await asyncio.sleep(0.002)
    writer.close()
    head, _, text = data.partition(b"\r\n\r\n")
    if head.split()[1:2] in ([b"429"], [b"503"]):
        counts["refused"] += 1
    else:
        check(case, case.streamed(text.decode()), "slow")


async def send_rubbish(client, case):
    reply = await client.post(case.path, content=b'{"prompt": ',
                              headers={"Content-Type": "application/json"})
    assert reply.status_code == 400, reply.text
    counts["rubbish"] += 1


async def run_client(number, left):
    chance = random.Random(number)
    async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=SOCKET),
                                 base_url="http://x", timeout=PROMPT_TIMEOUT_S) as client:
        while left:
            left.pop()
            case, kind = chance.choice(CASES), chance.random()
            n_killed, was_up = server.n_killed, server.is_up
            try:
                if kind < 0.8:
                    await ask(client, case, kind < 0.45)
                elif kind < 0.9:
                    await hang_up(case, chance)
                elif kind < 0.96:
                    await read_slowly(case, chance)
                else:
                    await send_rubbish(client, case)
            except Exception as error:
                if (server.n_killed > n_killed or not was_up) and isinstance(
                        error, (httpx.TransportError, OSError, AssertionError)) and (
                        not isinstance(error, AssertionError) or "no whole answer" in str(error)):
                    counts["killed"] += 1
                    await asyncio.sleep(0.2)
                else:
                    failures.append(f"{type(error).__name__}: {error}")


async def run(n_requests, n_kills=0):
    """All clients together; at their end there is nobody left, and nothing runs."""
    left = [None] * n_requests
    clients = [asyncio.create_task(run_client(number, left)) for number in range(CLIENTS)]
    for k in range(n_kills, 0, -1):
        while len(left) > n_requests * k // (n_kills + 1):
            await asyncio.sleep(0.02)
        await server.kill()
    await asyncio.gather(*clients)
    end = time.monotonic() + 90
    while (await serving())["texts_running"] > 0 and time.monotonic() < end:
        await asyncio.sleep(0.2)
    figures = server.figures()
    while True: # connections end, one after the other
        before = figures
        await asyncio.sleep(1)
        figures = server.figures()
        if figures["files"] >= before["files"]:
            return figures


async def main():
    began = time.monotonic()
    await server.start()
    await run(REQUESTS // 3, KILLS)
    warm = await run(REQUESTS // 3)
    after = await run(REQUESTS - 2 * (REQUESTS // 3))
    status = await serving()
    print(f"{REQUESTS} requests of {CLIENTS} clients in {time.monotonic() - began:.0f} s: {counts}; "
          f"{status['new_tokens']} tokens since the last kill\nafter two thirds {warm}, then {after}")
    if status["texts_running"] or status["texts_waiting"]:
        failures.append(f"still running: {status}")
    if not os.environ.get("SL_SANITIZED") and after["RSS kB"] > warm["RSS kB"] * 1.02 + 2048:
        failures.append("memory grows")
    if after["threads"] > warm["threads"] or after["files"] > warm["files"]:
        failures.append("threads or open files grow")
    server.process.send_signal(signal.SIGTERM)
    rc = server.process.wait(120)
    if rc != 0:
        failures.append(f"exit status {rc}")


try:
    asyncio.run(main())
finally:
    if server.process.poll() is None:
        server.process.kill()
for failure in failures[:10]:
    print("failure:", failure[:600])
sys.exit(bool(failures) or (REQUESTS >= 1000 and not all(counts.values())))
