#!/bin/bash
# Tile the slides of a manifest, a share of them in each task: sbatch --array=0-9 examples/slurm/tile.sh slides.csv stores
#SBATCH --job-name=tile --cpus-per-task=4 --mem=8G --time=12:00:00
set -euo pipefail
manifest=$1 stores=$2
# a share depends on the number of tasks: with some of them, or counted from 1, slides would be left out
if [ "$SLURM_ARRAY_TASK_MIN" != 0 ] || [ "$((SLURM_ARRAY_TASK_MAX + 1))" != "$SLURM_ARRAY_TASK_COUNT" ]; then
    echo "submit all tasks, from 0: sbatch --array=0-9; finished slides are skipped" >&2
    exit 2
fi
share="${manifest%.csv}-$SLURM_ARRAY_TASK_ID.csv" # beside the manifest, which its paths are relative to
awk -v task="$SLURM_ARRAY_TASK_ID" -v tasks="$SLURM_ARRAY_TASK_COUNT" \
    'NR == 1 || (NR - 2) % tasks == task' "$manifest" >"$share"
if [ "$(wc -l <"$share")" -eq 1 ]; then # fewer slides than tasks
    exit 0
fi
simtriplet tile "$share" --out "$stores/$SLURM_ARRAY_TASK_ID" --mpp 0.5 --size 224 --existing skip
