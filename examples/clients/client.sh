#!/usr/bin/env bash
# A penstock client with redis-cli and jq: client.sh PORT PROMPT
set -euo pipefail
cli() { redis-cli -h 127.0.0.1 -p "$port" "$@"; }
port=$1 prompt=$2

job=$(jq -cn --arg text "$prompt" '{messages: [{role: "user", content: $text}]}')
entry=$(cli XADD 'penstock:{default}:jobs:standard' '*' job "$job")

# Blocks until the job has ended. It did not ask for `tokens` events, so its end is the stream's only entry.
event=$(cli --raw XREAD BLOCK 0 STREAMS "penstock:{default}:result:standard.$entry" 0 | tail -n 1)
jq -r 'if .type == "done" then .outputs[0].text else "\(.error.type): \(.error.message)" | halt_error end' <<< "$event"
