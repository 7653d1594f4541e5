#!/usr/bin/env bash
# Deletes a queued resource and its slices. Leaves the bucket alone.
#   tpu/delete.sh --name=NAME --zone=ZONE
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
require name zone
call gcloud compute tpus queued-resources delete "$name" --force "${location[@]}"
