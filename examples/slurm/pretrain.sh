#!/bin/bash
# Pretrain until it is done, however often the time runs out: sbatch examples/slurm/pretrain.sh RUN STORE...
#SBATCH --job-name=pretrain --gres=gpu:1 --cpus-per-task=8 --mem=64G --time=24:00:00 --requeue --signal=TERM@300
set -uo pipefail
run=$1
shift
# a first start has nothing to resume from, which --resume takes as a start
exec simtriplet pretrain "$@" --out "$run" --preset pathology --resume
