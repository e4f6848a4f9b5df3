"""A penstock client with redis-py alone: python client.py redis://127.0.0.1:6399 "What is 12 + 30?" """

import json
import sys

import redis

url, prompt = sys.argv[1:]
# redis-py's own retries are off: it would repeat an XADD whose reply was lost, and that is a second job.
server = redis.Redis.from_url(url, decode_responses=True, retry=None)

job = {"messages": [{"role": "user", "content": prompt}], "stream": True}
entry = server.xadd("penstock:{default}:jobs:standard", {"job": json.dumps(job)})
result = f"penstock:{{default}}:result:standard.{entry}"

event, after, printed = {"type": ""}, "0", ""
while event["type"] not in ("done", "failed"):
    for _, events in server.xread({result: after}, block=2000):
        for entry, fields in events:
            after = entry
            event = json.loads(fields["event"])
            if event["type"] == "tokens":
                print(event["text"], end="", flush=True)
                printed += event["text"]

if event["type"] == "failed":
    sys.exit(f"{event['error']['type']}: {event['error']['message']}")
print(event["outputs"][0]["text"].removeprefix(printed))
