#!/bin/sh
# The GPU device on this machine's GPU, in under 8 minutes: right or not, then how fast. Needs Node with npm and a Vulkan (or Metal) driver.
#   bench/gpu-run.sh [RESULT.json]    default gpu-run.json; what was measured is written also when time runs out
set -eu
cd "$(dirname "$0")/.."
[ -d node_modules/webgpu ] || npm ci
PATH="$PWD/node_modules/.bin:$PATH"
exec timeout -k 30 440 node bench/main.ts gpu --size 8b --json "${1:-gpu-run.json}"
