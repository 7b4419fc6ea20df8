#!/bin/sh
# The GPU device on this machine's GPU, in under 8 minutes: right or not, then how fast. Needs Node 24 with npm, or node_modules, and a
# Vulkan (or Metal) driver.
#   bench/gpu-run.sh [RESULT.json] [flags of `npm run bench -- gpu`]    default gpu-run.json; written again after every stage
set -eu
cd "$(dirname "$0")/.."
[ -d node_modules/webgpu ] || npm ci
PATH="$PWD/node_modules/.bin:$PATH"
result="${1:-gpu-run.json}"
[ $# -eq 0 ] || shift
exec timeout -k 5 470 node bench/main.ts gpu --json "$result" "$@"
