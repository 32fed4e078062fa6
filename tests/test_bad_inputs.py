"""Whatever a user gives by mistake is one line that says what is wrong; nothing is written.

Each case is a command and a piece of the line that it must end with. No case may end silently,
with a traceback, or with a file or folder left behind.
"""

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from ase import Atoms
from ase.io import write
from mace.modules import ScaleShiftMACE

from mace_polmp.cli.eval_configs import main as eval_configs
from mace_polmp.cli.main import main
from mace_polmp.cli.run_train import main as run_train
from mace_polmp.modules import LongRangeOptions
from mace_polmp.modules.io import write_model
from tests.cli.runs import SMALL, open_frames, periodic_frames
from tests.helpers import backbone_settings, random_model, rock_salt, salty_water, wet_slab

COMMANDS = {
    "evaluate": "evaluate --model m.model --configs {}",
    "md": "md --model m.model --steps 2 --structure {} --frame 0",
    "modes": "modes --model m.model --structure {} --frame 0",
    "eval_configs": "eval_configs --model m.model --output out.xyz --configs {}",
    "check-data": "check-data {}",
    "train": "train --train_file {}",
}


def text_of(*frames, **changes):
    """Structures in extended XYZ, with words replaced."""
    import io

    file = io.StringIO()
    write(file, list(frames), format="extxyz")
    text = file.getvalue()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new, 1)
    return text


def moved(atoms, index, *position):
    atoms = atoms.copy()
    atoms.positions[index] = position
    return atoms


def with_cell(atoms, cell, pbc=True):
    atoms = atoms.copy()
    atoms.set_cell(cell)
    atoms.pbc = pbc
    return atoms


def structures():
    """By name of a file, its content and what must be said of it."""
    water, salt = open_frames(1)[0], salty_water()
    good = text_of(water)
    # In another basis of the lattice it is obvious: (0, 5), (20, 0).
    coarse = with_cell(salt, [[20, 0, 0], [40, 5, 0], [0, 0, 20]], (True, True, False))
    return {
        "empty.xyz": ("", "the file is empty"),
        "binary.xyz": (b"\x80\x02ab\x00", "binary.xyz"),
        "other.xyz": ("no structure at all\n", "other.xyz"),
        "blank.xyz": (good + "\n" + good, "is blank, and more follows from line"),
        "cut.xyz": (good[: len(good) // 2], "it is cut off, or the number is wrong"),
        "many.xyz": (good.replace(f"{len(water)}\n", "500\n", 1), "should have 500 atoms, but"),
        "negative.xyz": ("-3\n\n", "has -3 atoms; remove it"),
        "count.xyz": (good + "three\n\nH 0 0 0\n", "should be the number of atoms of frame 1"),
        "deuterium.xyz": ("2\n\nD 0 0 0\nH 0 0 1\n", "'D' is no element symbol; write H, and its"),
        "h1.xyz": ("2\n\nH1 0 0 0\nH 0 0 1\n", "'H1' is no element symbol; write H"),
        "ghost.xyz": ("2\n\nX 0 0 0\nH 0 0 1\n", "atom 0 is a ghost (X), which has no element"),
        "no_atoms.xyz": ("0\n\n", "has 0 atoms; remove it"),
        "words.xyz": ("1\n\nH here 0 0\n", "not readable as a structure file"),
        "columns.xyz": ("1\n\nH 0 0\n", "not readable as a structure file"),
        "fortran.xyz": ("1\n\nH 1.0D+00 0 0\n", "not readable as a structure file"),
        "nan.xyz": (text_of(moved(salt, 1, np.nan, 0, 0)), "positions hold NaN or infinite"),
        "infinite.xyz": (text_of(moved(salt, 1, np.inf, 0, 0)), "positions hold NaN or infinite"),
        "twice.xyz": (text_of(moved(salt, 1, *salt.positions[0])), "atoms 0 and 1 are closer"),
        "image.xyz": (
            text_of(moved(rock_salt(), 1, *(rock_salt().positions[0] + [5.63, 0, 0]))),
            "atoms 0 and 1 are closer",
        ),
        "far.xyz": (text_of(moved(salt, 1, 1e8, 0, 0)), "a coordinate that no structure has"),
        "huge.xyz": (text_of(with_cell(salt, [1e20] * 3)), "a lattice vector of 1e+20 Å"),
        "no_cell.xyz": (text_of(with_cell(salt, [0] * 3)), "singular cell"),
        "flat.xyz": (
            text_of(with_cell(salt, [[9, 0, 0], [0, 9, 0], [9, 9, 0]])),
            "singular cell",
        ),
        "cell_nan.xyz": (text_of(with_cell(salt, [9, 9, np.nan])), "cell hold"),
        "wire.xyz": (
            text_of(with_cell(salt, [30] * 3, (False, False, True))),
            "a single periodic direction is not supported",
        ),
        "tight.xyz": (text_of(with_cell(salt, [9, 9, 9], (True, True, False))), "vacuum"),
        "coarse.xyz": (text_of(coarse), "vacuum"),
        "thin.xyz": (text_of(wet_slab(vacuum=6.0)), "vacuum"),
        "charges.xyz": (
            text_of(salt).replace('pbc="F F F"', 'total_charge=one pbc="F F F"'),
            "total charge 'total_charge' must be one finite number, got one",
        ),
        "charges_nan.xyz": (
            text_of(salt).replace('pbc="F F F"', 'total_charge=nan pbc="F F F"'),
            "total charge 'total_charge' must be one finite number, got nan",
        ),
        "no_value.xyz": (
            text_of(salt).replace('pbc="F F F"', 'total_charge pbc="F F F"'),
            "got True; the key has no value",
        ),
        "fortran_charge.xyz": (
            text_of(salt).replace('pbc="F F F"', 'total_charge=-1.0D+00 pbc="F F F"'),
            "write exponents with E instead of D",
        ),
        "folder": (None, "is a folder; give a file in it"),
        "12345": (None, "no such file"),
        "none.xyz": (None, "no such file"),
        "unknown.abc": ("something\n", "not readable as a structure file"),
    }


def labels():
    """As structures(), of labels that a training cannot use."""
    plain = open_frames(3)
    crystal = periodic_frames(3)

    def changed(change, frames=plain):
        frames = [atoms.copy() for atoms in frames]
        change(frames[1])
        return text_of(*frames)

    def info(frames=plain, **values):
        return changed(lambda atoms: atoms.info.update(values), frames)

    def array(name, value, frames=plain):
        def change(atoms):
            atoms.arrays.pop(name, None)
            atoms.set_array(name, np.asarray(value(len(atoms))))

        return changed(change, frames)

    fortran = text_of(*plain)
    energy = f"REF_energy={plain[1].info['REF_energy']}"
    assert energy in fortran
    dipole = "REF_dipole"
    return {
        "e_nan.xyz": (info(REF_energy=np.nan), "energy"),
        "e_inf.xyz": (info(REF_energy=np.inf), "energy"),
        "e_text.xyz": (info(REF_energy="low"), "energy"),
        "e_two.xyz": (info(REF_energy=np.ones(2)), "energy"),
        "e_fortran.xyz": (
            fortran.replace(energy, "REF_energy=-3.25D+00"),
            "write exponents with E instead of D",
        ),
        "e_none.xyz": (changed(lambda a: a.info.pop("REF_energy")), "config_energy_weight=0"),
        "f_none.xyz": (changed(lambda a: a.arrays.pop("REF_forces")), "config_forces_weight=0"),
        "f_nan.xyz": (array("REF_forces", lambda n: np.full((n, 3), np.nan)), "forces holds NaN"),
        "f_short.xyz": (array("REF_forces", lambda n: np.ones((n, 2))), "of forces must be"),
        "f_text.xyz": (array("REF_forces", lambda n: np.full((n, 3), "a")), "forces is not num"),
        "s_nan.xyz": (info(crystal, REF_stress=np.full(9, np.nan)), "of stress holds NaN"),
        "s_five.xyz": (info(crystal, REF_stress=np.ones(5)), "of stress must be [3, 3] numbers"),
        "s_twisted.xyz": (info(crystal, REF_stress=np.arange(9.0)), "of stress is not symmetric"),
        "v_nan.xyz": (info(crystal, REF_virials=np.full(9, np.inf)), "of virials holds NaN"),
        "mu_short.xyz": (info(**{dipole: np.ones(2)}), "of dipole must be [3] numbers, got [2]"),
        "mu_nan.xyz": (info(**{dipole: np.full(3, np.nan)}), "of dipole holds NaN"),
        "mu_text.xyz": (info(**{dipole: "1 2 x"}), "dipole"),
        "a_twisted.xyz": (info(REF_polarizability=np.arange(9.0)), "is not symmetric"),
        "a_six.xyz": (info(REF_polarizability=np.ones(4)), "of polarizability must be"),
        "z_short.xyz": (array("REF_born_charges", lambda n: np.ones((n, 3))), "born_charges must"),
        "z_nan.xyz": (
            array("REF_born_charges", lambda n: np.full((n, 9), np.nan)),
            "born_charges holds NaN",
        ),
        "w_negative.xyz": (
            info(config_weight=-1.0),
            "config_weight must be one number of 0 or more",
        ),
        "w_text.xyz": (info(config_energy_weight="low"), "config_energy_weight must be one number"),
        "w_nan.xyz": (info(config_forces_weight=np.nan), "config_forces_weight must be one number"),
        "two_atoms.xyz": (info(config_type="IsolatedAtom"), "says config_type=IsolatedAtom and"),
        "q_two.xyz": (info(total_charge=1.0, charge=2.0), "charge"),
    }


TRAINING = {
    "--r_max 0": "--r_max must be a positive number",
    "--r_max nan": "--r_max must be a positive number",
    "--r_max -4": "--r_max must be a positive number",
    "--r_max 500": "is a cutoff in Å",
    "--energy_weight -1": "--energy_weight must be a number of 0 or more",
    "--forces_weight nan": "--forces_weight must be a number of 0 or more",
    "--stress_weight -0.5": "--stress_weight must be a number of 0 or more",
    "--dipole_weight -1": "dipole_weight must be a number of 0 or more",
    "--born_charges_weight nan": "born_charges_weight must be a number of 0 or more",
    "--total_charge_weight -2": "total_charge_weight must be a number of 0 or more",
    "--polarizability_weight inf": "polarizability_weight must be a number of 0 or more",
    "--clip_grad -1": "--clip_grad must be a positive number",
    "--clip_grad 0": "--clip_grad must be a positive number",
    "--ema --ema_decay 1.5": "--ema_decay must be a number between 0 and 1",
    "--ema --ema_decay 0": "--ema_decay must be a number between 0 and 1",
    "--max_num_epochs 0": "--max_num_epochs must be a whole number of 1 or more",
    "--max_num_epochs -3": "--max_num_epochs must be a whole number of 1 or more",
    "--batch_size 0": "--batch_size must be a whole number of 1 or more",
    "--batch_size 1000": "is more than the",
    "--valid_batch_size 0": "--valid_batch_size must be a whole number of 1 or more",
    "--seed -1": "--seed must be a whole number of 0 or more",
    "--seed 99999999999": "--seed must be at most",
    "--lr -0.1": "--lr must be a number of 0 or more",
    "--lr nan": "--lr must be a number of 0 or more",
    "--mean nan": "--mean must be a number",
    "--max_ell 12": "--max_ell must be at most 11",
    "--scheduler Cosine": "--scheduler must be one of ReduceLROnPlateau, ExponentialLR",
    "--log_level LOUD": "--log_level must be one of DEBUG, INFO",
    "--optimizer schedulefree": "needs the package schedulefree; install it",
    "--wandb": "needs the package wandb; install it",
    "--MLP_irreps many": "--MLP_irreps must be irreps with scalars",
    "--MLP_irreps 4x1o": "--MLP_irreps must be irreps with scalars",
    "--radial_MLP wide": "--radial_MLP must be a list such as '[64, 64, 64]'",
    "--radial_MLP [0]": "--radial_MLP must be a list such as '[64, 64, 64]'",
    "--hidden_irreps big": "--hidden_irreps must be irreps with scalars",
    "--hidden_irreps 8x1o": "--hidden_irreps must be irreps with scalars",
    "--hidden_irreps 4x0e+4x1o --num_channels 8": "than --num_channels and --max_L",
    "--statistics_file none.json": "--statistics_file none.json: no such file",
    "--statistics_file blank.json": "--statistics_file blank.json: not a JSON file",
    "--statistics_file list.json": "list.json: has no 'atomic_numbers'",
    "--statistics_file folder": "is a folder",
    "--test_dir none": "--test_dir none: no such folder",
    "--model_dir good.xyz": "good.xyz is a file; name a folder",
    "--work_dir good.xyz/deeper": "good.xyz is a file; name a folder",
    "--results_dir good.xyz": "good.xyz is a file; name a folder",
    "--valid_fraction 0": "--valid_fraction must be a number between 0 and 1",
    "--valid_fraction 1.5": "--valid_fraction must be a number between 0 and 1",
    "--num_interactions 0": "--num_interactions must be a whole number of 1 or more",
    "--num_channels -8": "--num_channels must be a whole number of 1 or more",
    "--correlation 0": "--correlation must be a whole number of 1 or more",
    "--eval_interval 0": "--eval_interval must be a whole number of 1 or more",
    "--patience 0": "--patience must be a whole number of 1 or more",
    "--swa --start_swa 9": "stage two must begin before the last epoch",
    "--weight_decay -1": "--weight_decay must be a number of 0 or more",
    "--lr_scheduler_gamma 2": "--lr_scheduler_gamma must be a number above 0 and up to 1",
    "--config_type_weights heavy": "--config_type_weights must be a dictionary",
    "--config_type_weights {'a':-1}": "--config_type_weights must be a dictionary",
    "--lr_params_factors {1}": "--lr_params_factors must be a dictionary",
    "--name a/b": "--name must be the beginning of file names",
    "--loss dipole": "--loss dipole is not for --model MultipoleMACE",
    "--enable_oeq True": "--enable_oeq does not work",
    "--loss stress": "none of 3 frames has the label 'REF_stress' with a weight",
    "--dipole_weight 1 --dipole_key mu": "none of 3 frames has the label 'mu'",
    "--born_charges_weight 1": "none of 3 frames has the label 'REF_born_charges'",
    "--total_charge_weight 1 --train_file crystal.xyz": "frames has the label 'total_charge'",
    "--energy_key E_dft": "lacks the energy 'E_dft' in 3 of 3 frames",
    "--forces_key F_dft": "lacks the forces 'F_dft' in 3 of 3 frames",
    "--E0s": "has no isolated atoms to take atomic energies from",
    "--E0s mean": "--E0s must be average, foundation, estimated",
    "--E0s {1:-13.6}": "has no energy of",
    "--E0s {1:'low',8:-2,17:-3}": "the energy of H must be a number in eV",
    "--E0s {1:nan,8:-2,17:-3}": "--E0s must be",
    "--E0s {'Hy':-1,8:-2,17:-3}": "'Hy' is no element",
    "--E0s {'H':-1,1:-2,8:-2,17:-3}": "H is there twice",
    "--E0s none.json": "--E0s none.json: no such file",
    "--E0s broken.json": "broken.json: not a JSON file",
    "--E0s foundation": "--E0s foundation needs --foundation_model",
    "--atomic_numbers one": "--atomic_numbers must be a list such as '[1, 8]'",
    "--atomic_numbers [0,1]": "--atomic_numbers must be a list such as '[1, 8]'",
    "--heads {1": "--heads must be a dictionary of heads",
    "--heads {'a':3}": "--heads must be a dictionary of heads",
    "--heads {'a':{'file':'x'}}": "a has 'file', which is no setting of a head",
    "--valid_file none.xyz": "none.xyz: no such file",
    "--test_file none.xyz": "none.xyz: no such file",
    "--test_file alien.xyz": "alien.xyz",
    "--foundation_model none.model": "none.model: no such file",
    "--foundation_model linear.model": "holds a Linear",
    "--foundation_model train.xyz": "not a model file",
    "--foundation_model m.model": "the foundation model has a cutoff of 4 Å",
    "--foundation_model small.model --r_max 4": "does not know Cl of the training data",
    "--multipole_lmax 7": "multipole_lmax",
    "--multipole_lmax one": "multipole_lmax",
    "--smearing 0": "smearing",
    "--smearing nan": "smearing",
    "--smearing 1e-9": "smearing must be a length in Å from 0.05 to 20.0",
    "--kspace_spacing 1e9": "kspace_spacing must be a length in Å from 0.05 to 20.0",
    "--epsilon_infinity 0.5": "epsilon_infinity",
    "--epsilon_infinity high": "epsilon_infinity",
    "--induced spin": "induced",
    "--constrain_charge maybe": "constrain_charge",
    "--long_range_solver fft": "long_range_solver",
    "--training_mode head": "training_mode must be",
    "--training_mode head_first --head_epochs 2": "leaves no epoch for everything",
    "--head_lr -1": "head_lr must be a number of 0 or more",
    "--head_epochs 0": "head_epochs must be a whole number of 1 or more",
}

MODELS = {
    "text.model": "not a model file of mace-torch or mace_polmp",
    "linear.model": "holds a Linear",
    "plain.model": "not a MultipoleMACE",
    "checkpoint.model": "holds a dict, not a model; checkpoints (.pt)",
    "empty.model": "not a model file",
    "folder": "is a folder; give a file in it",
    "none.model": "no such file",
    "empty.safetensors": "not a safetensors file, or a truncated one",
    "cut.safetensors": "truncated",
    "pickled.safetensors": "not a safetensors file",
    "pickled.SAFETENSORS": "not a safetensors file",
    "foreign.safetensors": "is not a model of mace_polmp",
    "newer.safetensors": "has format version 99, this mace_polmp reads up to",
    "zero.safetensors": "has format version 0",
    "changed.safetensors": "its content was changed after it was written",
    "cutoff.safetensors": "r_max is 9.0 in the configuration and 4.0 in the tensors",
    "nan.safetensors": "are NaN or infinite",
    "heads.model": "has several heads",
}

MD = {
    "--steps 0": "--steps must be at least 1",
    "--steps -5": "--steps must be at least 1",
    "--timestep 0": "timestep",
    "--timestep nan": "timestep",
    "--timestep -0.5": "timestep",
    "--temperature -1": "temperature",
    "--temperature nan": "temperature",
    "--ensemble nvm": "ensemble",
    "--ensemble npt": "npt",
    "--ensemble langevin --friction 0": "friction",
    "--ensemble bussi --time_constant 0": "time_constant",
    "--pressure nan --ensemble npt": "pressure",
    "--every 0": "every",
    "--observables spin": "observables",
    "--field_wavenumber 500": "--field_wavenumber needs --field",
    "--field nan 0 0": "field",
    "--field 0 0 0.1 --field_pulse 5 0": "--field_pulse needs a positive width",
    "--frame 7": "there is no frame 7",
    "--frame -2": "there is no frame -2",
    "--epsilon_infinity 0.2": "epsilon_infinity",
    "--total_charge 1": "total_charge",
    "--head dft": "head",
    "--device cuda:99": "--device cuda:99 is not available",
    "--output good.xyz": "good.xyz",
    "--model m.model small.model": "elements",
}

MODES = {
    "--relax 0": "relax",
    "--relax nan": "relax",
    "--relax 0.05 --relax_steps 0": "relax_steps",
    "--direction 0 0 1": "direction",
    "--width 0": "width",
    "--width nan": "width",
    "--output none/modes --frame 3": "there is no frame 3",
}

SPECTRUM = {
    "uv run.xyz": "kind must be one of ir, raman, dielectric, conductivity, rdf, hysteresis",
    "ir none.xyz": "no such file",
    "ir folder": "is a folder",
    "ir good.xyz": "frame",
    "ir mixed.xyz": "has other atoms or boundary conditions than the first",
    "ir run.xyz --temperature 0": "--temperature must be a positive number",
    "ir run.xyz --temperature nan": "--temperature must be a positive number",
    "ir run.xyz --max_wavenumber -1": "--max_wavenumber must be a positive number of cm⁻¹",
    "ir run.xyz --timestep 5": "the frames of run.xyz say that they are 1 fs apart",
    "ir timeless.xyz": "does not say its time (time_fs); give --timestep",
    "ir timeless.xyz --timestep 0": "--timestep must be a positive number",
    "ir timeless.xyz --timestep nan": "--timestep must be a positive number",
    "ir uneven.xyz": "uneven.xyz",
    "ir run.xyz --skip 1e6": "skip",
    "ir run.xyz --skip -1": "skip",
    "ir run.xyz --resolution 0": "resolution",
    "ir run.xyz --resolution nan": "resolution",
    "ir run.xyz --quantum_correction wigner": "quantum_correction",
    "ir run.xyz --divide_by_chi": "--divide_by_chi: the dipole of run.xyz was written without it",
    "ir run.xyz --epsilon_infinity 0.5": "epsilon_infinity",
    "raman run.xyz": "frames have no 'polarizability', which raman needs",
    "raman run.xyz --laser 0": "laser",
    "dielectric run.xyz": "periodic in three directions",
    "ir nan_dipole.xyz": "the frames' 'dipole' holds NaN or infinite numbers",
    "ir short_dipole.xyz": "the frames' 'dipole' is not [3] numbers",
    "ir coarse_times.xyz": "fs",
    "ir single.xyz": "single.xyz",
}

OTHERS = {
    "convert none.model a.safetensors": "none.model: no such file",
    "convert m.model good.xyz": "good.xyz is there already; give --overwrite",
    "convert m.model new.txt": "the ending must be .model or .safetensors",
    "convert plain.model new.safetensors": "not a MultipoleMACE",
    "convert m.model none/new.safetensors": "No such file or directory",
    "info folder": "is a folder",
    "info text.model": "not a model file",
    "info good.xyz": "not a model file",
    "evaluate --model m.model --configs good.xyz --total_charge nan": "total_charge",
    "evaluate --model m.model --configs good.xyz --total_charge 1": "total_charge",
    "evaluate --model m.model --configs good.xyz": "no frame has any of the labels REF_energy",
    "evaluate --model m.model --configs alien.xyz": "the model does not know Xe",
    "evaluate --model m.model --configs good.xyz --device cuda:99": "--device cuda:99 is not",
    "evaluate --model m.model --configs labelled.xyz --output good.xyz": "good.xyz",
    "eval_configs --model m.model --configs alien.xyz --output out.xyz": "does not know Xe",
    "eval_configs --model m.model --configs good.xyz --output folder": "is a folder",
    "eval_configs --model m.model --configs good.xyz --output out.xyz --batch_size 0": "batch_size",
    "eval_configs --model heads.model --configs good.xyz --output out.xyz": "heads",
    "eval_configs --model text.model --configs good.xyz --output out.xyz": "not a model file",
    "eval_configs --model pickled.SAFETENSORS --configs good.xyz --output out.xyz": "safetensors",
    "quickstart --epochs 0": "epochs",
    "quickstart --md_steps -1": "steps",
}


def write_models(folder):
    model = random_model(LongRangeOptions())
    torch.save(model, folder / "m.model")
    torch.save(random_model(elements=[1, 8]), folder / "small.model")
    torch.save(torch.nn.Linear(2, 2), folder / "linear.model")
    torch.save(ScaleShiftMACE(**backbone_settings()), folder / "plain.model")
    torch.save({"model": {}}, folder / "checkpoint.model")
    torch.save(model, folder / "pickled.safetensors")
    torch.save(model, folder / "pickled.SAFETENSORS")
    settings = {**backbone_settings(), "heads": ["a", "b"], "atomic_energies": np.ones((2, 4))}
    settings |= {"atomic_inter_scale": [1.0, 1.0], "atomic_inter_shift": [0.0, 0.0]}
    from mace_polmp.modules import MultipoleMACE

    torch.save(MultipoleMACE(long_range=LongRangeOptions(), **settings), folder / "heads.model")
    for name in ("empty.model", "empty.safetensors"):
        (folder / name).touch()
    (folder / "text.model").write_text("no model")
    write_model(model, folder / "good.safetensors")
    whole = (folder / "good.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[:-1000])
    changed = bytearray(whole)
    changed[-20] ^= 1
    (folder / "changed.safetensors").write_bytes(changed)
    state = safetensors.torch.load(whole)
    length = int.from_bytes(whole[:8], "little")
    metadata = json.loads(whole[8 : 8 + length])["__metadata__"]

    def variant(name, state=state, **changes):
        said = {k: v for k, v in {**metadata, **changes}.items() if v is not None}
        safetensors.torch.save_file(state, folder / f"{name}.safetensors", said)

    variant("foreign", format=None)
    variant("newer", format_version="99")
    variant("zero", format_version="0")
    config = json.loads(metadata["config"])
    config["backbone"]["r_max"] = 9.0
    variant("cutoff", config=json.dumps(config), sha256=None)
    broken = {**state, "multipole_readouts.linear.weight": torch.full((1,), torch.nan)}
    broken = {
        name: torch.full_like(tensor, torch.nan) if "linear.weight" in name else tensor
        for name, tensor in state.items()
    }
    variant("nan", broken, sha256=None)


def write_trajectories(folder):
    def frames(n=20, **changes):
        out = []
        for number in range(n):
            atoms = Atoms("HCl", positions=[[0, 0, 0], [0, 0, 1.3 + 0.01 * np.sin(number)]])
            atoms.set_velocities(0.01 * np.random.default_rng(number).normal(size=(2, 3)))
            atoms.info.update(time_fs=1.0 * number, dipole=np.ones(3) * np.sin(number), **changes)
            out.append(atoms)
        return out

    write(folder / "run.xyz", frames())
    write(folder / "single.xyz", frames(1))
    timeless = frames()
    for atoms in timeless:
        del atoms.info["time_fs"]
    write(folder / "timeless.xyz", timeless)
    uneven = frames()
    uneven[5].info["time_fs"] = 5.7
    write(folder / "uneven.xyz", uneven)
    coarse = frames()
    for number, atoms in enumerate(coarse):
        atoms.info["time_fs"] = 9.0 * number
    write(folder / "coarse_times.xyz", coarse)
    write(folder / "mixed.xyz", [*frames(3), salty_water()])
    bad = frames()
    bad[3].info["dipole"] = np.full(3, np.nan)
    write(folder / "nan_dipole.xyz", bad)
    short = frames()
    for atoms in short:
        atoms.info["dipole"] = np.ones(2)
    write(folder / "short_dipole.xyz", short)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    write_models(folder)
    write_trajectories(folder)
    for name, (content, _) in {**structures(), **labels()}.items():
        if content is not None:
            data = content if isinstance(content, bytes) else content.encode()
            (folder / name).write_bytes(data)
    (folder / "folder").mkdir()
    write(folder / "train.xyz", open_frames(6)[:3])
    write(folder / "crystal.xyz", periodic_frames(3))
    write(folder / "good.xyz", salty_water())
    labelled = salty_water()
    labelled.info["REF_energy"] = -3.0
    write(folder / "labelled.xyz", labelled)
    alien = open_frames(1)[0]
    alien.numbers[:] = 54
    write(folder / "alien.xyz", alien)
    (folder / "broken.json").write_text("{")
    (folder / "blank.json").touch()
    (folder / "list.json").write_text("[]")
    return folder


@pytest.fixture
def refuses(folder, monkeypatch, capsys, clean_state):
    monkeypatch.chdir(folder)
    before = sorted(path.name for path in folder.iterdir())

    def check(line, message, reports=False):
        name, *arguments = line.split(" ") if isinstance(line, str) else line
        commands = {"train": run_train, "eval_configs": eval_configs}
        with pytest.raises(SystemExit) as stopped:
            if name in commands:
                commands[name](arguments)
            else:
                main([name, *arguments])
        out, err = capsys.readouterr()
        assert stopped.value.code == 1
        lines = [text for text in err.splitlines() if "%|" not in text]  # progress bars
        if reports and not lines:  # among what was found
            lines = out[out.index("problems:") :].splitlines()
            assert any(message in text for text in lines), out
        else:
            assert len(lines) == 1 and "error: " in lines[0] and message in lines[0], err
        assert sorted(path.name for path in folder.iterdir()) == before

    return check


def training(**changes):
    settings = {**SMALL, "name": "m", "work_dir": "w", "train_file": "train.xyz"}
    settings |= {"valid_fraction": 0.34, "model": "MultipoleMACE", **changes}
    return [f"--{key}={value}" for key, value in settings.items() if value is not None]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", structures())
def test_structures(refuses, name, command):
    message = structures()[name][1]
    if "total charge" in message and command in ("check-data", "train"):
        pytest.skip("refused among labels, see below")
    if command == "train":
        refuses(["train", *training(train_file=name)], message)
    else:
        refuses(COMMANDS[command].format(name), message, reports=command == "check-data")


@pytest.mark.parametrize("command", ["check-data", "train"])
@pytest.mark.parametrize("name", labels())
def test_labels(refuses, name, command):
    message = labels()[name][1]
    if command == "train":
        more = {"dipole_weight": 1, "polarizability_weight": 1, "born_charges_weight": 1}
        if name.startswith(("s_", "v_")):
            more = {"loss": "stress" if name[0] == "s" else "virials"}
        kind = {"mu": "dipole", "a_": "polarizability", "z_": "born_charges"}.get(name[:2])
        more = more if "loss" in more else {f"{kind}_weight": 1} if kind else {}
        more |= {"batch_size": 1}
        refuses(["train", *training(train_file=name, **more)], message)
    else:
        refuses(f"check-data {name}", message, reports=True)


@pytest.mark.parametrize("given", TRAINING)
def test_training(refuses, given):
    arguments = training(batch_size=1)
    words = given.split(" ")
    if given == "--E0s":
        arguments = training(batch_size=1, E0s=None)
        words = []
    refuses(["train", *arguments, *words], TRAINING[given])


@pytest.mark.parametrize("command", ["evaluate", "md"])
@pytest.mark.parametrize("name", MODELS)
def test_models(refuses, name, command):
    if name == "plain.model" and command == "evaluate":
        pytest.skip("evaluate takes models of mace-torch")
    structure = "--configs labelled.xyz" if command == "evaluate" else "--structure good.xyz"
    steps = "" if command == "evaluate" else " --steps 2"
    refuses(f"{command} --model {name} {structure}{steps}", MODELS[name])


RUNS = {
    "md --model m.model --structure good.xyz --steps 3 ": MD,
    "modes --model m.model --structure good.xyz ": MODES,
    "spectrum ": SPECTRUM,
    "": OTHERS,
}


@pytest.mark.parametrize(
    ("command", "given"), [(command, given) for command, cases in RUNS.items() for given in cases]
)
def test_commands(refuses, command, given):
    refuses(command + given, RUNS[command][given])
