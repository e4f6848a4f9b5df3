#!/usr/bin/env bash
# A batch with curl, of a file of requests: bash openai_batch.sh http://127.0.0.1:8000 requests.jsonl
set -euo pipefail
url=$1 requests=$2

call() {
  curl --silent --show-error --fail-with-body --header "Authorization: Bearer ${PENSTOCK_API_KEY:-none}" "$@"
}
field() { # the text of a field of the JSON object that comes in
  grep --only-matching "\"$1\": *\"[^\"]*\"" | head --lines 1 | cut --delimiter '"' --fields 4
}

file=$(call "$url/v1/files" --form purpose=batch --form "file=@$requests" | field id)
batch=$(
  call "$url/v1/batches" --header "Content-Type: application/json" \
    --data "{\"input_file_id\": \"$file\", \"endpoint\": \"/v1/chat/completions\", \"completion_window\": \"24h\"}"
)
id=$(field id <<< "$batch")
until [[ $(field status <<< "$batch") =~ ^(completed|failed|expired|cancelled)$ ]]; do
  sleep 0.5
  batch=$(call "$url/v1/batches/$id")
done
echo "$batch" >&2
for kind in output error; do
  if result=$(field "${kind}_file_id" <<< "$batch"); then call "$url/v1/files/$result/content"; fi
done
