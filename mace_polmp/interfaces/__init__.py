"""Other programs that run MultipoleMACE models."""

LABEL_METHODS = ("gfn2", "gfn1")
LABEL_QUANTITIES = ("dipole", "charges", "polarizability")
