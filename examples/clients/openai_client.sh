#!/usr/bin/env bash
# curl with penstock's gateway: bash openai_client.sh http://127.0.0.1:8000 tiny "What is 12 + 30?"
set -euo pipefail
url=$1 model=$2 prompt=$3

curl --silent --show-error --no-buffer --fail-with-body "$url/v1/chat/completions" \
  --header "Authorization: Bearer ${PENSTOCK_API_KEY:-none}" \
  --header "Content-Type: application/json" \
  --data @- <<BODY
{"model": "$model", "messages": [{"role": "user", "content": "$prompt"}], "max_tokens": 40, "stream": true}
BODY
