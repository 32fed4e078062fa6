"""Spectra and dielectric constants from trajectories, intensities of normal modes, plots."""
