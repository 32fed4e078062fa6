"""Forces for i-PI: connect to its socket and answer until it ends.

    i-pi input.xml &
    python client.py --model water.safetensors --structure init.xyz --socket water

Several clients may connect to one i-PI; it gives each other beads. Charges of the structure, where
the model was trained with constrained ones, are those of the file (total_charge).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import ase.io
import torch
from ase.calculators.socketio import SocketClient

from mace_polmp.calculators import MultipoleMACECalculator


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", type=Path, required=True, help=".model or .safetensors")
    parser.add_argument("--structure", type=Path, required=True, help="as in i-PI's input")
    parser.add_argument("--socket", help="name of a UNIX socket, as the address in i-PI's input")
    parser.add_argument("--host", default="localhost", help="of an internet socket")
    parser.add_argument("--port", type=int, help="of an internet socket")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of this client")
    args = parser.parse_args()
    if (args.socket is None) == (args.port is None):
        parser.error("give --socket, or --host and --port")
    torch.set_num_threads(args.threads)
    atoms = ase.io.read(args.structure)
    atoms.calc = MultipoleMACECalculator(args.model, device=args.device, default_dtype="float64")
    if args.socket is not None:
        client = SocketClient(unixsocket=args.socket)
    else:
        client = SocketClient(host=args.host, port=args.port)
    # i-PI wants a virial in any case; molecules have none.
    client.run(atoms, use_stress=bool(atoms.pbc.any()))


if __name__ == "__main__":
    main()
