"""The engine is torch only."""

import subprocess
import sys


def test_electrostatics_imports_neither_mace_nor_e3nn_nor_ase():
    code = (
        "import sys, mace_polmp.electrostatics\n"
        "found = {'mace', 'e3nn', 'ase', 'matscipy', 'scipy'} & set(sys.modules)\n"
        "sys.exit(f'imported: {found}' if found else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
