"""Processes that evaluate their parts of the cases and write what they find.

python -m tests.parallel.worker N_RANKS FOLDER
"""

import multiprocessing
import sys
from pathlib import Path

import numpy as np
import torch
from matscipy.neighbours import neighbour_list

from mace_polmp.parallel import Halo, Part, SharedModel, TorchProcesses
from tests.parallel.cases import CASES


def part_of(atoms, model, processes, rank_of):
    """The part of a process, from the whole structure and which atom is where."""
    own = np.flatnonzero(rank_of == processes.rank)
    cutoff = float(model.r_max)
    if atoms.pbc.any():
        i, j, shifts = neighbour_list("ijS", atoms, cutoff)
    else:
        span = (np.ptp(atoms.positions, axis=0) + 2 * cutoff + 1) * np.eye(3)
        moved = atoms.positions - atoms.positions.min(0) + cutoff
        i, j, shifts = neighbour_list(
            "ijS", positions=moved, cell=span, pbc=np.zeros(3, bool), cutoff=cutoff
        )
    keep = rank_of[j] == processes.rank
    i, j, shifts = i[keep], j[keep], shifts[keep]
    halo = np.setdiff1d(np.unique(i), own)
    rows = np.concatenate([own, halo])
    place = np.full(len(atoms), -1)
    place[rows] = np.arange(len(rows))
    species = np.searchsorted(model.atomic_numbers.cpu().numpy(), atoms.numbers[rows])
    return own, Part(
        halo=Halo(processes, torch.from_numpy(own), torch.from_numpy(halo)),
        positions=torch.from_numpy(atoms.positions[own]),
        species=torch.from_numpy(species),
        index=torch.from_numpy(np.stack([place[i], place[j]])),
        shifts=torch.from_numpy(shifts).double(),
        cell=torch.from_numpy(atoms.cell.array),
        pbc=tuple(bool(p) for p in atoms.pbc),
        n_atoms=len(atoms),
    )


def work(rank, n_ranks, file, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{file}", rank=rank, world_size=n_ranks
    )
    processes = TorchProcesses()
    for name, case in CASES.items():
        atoms, model, settings = case.make()
        if "external_field" in settings:
            settings["external_field"] = torch.tensor(
                settings["external_field"], dtype=torch.float64
            )
        where = atoms.positions[:, 0] - atoms.positions[:, 0].min()
        n_parts = n_ranks - case.empty
        rank_of = np.minimum((where / (np.ptp(where) + 1e-9) * n_parts).astype(int), n_parts - 1)
        own, part = part_of(atoms, model, processes, rank_of)
        shared = SharedModel(model, processes, **settings)
        found = shared.evaluate(part)
        again = shared.evaluate(part)
        assert found.energy == again.energy
        if "external_field" not in settings:
            found = shared.evaluate(part, with_energies=True)
        np.savez(
            Path(folder) / f"{name}_{n_ranks}_{rank}.npz",
            own=own,
            **{k: np.asarray(value) for k, value in vars(found).items() if value is not None},
        )
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def main(n_ranks, folder):
    """Forked, so that all of them import once."""
    context = multiprocessing.get_context("fork")
    file = Path(folder) / "meeting"
    processes = [
        context.Process(target=work, args=(rank, n_ranks, file, folder)) for rank in range(n_ranks)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(any(process.exitcode != 0 for process in processes))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
