#!/usr/bin/env bash
# A browser in which a test looks at the report of an evaluation: Debian's headless one, where none is there.
# Needs root. Where the distribution packages none (Ubuntu's is a snap), the test skips and says so.
set -euo pipefail
for name in chromium chromium-headless-shell chromium-browser google-chrome; do
    if command -v "$name" >/dev/null; then exit 0; fi
done
command -v apt-get >/dev/null || exit 0
apt-get update -qq
if apt-cache show chromium-headless-shell >/dev/null 2>&1; then
    echo "Installing chromium-headless-shell (root: apt-get) ..." >&2
    env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium-headless-shell >/dev/null
fi
