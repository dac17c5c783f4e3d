// OpenAI's SDK: a file in the cloud's format becomes a batch, whose results are fetched.
import OpenAI, { toFile } from "openai";
import { assert, fetchOptions, refused, test } from "./tests.mjs";

const client = new OpenAI({
  baseURL: "http://localhost/v1", apiKey: "none", fetchOptions, maxRetries: 0,
});
const requests = ["Where does the river go?", "Who lives on the hill?", "Why?"].map((content, i) => ({
  custom_id: `request-${i}`, method: "POST", url: "/v1/chat/completions",
  body: { model: "small", max_tokens: 10, messages: [{ role: "user", content }] },
}));
const text = requests.map((line) => JSON.stringify(line)).join("\n");

async function ended(id) {
  for (;;) {
    const batch = await client.batches.retrieve(id);
    if (["completed", "failed", "expired", "cancelled"].includes(batch.status)) return batch;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

let input, batch;

await test("files", async () => {
  input = await client.files.create({
    file: await toFile(Buffer.from(text), "requests.jsonl"), purpose: "batch",
  });
  assert.equal(input.filename, "requests.jsonl");
  assert.equal(input.bytes, Buffer.byteLength(text));
  assert.deepEqual(await client.files.retrieve(input.id), input);
  assert.equal(await (await client.files.content(input.id)).text(), text);
  const ids = [];
  for await (const file of client.files.list({ purpose: "batch", limit: 1 })) ids.push(file.id);
  assert.ok(ids.includes(input.id));
});

await test("batches", async () => {
  batch = await client.batches.create({
    input_file_id: input.id, endpoint: "/v1/chat/completions", completion_window: "24h",
    metadata: { name: "a night" },
  });
  assert.equal(batch.object, "batch");
  assert.ok(["validating", "in_progress"].includes(batch.status));
  batch = await ended(batch.id);
  assert.equal(batch.status, "completed");
  assert.deepEqual(batch.request_counts, { total: 3, completed: 3, failed: 0 });
  assert.deepEqual(batch.metadata, { name: "a night" });
  assert.ok(batch.usage.output_tokens > 0);
});

await test("results", async () => {
  const results = (await (await client.files.content(batch.output_file_id)).text())
    .trim().split("\n").map((line) => JSON.parse(line));
  assert.deepEqual(results.map((line) => line.custom_id).sort(),
    requests.map((line) => line.custom_id));
  for (const { response, error } of results) {
    assert.equal(error, null);
    assert.equal(response.status_code, 200);
    assert.equal(response.body.object, "chat.completion");
    assert.ok(response.body.choices[0].message.content !== undefined);
  }
});

await test("lists", async () => {
  const ids = [];
  for await (const one of client.batches.list({ limit: 1 })) ids.push(one.id);
  assert.ok(ids.includes(batch.id));
});

await test("cancelling", async () => {
  const long = requests.map((line) => ({
    ...line, body: { ...line.body, max_tokens: 4000 },
  }));
  const file = await client.files.create({
    file: await toFile(Buffer.from(long.map((line) => JSON.stringify(line)).join("\n")), "long.jsonl"),
    purpose: "batch",
  });
  const slow = await client.batches.create({
    input_file_id: file.id, endpoint: "/v1/chat/completions", completion_window: "24h",
  });
  await client.batches.cancel(slow.id);
  assert.equal((await ended(slow.id)).status, "cancelled");
});

await test("errors", async () => {
  const error = await refused(client.batches.create({
    input_file_id: "file-none", endpoint: "/v1/chat/completions", completion_window: "24h",
  }), 400, /file/);
  assert.equal(error.param, "input_file_id");
  await refused(client.batches.retrieve("batch_none"), 404, /batch/);
  await refused(client.files.retrieve("file-none"), 404, /file/);
  await refused(client.files.create({ file: await toFile(Buffer.from("a"), "a"), purpose: "vision" }),
    400, /purpose/);
});

await test("deleting", async () => {
  assert.deepEqual(await client.files.delete(input.id),
    { id: input.id, object: "file", deleted: true });
  await refused(client.files.retrieve(input.id), 404, /file/);
});
