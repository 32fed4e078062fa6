"""The example without extras runs from the command line."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "other_backbones" / "plain_network.py"


@pytest.mark.slow
def test_the_head_on_a_plain_network(tmp_path):
    command = [sys.executable, str(EXAMPLE), "--epochs", "1", "--output", str(tmp_path)]
    run = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert run.returncode == 0, run.stderr
    differences = re.findall(r"derivative of the energy within (\S+) eV", run.stdout)
    assert len(differences) == 2 and max(map(float, differences)) < 1e-7
    rows = list(csv.DictReader((tmp_path / "errors.csv").open()))
    assert len(rows) == 4
    assert all(0 < float(row["forces MAE"]) < 5000 for row in rows)
