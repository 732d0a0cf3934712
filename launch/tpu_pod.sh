#!/usr/bin/env bash
# Starts one align-jax command on every worker of a TPU slice.
#
#   launch/tpu_pod.sh --tpu NAME --zone ZONE [--project PROJECT]
#     [--folder FOLDER] [--user USER] [--dry-run] -- VERB [ARGUMENTS...]
#   launch/tpu_pod.sh --tpu my-slice --zone us-central2-b --folder align_jax \
#     -- train --config quickstart --workdir /mnt/shared/runs/one
#
#   --tpu      name of the TPU virtual machine
#   --zone     its zone
#   --project  its project; otherwise gcloud's own setting
#   --folder   the checkout on each worker (default: align_jax). There, once:
#              `make install`, then `.venv/bin/pip install -e ".[tpu]"`
#   --user     the user on the workers; otherwise gcloud's own
#   --dry-run  print the command instead of running it
#
# JAX finds the other workers by itself (ALIGN_JAX_POD=1). --workdir must be a
# folder that all workers share: each writes its part of a checkpoint there.
# Mount a file server, or a bucket with gcsfuse, at the same path on each.
set -eu

tpu="" zone="" project="" folder=align_jax user="" dry=0
usage() {
  sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
  exit 2
}
while (($#)); do
  case $1 in
    --tpu | --zone | --project | --folder | --user)
      (($# > 1)) || { echo "tpu_pod.sh: $1 needs a value" >&2; exit 2; }
      printf -v "${1#--}" %s "$2"
      shift 2
      ;;
    --dry-run) dry=1; shift ;;
    --) shift; break ;;
    *) echo "tpu_pod.sh: unknown argument $1" >&2; usage ;;
  esac
done
[[ -n $tpu && -n $zone && $# -gt 0 ]] || usage

remote="cd $(printf %q "$folder") && ALIGN_JAX_POD=1 .venv/bin/align-jax"
for argument in "$@"; do
  remote+=" $(printf %q "$argument")"
done
command=(gcloud compute tpus tpu-vm ssh "${user:+$user@}$tpu" --zone "$zone")
[[ -z $project ]] || command+=(--project "$project")
command+=(--worker=all --command "$remote")

if ((dry)); then
  printf '%q ' "${command[@]}"
  echo
else
  exec "${command[@]}"
fi
