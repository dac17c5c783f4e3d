"""Files and batches at a daemon, through httpx over its Unix socket, bare sockets and the command.

batch_requests.py SLUICE MODEL FOLDER starts daemons, kills them and starts them again, and prints
"ok NAME" or "not ok NAME: why" for each test. Results are compared with those of `sluice batch run`,
which has no daemon.
"""
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
import traceback

import httpx

SLUICE, MODEL, FOLDER = sys.argv[1:4]
SOCKET, STATE = f"{FOLDER}/socket", f"{FOLDER}/state"
CHAT = "/v1/chat/completions"
client = httpx.Client(transport=httpx.HTTPTransport(uds=SOCKET), base_url="http://localhost",
                      timeout=60)
daemon = None


def wait_until(what, seconds=60):
    end = time.monotonic() + seconds
    while not (result := what()):
        assert time.monotonic() < end, "in vain"
        time.sleep(0.05)
    return result


def is_ready():
    assert daemon.poll() is None, "the daemon has ended"
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False


def start(*options):
    global daemon
    log = open(f"{FOLDER}/log", "a")
    daemon = subprocess.Popen([SLUICE, "serve", MODEL, "--socket", SOCKET, "--ram", "2G",
                               "--no-hot-list", "--state", STATE, "--context", "2048",
                               "--max-file", "1M", *options], stderr=log, stdout=log)
    wait_until(is_ready)


def end(how=signal.SIGTERM):
    client.close()
    renew()
    daemon.send_signal(how)
    assert daemon.wait(60) == (0 if how == signal.SIGTERM else -how), daemon.returncode


def renew():
    global client
    client = httpx.Client(transport=httpx.HTTPTransport(uds=SOCKET), base_url="http://localhost",
                          timeout=60)


def upload(data, name="in.jsonl", purpose="batch"):
    return client.post("/v1/files", files={"file": (name, data)}, data={"purpose": purpose})


def upload_lines(lines):
    reply = upload("".join(json.dumps(line) + "\n" for line in lines).encode())
    assert reply.status_code == 200, reply.text
    return reply.json()["id"]


def create(file_id, endpoint=CHAT, **more):
    reply = client.post("/v1/batches", json={"input_file_id": file_id, "endpoint": endpoint,
                                             "completion_window": "24h", **more})
    assert reply.status_code == 200, reply.text
    return reply.json()["id"]


def batch(batch_id):
    reply = client.get(f"/v1/batches/{batch_id}")
    assert reply.status_code == 200, reply.text
    return reply.json()


def wait_for(batch_id, *statuses):
    """Waits as long as something goes on, however slowly, and tells what it was that stood still."""
    seen, end = None, 0
    while True:
        now = batch(batch_id)
        if now["status"] in statuses:
            return now
        assert now["status"] in ("validating", "in_progress", "finalizing", "cancelling"), now
        status = client.get("/status").json()
        then, seen = seen, (now["status"], now["request_counts"], status["serving"]["steps"])
        if seen != then:
            end = time.monotonic() + 60
        assert time.monotonic() < end, (now, status, log_end())
        time.sleep(0.05)


def log_end():
    with open(f"{FOLDER}/log") as log:
        return log.read()[-2000:]


def content(file_id):
    reply = client.get(f"/v1/files/{file_id}/content")
    assert reply.status_code == 200, reply.text
    return reply.text


def lines_of(text):
    assert text == "" or text.endswith("\n"), "a torn line"
    return [json.loads(line) for line in text.splitlines()]


def item(i, n_new=12, **body):
    return {"custom_id": f"item-{i}", "method": "POST", "url": CHAT,
            "body": {"model": "small", "max_tokens": n_new, "messages": [
                {"role": "system", "content": "The river ran from the hills to the sea. " * 8},
                {"role": "user", "content": f"Question {i}: where does it end?"}], **body}}


def error_of(reply, status):
    assert reply.status_code == status, (status, reply.status_code, reply.text)
    return reply.json()["error"]


# ---- files ---------------------------------------------------------------------------------------

def files_come_back():
    data = os.urandom(700_000)
    made = upload(data, "../../etc/passwd").json()
    assert made["object"] == "file" and made["bytes"] == len(data), made
    assert made["purpose"] == "batch" and made["status"] == "processed"
    assert client.get(f"/v1/files/{made['id']}").json() == made
    assert client.get(f"/v1/files/{made['id']}/content").content == data
    head = client.head(f"/v1/files/{made['id']}/content")
    assert head.headers["content-length"] == str(len(data)) and head.content == b""
    path = f"{STATE}/files/{made['id']}"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(STATE).st_mode) == 0o700
    end(signal.SIGKILL)
    start()
    assert client.get(f"/v1/files/{made['id']}").json() == made
    assert client.delete(f"/v1/files/{made['id']}").json() == {
        "id": made["id"], "object": "file", "deleted": True}
    assert client.get(f"/v1/files/{made['id']}").status_code == 404
    assert not os.path.exists(path)


def lists_of_files():
    ids = [upload(b"x").json()["id"] for _ in range(5)]
    got, after = [], None
    while True:
        query = {"limit": 2, "order": "asc", "purpose": "batch"} | ({"after": after} if after else {})
        page = client.get("/v1/files", params=query).json()
        got += [f["id"] for f in page["data"]]
        assert page["first_id"] == page["data"][0]["id"]
        after = page["last_id"]
        if not page["has_more"]:
            break
    assert got[-5:] == ids, (got, ids)
    newest = client.get("/v1/files", params={"limit": 5}).json()
    assert [f["id"] for f in newest["data"]] == ids[::-1]
    assert client.get("/v1/files", params={"purpose": "other"}).json()["data"] == []
    for query in {"limit": "0"}, {"limit": "x"}, {"order": "up"}, {"after": "file-none"}:
        error_of(client.get("/v1/files", params=query), 400)
    for file_id in ids:
        client.delete(f"/v1/files/{file_id}")


def left_in_state():
    return sorted(os.listdir(f"{STATE}/files"))


def bad_uploads():
    before = left_in_state()
    form = b'--limit\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
    whole = (form % (b"purpose", b"", b"batch") + form % (b"file", b'; filename="a"', b"abc"))
    cases = [(whole, 400, "no end"), (b"", 400, "empty"), (b"abc", 400, "no form"),
             (form % (b"file", b'; filename="a"', b"abc") + b"--limit--\r\n", 400, "no purpose"),
             (form % (b"purpose", b"", b"batch" * 9) + b"--limit--\r\n", 400, "long purpose"),
             (form % (b"purpose", b"", b"batch") + b"--limit--\r\n", 400, "no file"),
             (whole + form % (b"file", b'; filename="b"', b"d") + b"--limit--\r\n", 400, "two files"),
             (whole + form % (b"expires_after[seconds]", b"", b"9") + b"--limit--\r\n", 400, "expires")]
    for body, status, name in cases:
        reply = client.post("/v1/files", content=body,
                            headers={"Content-Type": "multipart/form-data; boundary=limit"})
        assert reply.status_code == status, (name, reply.text)
        assert reply.json()["error"]["message"]
    good = client.post("/v1/files", content=whole + b"--limit--\r\n",
                       headers={"Content-Type": "multipart/form-data; boundary=limit"})
    client.delete(f"/v1/files/{good.json()['id']}")
    error_of(upload(b"abc", purpose="fine-tune"), 400)
    error_of(upload(b"a" * (3 << 20)), 413)
    error_of(client.post("/v1/files", json={}), 415)
    error_of(client.post("/v1/files", content=b"a", headers={
        "Content-Type": "multipart/form-data"}), 400)

    def chunks():
        yield form % (b"purpose", b"", b"batch")
        yield b'--limit\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(40):
            yield b"a" * (64 << 10)

    error_of(client.post("/v1/files", content=chunks(), headers={
        "Content-Type": "multipart/form-data; boundary=limit"}), 413)
    assert left_in_state() == before, (before, left_in_state())
    return f"{len(cases) + 5} of them"


def hang_up_during_upload():
    before = left_in_state()
    for n in 10, 300_000:
        gone = socket.socket(socket.AF_UNIX)
        gone.connect(SOCKET)
        gone.sendall(b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\n"
                     b"Content-Type: multipart/form-data; boundary=limit\r\n\r\n--limit\r\n"
                     b'Content-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + b"a" * n)
        if n > 100_000:
            wait_until(lambda: left_in_state() != before)
        gone.close()
        wait_until(lambda: left_in_state() == before)


# ---- batches -------------------------------------------------------------------------------------

def unknown_ids():
    for path in ("/v1/files/file-no", "/v1/files/file-no/content", "/v1/batches/batch_no",
                 "/v1/files/" + "a" * 500, "/v1/batches/" + "a" * 500):
        error_of(client.get(path), 404)
    error_of(client.delete("/v1/files/file-no"), 404)
    error_of(client.post("/v1/batches/batch_no/cancel"), 404)
    error_of(client.get("/v1/batches", params={"after": "batch_no"}), 400)
    error_of(client.get("/v1/batches", params={"limit": "101"}), 400)
    for path, methods in ("/v1/files", "POST, GET, HEAD"), ("/v1/files/a", "GET, HEAD, DELETE"):
        assert client.put(path).headers["allow"] == methods


def bad_creations():
    good = {"input_file_id": upload_lines([item(1)]), "endpoint": CHAT, "completion_window": "24h"}
    cases = [({"input_file_id": None}, "input_file_id"), ({"input_file_id": "file-no"}, "input_file_id"),
             ({"endpoint": "/v1/embeddings"}, "endpoint"), ({"endpoint": 3}, "endpoint"),
             ({"completion_window": "soon"}, "completion_window"),
             ({"completion_window": "24"}, "completion_window"),
             ({"metadata": {"a": 1}}, "metadata"), ({"metadata": {"a" * 65: "b"}}, "metadata"),
             ({"metadata": {"a": "b" * 513}}, "metadata"), ({"priority": 1e9}, "priority"),
             ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
             ({"output_expires_after": {"seconds": 9}}, "output_expires_after")]
    for change, param in cases:
        assert error_of(client.post("/v1/batches", json=good | change), 400)["param"] == param, change
    assert client.get("/v1/batches").json()["data"] == []
    client.delete(f"/v1/files/{good['input_file_id']}")
    return f"{len(cases)} of them"


def bad_lines_are_listed():
    text = "\n".join(["{", json.dumps(item(1)), json.dumps(item(1)), "[]",
                      json.dumps(item(2, url="/v1/completions") | {"url": "/v1/completions"}),
                      json.dumps(item(3, temperature="hot")), json.dumps(item(4, model="other")),
                      json.dumps(item(5) | {"method": "GET"}),
                      json.dumps(item(6) | {"custom_id": None}), ""])
    failed = wait_for(create(upload(text.encode()).json()["id"]), "failed")
    errors = failed["errors"]
    assert errors["object"] == "list" and failed["failed_at"] >= failed["created_at"]
    assert sorted(e["line"] for e in errors["data"]) == [1, 3, 4, 5, 6, 7, 8, 9], errors
    assert all(e["code"] and e["message"] for e in errors["data"])
    assert failed["output_file_id"] is None and failed["completed_at"] is None
    empty = wait_for(create(upload(b"\n").json()["id"]), "failed")
    assert empty["errors"]["data"][0]["message"]


def alone(lines, name):
    """What `sluice batch run` makes of the lines, sorted."""
    with open(f"{FOLDER}/{name}.in", "w") as out:
        out.writelines(json.dumps(line) + "\n" for line in lines)
    subprocess.run([SLUICE, "batch", "run", MODEL, f"{FOLDER}/{name}.in", f"{FOLDER}/{name}.out",
                    "--ram", "2G", "--context", "2048"],
                   check=True, capture_output=True)
    with open(f"{FOLDER}/{name}.out") as out:
        return sorted(out.read().splitlines())


def results_are_those_of_a_run_alone():
    lines = [item(i) for i in range(20)]
    lines[3]["body"] |= {"temperature": 0, "logprobs": True, "top_logprobs": 2}
    lines[4]["body"] |= {"n": 2, "stop": ["the"]}
    file_id = upload_lines(lines)
    done = wait_for(create(file_id, metadata={"name": "night"}), "completed")
    assert done["request_counts"] == {"total": 20, "completed": 20, "failed": 0}, done
    assert done["metadata"] == {"name": "night"} and done["errors"] is None
    assert done["expires_at"] == done["created_at"] + 86400 and done["model"] == "small"
    assert done["created_at"] <= done["in_progress_at"] <= done["finalizing_at"] <= done["completed_at"]
    assert done["error_file_id"] is None and done["cancelled_at"] is None
    usage = done["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["output_tokens"] >= 20 and usage["input_tokens"] > 20 * 40
    made = client.get(f"/v1/files/{done['output_file_id']}").json()
    assert made["purpose"] == "batch_output" and made["filename"] == f"{done['id']}_output.jsonl"
    text = content(done["output_file_id"])
    assert made["bytes"] == len(text.encode())
    results = lines_of(text)
    assert {r["custom_id"] for r in results} == {line["custom_id"] for line in lines}
    for r in results:
        assert r["id"].startswith("batch_req_") and r["error"] is None
        assert r["response"]["status_code"] == 200 and r["response"]["request_id"]
        assert r["response"]["body"]["choices"][0]["finish_reason"] in ("stop", "length")
    assert sorted(text.splitlines()) == alone(lines, "alone")
    client.delete(f"/v1/files/{file_id}")


def other_endpoints():
    lines = [{"custom_id": "a", "method": "POST", "url": "/v1/completions",
              "body": {"prompt": ["She said", "The river"], "max_tokens": 5, "seed": 3}}]
    done = wait_for(create(upload_lines(lines), "/v1/completions", completion_window="none"),
                    "completed")
    assert done["expires_at"] is None
    body = lines_of(content(done["output_file_id"]))[0]["response"]["body"]
    direct = client.post("/v1/completions", json=lines[0]["body"]).json()
    assert body["choices"] == direct["choices"]


def bad_lines_are_skipped():
    lines = [item(1), item(2, temperature="hot"), item(3)]
    done = wait_for(create(upload_lines(lines), skip_bad=True), "completed")
    assert done["request_counts"] == {"total": 3, "completed": 2, "failed": 1}, done
    error = lines_of(content(done["error_file_id"]))[0]
    assert error["custom_id"] == "item-2" and error["response"] is None
    assert error["error"]["code"] and "temperature" in error["error"]["message"]


def deleted_in_use():
    file_id = upload_lines([item(i, 1000) for i in range(4)])
    batch_id = create(file_id)
    assert batch(batch_id)["status"] in ("validating", "in_progress")
    assert client.delete(f"/v1/files/{file_id}").json()["deleted"]
    done = wait_for(batch_id, "completed")
    assert done["request_counts"]["completed"] == 4 and done["input_file_id"] == file_id


def cancelled():
    lines = [item(0, 4)] + [item(i, 1800) for i in range(1, 40)]
    batch_id = create(upload_lines(lines))
    wait_until(lambda: batch(batch_id)["request_counts"]["completed"] >= 1)
    reply = client.post(f"/v1/batches/{batch_id}/cancel")
    assert reply.status_code == 200 and reply.json()["status"] in ("cancelling", "cancelled")
    gone = wait_for(batch_id, "cancelled")
    assert gone["cancelling_at"] <= gone["cancelled_at"]
    counts = gone["request_counts"]
    results = lines_of(content(gone["output_file_id"]))
    assert len(results) == counts["completed"] >= 1
    errors = lines_of(content(gone["error_file_id"]))
    assert {e["error"]["code"] for e in errors} == {"batch_cancelled"}
    assert counts["completed"] + counts["failed"] == 40 and len(errors) == counts["failed"]
    error_of(client.post(f"/v1/batches/{batch_id}/cancel"), 409)
    return f"{counts['completed']} of 40 were done"


def expires():
    lines = [item(i, 1800) for i in range(60)]
    gone = wait_for(create(upload_lines(lines), completion_window="2s"), "expired")
    assert gone["expired_at"] >= gone["expires_at"] == gone["created_at"] + 2
    errors = lines_of(content(gone["error_file_id"]))
    assert errors and {e["error"]["code"] for e in errors} == {"batch_expired"}


def urgent_ones_first():
    """One that comes later, and is more urgent, ends before one that was begun."""
    slow = create(upload_lines([item(i, 120) for i in range(400)]))
    wait_until(lambda: batch(slow)["request_counts"]["completed"] > 0)
    quick = create(upload_lines([item(i, 4) for i in range(4)]), metadata={"priority": "5"})
    wait_for(quick, "completed")
    assert batch(slow)["status"] == "in_progress", batch(slow)
    client.post(f"/v1/batches/{slow}/cancel")
    wait_for(slow, "cancelled")


def restarts_in_the_middle():
    """Killed, and ended by a signal, while it works: it goes on by itself, to the same bytes."""
    lines = [item(i, 60) for i in range(60)]
    batch_id = create(upload_lines(lines))
    counts = []
    for how in signal.SIGKILL, signal.SIGTERM, signal.SIGKILL:
        before = batch(batch_id)["request_counts"]["completed"]
        wait_until(lambda: batch(batch_id)["request_counts"]["completed"] > before)
        counts.append(batch(batch_id)["request_counts"]["completed"])
        end(how)
        start()
    done = wait_for(batch_id, "completed")
    assert done["request_counts"]["completed"] == 60
    text = content(done["output_file_id"])
    assert sorted(text.splitlines()) == alone(lines, "restarted")
    return f"after {counts} items"


def interactive_goes_first():
    batch_id = create(upload_lines([item(i, 300) for i in range(400)]))
    wait_until(lambda: client.get("/status").json()["serving"]["texts_running"] > 4)
    began = time.monotonic()
    reply = client.post("/v1/completions", json={"prompt": "She said", "max_tokens": 8, "seed": 1})
    assert reply.status_code == 200
    lasted = time.monotonic() - began
    with client.stream("POST", "/v1/completions",
                       json={"prompt": "She said", "max_tokens": 400, "stream": True}) as reply:
        next(reply.iter_raw())
        wait_until(lambda: client.get("/status").json()["queue"][0]["class"] == "interactive")
    assert batch(batch_id)["completed_at"] is None, "the batch was over before"
    client.post(f"/v1/batches/{batch_id}/cancel")
    wait_for(batch_id, "cancelled")
    return f"8 tokens took {lasted:.1f} s"


def forgotten():
    """A batch goes with its files, and the disk has their space again."""
    def kept():
        return sum(os.stat(f"/proc/{daemon.pid}/fd/{fd}").st_size
                   for fd in os.listdir(f"/proc/{daemon.pid}/fd")
                   if "(deleted)" in os.readlink(f"/proc/{daemon.pid}/fd/{fd}")
                   and "/state/" in os.readlink(f"/proc/{daemon.pid}/fd/{fd}"))

    file_id = upload_lines([item(1), item(2, temperature="hot")])
    done = wait_for(create(file_id, skip_bad=True), "completed")
    batch_id = done["id"]
    slow = create(upload_lines([item(i, 1800) for i in range(4)]))
    error_of(client.delete(f"/v1/batches/{slow}"), 409)
    client.post(f"/v1/batches/{slow}/cancel")
    assert client.delete(f"/v1/batches/{batch_id}").json() == {
        "id": batch_id, "object": "batch", "deleted": True}
    error_of(client.delete(f"/v1/batches/{batch_id}"), 404)
    error_of(client.get(f"/v1/batches/{batch_id}"), 404)
    for gone in file_id, done["output_file_id"], done["error_file_id"]:
        error_of(client.get(f"/v1/files/{gone}"), 404)
    assert kept() == 0
    wait_for(slow, "cancelled")
    end(signal.SIGKILL)
    start()
    error_of(client.get(f"/v1/batches/{batch_id}"), 404)
    assert "forgotten" in command("forget", slow)[0]
    command("forget", slow, status=1)
    command("forget", slow, "--older", "1d", status=2)
    ended = create(upload_lines([item(1)]))
    wait_for(ended, "completed")
    assert command("forget", "--older", "1h")[0] == ""
    assert batch(ended)["status"] == "completed"


def another_model_waits():
    """A batch of other numerics is not touched, and whoever starts the daemon is told of it."""
    batch_id = create(upload_lines([item(i, 1800) for i in range(400)]))
    wait_until(lambda: batch(batch_id)["status"] == "in_progress")
    end()
    start("--numerics", "exact")
    error_of(client.get(f"/v1/batches/{batch_id}"), 404)
    assert "1 batch waits for another model, or other numerics: " in log_end(), log_end()
    end()
    start()
    assert batch(batch_id)["status"] == "in_progress"
    client.post(f"/v1/batches/{batch_id}/cancel")
    wait_for(batch_id, "cancelled")


def lists_of_batches():
    all_ids = []
    after = {}
    while True:
        page = client.get("/v1/batches", params={"limit": 3} | after).json()
        assert page["object"] == "list" and len(page["data"]) <= 3
        all_ids += [b["id"] for b in page["data"]]
        after = {"after": page["last_id"]}
        if not page["has_more"]:
            break
    created = [batch(i)["created_at"] for i in all_ids]
    assert len(set(all_ids)) == len(all_ids) > 6 and created == sorted(created, reverse=True)


def status_and_metrics():
    batch_id = create(upload_lines([item(i, 400) for i in range(64)]))

    def shown():
        rows = client.get("/status").json()["batches"]
        row = next(r for r in rows if r["id"] == batch_id)
        return row["completed"] > 0 and row["tokens_per_s"] > 0 and row["left_s"] and row

    row = wait_until(shown)
    assert row["total"] == 64 and row["status"] == "in_progress" and row["paused"] is None, row
    fields = set(re.findall(r"\bbatch\.(\w+)", client.get("/page.js").text))
    assert fields and fields <= set(row), fields - set(row) # what the page shows
    metrics = client.get("/metrics").text
    assert "sluice_batches_live 1\n" in metrics and "sluice_drive_read_bytes_total{" in metrics
    client.post(f"/v1/batches/{batch_id}/cancel")
    wait_for(batch_id, "cancelled")


def command(*arguments, status=0):
    run = subprocess.run([SLUICE, "batch", arguments[0], "--socket", SOCKET, *arguments[1:]],
                         capture_output=True, text=True)
    assert run.returncode == status, (arguments, run.returncode, run.stdout, run.stderr)
    return run.stdout, run.stderr


def commands():
    lines = [item(i) for i in range(5)]
    path = f"{FOLDER}/commands.jsonl"
    with open(path, "w") as out:
        out.writelines(json.dumps(line) + "\n" for line in lines)
    batch_id = command("submit", path, "--meta", "name=x", "--priority", "3")[0].strip()
    assert batch(batch_id)["metadata"] == {"name": "x"}
    wait_for(batch_id, "completed")
    out, _ = command("status", batch_id)
    assert out.startswith(f"{batch_id}  completed  5 of 5 items") and "took" in out, out
    assert batch_id in command("status")[0]
    assert json.loads(command("status", "--json", batch_id)[0])["id"] == batch_id
    command("results", batch_id, "-o", f"{FOLDER}/results")
    with open(f"{FOLDER}/results") as results:
        assert results.read() == command("results", batch_id)[0]
    assert len(lines_of(command("results", batch_id)[0])) == 5
    assert command("results", batch_id, "--errors")[0] == ""
    bad_body = dict(item(5), body={"max_tokens": "many"})
    with open(path, "a") as out:
        out.write(json.dumps(bad_body) + "\n")
    out, err = command("submit", path, status=1)
    assert "line 6" in out and path in err, (out, err)
    with open(path, "a") as out:
        out.write("{\n")
    known = command("status")[0]
    out, err = command("submit", path, status=1)
    assert out == "" and path in err and "line 7" in err, (out, err)
    assert command("status")[0].count("\n") == known.count("\n")
    slow = create(upload_lines([item(i, 1500) for i in range(30)]))
    assert "its results come" in command("results", slow, status=1)[1]
    assert slow in command("cancel", slow)[0]
    wait_for(slow, "cancelled")
    for bad in (("status", "no"), ("results", "../status"), ("cancel", "batch_no"),
                ("forget", "batch_no")):
        command(*bad, status=1)
    command("submit", f"{FOLDER}/nowhere", status=1)
    command("submit", status=2)


def one_server_for_a_folder():
    second = subprocess.run([SLUICE, "serve", MODEL, "--socket", f"{FOLDER}/second", "--ram", "2G",
                             "--state", STATE], capture_output=True, text=True)
    assert second.returncode == 1 and "another server" in second.stderr, second.stderr


tests = [files_come_back, lists_of_files, bad_uploads, hang_up_during_upload, unknown_ids,
         bad_creations, bad_lines_are_listed, results_are_those_of_a_run_alone, other_endpoints,
         bad_lines_are_skipped, deleted_in_use, cancelled, expires, urgent_ones_first,
         interactive_goes_first, restarts_in_the_middle, forgotten, another_model_waits,
         lists_of_batches, status_and_metrics, commands, one_server_for_a_folder]
wanted = sys.argv[4:]
start()
for test in tests:
    if wanted and test.__name__ not in wanted:
        continue
    name = test.__name__.replace("_", " ")
    began = time.monotonic()
    try:
        detail = test()
        print(f"ok {name}: {detail or ''} {time.monotonic() - began:.1f} s", flush=True)
    except Exception as error: # the next test may still tell something
        line = traceback.extract_tb(error.__traceback__)[-1].lineno
        print(f"not ok {name}: line {line}: {type(error).__name__}: {str(error)[:2000]}", flush=True)
        if daemon.poll() is not None:
            start()
end()
