#!/usr/bin/env bash
# Tests the operators' page in a real browser, with the real service and the embedded cloud. Screenshots: target/page/*.png.
# Needs Node.js and Chromium: CHROMIUM names its binary, or it is on the PATH under a usual name (Debian: apt install chromium).
set -euo pipefail
cd "$(dirname "$0")/../.."

here=tests/page
work=target/page
mkdir -p "$work"

browser=${CHROMIUM:-}
for name in chromium chromium-browser google-chrome; do
  [ -n "$browser" ] || browser=$(command -v $name || true)
done
[ -n "$browser" ] || { echo "no Chromium: install it (Debian: apt install chromium), or name it in CHROMIUM" >&2; exit 1; }

# Installed again only if the versions change.
installed=$(sha256sum <$here/package.json)
if [ "$(cat "$work/installed" 2>/dev/null)" != "$installed" ]; then
  cp $here/package.json "$work/"
  npm install --prefix "$work" --no-audit --no-fund --loglevel=error
  echo "$installed" >"$work/installed"
fi
cp $here/walk.mjs "$work/"

cargo build --locked
program=target/debug/runner-manager

# Loopback, even if the environment has a proxy.
export NO_PROXY=127.0.0.1 no_proxy=127.0.0.1 NO_COLOR=1
"$program" dev --real-time --port 0 --cloud-port 0 >"$work/dev.log" 2>"$work/dev.err" &
dev=$!
trap 'kill $dev 2>/dev/null || true; wait $dev 2>/dev/null || true' EXIT
for _ in $(seq 100); do
  grep -q '^export GOOGLE_APPLICATION_CREDENTIALS' "$work/dev.log" && break
  kill -0 $dev || { cat "$work/dev.err"; exit 1; }
  sleep 0.1
done

# The URLs and the secret that the demo prints.
page=$(sed -n 's/^Watch \(http:[^ ]*\) in a browser.*/\1/p' "$work/dev.log")
secret=$(sed -n 's/^Watch .*; secret: \(.*\)$/\1/p' "$work/dev.log")
cloud=$(sed -n "s/.*'\(http:[^ ]*\)\/play\/job.*/\1/p" "$work/dev.log" | head -n 1)
[ -n "$page" ] && [ -n "$secret" ] && [ -n "$cloud" ] || { cat "$work/dev.log"; exit 1; }
node "$work/walk.mjs" "$browser" "$page" "$secret" "$cloud" "$work"
