"""The table of charges, dipoles and polarizabilities per element."""

import numpy as np
import torch
from mace.tools import torch_geometric

from mace_polmp.training.statistics import multipole_table
from tests.helpers import evaluate, make_graphs, random_model, rock_salt, salty_water


def test_table_holds_mean_and_spread_of_each_element_present():
    model, frames = random_model(), [rock_salt(), rock_salt("triclinic"), salty_water()]
    loader = torch_geometric.dataloader.DataLoader(make_graphs(frames, model), batch_size=2)
    table = multipole_table(model, {"train": loader})
    lines = [line.strip("|").split("|") for line in table.splitlines() if line[0] == "|"]
    rows = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in lines[1:]}
    assert {name: row[0] for name, row in rows.items()} == {
        "H": "4",
        "O": "2",
        "Na": "9",
        "Cl": "9",
    }
    charges = torch.cat([evaluate(model, f)["charges"].detach() for f in frames]).numpy()
    sodium = charges[np.concatenate([f.numbers for f in frames]) == 11]
    assert rows["Na"][1] == f"{sodium.mean():.3f} ± {sodium.std():.3f}"
