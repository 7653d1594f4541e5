# Sourced by quickstart.sh and reproduce.sh, behind setup.sh: the recipe up to SFT, at quickstart size.
export JAX_COMPILATION_CACHE_DIR="$PWD/.jax_cache" # methods and seeds share their programs

synthesize() { # FOLDER NUM SEED MORE_FLAGS...: a data set in FOLDER/data, unless it is there
  [ -e "$1/manifest.jsonl" ] ||
    aesthetic-jax synthesize --out="$1" --num="$2" --seed="$3" --image_size=56 --strength=0.8,1 "${@:4}"
  aesthetic-jax build --manifest="$1/manifest.jsonl" --out="$1/data"
}
train() { # RESULTS SEED METHOD DATA INIT_FROM: a run in RESULTS/runs/METHOD; a finished one is left alone
  aesthetic-jax train --config="configs/quickstart.py:$3" --config.seed="$2" --config.data.data_dir="$4" --config.init_from="$5" \
    --workdir="$1/runs/$3"
}

# The tiny model has never seen an image: it learns to from chains of thought that describe every one. SFT then teaches to
# argue, in two manners: most chains speak of what was asked alone, some look at everything first. Stage 2 has to find out which
# answers better. It has samples of its own, of which it needs the answers alone: with as few as 500 it learns them by heart.
until_sft() { # RESULTS SEED: data in RESULTS/data, a model in RESULTS/runs/sft
  synthesize "$1" 4200 "$2" --splits=0.7,0.01,0.29
  synthesize "$1/pretrain" 10000 "$(($2 + 1000))" --splits=0.98,0.02,0 --thorough=1
  synthesize "$1/chains" 4200 "$(($2 + 2000))" --splits=0.98,0.02,0 --thorough=0.4
  train "$1" "$2" pretrain "$1/pretrain/data" ""
  train "$1" "$2" sft "$1/chains/data" "$1/runs/pretrain"
}
