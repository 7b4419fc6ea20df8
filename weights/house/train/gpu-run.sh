#!/bin/bash
# Trains the base model on a borrowed GPU machine without a network, in calls of at most ten minutes.
#
#   gpu-run.sh prepare BOOKS.txt FOLDER      where there is a network: tokenizer, books and a wheel into FOLDER (about 32 MB)
#   gpu-run.sh run FOLDER OUT TOTAL PART     there: PART more seconds of a run of TOTAL seconds; repeat until it is over
#
# What a call leaves in OUT: weights.pt in pieces of 15 MB (put together: cat OUT/weights.pt.* > weights.pt), log.jsonl, recall.json.
# The whole state stays on the machine in /tmp/house-run, from where the next call goes on exactly. On a fresh machine it is gone: put
# weights.pt into FOLDER (and fewer books, if the two are too large together), and the run goes on with optimizers that warm up again.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
state=/tmp/house-run

prepare() {
  local books=$1 folder=$2
  mkdir -p "$folder"
  python3 "$here/tokenizer.py" "$books" "$folder" --vocabulary 8192
  python3 "$here/books.py" "$books" "$folder"
  rm "$folder/held.npy"
  xz -T1 -f "$folder/train.npy"
  pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --dest "$folder" tokenizers
  du -sh "$folder"
}

run() {
  local folder=$1 out=$2 total=$3 part=$4 begin=()
  python3 -c "import tokenizers" 2>/dev/null || pip install --quiet --no-index --no-deps "$folder"/tokenizers-*.whl
  mkdir -p "$state/data" "$out"
  cp "$folder/tokenizer.json" "$state/data"
  [ -e "$state/data/train.npy" ] || python3 - "$folder/train.npy.xz" "$state/data/train.npy" <<'PYTHON'
import lzma, shutil, sys
with lzma.open(sys.argv[1]) as packed, open(sys.argv[2], "wb") as file:
    shutil.copyfileobj(packed, file)
PYTHON
  if [ -e "$state/run/checkpoint.pt" ]; then
    begin=(--resume)
  elif [ -e "$folder/weights.pt" ]; then
    begin=(--start "$folder/weights.pt")
  fi
  PYTHONUNBUFFERED=1 python3 "$here/train.py" --size base --data "$state/data" --out "$state/run" --seconds "$total" \
    --stop-after "$part" --processes $(($(nproc) - 2)) --save-every 240 "${begin[@]}"
  split -b 15000000 "$state/run/weights.pt" "$out/weights.pt."
  cp "$state/run/log.jsonl" "$out"
  # Whatever is asked until the call is cut off is in the output.
  PYTHONUNBUFFERED=1 python3 "$here/evaluate.py" "$state/run/weights.pt" "$state/data/tokenizer.json" \
    "$here/../eval-cases.jsonl.gz" --lengths 4096,32768 --count 20 --json "$out/recall.json"
}

case "${1:-}" in
  prepare | run) "$@" ;;
  *) sed -n '2,9p' "$0" >&2; exit 2 ;;
esac
