#!/usr/bin/env bash
# The whole recipe on synthetic data at a size for two CPU cores. Started again, it goes on where it stopped.
#   scripts/quickstart.sh [RESULTS_FOLDER] [SEED]
set -euo pipefail
results="$(realpath -m "${1:-quickstart_results}")"
seed="${2:-0}"
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
export JAX_COMPILATION_CACHE_DIR="$PWD/.jax_cache" # the methods of stage 2 share their programs

synthesize() { # FOLDER NUM SEED MORE_FLAGS...: a data set in FOLDER/data, unless it is there
  [ -e "$1/manifest.jsonl" ] ||
    aesthetic-jax synthesize --out="$1" --num="$2" --seed="$3" --image_size=56 --strength=0.8,1 "${@:4}"
  aesthetic-jax build --manifest="$1/manifest.jsonl" --out="$1/data"
}
config() { echo "--config=configs/quickstart.py:$1" --config.seed="$seed"; }

# Stage 1 learns from chains of thought. Most of them describe every image: the tiny model has never seen one before.
# Stage 2 and the test have samples of their own, and need their answers alone.
synthesize "$results" 2600 "$seed" --splits=0.5,0.04,0.46
synthesize "$results/chains" 10000 "$((seed + 1000))" --splits=0.97,0.03,0 --describe=0.7
for method in sft grpo dpa_grpo hcm_grpo; do
  if [ "$method" = sft ]; then
    from=(--config.data.data_dir="$results/chains/data")
  else
    from=(--config.data.data_dir="$results/data" --config.init_from="$results/runs/sft")
  fi
  # shellcheck disable=SC2046 # the words of config are flags without spaces of their own
  aesthetic-jax train $(config "$method") "${from[@]}" --workdir="$results/runs/$method"
  # shellcheck disable=SC2046
  aesthetic-jax evaluate $(config "$method") --config.data.data_dir="$results/data" \
    --checkpoint="$results/runs/$method" --split=test --out="$results/$method"
done
aesthetic-jax report --results="$results" --methods=sft,grpo,dpa_grpo,hcm_grpo
echo "$results"
