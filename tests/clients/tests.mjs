// What the client scripts have in common: requests go over the daemon's Unix socket, and each test
// prints a line, "ok NAME" or "not ok NAME: why".
import assert from "node:assert/strict";
import { Agent } from "undici";

export { assert };
export const [socketPath] = process.argv.slice(2);
export const fetchOptions = { dispatcher: new Agent({ connect: { socketPath } }) };

export async function test(name, run) {
  try {
    await run();
    console.log(`ok ${name}`);
  } catch (error) {
    console.log(`not ok ${name}: ${String(error.stack ?? error).replaceAll("\n", " | ")}`);
  }
}

export async function refused(promise, status, words) {
  const error = await promise.then(() => null, (e) => e);
  assert.ok(error, "it was not refused");
  assert.equal(error.status, status);
  assert.match(error.message, words);
  return error;
}

export async function texts(stream, of) {
  let text = "";
  for await (const event of stream) text += of(event) ?? "";
  return text;
}
