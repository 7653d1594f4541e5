#!/usr/bin/env bash
# Copies a commit of this repository to every worker and installs it there, with a suitable Python.
# A commit that is already installed is not installed again.
#   tpu/setup.sh --name=NAME --zone=ZONE [--slices=N] [--ref=REF]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
require name zone
commit="$(git -C "$tpu" rev-parse --verify --quiet "$ref^{commit}")" ||
  fail "--ref=$ref: no such commit; give one from git log"

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
archive="$folder/$commit.tar.gz"
call git -C "$(dirname "$tpu")" archive --format=tar.gz --output="$archive" "$commit"
on_all_workers scp "$archive"
tree="aesthetic_jax/$commit"
unpack="mkdir -p $tree && tar -xzf $commit.tar.gz -C $tree"
on_all_workers ssh --command="$unpack && bash $tree/tpu/worker.sh install"
