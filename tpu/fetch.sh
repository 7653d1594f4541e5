#!/usr/bin/env bash
# Copies a run from its bucket: config, metrics and TensorBoard events; checkpoints only with
# --checkpoints. With --name, first copies the logs of the workers to the bucket.
#   tpu/fetch.sh --workdir=gs://BUCKET/RUN --to=DIR [--checkpoints]
#     [--name=NAME --zone=ZONE [--slices=N]]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
require workdir to
[[ "$workdir" = gs://* ]] || fail "--workdir=$workdir: give a run in a bucket, gs://BUCKET/RUN"
if [ -n "$name" ]; then
  require zone
  logs="$(quote "${workdir%/}/logs")"
  on_all_workers ssh \
    --command="gcloud storage cp aesthetic_jax/run/log $logs/\$(hostname).log" ||
    log "could not copy the logs of some workers"
fi
call mkdir -p "$to"
words=(gcloud storage rsync --recursive "$workdir" "$to")
[ -n "$checkpoints" ] || words+=('--exclude=^checkpoints/')
call "${words[@]}"
