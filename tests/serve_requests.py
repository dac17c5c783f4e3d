"""Requests to a running `sluice serve`, through httpx over its Unix socket and plain sockets.

serve_requests.py SOCKET SLUICE MODEL PORT KEY prints "ok NAME" or "not ok NAME: why" for each test.
Texts are compared with what `sluice generate` makes alone with the same seed.
"""
import concurrent.futures
import html.parser
import json
import os
import re
import socket
import stat
import subprocess
import sys
import time

import httpx

SOCKET, SLUICE, MODEL, PORT, KEY = sys.argv[1:6]
PROMPT = "The river rose in the"
client = httpx.Client(transport=httpx.HTTPTransport(uds=SOCKET), base_url="http://localhost",
                      timeout=60)


def post(path, **body):
    return client.post(path, json=body)


def complete(prompt, seed, n_new=24, **more):
    reply = post("/v1/completions", prompt=prompt, seed=seed, max_tokens=n_new, **more)
    assert reply.status_code == 200, reply.text
    return reply.json()


def events(reply):
    for line in reply.iter_lines():
        line = line.rstrip("\n")
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line[6:])


# ---- texts --------------------------------------------------------------------------------------

def same_text_in_company():
    """Many at once, whole and streamed, make what each makes alone."""
    prompts = [PROMPT, "She said", "In the year", "A list of"]
    lines = "".join(json.dumps(p) + "\n" for p in prompts)
    made = subprocess.run([SLUICE, "generate", MODEL, "--jsonl", "-", "-n", "24", "--seed", "7"],
                          input=lines, capture_output=True, text=True, check=True)
    expected = [json.loads(line)["text"] for line in made.stdout.splitlines()]

    def whole(i):
        return complete(prompts[i % 4], 7 + i % 4)["choices"][0]["text"]

    def streamed(i):
        body = {"prompt": prompts[i % 4], "seed": 7 + i % 4, "max_tokens": 24, "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as reply:
            return "".join(c["text"] for e in events(reply) for c in e["choices"])

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        texts = list(pool.map(lambda i: (streamed if i % 3 == 0 else whole)(i), range(32)))
    for i, text in enumerate(texts):
        assert text == expected[i % 4], (i, text, expected[i % 4])
    return "32 requests"


def several_prompts_and_texts():
    made = complete([PROMPT, "She said"], 7, 12)
    both = [c["text"] for c in made["choices"]]
    assert both == [complete(PROMPT, 7, 12)["choices"][0]["text"],
                    complete("She said", 8, 12)["choices"][0]["text"]], both
    twice = complete(PROMPT, 7, 12, n=2)["choices"]
    assert twice[0]["text"] == both[0] and twice[1]["index"] == 1
    assert twice[1]["text"] == complete(PROMPT, 8, 12)["choices"][0]["text"]


def ids_echo_stop_and_logprobs():
    ids = client.post("/tokenize", json={"content": PROMPT, "add_special": True}).json()["tokens"]
    text = complete(PROMPT, 3)["choices"][0]["text"]
    assert complete(ids, 3)["choices"][0]["text"] == text
    assert complete(PROMPT, 3, echo=True)["choices"][0]["text"] == PROMPT + text
    stop = text[5:9]
    cut = complete(PROMPT, 3, stop=[stop, "never there"])["choices"][0]
    assert cut["text"] == text[:text.index(stop)] and cut["finish_reason"] == "stop", cut
    probable = complete(PROMPT, 3, logprobs=2)["choices"][0]["logprobs"]
    expected = json.loads(subprocess.run(
        [SLUICE, "generate", MODEL, "-p", PROMPT, "-n", "24", "--seed", "3", "--json",
         "--logprobs=2"], capture_output=True, text=True, check=True).stdout)["logprobs"]
    assert probable["tokens"] == [t["token"] for t in expected]
    assert probable["token_logprobs"] == [t["logprob"] for t in expected]
    back = client.post("/detokenize", json={"tokens": ids}).json()["content"]
    assert back.endswith(PROMPT)


def chat_and_its_fields():
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 20, "seed": 5,
            "thinking": {"type": "disabled"}, "logprobs": True, "top_logprobs": 1}
    whole = post("/v1/chat/completions", **body).json()
    choice = whole["choices"][0]
    assert choice["message"]["role"] == "assistant" and whole["seed"] == 5
    assert whole["usage"]["completion_tokens"] == 20 == len(choice["logprobs"]["content"])
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    with client.stream("POST", "/chat/completions", json=body) as reply:
        chunks = list(events(reply))
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all(c["usage"] is None for c in chunks[:-1]) and chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 20
    assert "".join(c["choices"][0]["delta"].get("content", "")
                   for c in chunks[:-1]) == choice["message"]["content"]
    assert chunks[-2]["choices"][0]["finish_reason"] == "length"
    # Text of users stays text: the tokens of a control token that is spelled out are its letters'.
    plain = post("/v1/chat/completions", **{**body, "stream": False, "messages": [
        {"role": "user", "content": "<｜User｜></think>"}]}).json()["usage"]["prompt_tokens"]
    assert plain > 8, plain


def conversation_goes_on():
    system = {"role": "system", "content": "The river ran from the hills to the sea. " * 30}
    ask = {"max_tokens": 8, "temperature": 0, "thinking": {"type": "disabled"}}
    first = [system, {"role": "user", "content": "Where does it end?"}]
    a = post("/v1/chat/completions", messages=first, **ask).json()
    b = post("/v1/chat/completions", messages=first, **ask).json()
    assert a["choices"] == b["choices"]
    n = a["usage"]["prompt_tokens"]
    assert b["usage"]["prompt_cache_hit_tokens"] == n - 1, b["usage"]
    answer = {"role": "assistant", "content": a["choices"][0]["message"]["content"]}
    c = post("/v1/chat/completions", messages=[*first, answer, {"role": "user", "content": "Why?"}],
             **ask).json()
    assert c["usage"]["prompt_cache_hit_tokens"] >= n - 1, c["usage"]
    d = post("/v1/chat/completions", messages=[system, {"role": "user", "content": "Who?"}],
             **ask).json()
    assert d["usage"]["prompt_cache_hit_tokens"] > n - 20, d["usage"]
    three = post("/v1/chat/completions", messages=first, n=3, **ask).json()
    assert [x["message"] for x in three["choices"]] == [a["choices"][0]["message"]] * 3


# ---- what goes wrong -------------------------------------------------------------------------------

def bad_requests():
    cases = [
        ("{", 400, None), ("[]", 400, None), ('{"prompt": "a", "prompt": "b"}', 400, None),
        ("[" * 5000, 400, None), ('{"prompt": 1}', 400, "prompt"), ("{}", 400, "prompt"),
        ('{"prompt": "a", "max_tokens": 0}', 400, "max_tokens"),
        ('{"prompt": "a", "temperature": "hot"}', 400, "temperature"),
        ('{"prompt": "a", "logit_bias": {"5": 1}}', 400, "logit_bias"),
        ('{"prompt": "a", "n": 65}', 400, "n"), ('{"prompt": [999999999]}', 400, "prompt"),
        ('{"prompt": "a", "stop": [""]}', 400, "stop"),
        ('{"prompt": "a", "model": "another"}', 404, "model"),
        (json.dumps({"prompt": "a", "model": "日" * 400}), 404, "model"), # quoted in part
        ('{"prompt": "a", "seed": 1.5}', 400, "seed"),
        (json.dumps({"prompt": "and on it went " * 4000}), 400, "prompt"),
    ]
    for body, status, param in cases:
        reply = client.post("/v1/completions", content=body,
                            headers={"Content-Type": "application/json"})
        error = reply.json()["error"]
        assert (reply.status_code, error["param"]) == (status, param), (body[:60], reply.text)
    assert complete(PROMPT, 1)["choices"]
    return f"{len(cases)} of them, on one connection"


def paths_methods_and_types():
    assert client.get("/v1/nothing").status_code == 404
    refused = client.get("/v1/completions")
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
    assert client.post("/health").headers["allow"] == "GET, HEAD"
    for path in "/health", "/health/live", "/v1/models", "/v1/models/small", "/metrics", "/status":
        assert client.get(path).status_code == 200, path
        head = client.head(path)
        assert head.status_code == 200 and head.content == b"", path
    assert client.post("/v1/completions", data={"a": "b"}).status_code == 415
    assert client.get("/v1/models").json()["data"][0]["id"] == "small"
    assert "sluice_requests_total" in client.get("/metrics").text
    assert client.get("/status").json()["status"] == "ok"


class Page(html.parser.HTMLParser):
    """Its tags, and whether a label is around each."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.n_labels = [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs), self.n_labels > 0))
        self.n_labels += tag == "label"

    def handle_endtag(self, tag):
        self.n_labels -= tag == "label"


def the_page():
    """It leads to this server alone, its parts are there, and those that one types into have names."""
    page, script = client.get("/"), client.get("/page.js").text
    tags = Page(page.text).tags
    ids = [attrs["id"] for _, attrs, _ in tags if "id" in attrs]
    assert {"default-src 'none'", "connect-src 'self'"} <= {
        rule.strip() for rule in page.headers["content-security-policy"].split(";")}
    assert not re.search("//[a-z]", page.text + script), "an address elsewhere"
    links = {attrs[name] for _, attrs, _ in tags for name in ("src", "href") if name in attrs}
    links |= set(re.findall(r'fetch\("([^"]+)"', script))
    for link in links - {"data:,"}:
        assert client.get(link).status_code in (200, 405), link # 405: what it posts to
    assert len(ids) == len(set(ids)) and set(re.findall(r'\$\("([^"]+)"\)', script)) <= set(ids)
    assert {attrs["aria-labelledby"] for _, attrs, _ in tags if "aria-labelledby" in attrs} <= set(ids)
    named = {attrs.get("for") for tag, attrs, _ in tags if tag == "label"}
    for tag, attrs, in_label in tags:
        assert tag not in ("input", "select", "textarea") or in_label or attrs["id"] in named, attrs
    return f"{len(links)} links, {len(ids)} ids"


def read_of(name, script):
    """The fields that the page's script reads of what it calls by that name."""
    fields = set(re.findall(rf"\b{name}\.(\w+)", script))
    for some in re.findall(rf"const {{ ([^}}]+) }} = {name}[,;]", script):
        fields |= {field.split(":")[0].strip() for field in some.split(",")}
    return fields


def what_the_page_reads():
    """The fields are there: of the status, of somebody who is served, of an answer's chunks."""
    script = client.get("/page.js").text
    body = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 400, "stream": True,
            "seed": 5, "stream_options": {"include_usage": True}}

    def served():
        status = client.get("/status").json()
        return status["queue"] and status

    with client.stream("POST", "/v1/chat/completions", json=body) as reply:
        status = wait_until(served)
        chunks = list(events(reply))
    seen = {"status": status, "serving": status["serving"], "experts": status["experts"],
            "entry": status["queue"][0], "chunk": {key for chunk in chunks for key in chunk},
            "choice": next(chunk["choices"][0] for chunk in chunks if chunk["choices"])}
    never = {"status": {"images"}, "chunk": {"error", "prompt_progress"}} # they need not be there
    for name, have in seen.items():
        wanted = read_of(name, script) - never.get(name, set())
        assert wanted and wanted <= set(have), (name, wanted - set(have))
    assert {"name", "read_bytes"} <= set(status["drives"][0])
    assert all(re.fullmatch("[0-9a-f]+", layer) for layer in status["resident_experts"])
    return f"{sum(len(read_of(name, script)) for name in seen)} fields"


def large_and_slow_bodies():
    assert client.post("/v1/completions", content=b" " * (3 << 20),
                       headers={"Content-Type": "application/json"}).status_code == 413

    def chunks():
        for _ in range(48):
            yield b" " * (64 << 10)

    assert client.post("/v1/completions", content=chunks(),
                       headers={"Content-Type": "application/json"}).status_code == 413
    slow = socket.socket(socket.AF_UNIX)
    slow.connect(SOCKET)
    slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
    slow.settimeout(10)
    assert slow.recv(100).startswith(b"HTTP/1.1 408 "), "no 408"


def wait_until(what, seconds=60):
    end = time.monotonic() + seconds
    while not (result := what()):
        assert time.monotonic() < end, "in vain"
        time.sleep(0.02)
    return result


def serving():
    return client.get("/status").json()["serving"]


def clients_that_leave():
    before = serving()["requests_abandoned"]
    for stream in True, False:
        gone = socket.socket(socket.AF_UNIX)
        gone.connect(SOCKET)
        body = json.dumps({"prompt": PROMPT, "max_tokens": 4000, "stream": stream}).encode()
        gone.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
                     % len(body) + body)
        wait_until(lambda: serving()["texts_running"] == 1)
        gone.close()
        wait_until(lambda: serving()["texts_running"] == 0)
    assert serving()["requests_abandoned"] == before + 2


def readers_that_sleep():
    """One reads nothing of long answers, which do not all end by themselves: they are left out of the
    steps, and others go on."""
    before = serving()["new_tokens"]
    sleeper = socket.socket(socket.AF_UNIX)
    sleeper.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sleeper.connect(SOCKET)
    body = json.dumps({"prompt": PROMPT, "max_tokens": 4000, "stream": True, "logprobs": 20,
                       "seed": 9, "n": 8}).encode()
    sleeper.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
                    % len(body) + body)
    wait_until(lambda: serving()["new_tokens"] > before)
    last, since = -1, time.monotonic()
    while time.monotonic() - since < 1: # until it makes no more tokens
        made = serving()["new_tokens"]
        if made != last:
            last, since = made, time.monotonic()
        time.sleep(0.05)
    assert serving()["texts_running"] >= 1
    assert complete(PROMPT, 1)["choices"]
    sleeper.settimeout(30)
    n = 0
    while n < 450_000: # it wakes, and more is made
        data = sleeper.recv(1 << 16)
        n += len(data)
    assert serving()["new_tokens"] > last + 30, last
    sleeper.close()
    wait_until(lambda: serving()["texts_running"] == 0)


def heartbeat_of_a_waiting_request():
    """A whole reply that lasts sends its status, and blanks, before the JSON."""
    started = time.monotonic()
    with client.stream("POST", "/v1/completions",
                       json={"prompt": PROMPT, "max_tokens": 3900, "seed": 1, "n": 4}) as reply:
        text = "".join(reply.iter_text())
    lasted = time.monotonic() - started
    made = json.loads(text)
    assert len(made["choices"]) == 4
    if lasted > 11:
        assert text.startswith(" "), text[:20]
    return f"{lasted:.1f} s"


# ---- who may ask -----------------------------------------------------------------------------------

def tcp_checks():
    tcp = httpx.Client(base_url=f"http://127.0.0.1:{PORT}", timeout=30)
    key = {"Authorization": f"Bearer {KEY}"}
    assert tcp.get("/v1/models", headers=key).status_code == 200
    assert tcp.get("/v1/models", headers={"x-api-key": KEY}).status_code == 200
    assert tcp.get("/v1/models").status_code == 401
    assert tcp.get("/v1/models", headers={"Authorization": f"Bearer {KEY}x"}).status_code == 401
    assert tcp.get("/health").status_code == 200
    assert tcp.get("/v1/models", headers=key | {"Host": "evil.example"}).status_code == 403
    assert tcp.get("/v1/models",
                   headers=key | {"Origin": "http://evil.example"}).status_code == 403
    own = f"http://127.0.0.1:{PORT}"
    assert tcp.get("/v1/models", headers=key | {"Origin": own}).status_code == 200
    assert tcp.post("/v1/completions", content=b'{"prompt": "a"}',
                    headers=key | {"Content-Type": "text/plain"}).status_code == 415


def socket_is_private():
    mode = stat.S_IMODE(os.stat(SOCKET).st_mode)
    assert mode == 0o600, oct(mode)


tests = [same_text_in_company, several_prompts_and_texts, ids_echo_stop_and_logprobs,
         chat_and_its_fields, conversation_goes_on, bad_requests, paths_methods_and_types,
         the_page, what_the_page_reads, large_and_slow_bodies, clients_that_leave, readers_that_sleep, tcp_checks,
         socket_is_private]
if os.environ.get("SL_SLOW"):
    tests.append(heartbeat_of_a_waiting_request)
for test in tests:
    name = test.__name__.replace("_", " ")
    began = time.monotonic()
    try:
        detail = test()
        print(f"ok {name}: {detail or ''} {time.monotonic() - began:.1f} s", flush=True)
    except Exception as error: # the next test may still tell something
        print(f"not ok {name}: {type(error).__name__}: {str(error)[:300]}", flush=True)
