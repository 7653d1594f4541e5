#!/usr/bin/env bash
# Deletes a queued resource and all its slices. What is in the bucket stays.
#   tpu/delete.sh --name=NAME --zone=ZONE
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need name zone
call gcloud compute tpus queued-resources delete "$name" --force "${where[@]}"
