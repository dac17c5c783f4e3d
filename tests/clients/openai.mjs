// OpenAI's SDK: chat, completions and Responses.
import OpenAI from "openai";
import { assert, fetchOptions, refused, test, texts } from "./tests.mjs";

const client = new OpenAI({
  baseURL: "http://localhost/v1", apiKey: "none", fetchOptions, maxRetries: 0,
});
const messages = [{ role: "user", content: "Where does the river go?" }];
const ask = { model: "small", messages, seed: 5, max_tokens: 12, thinking: { type: "disabled" } };
const tools = [{
  type: "function",
  function: {
    name: "look", description: "Looks.",
    parameters: { type: "object", properties: { where: { type: "string" } } },
  },
}];
let whole;

await test("models", async () => {
  const list = await client.models.list();
  assert.ok(list.data.some((model) => model.id === "small"));
  assert.equal((await client.models.retrieve("small")).id, "small");
});

await test("chat", async () => {
  const reply = await client.chat.completions.create(ask);
  whole = reply.choices[0].message.content;
  assert.ok(whole.length > 0);
  assert.equal(reply.choices[0].message.role, "assistant");
  assert.ok(["stop", "length"].includes(reply.choices[0].finish_reason));
  assert.equal(reply.usage.total_tokens,
    reply.usage.prompt_tokens + reply.usage.completion_tokens);
});

await test("chat, streamed: the same text", async () => {
  let usage;
  const stream = await client.chat.completions.create(
    { ...ask, stream: true, stream_options: { include_usage: true } });
  const text = await texts(stream, (chunk) => {
    usage = chunk.usage ?? usage;
    return chunk.choices[0]?.delta.content;
  });
  assert.equal(text, whole);
  assert.ok(usage.completion_tokens > 0);
});

await test("chat, thinking", async () => {
  const reply = await client.chat.completions.create({ ...ask, thinking: { type: "enabled" } });
  assert.ok(reply.choices[0].message.reasoning_content.length > 0);
});

await test("chat, log probabilities", async () => {
  const reply = await client.chat.completions.create({ ...ask, logprobs: true, top_logprobs: 3 });
  const tokens = reply.choices[0].logprobs.content;
  assert.equal(tokens.map((t) => t.token).join(""), whole);
  assert.ok(tokens.every((t) => t.logprob <= 0 && t.top_logprobs.length === 3));
});

await test("chat, several answers", async () => {
  const reply = await client.chat.completions.create({ ...ask, n: 3 });
  assert.equal(reply.choices.length, 3);
  assert.deepEqual(reply.choices.map((c) => c.index), [0, 1, 2]);
});

await test("chat, a stop string", async () => {
  const stop = whole.slice(2, 5);
  const reply = await client.chat.completions.create({ ...ask, stop });
  assert.equal(reply.choices[0].message.content, whole.slice(0, whole.indexOf(stop)));
  assert.equal(reply.choices[0].finish_reason, "stop");
});

await test("chat, a conversation with calls of tools", async () => {
  const reply = await client.chat.completions.create({
    ...ask, tools,
    messages: [...messages,
      {
        role: "assistant", content: null, tool_calls: [{
          id: "call_1", type: "function", function: { name: "look", arguments: '{"where":"sea"}' },
        }],
      },
      { role: "tool", tool_call_id: "call_1", content: "waves" }],
  });
  assert.ok(reply.usage.prompt_tokens > 100);
});

await test("completions", async () => {
  const ask = { model: "small", prompt: ["The river", "The hill"], seed: 1, max_tokens: 4 };
  const reply = await client.completions.create(ask);
  assert.equal(reply.choices.length, 2);
  const stream = await client.completions.create({ ...ask, prompt: "The river", stream: true });
  assert.equal(await texts(stream, (chunk) => chunk.choices[0]?.text), reply.choices[0].text);
});

await test("errors", async () => {
  const error = await refused(client.chat.completions.create({ ...ask, n: 0 }), 400, /"n"/);
  assert.equal(error.param, "n");
  await refused(client.chat.completions.create({ ...ask, model: "other" }), 404, /other/);
  await refused(client.chat.completions.create({ ...ask, messages: [] }), 400, /message/);
  await refused(client.chat.completions.create({ ...ask, logit_bias: { 5: 1 } }), 400, /logit_bias/);
});

await test("a stream that is cancelled", async () => {
  const stream = await client.chat.completions.create(
    { ...ask, max_tokens: 400, stream: true, ignore_eos: true });
  for await (const chunk of stream) if (chunk.choices[0]?.delta.content) break;
  stream.controller.abort();
  const reply = await client.chat.completions.create(ask);
  assert.equal(reply.choices[0].message.content, whole);
});

await test("responses", async () => {
  const ask = { model: "small", input: messages[0].content, max_output_tokens: 12,
    reasoning: { effort: "none" }, seed: 5 };
  const reply = await client.responses.create(ask);
  assert.equal(reply.output_text, whole);
  assert.ok(["completed", "incomplete"].includes(reply.status));
  const types = [];
  const stream = await client.responses.create({ ...ask, stream: true });
  const text = await texts(stream, (event) => {
    types.push(event.type);
    return event.type === "response.output_text.delta" ? event.delta : "";
  });
  assert.equal(text, whole);
  assert.equal(types[0], "response.created");
  assert.match(types.at(-1), /^response\.(completed|incomplete)$/);
  await refused(client.responses.create({ ...ask, previous_response_id: "resp_1" }), 400,
    /whole conversation/);
});
