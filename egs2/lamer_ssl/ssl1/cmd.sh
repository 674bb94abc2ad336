#!/usr/bin/env bash
# shellcheck disable=SC2034  # read by run.sh
# What runs a stage. Empty: this machine. On Slurm, for example:
#   train_cmd="srun --gres=gpu:4 --cpus-per-task=16 --time=48:00:00"
train_cmd=
