"""Build the source release and the wheel, install the wheel, and use it outside the source tree.

    python scripts/check_release.py [--output dist]

Needs nothing but the environment it runs in (setuptools 77 or newer) and git; no network. The wheel
is built from the source release, as an installer would build it, and installed into a fresh
environment that borrows the other packages of this one.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = (
    "CHANGELOG.md",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "LICENSE",
    "README.md",
    "constraints.txt",
    "pyproject.toml",
    "setup.py",
)
MADE = ("PKG-INFO", "setup.cfg")
BUILD = "import sys; from setuptools import build_meta as b; print(b.build_{kind}(sys.argv[1]))"
USE = """
import mace_polmp, sys
from pathlib import Path
from ase.build import molecule
from ase.io import read
from mace_polmp.cli.quickstart import data_file

assert Path(mace_polmp.__file__).is_relative_to(sys.prefix), mace_polmp.__file__
assert (Path(mace_polmp.__file__).parent / "py.typed").is_file()
frames = [len(read(data_file(name), ":")) for name in ("train", "valid", "far", "curves")]
atoms = molecule("H2O")
atoms.calc = mace_polmp.MultipoleMACECalculator("demo", default_dtype="float64")
print(f"embedded frames: {frames}; energy of H2O: {atoms.get_potential_energy():.3f} eV")
"""


def tracked() -> set[str]:
    """Files of the repository, as git knows them."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True)
    return set(done.stdout.decode().strip("\0").split("\0"))


def clean_tree(files: set[str], folder: Path) -> Path:
    """A copy of the repository's files alone, without what builds and runs left beside them."""
    for name in files:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def build(kind: str, source: Path, target: Path) -> Path:
    """Build "sdist" or "wheel" of a source tree; returns the file."""
    command = [sys.executable, "-c", BUILD.format(kind=kind), str(target)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"the {kind} cannot be built:\n{done.stdout}{done.stderr}")
    return target / done.stdout.split()[-1]


def check_source_release(path: Path, files: set[str]) -> None:
    """All that a build, the tests and the pages need, and nothing that git does not know."""
    with tarfile.open(path) as archive:
        names = [m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()]
    held = {name for name in names if ".egg-info/" not in name and name not in MADE}
    needed = {*SOURCES, *(f for f in files if f.startswith(("mace_polmp/", "tests/", "docs/")))}
    missing, junk = sorted(needed - held), sorted(held - files)
    if missing or junk:
        sys.exit(f"{path.name}: not in it: {missing}; not in the repository: {junk}")
    print(f"{path.name}: {len(held)} files, {path.stat().st_size / 1e6:.2f} MB")


def check_wheel(path: Path, files: set[str]) -> None:
    """The package and its metadata, nothing else."""
    names = {name for name in zipfile.ZipFile(path).namelist() if ".dist-info/" not in name}
    package = {name for name in files if name.startswith("mace_polmp/")}
    if names != package:
        sys.exit(f"{path.name}: differs from mace_polmp/ by {sorted(names ^ package)}")
    print(f"{path.name}: {len(names)} files, {path.stat().st_size / 1e6:.2f} MB")


def use(wheel: Path, folder: Path) -> None:
    """Install the wheel into a fresh environment in a folder and run it there."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def run(*command: str | Path) -> None:
        subprocess.run([str(word) for word in command], cwd=folder, env=env, check=True)

    fresh = folder / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", fresh)
    python = fresh / "bin" / "python"
    # Packages of this environment, without its editable installs: their .pth files are not read.
    lib = f"python{sys.version_info.major}.{sys.version_info.minor}"
    borrowed = fresh / "lib" / lib / "site-packages" / "borrowed.pth"
    borrowed.write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index"]
    run(*pip, "--no-deps", "--force-reinstall", "--ignore-installed", wheel)
    run(fresh / "bin" / "mace_polmp", "--version")
    run(python, "-W", "ignore", "-c", USE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, help="folder that keeps both files")
    args = parser.parse_args()
    files = tracked()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        target = (args.output or folder / "dist").resolve()
        target.mkdir(parents=True, exist_ok=True)
        source = build("sdist", clean_tree(files, folder / "tree"), target)
        check_source_release(source, files)
        with tarfile.open(source) as archive:
            archive.extractall(folder, filter="data")
        wheel = build("wheel", folder / source.name.removesuffix(".tar.gz"), target)
        check_wheel(wheel, files)
        use(wheel, folder)


if __name__ == "__main__":
    main()
