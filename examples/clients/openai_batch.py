"""A batch at the gateway: python openai_batch.py http://127.0.0.1:8000 "What is 12 + 30?" "Hello" """

import json
import os
import sys
import time

from openai import OpenAI

url, *prompts = sys.argv[1:]
client = OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("PENSTOCK_API_KEY", "none"))
model = client.models.list().data[0].id

requests = [
    {
        "custom_id": f"request-{number}",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 40},
    }
    for number, prompt in enumerate(prompts)
]
lines = "".join(json.dumps(request) + "\n" for request in requests)
file = client.files.create(file=("requests.jsonl", lines.encode()), purpose="batch")
batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
while batch.status not in ("completed", "failed", "expired", "cancelled"):
    time.sleep(0.5)
    batch = client.batches.retrieve(batch.id)

print(batch.status, batch.request_counts, batch.errors or "", file=sys.stderr)
for file_id in (batch.output_file_id, batch.error_file_id):  # lines are in the order in which rows ended
    for line in client.files.content(file_id).text.splitlines() if file_id else ():
        row = json.loads(line)
        if row["error"] or row["response"]["status_code"] != 200:
            print(row["custom_id"], "failed:", row["error"] or row["response"]["body"]["error"])
        else:
            print(row["custom_id"], row["response"]["body"]["choices"][0]["message"]["content"])
