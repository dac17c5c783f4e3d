"use strict";
// The status page: figures once a second, and a conversation. It asks nobody but this server.

const $ = (id) => document.getElementById(id);

function headers(more) {
  const key = sessionStorage.getItem("key");
  return key ? { ...more, Authorization: `Bearer ${key}` } : { ...more };
}

// ---- figures

const number = (n, digits = 0) => n.toLocaleString("en", { maximumFractionDigits: digits });

function bytes(n) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let i = 0;
  for (; n >= 1000 && i < units.length - 1; i++) n /= 1000;
  return `${number(n, i ? 1 : 0)} ${units[i]}`;
}

function duration(s) {
  if (s < 1) return `${number(s * 1000)} ms`;
  if (s < 120) return `${number(s, 1)} s`;
  if (s < 7200) return `${number(s / 60)} min`;
  return `${number(s / 3600, 1)} h`;
}

let before = null;

function figures(status) {
  const { serving, experts } = status, now = performance.now() / 1000;
  const found = experts.expert_requests ? experts.expert_hits / experts.expert_requests : 0;
  const read = before ? (experts.read_bytes - before.read_bytes) / (now - before.now) : 0;
  before = { now, read_bytes: experts.read_bytes };
  return [
    ["New tokens", `${number(status.tokens_per_s, 1)} /s`],
    ["Texts", number(serving.texts_running)],
    ["Waiting", number(serving.texts_waiting)],
    ["To the first token", status.first_token_s ? duration(status.first_token_s) : "–"],
    ["Between tokens", status.next_token_s ? duration(status.next_token_s) : "–"],
    ["Experts found", `${number(100 * found, 1)} %`],
    ["Read now", `${bytes(read)}/s`],
    ["Read in all", bytes(experts.read_bytes)],
    ["Requests", number(serving.requests)],
    ["Failed", number(serving.requests_failed)],
    ["Prompt tokens", number(serving.prompt_tokens)],
    ["Made tokens", number(serving.new_tokens)],
    ...(status.images ? [["Images",
      `${number(status.images.images)}, ${bytes(status.images.images_bytes)}`]] : []),
    ["Context", number(status.context_tokens)],
    ["Up for", duration(status.uptime_s)],
  ];
}

function showFigures(rows) {
  const list = $("figures");
  if (list.children.length !== rows.length) {
    list.replaceChildren(...rows.map(([name]) => {
      const figure = document.createElement("div");
      figure.append(document.createElement("dt"), document.createElement("dd"));
      figure.firstChild.textContent = name;
      return figure;
    }));
  }
  rows.forEach(([, value], i) => {
    list.children[i].lastChild.textContent = value;
  });
}

// The experts of each layer, a hexadecimal digit for four of them.
function showMap(layers) {
  $("map-figure").hidden = !layers?.length;
  if (!layers?.length) return;
  const canvas = $("map"), style = getComputedStyle(document.body);
  canvas.width = layers[0].length * 4;
  canvas.height = layers.length;
  canvas.style.height = `${Math.max(layers.length * 3, 48)}px`;
  const context = canvas.getContext("2d");
  context.fillStyle = style.getPropertyValue("--ground");
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = style.getPropertyValue("--accent");
  layers.forEach((digits, y) => [...digits].forEach((digit, i) => {
    const bits = parseInt(digit, 16);
    for (let b = 0; b < 4; b++) if (bits & (8 >> b)) context.fillRect(4 * i + b, y, 1, 1);
  }));
}

// ---- tables

// Fills a table's body: a row of cells for each entry; a cell is text, or an element.
function showRows(table, rows) {
  const numbers = [...table.tHead.rows[0].cells].map((cell) => cell.className);
  table.tBodies[0].replaceChildren(...rows.map((cells) => {
    const row = document.createElement("tr");
    row.append(...cells.map((content, i) => {
      const cell = document.createElement("td");
      cell.className = numbers[i];
      cell.append(content);
      return cell;
    }));
    return row;
  }));
}

// Done of total, as a bar and in words.
function share(done, total) {
  const bar = document.createElement("progress"), all = document.createElement("span");
  bar.max = total;
  bar.value = done;
  bar.setAttribute("aria-hidden", "true");
  all.append(bar, ` ${number(done)} of ${number(total)}`);
  return all;
}

let drivesBefore = null;

function showDrives(drives) {
  const now = performance.now() / 1000, before = drivesBefore;
  showRows($("drives"), drives.map(({ name, read_bytes }, i) => {
    const rate = before ? (read_bytes - before.bytes[i]) / (now - before.now) : 0;
    return [name, `${bytes(rate)}/s`, bytes(read_bytes)];
  }));
  drivesBefore = { now, bytes: drives.map((drive) => drive.read_bytes) };
}

// The first of those who wait tell enough.
const QUEUE_ROWS = 12;

function showQueue(all, length) {
  const queue = all.slice(0, QUEUE_ROWS);
  $("queue-none").hidden = length > 0;
  $("queue-table").hidden = length === 0;
  showRows($("queue"), queue.map((entry) => [
    entry.class === "batch" ? "a batch" : "somebody",
    entry.state,
    entry.state === "waiting" ? "" : share(entry.prompt_tokens_done, entry.prompt_tokens),
    number(entry.new_tokens),
    duration(entry.age_s),
  ]));
  $("queue-more").hidden = length <= queue.length;
  $("queue-more").textContent = `and ${number(length - queue.length)} more`;
}

function showBatches(batches) {
  $("batches-none").hidden = batches.length > 0;
  $("batches-table").hidden = batches.length === 0;
  showRows($("batches"), batches.map((batch) => [
    batch.paused ? `${batch.status}: ${batch.paused}` : batch.status,
    share(batch.completed + batch.failed, batch.total),
    number(batch.failed),
    batch.tokens_per_s ? number(batch.tokens_per_s, 1) : "",
    batch.left_s === null ? "" : duration(batch.left_s),
    batch.id,
  ]));
}

async function refresh() {
  try {
    const reply = await fetch("/status", { headers: headers() });
    $("key-label").hidden = reply.status !== 401 && !sessionStorage.getItem("key");
    if (!reply.ok) throw new Error(reply.status === 401 ? "a key is needed" : `error ${reply.status}`);
    const status = await reply.json();
    $("model").textContent = `${status.model}, ${status.version}`;
    $("state").textContent = status.status;
    $("state").className = status.status === "ok" ? "good" : "bad";
    showFigures(figures(status));
    showMap(status.resident_experts);
    showDrives(status.drives);
    showQueue(status.queue, status.queue_length);
    showBatches(status.batches);
  } catch (error) {
    $("state").textContent = error instanceof TypeError ? "not reachable" : error.message;
    $("state").className = "bad";
    before = drivesBefore = null;
  }
  setTimeout(refresh, document.hidden ? 10000 : 1000);
}

// ---- the conversation

let messages = [];
let running = null;

function add(className, ...content) {
  const element = document.createElement("div");
  element.className = className;
  element.append(...content);
  $("talk").append(element);
  return element;
}

// An answer on the page: reasoning apart, which is open while it comes.
function addAnswer() {
  const thinking = document.createElement("details"), summary = document.createElement("summary");
  const reasoning = document.createElement("div"), text = document.createElement("div");
  summary.textContent = "Thinking";
  reasoning.className = text.className = "message";
  thinking.append(summary, reasoning);
  thinking.hidden = true;
  add("answer", thinking, text);
  return { thinking, reasoning, text };
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts)
      if (part.startsWith("data: {")) yield JSON.parse(part.slice(6));
  }
}

function showProgress(progress) {
  const { processed, total, time_ms } = progress;
  const left = processed ? (time_ms / 1000) * (total - processed) / processed : 0;
  $("progress").textContent = `prompt: ${number(processed)} of ${number(total)} tokens` +
    (left > 1 ? `, about ${duration(left)} left` : "");
}

function take(chunk, answer, message) {
  if (chunk.error) throw new Error(chunk.error.message);
  if (chunk.prompt_progress) showProgress(chunk.prompt_progress);
  const log = $("talk"), atEnd = log.scrollTop + log.clientHeight > log.scrollHeight - 40;
  for (const choice of chunk.choices ?? []) {
    const { content, reasoning_content: reasoning } = choice.delta;
    if (reasoning) {
      answer.thinking.hidden = false;
      answer.thinking.open = true;
      answer.reasoning.append(reasoning);
    }
    if (content) {
      if (!message.content) answer.thinking.open = false;
      message.content += content;
      answer.text.append(content);
    }
    if (reasoning || content) $("progress").textContent = "";
    if (choice.finish_reason === "length") $("progress").textContent = "cut off: no tokens are left";
  }
  if (chunk.timings)
    $("progress").textContent ||= `${number(chunk.timings.predicted_per_second, 1)} tokens/s`;
  if (atEnd) log.scrollTop = log.scrollHeight;
}

async function ask(question) {
  messages.push({ role: "user", content: question });
  add("message user", question);
  const answer = addAnswer(), message = { role: "assistant", content: "" };
  const effort = $("effort").value, body = {
    messages, stream: true, return_progress: true, stream_options: { include_usage: true },
  };
  if (effort) body.reasoning_effort = effort;
  $("talk").scrollTop = $("talk").scrollHeight;
  running = new AbortController();
  try {
    const reply = await fetch("/v1/chat/completions", {
      method: "POST", signal: running.signal, body: JSON.stringify(body),
      headers: headers({ "Content-Type": "application/json" }),
    });
    if (!reply.ok) throw new Error((await reply.json()).error.message);
    for await (const chunk of events(reply.body)) take(chunk, answer, message);
  } catch (error) {
    $("progress").textContent = error.name === "AbortError" ? "stopped" : error.message;
  }
  running = null;
  if (message.content) messages.push(message);
}

function setRunning(is) {
  $("send").disabled = is;
  $("stop").disabled = !is;
}

$("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const question = $("say").value.trim();
  if (!question || running) return;
  $("say").value = "";
  $("progress").textContent = "";
  setRunning(true);
  await ask(question);
  setRunning(false);
  $("say").focus();
});

$("say").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("form").requestSubmit();
});

$("stop").addEventListener("click", () => running?.abort());

$("clear").addEventListener("click", () => {
  running?.abort();
  messages = [];
  $("talk").replaceChildren();
  $("progress").textContent = "";
  $("say").focus();
});

$("key").addEventListener("change", () => {
  sessionStorage.setItem("key", $("key").value);
});

refresh();
