#!/usr/bin/env bash
# Measures the effect of hard-case mining at quickstart size over several seeds, about 30 minutes a
# seed. A second start resumes.
#   scripts/reproduce.sh [RESULTS_FOLDER] [SEED...]
set -euo pipefail
results="$(realpath -m "${1:-reproduce_results}")"
seeds=("${@:2}")
[ "${#seeds[@]}" -gt 0 ] || seeds=(0 1 2)
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
source scripts/recipe.sh

for seed in "${seeds[@]}"; do until_sft "$results/seed$seed" "$seed"; done
aesthetic-jax sweep --sweep=configs/sweeps/quickstart.py --data_dir="$results/seed{seed}/data" \
  --init_from="$results/seed{seed}/runs/sft" --seeds="$(IFS=,; echo "${seeds[*]}")" \
  --out="$results"
