// OpenAI's JavaScript client, unmodified, with the gateway at the URL that is given. Exits with 0 where all holds.
import assert from "node:assert/strict";
import OpenAI, { toFile } from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0 });
const model = "scripted";
const messages = [{ role: "user", content: "Hello" }];
const tools = [
  { type: "function", function: { name: "look", parameters: { type: "object", properties: { place: { type: "string" } } } } },
];

const models = [];
for await (const one of client.models.list()) models.push(one.id);
assert.deepEqual(models, [model]);

const whole = await client.chat.completions.create({ model, messages, tools });
const [choice] = whole.choices;
assert.equal(choice.message.content, "I look.");
assert.equal(choice.finish_reason, "tool_calls");
assert.deepEqual(choice.message.tool_calls[0].function, { name: "look", arguments: '{"place": "Bonn"}' });
assert.equal(whole._request_id, whole.id.replace("chatcmpl-", ""));

let text = "";
let usage = null;
const stream = await client.chat.completions.create({
  model,
  messages,
  stream: true,
  stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.ok(text.startsWith("I look.\n<tool_call>"), text);
assert.equal(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens);

const runner = client.chat.completions.stream({ model, messages, tools });
const final = await runner.finalChatCompletion();
assert.deepEqual(final.choices[0].message.tool_calls[0].function.arguments, '{"place": "Bonn"}');

const completion = await client.completions.create({ model, prompt: ["a", "b"], max_tokens: 1 });
assert.deepEqual(completion.choices.map((one) => one.text), ["I", "I"]);

const vectors = await client.embeddings.create({ model, input: ["ab", "c"] });
assert.deepEqual(vectors.data.map((one) => Array.from(one.embedding)), [[2, 0.5], [1, 0.5]]);

await assert.rejects(client.chat.completions.create({ model: "nobody", messages }), OpenAI.NotFoundError);
await assert.rejects(client.chat.completions.create({ model, messages, colour: "red" }), (error) => {
  assert.ok(error instanceof OpenAI.BadRequestError);
  assert.equal(error.param, "colour");
  return true;
});

const line = (custom_id, body) => JSON.stringify({ custom_id, method: "POST", url: "/v1/chat/completions", body });
const rows = [0, 1, 2, 3].map((n) => line(`row-${n}`, { model, messages, max_tokens: 2 }));
rows.push(line("bad", { model, messages: "none" }));
const input = await client.files.create({ file: await toFile(Buffer.from(rows.join("\n")), "in.jsonl"), purpose: "batch" });
assert.deepEqual([input.object, input.bytes, input.purpose], ["file", Buffer.byteLength(rows.join("\n")), "batch"]);
let batch = await client.batches.create({
  input_file_id: input.id,
  endpoint: "/v1/chat/completions",
  completion_window: "24h",
  metadata: { from: "javascript" },
});
while (!["completed", "failed", "expired", "cancelled"].includes(batch.status)) {
  await new Promise((resolve) => setTimeout(resolve, 50));
  batch = await client.batches.retrieve(batch.id);
}
assert.equal(batch.status, "completed");
assert.deepEqual(batch.request_counts, { total: 5, completed: 4, failed: 1 });
const read = async (id) => (await (await client.files.content(id)).text()).trim().split("\n").map((one) => JSON.parse(one));
const answers = await read(batch.output_file_id);
assert.deepEqual(answers.map((one) => one.custom_id).sort(), ["row-0", "row-1", "row-2", "row-3"]);
assert.ok(answers.every((one) => one.response.status_code === 200 && one.response.body.choices[0].message.content === "I "));
const [refused] = await read(batch.error_file_id);
assert.equal(refused.custom_id, "bad");
const batches = [];
for await (const one of client.batches.list({ limit: 1 })) batches.push(one.id);
assert.deepEqual(batches, [batch.id]);
await assert.rejects(client.batches.cancel(batch.id), OpenAI.ConflictError);
const files = [];
for await (const one of client.files.list({ limit: 2 })) files.push(one.id);
assert.deepEqual(files.sort(), [input.id, batch.output_file_id, batch.error_file_id].sort());
assert.equal((await client.files.delete(input.id)).deleted, true);

const leaving = await client.chat.completions.create({ model, messages, stream: true });
for await (const _ of leaving) break; // closes the connection
console.log("all holds");
