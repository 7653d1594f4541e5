#!/usr/bin/env bash
# The whole recipe on synthetic photos, sized for two CPU cores. A second start resumes.
# The last line printed is the results folder.
#   scripts/quickstart.sh [RESULTS_FOLDER] [SEED]
set -euo pipefail
results="$(realpath -m "${1:-quickstart_results}")"
seed="${2:-0}"
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
source scripts/recipe.sh

until_sft "$results" "$seed"
methods=(sft grpo dpa_grpo hcm_grpo)
for method in "${methods[@]}"; do
  [ "$method" = sft ] || train "$results" "$seed" "$method" "$results/data" "$results/runs/sft"
  aesthetic-jax evaluate --config="configs/quickstart.py:$method" \
    --config.data.data_dir="$results/data" --checkpoint="$results/runs/$method" --split=test \
    --out="$results/$method"
done
aesthetic-jax report --results="$results" --methods="$(IFS=,; echo "${methods[*]}")"
echo "$results"
