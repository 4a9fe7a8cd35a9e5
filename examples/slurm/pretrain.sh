#!/bin/bash
# Pretrain until it is done, however often the time runs out: sbatch examples/slurm/pretrain.sh RUN STORE...
#SBATCH --job-name=pretrain --gres=gpu:1 --cpus-per-task=8 --mem=64G --time=24:00:00 --requeue --signal=B:USR1@300 --open-mode=append
set -uo pipefail
run=$1
shift
# a first start has nothing to resume from, which --resume takes as a start
simtriplet pretrain "$@" --out "$run" --preset pathology --resume &
training=$!
out_of_time=
trap 'out_of_time=yes; kill -TERM "$training"' USR1 # training saves a checkpoint and ends
wait "$training"
status=$?
while kill -0 "$training" 2>/dev/null; do # the signal ended the wait, not the training
    wait "$training"
    status=$?
done
# SLURM by itself requeues after a failed node or for a more urgent job, not when the time is up
if [ -n "$out_of_time" ] && [ "$status" -ne 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
