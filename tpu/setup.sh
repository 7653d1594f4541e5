#!/usr/bin/env bash
# Puts a commit of the project on every worker and installs it there, with a Python that is new enough, unless it is there.
#   tpu/setup.sh --name=NAME --zone=ZONE [--slices=N] [--ref=REF]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need name zone
commit="$(git -C "$tpu" rev-parse --verify --quiet "$ref^{commit}")" ||
  fail "--ref=$ref: no such commit; name one that git log shows"

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
call git -C "$(dirname "$tpu")" archive --format=tar.gz --output="$folder/$commit.tar.gz" "$commit"
everywhere scp "$folder/$commit.tar.gz"
tree="aesthetic_jax/$commit"
everywhere ssh --command="mkdir -p $tree && tar -xzf $commit.tar.gz -C $tree && bash $tree/tpu/worker.sh install"
