// Anthropic's SDK: Messages.
import Anthropic from "@anthropic-ai/sdk";
import { assert, fetchOptions, refused, test } from "./tests.mjs";

const client = new Anthropic({
  baseURL: "http://localhost", apiKey: "none", fetchOptions, maxRetries: 0,
});
const messages = [{ role: "user", content: "Where does the river go?" }];
const ask = { model: "small", messages, max_tokens: 12, temperature: 0 };
let whole;

await test("a message", async () => {
  whole = await client.messages.create(ask);
  assert.equal(whole.role, "assistant");
  assert.equal(whole.content[0].type, "text");
  assert.ok(["end_turn", "max_tokens"].includes(whole.stop_reason));
  assert.ok(whole.usage.input_tokens > 0 && whole.usage.output_tokens > 0);
});

await test("a message, streamed: the same", async () => {
  const message = await client.messages.stream(ask).finalMessage();
  assert.deepEqual(message.content, whole.content);
  assert.equal(message.stop_reason, whole.stop_reason);
  assert.equal(message.usage.output_tokens, whole.usage.output_tokens);
});

await test("thinking", async () => {
  const message = await client.messages.stream(
    { ...ask, thinking: { type: "enabled", budget_tokens: 1024 } }).finalMessage();
  assert.equal(message.content[0].type, "thinking");
});

await test("a conversation with calls of tools", async () => {
  const message = await client.messages.create({
    ...ask, system: [{ type: "text", text: "Be brief." }],
    tools: [{ name: "look", description: "Looks.", input_schema: { type: "object" } }],
    messages: [...messages,
      {
        role: "assistant", content: [{ type: "text", text: "I look." },
          { type: "tool_use", id: "toolu_1", name: "look", input: { where: "sea" } }],
      },
      {
        role: "user", content: [{ type: "tool_result", tool_use_id: "toolu_1", content: "waves" }],
      }],
  });
  assert.ok(message.usage.input_tokens + message.usage.cache_read_input_tokens > 100);
});

await test("tokens are counted", async () => {
  const count = await client.messages.countTokens({ model: "small", messages });
  assert.equal(count.input_tokens,
    whole.usage.input_tokens + whole.usage.cache_read_input_tokens);
});

await test("errors", async () => {
  const error = await refused(client.messages.create({ ...ask, max_tokens: 0 }), 400,
    /max_tokens/);
  assert.equal(error.error.error.type, "invalid_request_error");
  await refused(client.messages.create({ ...ask, model: "other" }), 404, /other/);
});

await test("a stream that is cancelled", async () => {
  const stream = client.messages.stream({ ...ask, max_tokens: 400 });
  await new Promise((resolve) => stream.on("text", resolve));
  stream.abort();
  await stream.done().catch(() => {});
  assert.deepEqual((await client.messages.create(ask)).content, whole.content);
});
