// A penstock client with node-redis: node client.mjs redis://127.0.0.1:6399 "What is 12 + 30?"
import { createClient } from "redis";

const [url, prompt] = process.argv.slice(2);
const server = await createClient({ url }).connect();

const job = { messages: [{ role: "user", content: prompt }], stream: true };
const entry = await server.xAdd("penstock:{default}:jobs:standard", "*", { job: JSON.stringify(job) });
const key = `penstock:{default}:result:standard.${entry}`;

let id = "0", printed = "", event = {};
while (event.type !== "done" && event.type !== "failed") {
  const streams = await server.xRead({ key, id }, { BLOCK: 5000 });
  for (const message of streams?.[0].messages ?? []) {
    id = message.id;
    event = JSON.parse(message.message.event);
    if (event.type === "tokens") {
      process.stdout.write(event.text);
      printed += event.text;
    }
  }
}
if (event.type === "failed") throw new Error(`${event.error.type}: ${event.error.message}`);
console.log(event.outputs[0].text.slice(printed.length));
await server.close();
