# shellcheck shell=bash
# Functions for quickstart.sh and reproduce.sh, which source setup.sh first: the recipe up to SFT.
export JAX_COMPILATION_CACHE_DIR="$PWD/.jax_cache" # methods and seeds share compiled programs

synthesize() { # FOLDER NUM SEED FLAGS...: makes a data set in FOLDER/data, unless it exists
  [ -e "$1/manifest.jsonl" ] ||
    aesthetic-jax synthesize --out="$1" --num="$2" --seed="$3" --image_size=56 --strength=0.8,1 \
      "${@:4}"
  aesthetic-jax build --manifest="$1/manifest.jsonl" --out="$1/data"
}
train() { # RESULTS SEED METHOD DATA INIT_FROM: trains or resumes RESULTS/runs/METHOD
  aesthetic-jax train --config="configs/quickstart.py:$3" --config.seed="$2" \
    --config.data.data_dir="$4" --config.init_from="$5" --workdir="$1/runs/$3"
}

# The tiny model starts from random weights. Pretraining on chains of thought that describe every
# image teaches it to see. SFT then mixes two chain-of-thought styles: 60 % discuss only what was
# asked, 40 % describe every image first. Stage 2 has to find out which style answers better. It
# trains on 2,940 samples of its own, of which it needs only the answers: a set as small as 500 is
# memorised.
until_sft() { # RESULTS SEED: makes the data in RESULTS/data and the model in RESULTS/runs/sft
  synthesize "$1" 4200 "$2" --splits=0.7,0.01,0.29
  synthesize "$1/pretrain" 10000 "$(($2 + 1000))" --splits=0.98,0.02,0 --thorough=1
  synthesize "$1/chains" 4200 "$(($2 + 2000))" --splits=0.98,0.02,0 --thorough=0.4
  train "$1" "$2" pretrain "$1/pretrain/data" ""
  train "$1" "$2" sft "$1/chains/data" "$1/runs/pretrain"
}
