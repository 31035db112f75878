#!/usr/bin/env bash
# Expected: torchattacks 3.5.1 and robustbench 1.1.1 install side by side, each its own files, in either order.
# What happens: torchattacks' wheel carries 25 files of an older robustbench under robustbench/, 11 of them different. The
#   package installed last decides which robustbench is imported, while the metadata says 1.1.1 either way; and uninstalling
#   torchattacks takes the 25 files with it, so that robustbench 1.1.1, still listed as installed, lacks its __init__.py.
# Why it matters: robustness papers attack RobustBench models with torchattacks. Which model zoo and which
#   normalisation they load depends on the order of two installations, and no version number shows it.
# Guess before the run: the order decides, and the uninstallation takes the shared files away. Right; the number of files was not guessed.
# Seen: 2026-11-28, Python 3.11, pip 23.2.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

state() {  # of one environment: which robustbench lies there
  "$1/bin/python" - "$2" <<'PY'
import hashlib, importlib.metadata, pathlib, sys, sysconfig
package = pathlib.Path(sysconfig.get_paths()["purelib"]) / "robustbench"
files = sorted(package.rglob("*.py"))
digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
first = "present" if (package / "__init__.py").is_file() else "missing"
print(f"{sys.argv[1]}: metadata {importlib.metadata.version('robustbench')}, __init__.py {first}, sources {digest}")
PY
}

for order in "torchattacks==3.5.1 robustbench==1.1.1" "robustbench==1.1.1 torchattacks==3.5.1"; do
  environment="$work/${order%%=*}-first"
  python3 -m venv "$environment"
  for package in $order; do "$environment/bin/pip" install --quiet --disable-pip-version-check --no-deps "$package" 2>/dev/null; done
  state "$environment" "installed in the order $order"
done | tee "$work/orders"

"$work/robustbench-first/bin/pip" uninstall --quiet --yes torchattacks 2>/dev/null
state "$work/robustbench-first" "after uninstalling torchattacks" | tee "$work/after"

[ "$(sed 's/.*sources //' "$work/orders" | sort -u | wc -l)" = 2 ] || { echo "CHANGED: both orders give the same robustbench"; exit 1; }
[ "$(grep -c 'metadata 1.1.1, __init__.py present' "$work/orders")" = 2 ] || { echo "CHANGED: the metadata tell them apart"; exit 1; }
grep -q '__init__.py missing' "$work/after" || { echo "CHANGED: robustbench survives the uninstallation"; exit 1; }
