#!/usr/bin/env bash
# The main job, start to end: two hosts, the real SGLang on their CPUs, deployed over SSH, asked a question.
set -euo pipefail
bin=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."

step() { printf '\n\033[1m$ %s\033[0m\n' "$*"; "$@"; }
[ -t 1 ] || step() { printf '\n$ %s\n' "$*"; "$@"; }

export PATH="$bin:$PATH"
step sglang-ops lab up --hosts 2
inventory=$(sglang-ops lab status --output json | python3 -c 'import json, sys; print(json.load(sys.stdin)["inventory"])')
step sglang-ops deploy --inventory "$inventory" --yes
step sglang-ops verify --inventory "$inventory"
step python examples/ask.py "$inventory"

cat <<END

The lab keeps running. Type next:
  $1/sglang-ops status -i $inventory --watch
  $1/sglang-ops logs   -i $inventory --follow
  $1/sglang-ops deploy -i $inventory          (changes nothing: everything is as it should be)
  $1/sglang-ops lab ssh lab-1                 (a real host: systemctl cat 'sglang-*')
  make demo-clean                             (removes all of it)
END
