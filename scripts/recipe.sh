# shellcheck shell=bash
# Functions for quickstart.sh, reproduce.sh and study.sh, which source setup.sh first: the recipe up
# to SFT.
export JAX_COMPILATION_CACHE_DIR="$PWD/.jax_cache" # methods and seeds share compiled programs

synthesize() { # FOLDER NUM SEED FLAGS...: makes a data set in FOLDER/data, unless it exists
  [ -e "$1/manifest.jsonl" ] ||
    aesthetic-jax synthesize --out="$1" --num="$2" --seed="$3" --image_size=56 --strength=0.8,1 \
      "${@:4}"
  aesthetic-jax build --manifest="$1/manifest.jsonl" --out="$1/data"
}
train() { # RESULTS SEED METHOD DATA INIT_FROM FLAGS...: trains or resumes RESULTS/runs/METHOD
  aesthetic-jax train --config="configs/quickstart.py:$3" --config.seed="$2" \
    --config.data.data_dir="$4" --config.init_from="$5" --workdir="$1/runs/$3" "${@:6}"
}

# The tiny model starts from random weights. Pretraining on descriptions of single images teaches it
# to see. SFT teaches it to describe five images, judge each and answer. THOROUGH is the share of
# chains that describe every image in all dimensions; the others discuss only what was asked. Below
# 1, SFT teaches a mix of two styles, and most of stage 2's gain comes from choosing one.
# Stage 2 trains on samples of its own, of which it needs only the answers.
until_sft() { # RESULTS SEED: makes the data in RESULTS/data and the model in RESULTS/runs/sft
  synthesize "$1" 2100 "$2" --splits=0.38,0.02,0.6
  synthesize "$1/pretrain" 30000 "$(($2 + 1000))" --splits=0.99,0.01,0 --describe
  synthesize "$1/chains" 8000 "$(($2 + 2000))" --splits=0.98,0.02,0 --thorough="${THOROUGH:-1}"
  train "$1" "$2" pretrain "$1/pretrain/data" "" --config.model.tokenizer_data="$1/chains/data"
  train "$1" "$2" sft "$1/chains/data" "$1/runs/pretrain"
}
