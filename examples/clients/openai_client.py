"""OpenAI's client at the gateway: python openai_client.py http://127.0.0.1:8000 "What is 12 + 30?" """

import os
import sys

from openai import OpenAI

url, prompt = sys.argv[1:]
client = OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("PENSTOCK_API_KEY", "none"))
model = client.models.list().data[0].id

stream = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": prompt}],
    max_tokens=40,
    stream=True,
    stream_options={"include_usage": True},
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    if chunk.usage is not None:
        print(f"\n{chunk.usage.total_tokens} tokens", file=sys.stderr)
