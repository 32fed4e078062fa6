"""The accuracy benchmarks: how runs are composed, and a small matrix from data to plots."""

import csv
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.io import read, write

from mace_polmp.cli.quickstart import data_file
from mace_polmp.cli.run_train import asked_options, build_parser
from mace_polmp.modules import LongRangeOptions

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from benchmarks import suite  # noqa: E402  a script's folder, not a package

DATA = sorted({s.name for systems in suite.systems_by_name().values() for s in systems})
SMALL = ["--max_num_epochs=2", "--num_channels=4", "--eval_interval=1", "--max_ell=1"]


def system(name):
    return suite.systems_by_name()[name][0]


def start(folder, *arguments):
    return subprocess.run(
        [sys.executable, SCRIPTS / "run_benchmarks.py", *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.parametrize("variant", suite.variants())
@pytest.mark.parametrize("name", DATA)
def test_every_variant_of_every_data_set_is_a_valid_training(name, variant, tmp_path):
    parser = build_parser()
    starts = suite.Run(system(name), variant, 1, tmp_path, "test").all_starts()
    for run, stage in itertools.product(starts, suite.stages(system(name))):
        path = tmp_path / "config.yaml"
        files = {"train": tmp_path / "train.xyz", "valid": tmp_path / "valid.xyz"}
        settings = run.settings(files, stage)
        path.write_text(json.dumps(settings))  # JSON is YAML
        args, unknown = parser.parse_known_args(["--config", str(path)])
        assert not unknown
        assert (args.model == "MACE") == (variant == "sr")
        if variant != "sr":
            options = LongRangeOptions(**asked_options(args))
            full = ("uQiqiu", "anisotropic", "self_consistent")
            lmax = {"les": 0, "uQ": 2, **dict.fromkeys(full, 2)}.get(variant, 1)
            assert options.multipole_lmax == lmax
            assert options.induces_charges == (variant in ("uiq", "uiqiu", *full))
            assert options.induces_dipoles == (variant in ("uiu", "uiqiu", "bond_dipole", *full))
            assert options.defines_polarization == variant.startswith("bond")
            assert options.is_self_consistent == (variant == "self_consistent")


def test_variants_of_a_data_set_have_the_same_backbone_and_budget():
    for name in DATA:
        head = {"model", *LongRangeOptions.__dataclass_fields__}
        plain = [
            {k: v for k, v in suite.training_flags(system(name), variant).items() if k not in head}
            for variant in suite.variants()
        ]
        extra = {k: v for k, v in plain[-1].items() if plain[0].get(k, v) != v}
        assert not extra, name


def test_parts_are_disjoint_and_the_same_each_time(tmp_path):
    frames = read(data_file("train"), ":")[:40]
    write(tmp_path / "water_rpbe_d3.xyz", frames)
    parts = [
        suite.prepare(system("water"), tmp_path, tmp_path / out, "test") for out in ("one", "two")
    ]
    found = {}
    for name in ("train", "valid", "test"):
        first, second = (read(files[name], ":") for files in parts)
        assert first == second
        found[name] = [frame.positions.tobytes() for frame in first]
    everything = sum(found.values(), [])
    assert [len(found[name]) for name in ("train", "valid", "test")] == [27, 3, 10]
    assert len(set(everything)) == 40


def test_dimers_hold_out_the_farthest_frame_for_choices_only(tmp_path):
    for part, number in (("train", 6), ("test", 2)):
        frames = read(data_file("train"), ":")[:number]
        for distance, frame in enumerate(frames):
            frame.info["distance"] = float(distance)
        write(tmp_path / f"dimers_CC_{part}.xyz", frames)
    choices = suite.prepare(system("dimers_CC"), tmp_path, tmp_path / "out", "valid")
    distances = [frame.info["distance"] for frame in read(choices["valid"], ":")]
    assert distances == [5.0]
    assert len(read(choices["train"], ":")) == 5
    final = suite.prepare(system("dimers_CC"), tmp_path, tmp_path / "out", "test")
    assert len(read(final["train"], ":")) == 6
    assert final["train"].parent != choices["train"].parent


def test_starts_differ_in_seed_and_head_and_the_lowest_loss_goes_on(tmp_path):
    run = suite.Run(system("dimers_CC"), "uQiqiu", 7, tmp_path, "test")
    starts = run.all_starts()
    files = {"train": tmp_path / "train.xyz", "valid": tmp_path / "valid.xyz"}
    settings = [start.settings(files, {}) for start in starts]
    assert settings[0]["seed"] == 7
    assert len({s["seed"] for s in settings}) == len({s["work_dir"] for s in settings}) == 4
    rates = [(s.get("head_lr"), s.get("head_warmup_epochs")) for s in settings]
    assert len(set(rates)) == 2 and rates[:2] == rates[2:]
    short_range = replace(run, variant="sr").all_starts()[1].settings(files, {})
    assert "head_lr" not in short_range and "head_warmup_epochs" not in short_range

    def record(start, loss):
        folder = start.folder / "results"
        folder.mkdir(parents=True, exist_ok=True)
        lines = [{"mode": "eval", "epoch": n, "loss": x} for n, x in enumerate((9.0, loss))]
        (folder / "m_train.txt").write_text("\n".join(map(json.dumps, lines)))

    for start_of_run, loss in zip(starts, (3.0, float("nan"), 1.0, 2.0), strict=True):
        record(start_of_run, loss)
    assert run.best_start() == starts[2]
    record(starts[3], 0.5)  # what was chosen is not chosen anew
    assert run.best_start() == starts[2]
    assert suite.Run(system("water"), "les", 7, tmp_path, "test").best_start().start is None


@pytest.mark.slow
def test_several_starts_train_in_stages_and_the_best_one_is_evaluated(tmp_path):
    """The script as it is, on a data set of its own."""
    copy = tmp_path / "scripts"
    shutil.copytree(SCRIPTS, copy, ignore=shutil.ignore_patterns("results", "__pycache__"))
    configs = tmp_path / "configs" / "benchmarks"
    configs.mkdir(parents=True)
    for name in ("common", "variants"):
        shutil.copy(suite.CONFIGS / f"{name}.yaml", configs)
    flags = dict.fromkeys(("num_channels", "r_max"), 4) | {"max_ell": 1, "batch_size": 4}
    tiny = {
        "systems": {"tiny": {"train": "t.xyz", "valid": "t.xyz", "test": "t.xyz"}},
        "energies": "structure",
        "training": flags,
        "stages": [
            {"max_num_epochs": 2, "eval_interval": 1, "lr_scheduler_gamma": 0.9},
            {"max_num_epochs": 3, "lr_scheduler_gamma": 0.5},
        ],
        "starts": {"count": 2, "stages": 1, "head": [{"head_lr": 0.001}, {"head_lr": 0.01}]},
    }
    (configs / "tiny.yaml").write_text(json.dumps(tiny))
    write(tmp_path / "t.xyz", read(data_file("train"), ":4"))
    command = [sys.executable, copy / "run_benchmarks.py", "--data=tiny", "--variants=les"]
    command += ["--data_dir", tmp_path, "--output", tmp_path / "out"]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    folder = tmp_path / "out" / "tiny" / "les" / "seed1"
    chosen = json.loads((folder / "chosen.json").read_text())["start"]
    done = {n: sorted(p.name for p in folder.glob(f"start{n}/*.done")) for n in (0, 1)}
    assert done == {chosen: ["stage1.done", "stage2.done"], 1 - chosen: ["stage1.done"]}
    assert json.loads((folder / "result_test.json").read_text())["epochs"] == 3
    (path,) = folder.glob(f"start{chosen}/checkpoints/*_epoch-2.pt")
    schedule = torch.load(path, weights_only=False)["lr_scheduler"]
    assert schedule["gamma"] == 0.5 and schedule["last_epoch"] == 3


@pytest.mark.slow
def test_a_small_matrix_gives_a_table_and_plots_and_is_not_run_twice(tmp_path):
    for part, stop in (("train", 24), ("valid", 12), ("far", 6)):
        write(tmp_path / f"water_ions_{part}.xyz", read(data_file(part), f":{stop}"))
    command = ["--data=water_ions", "--variants=les", "--seeds", 1, 2]
    command += ["--data_dir", tmp_path, "--output", "out", "--", *SMALL]
    result = start(tmp_path, *command)
    assert result.returncode == 0, result.stderr
    out = tmp_path / "out"
    with open(out / "errors.csv") as file:
        rows = list(csv.DictReader(file))
    assert {(r["variant"], r["seed"]) for r in rows} == {("les", "1"), ("les", "2")}
    assert {r["quantity"] for r in rows if r["variant"] == "les"} == {"energy", "forces", "dipole"}
    assert all(float(r["RMSE"]) > 0 and int(r["epochs"]) == 2 for r in rows)
    table = (out / "errors.md").read_text()
    mine = [float(r["RMSE"]) for r in rows if (r["variant"], r["quantity"]) == ("les", "forces")]
    mean, half = np.mean(mine), 0.5 * np.ptp(mine)
    assert f"{mean:.3g} ± {half:.2g}" in table
    for name in ("errors", "learning", "parity_dipole"):
        assert (out / f"{name}_water_ions.png").stat().st_size > 5000

    model = out / "water_ions" / "les" / "seed1" / "m.model"
    before = model.stat().st_mtime_ns
    again = start(tmp_path, *command)
    assert again.returncode == 0, again.stderr
    assert model.stat().st_mtime_ns == before
    assert (out / "errors.md").read_text() == table

    fewer = start(tmp_path, *[word for word in command if word != 2])
    assert fewer.returncode == 0, fewer.stderr
    assert (out / "errors.md").read_text() == table  # what earlier calls trained stays in it
    other = start(tmp_path, *command[:-1], "--max_ell=2")
    assert other.returncode == 1 and "Traceback" not in other.stderr
    assert "water_ions/les/seed1 was trained with other flags after --" in other.stderr
    assert "--max_ell=1; now --max_num_epochs=2 --num_channels=4" in other.stderr
    assert "give another --output" in other.stderr
    assert model.stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_interrupts_a_matrix_ends_its_trainings_and_starts_no_more(tmp_path, number):
    """Left alone, a training would write to the same files as the one that goes on."""
    for part in ("train", "valid", "far"):
        write(tmp_path / f"water_ions_{part}.xyz", read(data_file(part), ":4"))
    command = ["--data_dir=.", "--variants", "sr", "les", "--", *SMALL, "--batch_size=4"]
    command += ["--max_num_epochs=100000"]
    process = subprocess.Popen(
        [sys.executable, SCRIPTS / "run_benchmarks.py", *command],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Jobs in the background of a script, as these tests may be, ignore Ctrl-C and pass that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    folder = tmp_path / "benchmarks" / "water_ions"
    try:
        while not list(folder.glob("sr/seed1/checkpoints/*.pt")) and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(number)
        _, errors = process.communicate(timeout=900)
        assert process.returncode == 1
        assert "interrupted; run the same command again to go on" in errors
        assert "Traceback" not in errors
        assert not (folder / "les").exists()
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_missing_files_and_failed_runs_are_named(tmp_path):
    result = start(tmp_path, "--data=water", "--variants=sr")
    assert result.returncode != 0
    assert "water_rpbe_d3.xyz is not in data; name its folder with --data_dir" in result.stderr
    assert "Traceback" not in result.stderr
    for part in ("train", "valid", "far"):
        write(tmp_path / f"water_ions_{part}.xyz", read(data_file(part), ":2"))
    result = start(tmp_path, "--data_dir=.", "--variants=les", "--", "--smearing=-1")
    assert result.returncode == 1
    assert "water_ions/les/seed1 failed: see" in result.stderr
    log = tmp_path / "benchmarks" / "water_ions" / "les" / "seed1" / "training.out"
    assert "smearing must be a positive" in log.read_text()
    corrected = start(tmp_path, "--data_dir=.", "--variants=les", "--", *SMALL, "--batch_size=2")
    assert corrected.returncode == 0, corrected.stderr
