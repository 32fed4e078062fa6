"""mace-torch's MACELES become MultipoleMACEs of the same energies; nothing of a file runs."""

import copy
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.io import read
from mace import modules

from mace_polmp.calculators import MultipoleMACECalculator
from mace_polmp.cli.main import main
from mace_polmp.errors import InputError
from mace_polmp.modules.atom_energies import atom_energies
from mace_polmp.modules.born_charges import born_charges
from mace_polmp.modules.io import load_any, load_model
from mace_polmp.upstream.maceles import convert
from mace_polmp.upstream.stand_ins import read_tree
from tests.helpers import (
    backbone_settings,
    evaluate,
    make_batch,
    make_calculator,
    random_model,
    rattled,
    rock_salt,
    salty_water,
)
from tests.upstream.les_stand_in import maceles, write

pytestmark = pytest.mark.usefixtures("double")
SHARED = Path(__file__).parents[2].parent / "shared"

SHAPES = {
    "two layers, vectors": dict(interaction="RealAgnosticResidualInteractionBlock"),
    "scalars": dict(hidden_irreps="8x0e"),
    "three layers": dict(num_interactions=3),
    "one layer": dict(num_interactions=1, hidden_irreps="8x0e"),
    "density": dict(interaction="RealAgnosticDensityResidualInteractionBlock"),
    "no residual": dict(interaction="RealAgnosticInteractionBlock"),
    "non-linear": dict(interaction="RealAgnosticResidualNonLinearInteractionBlock"),
}


def crystal():
    return rattled(rock_salt())


def frames():
    return [salty_water(), crystal()]


def reference(model, atoms):
    """Energy and forces by the model's own forward."""
    out = model(make_batch([atoms], model), compute_force=True)
    energy, own = out["energy"].detach(), out["les_energy"].detach()
    return float(energy), out["forces"].detach(), float(own)


def converted(model, tmp_path):
    tmp_path.mkdir(exist_ok=True)
    write(model, tmp_path / "theirs.model")
    main(["convert", str(tmp_path / "theirs.model"), str(tmp_path / "ours.safetensors")])
    return load_model(tmp_path / "ours.safetensors")


@pytest.mark.parametrize("shape", SHAPES)
def test_energies_and_forces_are_those_of_the_original(shape, tmp_path):
    model = maceles(backbone_settings(**SHAPES[shape]))
    ours = converted(model, tmp_path)
    for atoms in frames():
        energy, forces, of_charges = reference(model, atoms)
        out = evaluate(ours, atoms)
        assert abs(of_charges) > 1e-3
        assert float(out["energy"].detach()) == pytest.approx(energy, abs=1e-9)
        assert torch.allclose(out["forces"], forces, rtol=0, atol=1e-9)
        assert float(out["long_range_energy"]) == pytest.approx(of_charges, abs=1e-9)
        batch = make_batch([atoms], ours)
        assert float(atom_energies(ours, batch).sum()) == pytest.approx(energy, abs=1e-9)


@pytest.mark.parametrize(
    "settings", [dict(sigma=1.4, dl=1.6), dict(remove_self=True)], ids=["lengths", "no self term"]
)
def test_settings_of_the_charges(settings, tmp_path):
    model = maceles(backbone_settings(), **settings)
    ours = converted(model, tmp_path)
    for atoms in frames():
        energy, forces, _ = reference(model, atoms)
        out = evaluate(ours, atoms)
        assert float(out["energy"].detach()) == pytest.approx(energy, abs=1e-9)
        assert torch.allclose(out["forces"], forces, rtol=0, atol=1e-9)


def test_repulsion_transform_and_last_readout(tmp_path):
    settings = backbone_settings() | dict(
        pair_repulsion=True, distance_transform="Agnesi", use_last_readout_only=True
    )
    model = maceles(settings)
    out = evaluate(converted(model, tmp_path), crystal())
    energy, forces, _ = reference(model, crystal())
    assert float(out["energy"].detach()) == pytest.approx(energy, abs=1e-9)
    assert torch.allclose(out["forces"], forces, rtol=0, atol=1e-9)


def test_vectors_of_a_single_layer_are_left_out(tmp_path, capsys):
    """Earlier versions of mace-torch keep them, and read scalars only."""
    settings = backbone_settings(num_interactions=1, hidden_irreps="8x0e")
    model = maceles(settings)
    first, irreps = model.interactions[0], "8x0e+8x1o"
    names = ("node_attrs_irreps", "node_feats_irreps", "edge_attrs_irreps", "edge_feats_irreps")
    given = {name: getattr(first, name) for name in (*names, "target_irreps", "avg_num_neighbors")}
    block = type(first)(**given, hidden_irreps=irreps, radial_MLP=first.radial_MLP)
    model.interactions[0] = block
    model.products[0] = modules.EquivariantProductBasisBlock(
        block.target_irreps, irreps, correlation=2, num_elements=4, use_reduced_cg=False
    )
    for readouts in (model.readouts, model.les_readouts):
        readouts[0] = modules.LinearReadoutBlock(irreps, "1x0e")
    model.use_reduced_cg = False
    ours = converted(model, tmp_path)
    assert "8x0e+8x1o of its single layer only the scalars" in capsys.readouterr().out
    energy, forces, _ = reference(model, crystal())
    out = evaluate(ours, crystal())
    assert float(out["energy"].detach()) == pytest.approx(energy, abs=1e-9)
    assert torch.allclose(out["forces"], forces, rtol=0, atol=1e-9)


def test_what_the_original_lacks(tmp_path):
    """Stress, left-handed cells, the mesh, and Born charges that no supercell changes."""
    ours = converted(maceles(backbone_settings()), tmp_path)
    atoms = crystal()
    calculator = MultipoleMACECalculator(models=[ours], device="cpu", default_dtype="float64")
    atoms.calc = calculator
    stress, numbers = atoms.get_stress(voigt=False), np.zeros((3, 3))
    for a, b in ((0, 0), (1, 1), (2, 2), (0, 1), (1, 2), (0, 2)):
        for sign in (1.0, -1.0):
            strained = atoms.copy()
            strain = np.zeros((3, 3))
            strain[a, b] += 0.5e-4 * sign
            strain[b, a] += 0.5e-4 * sign
            strained.set_cell(atoms.cell[:] @ (np.eye(3) + strain), scale_atoms=True)
            strained.calc = calculator
            numbers[a, b] += sign * strained.get_potential_energy() / 2e-4 / atoms.get_volume()
        numbers[b, a] = numbers[a, b]
    np.testing.assert_allclose(stress, numbers, atol=1e-7)

    energy = float(evaluate(ours, atoms)["energy"])
    left = atoms.copy()
    left.set_cell(atoms.cell[:][[1, 0, 2]], scale_atoms=False)
    assert float(evaluate(ours, left)["energy"]) == pytest.approx(energy, abs=1e-9)

    born = born_charges(ours, make_batch([atoms], ours))
    twice = born_charges(ours, make_batch([atoms.repeat((1, 2, 1))], ours))[: len(atoms)]
    assert torch.allclose(born, twice, rtol=0, atol=1e-9) and born.abs().max() > 1e-3

    large = atoms.repeat((2, 2, 2))
    direct = evaluate(ours, large)
    ours.electrostatics.solver = "mesh"
    mesh = evaluate(ours, large)
    assert torch.allclose(direct["energy"], mesh["energy"], rtol=0, atol=1e-4)
    assert torch.allclose(direct["forces"], mesh["forces"], rtol=0, atol=1e-4)
    assert not torch.equal(direct["energy"], mesh["energy"])


class Shell:
    """Runs a command where it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("place", ["at the top", "inside"])
def test_nothing_of_a_file_runs(place, tmp_path, capsys):
    trace = tmp_path / "it_ran"
    shell = Shell(f"touch {trace}")
    model = maceles(backbone_settings(num_interactions=1, hidden_irreps="8x0e"))
    if place == "inside":
        model.heads = shell
    write(model if place == "inside" else shell, tmp_path / "bad.model")
    with pytest.raises(SystemExit):
        main(["convert", str(tmp_path / "bad.model"), str(tmp_path / "new.safetensors")])
    words = "posix.system, which no MACELES" if place == "inside" else "holds a posix.system, not a"
    assert words in capsys.readouterr().err
    (tmp_path / "raw.model").write_bytes(pickle.dumps(shell))
    with pytest.raises(InputError, match="not a model file of mace-torch"):
        convert(tmp_path / "raw.model")
    assert not trace.exists() and not (tmp_path / "new.safetensors").exists()


def altered(source, target, change):
    """A copy of an archive with another program in it."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, change(data) if name.endswith("data.pkl") else data)


def test_programs_that_use_what_is_allowed_are_refused_too(tmp_path):
    write(
        maceles(backbone_settings(num_interactions=1, hidden_irreps="8x0e")), tmp_path / "a.model"
    )
    end = b"0" + b"ctorch._utils\n_rebuild_parameter\n" + b"}X\x01\x00\x00\x00aK\x01sb."
    altered(tmp_path / "a.model", tmp_path / "b.model", lambda data: data[:-1] + end)
    with pytest.raises(InputError, match="the state of a function"):
        read_tree(tmp_path / "b.model")
    altered(tmp_path / "a.model", tmp_path / "c.model", lambda data: data[: len(data) // 2])
    with pytest.raises(InputError, match="c.model: not a whole archive"):
        read_tree(tmp_path / "c.model")
    size, larger = b"K\x00K\x04\x85", b"K\x00J\x00\xe1\xf5\x05\x85"  # offset 0, shape (n,)
    altered(tmp_path / "a.model", tmp_path / "d.model", lambda data: data.replace(size, larger, 1))
    with pytest.raises(InputError, match="a tensor of shape"):
        read_tree(tmp_path / "d.model")


def test_a_tensor_gets_no_state(tmp_path):
    """torch's tensors have a method that pickles call, and it can make them of any size."""

    def whole(n):
        return b"J" + struct.pack("<i", n)

    def words(text):
        return b"X" + struct.pack("<I", len(text)) + text

    numbers = b"(" + words(b"storage") + b"ctorch\nFloatStorage\n" + words(b"0") + words(b"cpu")
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + numbers + whole(4) + b"tQK\x00("
    tensor += whole(4) + b"t(K\x01t\x89ccollections\nOrderedDict\n)RtR"
    state = b"(" + tensor + b"K\x00(" + whole(10**8) + b"t(K\x01tt"
    head = b"\x80\x02cmace.modules.models\nMACELES\n)\x81}(" + words(b"w") + tensor
    for program, is_refused in ((head + b"ub.", False), (head + state + b"bub.", True)):
        with zipfile.ZipFile(tmp_path / "f.model", "w") as archive:
            archive.writestr("m/data.pkl", program)
            archive.writestr("m/data/0", b"\0" * 16)
            archive.writestr("m/version", "3")
        if is_refused:
            with pytest.raises(InputError, match="the state of a tensor"):
                read_tree(tmp_path / "f.model")
        else:
            assert read_tree(tmp_path / "f.model").value("w").shape == (4,)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: setattr(m, "use_dipoles", True), "use_dipoles is True: what it does is not"),
        (
            lambda m: setattr(m, "les_u_readouts", torch.nn.ModuleList([torch.nn.Linear(1, 1)])),
            "les_u_readouts is there: what it does is not",
        ),
        (lambda m: setattr(m.les, "use_field", 1.5), "les.use_field is 1.5"),
        (lambda m: setattr(m.les.ewald, "sigma", 1.5), "les.sigma is 1.0: .* 1.5"),
        (
            lambda m: setattr(m.les.atomwise, "outnet", torch.nn.Sequential(torch.nn.Linear(1, 1))),
            "les.atomwise.outnet is there",
        ),
        (lambda m: setattr(m.les, "remove_self_interaction", True), "les.ewald says False"),
        (lambda m: setattr(m.les, "use_atomwise", True), "les.use_atomwise is True"),
        (lambda m: setattr(m, "heads", 3), "parts are not those of a known version .*int"),
        (lambda m: m.add_module("again", torch.nn.ModuleList([m])), "known version .*recursion"),
        (lambda m: setattr(m.les, "epsilon_factor", 0.5), "les.epsilon_factor is 0.5"),
        (lambda m: setattr(m, "heads", ["a", "b"]), r"heads is \['a', 'b'\]"),
        (lambda m: setattr(m, "les_readouts", torch.nn.ModuleList()), "les_readouts is 0 readouts"),
    ],
)
def test_settings_without_a_counterpart_are_refused(change, words, tmp_path):
    model = maceles(backbone_settings(num_interactions=1, hidden_irreps="8x0e"))
    change(model)
    write(model, tmp_path / "a.model")
    with pytest.raises(InputError, match=words):
        convert(tmp_path / "a.model")


def test_settings_without_an_effect(tmp_path):
    """What later versions write beside the settings that count."""
    model = maceles(backbone_settings(num_interactions=1, hidden_irreps="8x0e"))
    write(model, tmp_path / "a.model")
    model.les.remove_self_interaction = False
    model.les.fixed_atomic_charges_scaling_factor = 0.5
    write(model, tmp_path / "b.model")
    atoms, energies = frames()[0], []
    for name in ("a.model", "b.model"):
        atoms.calc = make_calculator(models=convert(tmp_path / name).model)
        energies.append(atoms.get_potential_energy())
    assert energies[0] == energies[1]


def test_a_scale_of_the_charges(tmp_path):
    model = maceles(backbone_settings())
    scaled = copy.deepcopy(model)
    scaled.les_output_scale, scaled.use_dipoles = 0.5, False
    whole, half = (converted(m, tmp_path / str(n)) for n, m in enumerate((model, scaled)))
    charges = [evaluate(m, crystal())["charges"] for m in (whole, half)]
    assert torch.allclose(0.5 * charges[0], charges[1], rtol=0, atol=1e-12)


def test_other_models(tmp_path, monkeypatch, capsys):
    """What is not converted is named, with what to do."""
    polar = type("PolarMACE", (torch.nn.Linear,), {"__module__": "mace.modules.extensions"})
    monkeypatch.setattr("mace.modules.extensions.PolarMACE", polar)
    torch.save(polar(1, 1), tmp_path / "polar.model")
    for read_file in (convert, load_any):
        with pytest.raises(InputError, match="holds a PolarMACE, .* several steps of message"):
            read_file(tmp_path / "polar.model")
    write(maceles(backbone_settings()), tmp_path / "les.model")
    with pytest.raises(InputError, match="holds a MACELES, .* mace_polmp convert .*les.model"):
        load_any(tmp_path / "les.model")


def test_fine_tuning_goes_on_from_it(tmp_path):
    """Charges start where they were; dipoles and responses may be added."""
    from mace_polmp.training.fine_tuning import inherit, start_from

    ours = converted(maceles(backbone_settings()), tmp_path)
    options = inherit({"multipole_lmax": 1, "induced": "dipole"}, ours)
    assert options.self_interaction and options.charge_readout == "layers"
    with pytest.raises(InputError, match="self_interaction False: .* energies would change"):
        inherit({"self_interaction": False}, ours)
    larger = random_model(options)
    larger.load_state_dict(
        {n: t for n, t in ours.state_dict().items() if not n.startswith("multipole_readouts.")},
        strict=False,
    )
    batches = [make_batch([crystal()], ours)]
    start_from(larger, ours, batches)
    before, after = evaluate(ours, crystal()), evaluate(larger, crystal())
    assert torch.allclose(before["charges"], after["charges"], rtol=0, atol=1e-12)
    assert torch.allclose(before["energy"], after["energy"], rtol=0, atol=0.01)


@pytest.mark.parametrize(
    "name", ["maceles_dipeptides_64x0e_r4.0", "maceles_water_128x0e_128x1o_1layer_r4.5"]
)
def test_published_models(name, tmp_path):
    """Against the original code's energies (eV) and forces (eV/Å) in double precision."""
    source = SHARED / "models" / f"{name}.model"
    if not source.exists():
        pytest.skip("the published models are not here")
    known = json.loads(source.with_suffix(".json").read_text())
    main(["convert", str(source), str(tmp_path / "ours.safetensors")])
    calculator = MultipoleMACECalculator(
        model_paths=str(tmp_path / "ours.safetensors"), device="cpu", default_dtype="float64"
    )
    structures = read(SHARED / known["structures"].split(",")[0], f":{len(known['cases'])}")
    for atoms, case in zip(structures, known["cases"], strict=True):
        atoms.calc = calculator
        assert abs(atoms.get_potential_energy() - case["energy"]) / len(atoms) < 1e-7
        assert np.abs(atoms.get_forces() - np.array(case["forces"])).max() < 1e-6
