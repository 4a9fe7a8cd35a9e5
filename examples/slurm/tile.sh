#!/bin/bash
# Tile the slides of a manifest, a share of them in each task: sbatch --array=0-9 examples/slurm/tile.sh slides.csv stores
#SBATCH --job-name=tile --cpus-per-task=4 --mem=8G --time=12:00:00
set -euo pipefail
manifest=$1 stores=$2
share="${manifest%.csv}-$SLURM_ARRAY_TASK_ID.csv" # beside the manifest, which its paths are relative to
awk -v task="$SLURM_ARRAY_TASK_ID" -v tasks="$SLURM_ARRAY_TASK_COUNT" \
    'NR == 1 || (NR - 2) % tasks == task' "$manifest" >"$share"
simtriplet tile "$share" --out "$stores/$SLURM_ARRAY_TASK_ID" --mpp 0.5 --size 224 --existing skip
