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

# The tiny model has never seen an image: it learns to from chains of thought that describe every one. SFT then teaches to
# argue, in two manners: most chains speak of what was asked alone, some look at everything first. Stage 2 has to find out which
# answers better. It has samples of its own, of which it needs the answers alone: with as few as 500 it learns them by heart.
synthesize "$results" 4200 "$seed" --splits=0.7,0.01,0.29
synthesize "$results/pretrain" 10000 "$((seed + 1000))" --splits=0.98,0.02,0 --thorough=1
synthesize "$results/chains" 4200 "$((seed + 2000))" --splits=0.98,0.02,0 --thorough=0.4
train() { # METHOD DATA MORE_FLAGS...
  # shellcheck disable=SC2046 # the words of config are flags without spaces of their own
  aesthetic-jax train $(config "$1") --config.data.data_dir="$2" --workdir="$results/runs/$1" "${@:3}"
}
train pretrain "$results/pretrain/data"
for method in sft grpo dpa_grpo hcm_grpo; do
  if [ "$method" = sft ]; then
    train sft "$results/chains/data" --config.init_from="$results/runs/pretrain"
  else
    train "$method" "$results/data" --config.init_from="$results/runs/sft"
  fi
  # shellcheck disable=SC2046
  aesthetic-jax evaluate $(config "$method") --config.data.data_dir="$results/data" \
    --checkpoint="$results/runs/$method" --split=test --out="$results/$method"
done
aesthetic-jax report --results="$results" --methods=sft,grpo,dpa_grpo,hcm_grpo
echo "$results"
