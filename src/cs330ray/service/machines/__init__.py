"""What there is to run on: this machine or the nodes of a cluster, and whether they are fit."""
