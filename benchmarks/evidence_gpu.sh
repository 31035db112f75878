#!/usr/bin/env bash
# Evidence from one GPU within a few minutes: speed (gpu.py), and as much of a run of AT on CIFAR-10 as fits.
#
#     DATA=DIR benchmarks/evidence_gpu.sh OUT [EARLIER]
#
# Ends within MINUTES (8). It writes into OUT
#
#     gpu.json            images/s, the fraction of the matmul peak, the time of every measure
#     run.log             the run's own lines
#     run.tar.gz-*        the store, in parts of at most 15 MiB, from which the run continues anywhere
#
# EARLIER is the OUT of an earlier call: the run continues from its parts.
# PYTHON, PROTOCOL, METHOD, SEED, DEVICE, MINUTES and STORE have defaults. On a CPU, whether it all works:
#
#     DEVICE=cpu PROTOCOL=digits-linf MINUTES=2 benchmarks/evidence_gpu.sh OUT
set -euo pipefail
case $#:${1:-} in 1:[!-]* | 2:[!-]*) ;; *) echo "usage: DATA=DIR $0 OUT [EARLIER]" >&2 && exit 2 ;; esac
[[ ${MINUTES:-8} =~ ^[1-9][0-9]*$ && ${MINUTES:-8} -ge 2 ]] || { echo "MINUTES is a whole number, at least 2" >&2 && exit 2; }
# paths are as seen from where the command is typed
EARLIER=${2:+$(realpath -m "$2")}
[ -z "$EARLIER" ] || [ -f "$EARLIER/run.tar.gz-00" ] || { echo "EARLIER: no run.tar.gz-00 in $EARLIER" >&2 && exit 2; }
OUT=$(mkdir -p "$1" && cd "$1" && pwd)
[ -z "${STORE:-}" ] || STORE=$(realpath -m "$STORE")
[ -z "${DATA:-}" ] || DATA=$(realpath -m "$DATA")
cd "$(dirname "$0")/.."

: "${PYTHON:=uv run python}" "${PROTOCOL:=cifar10-linf-30}" "${METHOD:=at}" "${SEED:=1}" "${DEVICE:=cuda}" "${MINUTES:=8}"
: "${STORE:=$OUT/store}" "${DATA:=}"
ENDS=$((SECONDS + 60 * MINUTES))
SAVING=20 # seconds that saving and packing take
read -ra python <<<"$PYTHON"
mkdir -p "$STORE"

left() { echo $((ENDS - SECONDS)); }
# INT lets a run save its state; KILL comes if it takes longer than that.
within() { timeout --signal=INT --kill-after="$SAVING" "$@"; }

if [ -n "$EARLIER" ]; then
  cat "$EARLIER"/run.tar.gz-* | tar -xzf - -C "$STORE"
fi

quick=()
[ "$DEVICE" = cuda ] || quick=(--quick)
# a third of the time at most: the run gets the rest
within $(($(left) / 3)) "${python[@]}" benchmarks/gpu.py --device "$DEVICE" "${quick[@]}" --record "$OUT/gpu.json" ||
  echo "gpu.py: stopped before its end"

data=()
[ -z "$DATA" ] || data=(--data "$DATA")
ended=0
within $(($(left) - 2 * SAVING)) "${python[@]}" -m robflat_bench run --method "$METHOD" --protocol "$PROTOCOL" \
  --seed "$SEED" --device "$DEVICE" --store "$STORE" "${data[@]}" > >(tee "$OUT/run.log") 2>&1 || ended=$?

rm -f "$OUT"/run.tar.gz-*
tar -czf - -C "$STORE" . | split -b 15m -d - "$OUT/run.tar.gz-"
[ "$STORE" != "$OUT/store" ] || rm -rf "$STORE"

case $ended in
  0) echo "the run has its record" ;;
  124 | 130) echo "the run stopped after: $(grep -E "epoch|done|resuming" "$OUT/run.log" | tail -n 1)" ;;
  *) echo "the run failed (exit $ended)" && exit "$ended" ;;
esac
echo "to bring back:" && (cd "$OUT" && ls -l --block-size=1 gpu.json run.log run.tar.gz-* 2>/dev/null | awk '{print $5, $9}')
