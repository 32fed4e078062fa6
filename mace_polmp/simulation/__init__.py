"""Molecular dynamics: what moves, ensembles, files and restarts."""
