"""Other programs that run MultipoleMACE models, and one that makes labels for them."""

LABEL_METHODS = {"gfn2": "GFN2-xTB", "gfn1": "GFN1-xTB"}
LABEL_QUANTITIES = ("dipole", "born_charges", "charges", "polarizability")
"""What a calculation can label: dipole [3] e Å from − to +, Born charges [n_atoms, 3, 3] e
[polarization, displacement], charges [n_atoms] e, polarizability [3, 3] e² Å²/eV."""
