"""Load on a running `sluice serve`: clients that ask, hang up, read slowly and send rubbish.

serve_load.py SOCKET SLUICE MODEL REQUESTS [CLIENTS]. Every text that is read whole must be what
`sluice generate` makes with the same seed. Prints the rate and the server's memory before and after;
fails if a text differs, an answer is lost, or memory grows by more than a tenth once warm.
"""
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time

import httpx

SOCKET, SLUICE, MODEL, REQUESTS = *sys.argv[1:4], int(sys.argv[4])
CLIENTS = int(sys.argv[5]) if len(sys.argv) > 5 else 64
PROMPTS = ["The river rose in the", "She said", "In the year", "A list of", "When the", "It is",
           "There was once", "The king"]
N_NEW = 16

lines = "".join(json.dumps(p) + "\n" for p in PROMPTS)
made = subprocess.run([SLUICE, "generate", MODEL, "--jsonl", "-", "-n", str(N_NEW), "--seed", "7",
                       "--no-hot-list"], input=lines, capture_output=True, text=True, check=True)
EXPECTED = [json.loads(line)["text"] for line in made.stdout.splitlines()]

lock = threading.Lock()
left = REQUESTS
counts = {"whole": 0, "streamed": 0, "left": 0, "refused": 0, "rubbish": 0, "slow": 0}
failures = []


def take():
    global left
    with lock:
        left -= 1
        return left >= 0


def count(kind):
    with lock:
        counts[kind] += 1


def body(i, **more):
    return {"prompt": PROMPTS[i], "seed": 7 + i, "max_tokens": N_NEW, **more}


def raw(data, n_read, pause):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(120)
    s.connect(SOCKET)
    text = json.dumps(data).encode()
    s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(text)
              + text)
    while n_read > 0:
        data = s.recv(64)
        if not data:
            break
        n_read -= len(data)
        time.sleep(pause)
    s.close()


def streamed(client, i):
    with client.stream("POST", "/v1/completions", json=body(i, stream=True)) as reply:
        if reply.status_code == 429:
            reply.read()
            return None
        text, ended = "", False
        for line in reply.iter_lines():
            line = line.strip()
            ended |= line == "data: [DONE]"
            if line.startswith("data: {"):
                text += "".join(c["text"] for c in json.loads(line[6:])["choices"])
        assert ended, "a stream without an end"
        return text


def run(number):
    chance = random.Random(number)
    client = httpx.Client(transport=httpx.HTTPTransport(uds=SOCKET), base_url="http://x",
                          timeout=300)
    while take():
        i, kind = chance.randrange(len(PROMPTS)), chance.random()
        try:
            if kind < 0.4:
                reply = client.post("/v1/completions", json=body(i))
                text = reply.json()["choices"][0]["text"] if reply.status_code == 200 else None
                assert reply.status_code in (200, 429), reply.text
            elif kind < 0.8:
                text = streamed(client, i)
            elif kind < 0.9:
                raw(body(i, stream=chance.random() < 0.5, max_tokens=400),
                    chance.randrange(300), 0)
                count("left")
                continue
            elif kind < 0.95:
                raw(body(i, stream=True), 3000, 0.002)
                count("slow")
                continue
            else:
                reply = client.post("/v1/completions", content=b'{"prompt": ',
                                    headers={"Content-Type": "application/json"})
                assert reply.status_code == 400
                count("rubbish")
                continue
            if text is None:
                count("refused")
                time.sleep(0.05)
                continue
            count("whole" if kind < 0.4 else "streamed")
            assert text == EXPECTED[i], (text, EXPECTED[i])
        except Exception as error:
            with lock:
                failures.append(f"{type(error).__name__}: {error}")


def memory(pid):
    with open(f"/proc/{pid}/status") as status:
        for line in status:
            if line.startswith("VmRSS:"):
                return int(line.split()[1])


def server_pid():
    s = socket.socket(socket.AF_UNIX)
    s.connect(SOCKET)
    credentials = s.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    s.close()
    return int.from_bytes(credentials[:4], sys.byteorder)


pid = server_pid()
threads = [threading.Thread(target=run, args=(n,)) for n in range(CLIENTS)]
began = time.monotonic()
for thread in threads:
    thread.start()
warm = None
while any(thread.is_alive() for thread in threads):
    time.sleep(0.1)
    if warm is None and left < REQUESTS * 2 // 3:
        warm = memory(pid)
seconds = time.monotonic() - began
after = memory(pid)
status = httpx.Client(transport=httpx.HTTPTransport(uds=SOCKET)).get("http://x/status").json()
print(f"{REQUESTS} requests of {CLIENTS} clients in {seconds:.0f} s, {counts}; RSS {warm} kB, then "
      f"{after} kB; {status['serving']['new_tokens']} tokens")
for failure in failures[:5]:
    print("failure:", failure[:400])
running = status["serving"]["texts_running"]
sys.exit(bool(failures) or (warm is not None and after > warm * 1.1) or running > 0)
