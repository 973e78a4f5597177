#!/bin/sh
# Starts kvmix from the runfiles of an experiment's target.
exec experiments/kvmix "$@"
