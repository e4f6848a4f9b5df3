// A batch at the gateway: node openai_batch.mjs http://127.0.0.1:8000 "What is 12 + 30?" "What is 3 + 4?"
import OpenAI, { toFile } from "openai";

const [url, ...prompts] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: process.env.PENSTOCK_API_KEY ?? "none" });
const model = (await client.models.list()).data[0].id;
const endpoint = "/v1/chat/completions";

const lines = prompts.map((content, number) =>
  JSON.stringify({
    custom_id: `request-${number}`,
    method: "POST",
    url: endpoint,
    body: { model, messages: [{ role: "user", content }], max_tokens: 40 },
  }),
);
const file = await client.files.create({
  file: await toFile(Buffer.from(lines.join("\n")), "requests.jsonl"),
  purpose: "batch",
});
let batch = await client.batches.create({ input_file_id: file.id, endpoint, completion_window: "24h" });
while (!["completed", "failed", "expired", "cancelled"].includes(batch.status)) {
  await new Promise((resolve) => setTimeout(resolve, 500));
  batch = await client.batches.retrieve(batch.id);
}

console.error(batch.status, batch.request_counts, batch.errors ?? "");
for (const fileId of [batch.output_file_id, batch.error_file_id]) {
  if (!fileId) continue;
  for (const line of (await (await client.files.content(fileId)).text()).trim().split("\n")) {
    const { custom_id, response, error } = JSON.parse(line);
    const failure = error ?? response.body.error;
    console.log(custom_id, failure ? `failed: ${failure.message}` : response.body.choices[0].message.content);
  }
}
