"""A night in small: 200 real documents with two questions each go through `sluice serve`,
beside conversations that never pause, while the server is killed and started again three times.

night.py SLUICE MODEL. Documents are what packages have brought to this machine, 2 to 30 pages each;
SL_SEED chooses others, and other moments for the kills. The results must be those of an undisturbed
`sluice batch run`, byte for byte and once each, and the conversations those of `sluice generate`.
What questions share must have been computed once, but for what the kills have cost. The time left
that is told must be right from a quarter of the way on: within a fifth undisturbed, within a half
after the last kill, beside users. Exits with 77 where the machine has too few documents.
"""
import asyncio
import fcntl
import gzip
import hashlib
import json
import os
import pathlib
import pty
import random
import re
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time

import httpx

SLUICE, MODEL = (os.path.abspath(path) for path in sys.argv[1:3])
SEED = int(os.environ.get("SL_SEED", 1))
FOLDER = tempfile.TemporaryDirectory()
SOCKET = FOLDER.name + "/socket"
N_DOCUMENTS = int(os.environ.get("SL_DOCUMENTS", 200))
PAGE_BYTES, PAGES_MIN, PAGES_MAX = 2500, 2, 30
QUESTIONS = ["What is this text about?", "Which names does it mention?"]
N_KILLS, N_CLIENTS, N_TURNS, N_NEW, N_AT_ONCE = 3, 4, 3, 24, 32
ENGINE = ["--ram", "3G", "--kv", "512M", "--context", "49152"]
SERVE = [SLUICE, "serve", MODEL, "--socket", SOCKET, *ENGINE, "--no-hot-list", "--quiet", "--state",
         FOLDER.name + "/state", "--images", FOLDER.name + "/images", "--parallel",
         str(N_AT_ONCE + 1), "--batch-share", "0.7"]
RUN_STARTS_S = 3 # nobody can tell at once how fast a run is; of the time that it is on the cores

chance = random.Random(SEED)
failures = []
environment = {**os.environ, "XDG_STATE_HOME": FOLDER.name + "/home"}


def expect(holds, what):
    if not holds:
        failures.append(what)


def sluice(*arguments, **options):
    return subprocess.run([SLUICE, *arguments], capture_output=True, text=True, check=True,
                          cwd=FOLDER.name, env=environment, **options)


# ---- documents ----------------------------------------------------------------------------------

def text_of(path):
    """The text of a document, or None where it is none, or too short or long."""
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        text = data.decode()
    except (OSError, EOFError, UnicodeDecodeError):
        return None
    is_long = PAGES_MIN * PAGE_BYTES <= len(data) <= PAGES_MAX * PAGE_BYTES
    return text if is_long and "\0" not in text else None


def find_documents():
    """Package documentation, each once, short ones rather than long ones: {name: text}."""
    paths = sorted(path for path in pathlib.Path("/usr/share/doc").rglob("*") if path.is_file())
    chance.shuffle(paths)
    documents, seen = {}, set()
    for path in paths:
        text = text_of(path)
        digest = text and hashlib.sha256(text.encode()).digest()
        if not text or digest in seen:
            continue
        seen.add(digest)
        pages = len(text.encode()) / PAGE_BYTES
        if chance.random() < (PAGES_MIN / pages) ** 1.5:
            documents["-".join(path.relative_to("/usr/share/doc").parts)] = text
        if len(documents) == N_DOCUMENTS:
            break
    return documents


def make_batch():
    documents = find_documents()
    if len(documents) < N_DOCUMENTS:
        print(f"skipped: this machine has {len(documents)} documents of 2 to 30 pages, not "
              f"{N_DOCUMENTS}")
        sys.exit(77)
    os.mkdir(FOLDER.name + "/docs")
    for name, text in documents.items():
        pathlib.Path(FOLDER.name, "docs", name).write_text(text)
    asks = [part for question in QUESTIONS for part in ("--ask", question)]
    made = sluice("batch", "make", *asks, "--max-tokens", str(N_NEW), "--no-thinking",
                  "docs").stdout
    pathlib.Path(FOLDER.name, "in.jsonl").write_text(made)
    checked = json.loads(sluice("batch", "check", MODEL, "in.jsonl", "--context", "49152",
                                "--json").stdout)
    pages = sorted(len(text.encode()) / PAGE_BYTES for text in documents.values())
    print(f"{len(pages)} documents of {pages[0]:.0f} to {pages[-1]:.0f} pages, {sum(pages):.0f} in "
          f"all: {checked['items']} items, {checked['prompt_tokens']} tokens, of which "
          f"{checked['computed_tokens']} are to be computed", flush=True)
    assert checked["items"] == N_DOCUMENTS * len(QUESTIONS) and checked["faulty_lines"] == 0
    return checked


# ---- the time left ------------------------------------------------------------------------------

class Clock:
    """What was told of the time left, and how right it was. Others take the cores away at times,
    which nobody can foresee; so it is judged in the time that the process itself was on them."""

    def __init__(self):
        self.begun = time.monotonic()
        self.told = []

    def tell(self, process, left_s):
        """Notes what a run tells; None: nothing yet."""
        with open(f"/proc/{process.pid}/stat") as stat:
            ticks = sum(map(int, stat.read().rsplit(")", 1)[1].split()[11:13]))
        now = (process.pid, time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), left_s)
        if left_s is not None or (self.told and self.told[-1][0] == process.pid):
            self.told.append(now)

    def judge(self, name, share_off):
        """Of what the last process told from a quarter of the way on, one in ten may be off by more
        than a share and two seconds. Its first seconds say nothing."""
        told = [now for now in self.told if now[0] == self.told[-1][0]]
        _, since, cpu_since, _ = told[0]
        _, end, cpu_end, _ = told[-1]
        judged = []
        for _, at, cpu, left in told:
            if at >= self.begun + (end - self.begun) / 4 and cpu >= cpu_since + RUN_STARTS_S:
                share = (cpu - cpu_since) / (at - since)
                judged.append((at - self.begun, left, end - at, left and left * share,
                               cpu_end - cpu))
        off = [now for now in judged
               if now[1] is None or abs(now[3] - now[4]) > now[4] * share_off + 2]
        for at, left, truth, cpu, cpu_truth in judged[::max(len(judged) // 8, 1)]:
            if left is not None:
                print(f"  after {at:.0f} s told {left:.0f} s, were {truth:.0f} s; of its own "
                      f"{cpu:.0f} s, were {cpu_truth:.0f} s")
        print(f"{name}: {end - self.begun:.0f} s at a load of {os.getloadavg()[0]:.1f}, {len(off)} "
              f"of {len(judged)} times told wrong", flush=True)
        expect(len(judged) >= 20 and len(off) <= len(judged) / 10,
               f"{name}: the time left was wrong {len(off)} of {len(judged)} times")


def plan(checked):
    """The plan counts what is shared once, too; its hours are told, to be compared."""
    lines = sluice("plan", MODEL, "--probe", "--ssd", "1G", "--batch", "in.jsonl", "--json").stdout
    night = json.loads(lines.splitlines()[-1])
    print(f"planned: {night['seconds']:.0f} s, {night['at_once']} at once, "
          f"{night['shared_tokens']} tokens shared", flush=True)
    expect(night["prompt_tokens"] == checked["prompt_tokens"] and night["prompt_tokens"] -
           night["shared_tokens"] == checked["computed_tokens"], f"planned: {night}")


# ---- undisturbed --------------------------------------------------------------------------------

def run_undisturbed(checked):
    """Returns the sorted results."""
    clock, shown = Clock(), b""
    screen, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 200, 0, 0))
    process = subprocess.Popen([SLUICE, "batch", "run", MODEL, "in.jsonl", "out.jsonl", *ENGINE,
                                "--max-items-at-once", str(N_AT_ONCE)], stderr=end,
                               cwd=FOLDER.name, env={**environment, "TERM": "xterm"})
    os.close(end)
    try:
        while piece := os.read(screen, 4096):
            shown += piece
            for left, unit in re.findall(rb"(\d+) (s|min) left", piece):
                clock.tell(process, int(left) * (60 if unit == b"min" else 1))
    except OSError: # nobody has the other end any more
        pass
    assert process.wait() == 0, shown
    clock.judge("alone", 0.2)
    summary = shown.decode().replace("\r", "").split("\033[K")[-1]
    print(summary, end="", flush=True)
    computed = int(re.search(r"(\d+) in were computed", summary)[1])
    expect(abs(computed / checked["computed_tokens"] - 1) < 0.02,
           f"{computed} tokens were computed, not {checked['computed_tokens']}")
    return sorted(pathlib.Path(FOLDER.name, "out.jsonl").read_text().splitlines())


# ---- conversations ------------------------------------------------------------------------------

OPENINGS = ["Who was the first to see the river?", "Tell me a short story.",
            "In which year was it?", "Why do ships sail at night?"]


def converse():
    """What each client asks and is answered, turn by turn: [[(messages, answer)]]."""
    talks = [[] for _ in range(N_CLIENTS)]
    for turn in range(N_TURNS):
        prompts = []
        for i, talk in enumerate(talks):
            before = talk[-1][0] + [{"role": "assistant", "content": talk[-1][1]}] if talk else []
            messages = before + [{"role": "user", "content": OPENINGS[(i + turn) % 4]}]
            prompts.append(sluice("chat-template", MODEL, "-", "--no-bos", "--no-thinking",
                                  input=json.dumps(messages)).stdout)
            talk.append((messages, None))
        made = sluice("generate", MODEL, "--jsonl", "-", "--special", "-n", str(N_NEW), "--seed",
                      str(SEED), "--no-hot-list", "--context", "4096",
                      input="".join(json.dumps(prompt) + "\n" for prompt in prompts)).stdout
        for talk, line in zip(talks, made.splitlines(), strict=True):
            talk[-1] = (talk[-1][0], json.loads(line)["text"])
    return talks


class Server:
    """The server, which may be killed at any time; `n_lives` tells how often it has begun."""
    n_lives = 0
    is_up = False

    async def start(self, client):
        self.process = subprocess.Popen(SERVE, env=environment)
        self.since = time.monotonic()
        self.n_lives += 1
        while True:
            try:
                if (await client.get("/health")).status_code == 200:
                    self.is_up = True
                    return
            except httpx.TransportError:
                pass
            assert self.process.poll() is None and time.monotonic() < self.since + 60, "no start"
            await asyncio.sleep(0.05)

    async def kill(self, client):
        self.is_up = False
        self.process.kill()
        self.process.wait()
        await self.start(client)


def connect():
    return httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=SOCKET), base_url="http://x",
                             timeout=120)


async def talk_on(server, talk, seed, counts):
    """Goes through a conversation again and again, until it is cancelled."""
    async with connect() as client:
        turn = 0
        while True:
            messages, answer = talk[turn % len(talk)]
            n_lives, is_up = server.n_lives, server.is_up
            try:
                reply = await client.post("/v1/chat/completions", json={
                    "messages": messages, "max_tokens": N_NEW, "seed": seed, "temperature": 1,
                    "thinking": {"type": "disabled"}})
                if reply.status_code == 503: # it has only begun, and loads the model
                    await asyncio.sleep(0.1)
                    continue
                reply.raise_for_status()
                text = reply.json()["choices"][0]["message"]["content"]
                expect(text == answer, f"a conversation was answered {text!r}, not {answer!r}")
                counts["answers"] += 1
                turn += 1
            except httpx.HTTPError as error:
                expect(not is_up or not server.is_up or server.n_lives > n_lives,
                       f"a conversation: {type(error).__name__}: {error}")
                counts["retries"] += 1
                await asyncio.sleep(0.1)


# ---- disturbed ----------------------------------------------------------------------------------

async def row_of(client, batch_id):
    rows = (await client.get("/status")).json()["batches"]
    return next(row for row in rows if row["id"] == batch_id)


async def watch(server, client, batch_id):
    """Kills the server when so many prompt tokens are done; returns what came of it all."""
    kills = sorted(chance.uniform(0.03, 0.6) for _ in range(N_KILLS))
    clock, computed = Clock(), 0
    row = await row_of(client, batch_id)
    while row["status"] not in ("completed", "failed"):
        if kills and row["prompt_tokens_done"] > kills[0] * row["prompt_tokens"] > 0:
            kills.pop(0)
            done, seen = row["completed"], row["prompt_tokens_computed"]
            await server.kill(client)
            row = await row_of(client, batch_id)
            computed += max(seen - row["prompt_tokens_computed"], 0) # which nobody wrote down
            print(f"killed after {time.monotonic() - clock.begun:.0f} s and {done} items; "
                  f"{row['completed']} are kept", flush=True)
        clock.tell(server.process, row["left_s"])
        await asyncio.sleep(0.25)
        row = await row_of(client, batch_id)
    expect(not kills and row["status"] == "completed", f"it ended too soon: {row}")
    clock.judge("beside conversations, killed thrice", 0.5)
    return computed + row["prompt_tokens_computed"]


async def run_disturbed(talks, checked):
    """Returns the sorted results."""
    server, counts = Server(), {"answers": 0, "retries": 0}
    async with connect() as client:
        try:
            await server.start(client)
            batch_id = sluice("batch", "submit", "--socket", SOCKET, "in.jsonl").stdout.strip()
            clients = [asyncio.create_task(talk_on(server, talk, SEED + i, counts))
                       for i, talk in enumerate(talks)] # as generate gives them to its lines
            computed = await watch(server, client, batch_id)
            for task in clients:
                task.cancel()
            for result in await asyncio.gather(*clients, return_exceptions=True):
                expect(isinstance(result, asyncio.CancelledError), f"a client: {result!r}")
            sluice("batch", "results", "--socket", SOCKET, batch_id, "-o", "disturbed.jsonl")
            server.process.send_signal(signal.SIGTERM)
            expect(server.process.wait(60) == 0, "the server's end")
        finally:
            server.process.kill()
    print(f"conversations: {counts['answers']} answers, {counts['retries']} asked again")
    once, mean = checked["computed_tokens"], checked["prompt_tokens"] / checked["items"]
    print(f"{computed} of {checked['prompt_tokens']} prompt tokens were computed, {once} are "
          "distinct")
    expect(computed <= 1.02 * once + N_KILLS * N_AT_ONCE * mean,
           f"{computed} tokens were computed, not {once} and what {N_KILLS} kills cost")
    expect(counts["answers"] > 100 and counts["retries"] >= N_KILLS, f"conversations: {counts}")
    return sorted(pathlib.Path(FOLDER.name, "disturbed.jsonl").read_text().splitlines())


checked = make_batch()
plan(checked)
alone = run_undisturbed(checked)
ids = [json.loads(line)["custom_id"] for line in alone]
expect(len(ids) == len(set(ids)) == checked["items"], f"{len(ids)} results")
disturbed = asyncio.run(run_disturbed(converse(), checked))
print(f"{len(disturbed)} results, {'the same' if disturbed == alone else 'others'}")
expect(disturbed == alone, "the results are not those of an undisturbed run")
for failure in failures[:10]:
    print("failure:", failure[:600])
print("failed" if failures else "all is well", flush=True)
sys.exit(bool(failures))
