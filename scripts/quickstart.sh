#!/usr/bin/env bash
# The whole recipe on synthetic data at a size for two CPU cores. Started again, it goes on where it stopped.
#   scripts/quickstart.sh [RESULTS_FOLDER] [SEED]
set -euo pipefail
results="$(realpath -m "${1:-quickstart_results}")"
seed="${2:-0}"
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
export JAX_COMPILATION_CACHE_DIR="$PWD/.jax_cache" # the three methods of stage 2 share their programs

config() { echo "--config=configs/quickstart.py:$1" --config.data.data_dir="$results/data" --config.seed="$seed"; }

# Chains of thought are dear and answers cheap: a third of the samples has the former, all have the latter.
[ -e "$results/manifest.jsonl" ] ||
  aesthetic-jax synthesize --out="$results" --num=9000 --seed="$seed" --image_size=56 --strength=0.5,1 \
    --splits=0.83,0.03,0.14
aesthetic-jax build --manifest="$results/manifest.jsonl" --out="$results/data"
for method in sft grpo dpa_grpo hcm_grpo; do
  from=()
  [ "$method" = sft ] || from=(--config.init_from="$results/runs/sft")
  # shellcheck disable=SC2046 # the words of config are flags without spaces of their own
  aesthetic-jax train $(config "$method") "${from[@]}" --workdir="$results/runs/$method"
  # shellcheck disable=SC2046
  aesthetic-jax evaluate $(config "$method") --checkpoint="$results/runs/$method" --split=test --out="$results/$method"
done
aesthetic-jax report --results="$results" --methods=sft,grpo,dpa_grpo,hcm_grpo
echo "$results"
