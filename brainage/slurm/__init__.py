"""Slurm: a profile says what to ask a cluster for, a script is written from it, sbatch takes it, the queue is read.

profile   experiments/slurm/*.yaml -> Profile          script    Profile + a command -> a bash script for sbatch
jobs      sbatch, the file of submitted jobs           queue     squeue and sacct: how the jobs are
"""
