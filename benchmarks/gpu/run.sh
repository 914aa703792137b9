#!/usr/bin/env bash
# Test and measure all CUDA code in eight minutes, without network.
#
#     benchmarks/gpu/run.sh --out FOLDER [--parts A,B,C,D] [--minutes 8] [--device cuda|cuda:1|cpu] [--tiny]
#
# --tiny with --device cpu rehearses the same code with toy sizes in about a minute; its figures mean nothing.
# Every row is written to FOLDER/rows.csv or FOLDER/right.csv at once. The exit code is 1 if a part failed.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit
here=benchmarks/gpu

out='' parts=A,B,C,D minutes=8 device=cuda tiny=()
while [ $# -gt 0 ]; do
  case $1 in
    --out) out=$2; shift 2 ;;
    --parts) parts=$2; shift 2 ;;
    --minutes) minutes=$2; shift 2 ;;
    --device) device=$2; shift 2 ;;
    --tiny) tiny=(--tiny); shift ;;
    *) echo "Error: unknown option $1. See the top of $here/run.sh." >&2; exit 2 ;;
  esac
done
[ -n "$out" ] || { echo "Error: name the folder of the results: --out FOLDER." >&2; exit 2; }
case ",$parts," in *[!A-D,]*) echo "Error: --parts takes A, B, C and D between commas." >&2; exit 2 ;; esac

# The tests of part A use only one card, so make only this one visible.
case $device in cuda:*) export CUDA_VISIBLE_DEVICES=${device#cuda:} device=cuda ;; esac

began=$SECONDS
budget=$(awk -v m="$minutes" 'BEGIN { printf "%d", m * 60 }')
python=${PYTHON:-python3}
mkdir -p "$out"
rm -f "$out"/{rows.csv,right.csv,table.md,A.log,B.log,C.log,D.log}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONPATH=$PWD:$PWD/examples/trashnet:$work/site${PYTHONPATH:+:$PYTHONPATH}
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 MPLBACKEND=Agg
[ ${#tiny[@]} = 0 ] || export OMP_NUM_THREADS=1

needed='alembic, sqlalchemy, pydantic, imagehash, platformdirs, stamina, beartype, efficientnet_lite_pytorch'
if ! "$python" -c "import $needed" 2>/dev/null; then
  compgen -G '.gpu/wheels/*.whl' >/dev/null || {
    echo "Error: packages are missing and .gpu/wheels is empty. Run $here/prepare.sh on a machine with network." >&2
    exit 1
  }
  # The packages of this machine (torch, NumPy …) are not replaced.
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$work/site" .gpu/wheels/*.whl || exit 1
fi

row() { # part, item, measure, value, unit, note
  [ -f "$out/rows.csv" ] || echo 'part,item,measure,value,unit,note' >"$out/rows.csv"
  echo "$1,$2,$3,$4,$5,\"$6\"" >>"$out/rows.csv"
}

failed=0
part() { # name, share of the budget in percent, command …
  local name=$1 most=$((budget * $2 / 100)) left=$((budget - (SECONDS - began))) started=$SECONDS rc
  shift 2
  case ",$parts," in *",$name,"*) ;; *) return ;; esac
  [ "$most" -le "$left" ] || most=$left
  if [ "$most" -lt 5 ]; then
    row R "part $name" "not run" "" "" "no time was left"
    failed=1
    return
  fi
  echo "== part $name, at most $most s"
  timeout --kill-after=5 "$most" "$@" 2>&1 | tee "$out/$name.log"
  rc=${PIPESTATUS[0]}
  case $rc in
    0) row R "part $name" "took" "$((SECONDS - started))" s "" ;;
    124 | 137) row R "part $name" "stopped at its limit" "$most" s "what it had measured until then stands above"; failed=1 ;;
    *) row R "part $name" "failed" "exit code $rc" "" "see $name.log"; failed=1 ;;
  esac
}

command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
"$python" "$here/machine.py" --device "$device" --out "$out" --work "$work/machine" "${tiny[@]}" || exit 1

case $device in cpu) export ALLOOP_GPU_TESTS=cpu ;; *) export ALLOOP_GPU_TESTS=cuda ;; esac
tests=tests/gpu
[ ${#tiny[@]} = 0 ] || tests=tests/gpu/test_gpu_devices.py # `make test` rehearses the others
export ALLOOP_GPU_ROWS=$out/right.csv
run() { # name, share of the budget in percent, script
  part "$1" "$2" "$python" "$here/$3.py" --device "$device" --out "$out" --work "$work/$3" \
    --seconds $((budget * $2 / 100)) "${tiny[@]}"
}
part A 31 "$python" -m pytest -m gpu "$tests" -q -rs -p no:cacheprovider --durations=5
run B 23 whole
run C 25 fast
run D $((100 - 100 * (SECONDS - began) / budget)) paper # what is left

row R "all parts" "took" "$((SECONDS - began))" s ""
echo
"$python" "$here/table.py" "$out"
exit $failed
