#!/usr/bin/env bash
# Compares ways to sample and to reward in stage 2, with equal completions, at quickstart size.
# scripts/studylib/endpoints.py says what is compared and how it is judged. A second start resumes.
#   scripts/study.sh [RESULTS_FOLDER] [STAGE]
# STAGE; each includes those above it:
#   calibrate  two SFT models, and how often they solve each type of question
#   1          uniform, failure and variance sampling, 2 models x 5 seeds
#   2          mining and rewards, 2 models x 2 seeds; starts no arm after 4.6 hours (default)
# or one of:
#   probe      how often the models solve hard questions with flaws of other strengths
#   report     the results of what is finished
set -euo pipefail
results="$(realpath -m "${1:-study_results}")"
stage="${2:-2}"
case "$stage" in
  probe | calibrate | 1 | 2 | report) ;;
  *) echo "study.sh: STAGE is probe, calibrate, 1, 2 or report, not '$stage'" >&2; exit 2 ;;
esac
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
source scripts/recipe.sh

report() {
  python scripts/study.py --step=report --results="$results"
  echo "$results"
}
questions() { # NAME: makes RESULTS/NAME/data
  [ -e "$results/$1" ] ||
    python scripts/study.py --step=questions --results="$results" --questions="$1"
  aesthetic-jax build --manifest="$results/$1/manifest.jsonl" --out="$results/$1/data"
}
answer() { # COMMAND MODEL_FOLDER NAME QUESTIONS FLAGS...: answers by RESULTS/MODEL_FOLDER's model
  aesthetic-jax "$1" --config=configs/quickstart.py:grpo --checkpoint="$results/$2/runs/sft" \
    --config.data.data_dir="$results/$4/data" --out="$results/$2/$3" "${@:5}"
}
calibrate() { # NAME: samples answers to the train split of RESULTS/NAME and prints what is solved
  for model in checkpoint0 checkpoint1; do
    [ -e "$results/$model/$1/table.npz" ] ||
      answer mine "$model" "$1" "$1" --split=train --config.hard_cases.mine_rollouts=4
  done
  python scripts/study.py --step=calibration --results="$results" --questions="$1"
}
sweep() { # CHECKPOINT SEEDS ARMS: trains and evaluates what is missing in RESULTS/sweepCHECKPOINT
  for seed in ${2//,/ }; do # all seeds start from one model, which is evaluated already
    mkdir -p "$results/sweep$1/seed$seed"
    ln -sfn "../../checkpoint$1/start" "$results/sweep$1/seed$seed/start"
  done
  aesthetic-jax sweep --sweep=configs/sweeps/study.py --data_dir="$results/pool/data" \
    --init_from="$results/checkpoint$1/runs/sft" --seeds="$2" --experiments="$3" \
    --nohard_quarter --out="$results/sweep$1"
}

if [ "$stage" = report ]; then report; exit; fi
for checkpoint in 0 1; do until_sft "$results/checkpoint$checkpoint" "$checkpoint"; done
if [ "$stage" = probe ]; then questions probe; calibrate probe; exit; fi

questions pool
for model in checkpoint0 checkpoint1; do
  [ -e "$results/$model/start/metrics.json" ] || answer evaluate "$model" start pool --split=test
done
calibrate pool
if [ "$stage" = calibrate ]; then exit; fi

# Seed by seed and arm by arm, so that an interrupted study has whole pairs.
arms=uniform,failure,variance
for seeds in 0 0,1 0,1,2 0,1,2,3 0,1,2,3,4; do
  for checkpoint in 0 1; do sweep "$checkpoint" "$seeds" "$arms"; done
done
if [ "$stage" = 2 ]; then
  for arm in two_stage subset paper_hcm per_option subset_gated dpa_anneal; do
    if [ "$SECONDS" -gt 16500 ]; then
      echo "study.sh: no time is left for $arm; start it again to go on" >&2
      break
    fi
    arms+=",$arm"
    for checkpoint in 0 1; do sweep "$checkpoint" 0,1 "$arms"; done
  done
fi
report
