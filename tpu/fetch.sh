#!/usr/bin/env bash
# Copies a run from its bucket: config, metrics, TensorBoard events; checkpoints too with --checkpoints. Where a slice is named,
# its workers' logs go to the bucket first.
#   tpu/fetch.sh --workdir=gs://BUCKET/RUN --to=DIR [--checkpoints] [--name=NAME --zone=ZONE [--slices=N]]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need workdir to
[[ "$workdir" = gs://* ]] || fail "--workdir=$workdir: name a run in a bucket, gs://..."
if [ -n "$name" ]; then
  need zone
  everywhere ssh --command="gcloud storage cp aesthetic_jax/run/log $(quote "${workdir%/}/logs")/\$(hostname).log" ||
    say "the logs of some workers could not be had"
fi
call mkdir -p "$to"
words=(gcloud storage rsync --recursive "$workdir" "$to")
[ -n "$checkpoints" ] || words+=('--exclude=^checkpoints/')
call "${words[@]}"
