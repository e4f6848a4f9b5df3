// OpenAI's JavaScript client, unmodified, with the gateway at the URL that is given. Exits with 0 where all holds.
import assert from "node:assert/strict";
import OpenAI from "openai";

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

const leaving = await client.chat.completions.create({ model, messages, stream: true });
for await (const _ of leaving) break; // closes the connection
console.log("all holds");
