"""The accuracy benchmarks: data sets, variants and runs as configs/benchmarks describes them."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from ase import Atoms
from ase.io import iread, write

from mace_polmp.errors import InputError
from mace_polmp.structures import read_structures

CONFIGS = Path(__file__).parents[2] / "configs" / "benchmarks"
PACKAGE_DATA = Path(__file__).parents[2] / "mace_polmp" / "data"
# Files of CONFIGS that are not a data set each.
_SHARED = ("common", "variants")
PARTS = ("valid", "test")
_NEXT_SEED = 1000  # from one start of a run to the next


@dataclass(frozen=True)
class System:
    """One data set to train on, with the settings of its file.

    Attributes:
        name: of the data set.
        files: train, and valid and test or test_frames; or all and test_frames.
        settings: the file it is described in.
    """

    name: str
    files: dict[str, Any]
    settings: dict[str, Any] = field(repr=False)

    @property
    def energies_per_atom(self) -> bool:
        return bool(self.settings["energies"] == "atom")

    @property
    def starts(self) -> int:
        """How many trainings are begun, of which the best is trained to the end."""
        return int(self.settings.get("starts", {}).get("count", 1))

    @property
    def too_few_to_hold_out(self) -> bool:
        """Whether checkpoints are chosen by the frames that are trained on."""
        return bool(self.settings.get("hold_out", {}).get("only_for_choices", False))

    def part(self, asked: str) -> str:
        """The part that errors are given for: the one asked for, if it has that."""
        has_test = "test" in self.files or "test_frames" in self.files
        return asked if has_test else "valid"

    def folder(self, output: Path, part: str) -> Path:
        """Where its data and runs are; models that saw different frames are kept apart."""
        choices = self.too_few_to_hold_out and part == "valid"
        return output / (f"{self.name}_choices" if choices else self.name)


def systems_by_name() -> dict[str, list[System]]:
    """{name of a file or of a system in it: systems}."""
    found: dict[str, list[System]] = {}
    for path in sorted(CONFIGS.glob("*.yaml")):
        if path.stem in _SHARED:
            continue
        settings = yaml.safe_load(path.read_text())
        systems = [System(name, files, settings) for name, files in settings["systems"].items()]
        found[path.stem] = systems
        found.update({system.name: [system] for system in systems})
    return found


def variants() -> dict[str, dict[str, Any]]:
    """{published name: flags}, as variants.yaml has them."""
    return dict(yaml.safe_load((CONFIGS / "variants.yaml").read_text()))


def training_flags(system: System, variant: str, start: int = 0) -> dict[str, Any]:
    """The flags of mace_run_train of a variant on a data set, without those of stages."""
    common = yaml.safe_load((CONFIGS / "common.yaml").read_text())
    own = dict(variants()[variant])
    flags = {**common["training"], **system.settings.get("training", {})}
    if own.pop("head", True):
        flags.update(common["head"], **system.settings.get("head", {}))
        of_starts = system.settings.get("starts", {}).get("head", [{}])
        flags.update(of_starts[start % len(of_starts)])
    return {**flags, **own}


def stages(system: System) -> list[dict[str, Any]]:
    """Flags of each stage of the training, one after the other."""
    return list(system.settings.get("stages", [{}]))


def stages_of_starts(system: System) -> int:
    """How many of the stages each of several starts goes through."""
    return int(system.settings["starts"]["stages"]) if system.starts > 1 else 0


def prepare(system: System, data_dir: Path, output: Path, part: str) -> dict[str, Path]:
    """Write the parts of a data set, the same for every variant and seed: {part: file}.

    Raises:
        FileNotFoundError: a file is in neither data_dir nor the package.
        InputError: a file that cannot be read, or too few frames.
    """
    folder = system.folder(output, part)
    folder.mkdir(parents=True, exist_ok=True)
    frames = _split(system, data_dir, part)
    paths = {}
    for name, chosen in frames.items():
        paths[name] = folder / f"{name}.xyz"
        temporary = folder / f".{name}.xyz"
        write(temporary, chosen, format="extxyz")
        os.replace(temporary, paths[name])
    return paths


def _split(system: System, data_dir: Path, part: str) -> dict[str, list[Atoms]]:
    generator = np.random.default_rng(0)
    files, hold_out = system.files, system.settings.get("hold_out", {})
    frames = _read(files.get("train", files.get("all")), data_dir)
    out: dict[str, list[Atoms]] = {}
    if "test" in files:
        out["test"] = sum(_read(files["test"], data_dir), [])
    elif "test_frames" in files:
        (frames[0], out["test"]) = _take(frames[0], files["test_frames"], generator)
    if "valid" in files:
        out["valid"] = sum(_read(files["valid"], data_dir), [])
    elif system.too_few_to_hold_out and part == "test":
        out["valid"] = sum(frames, [])
    else:
        key = hold_out.get("farthest")
        pairs = [_take(group, hold_out["count"], generator, key) for group in frames]
        frames = [kept for kept, _ in pairs]
        out["valid"] = sum((taken for _, taken in pairs), [])
    out["train"] = sum(frames, [])
    if not out["train"] or not out["valid"]:
        raise InputError(f"{system.name}: too few frames to hold out what its settings ask for")
    return out


def _read(names: str | list[str], data_dir: Path) -> list[list[Atoms]]:
    """The frames of each file."""
    out = []
    for name in [names] if isinstance(names, str) else names:
        places = [data_dir / name, PACKAGE_DATA / name]
        path = next((p for p in places if p.is_file()), None)
        if path is None:
            raise FileNotFoundError(f"{name} is not in {data_dir}; name its folder with --data_dir")
        out.append(read_structures(path))
    return out


def _take(
    frames: list[Atoms],
    count: float | dict[str, int],
    generator: np.random.Generator,
    farthest: str | None = None,
) -> tuple[list[Atoms], list[Atoms]]:
    """Frames without those that are taken, and these: at random or with the largest info[key].

    {last: N} takes the last ones of the file.
    """
    if isinstance(count, dict):
        return frames[: -count["last"]], frames[-count["last"] :]
    number = max(1, round(count * len(frames))) if count < 1 else int(count)
    order = generator.permutation(len(frames))
    if farthest is not None:
        order = np.argsort([-frame.info[farthest] for frame in frames])
    taken = set(order[:number].tolist())
    kept = [frame for i, frame in enumerate(frames) if i not in taken]
    return kept, [frames[i] for i in sorted(taken)]


@dataclass(frozen=True)
class Run:
    """One training: a variant on a data set with a seed; or one of its starts."""

    system: System
    variant: str
    seed: int
    output: Path
    part: str
    start: int | None = None  # which of several

    @property
    def name(self) -> str:
        return f"{self.system.name}/{self.variant}/seed{self.seed}"

    @property
    def folder(self) -> Path:
        folder = self.system.folder(self.output, self.part) / self.variant / f"seed{self.seed}"
        return folder if self.start is None else folder / f"start{self.start}"

    @property
    def model(self) -> Path:
        return self.folder / "m.model"

    def all_starts(self) -> list[Run]:
        """Its trainings of which the best is trained to the end; itself where there is one."""
        if self.system.starts == 1:
            return [self]
        return [replace(self, start=number) for number in range(self.system.starts)]

    def best_start(self) -> Run:
        """The one with the lowest loss where they were compared, which is written down then."""
        starts = self.all_starts()
        if len(starts) == 1:
            return self
        chosen = self.folder / "chosen.json"
        if not chosen.exists():
            losses = [learning_curve(start.folder)[-1]["loss"] for start in starts]
            found = {"start": int(np.nanargmin(losses)), "losses": losses}
            write_json(chosen, found)
        return starts[json.loads(chosen.read_text())["start"]]

    @property
    def result(self) -> Path:
        return self.folder / f"result_{self.part}.json"

    def stage_done(self, number: int) -> Path:
        return self.folder / f"stage{number}.done"

    def settings(self, files: dict[str, Path], stage: dict[str, Any]) -> dict[str, Any]:
        """What the file given to mace_run_train --config holds."""
        flags = {**training_flags(self.system, self.variant, self.start or 0), **stage}
        valid = "valid"
        if self.system.too_few_to_hold_out:
            valid = "train"
            if self.part == "valid":  # fewer frames; upstream drops a batch that is not full
                n_train = sum(1 for _ in iread(files["train"]))
                flags["batch_size"] = min(flags["batch_size"], n_train)
        return {
            "name": "m",
            "seed": self.seed + _NEXT_SEED * (self.start or 0),
            "work_dir": str(self.folder),
            "train_file": str(files["train"]),
            "valid_file": str(files[valid]),
            "restart_latest": True,
            **flags,
        }

    def load_result(self) -> dict[str, Any]:
        return dict(json.loads(self.result.read_text()))

    def _asked(self, flags: list[str]) -> dict[str, Any]:
        """All that its model depends on besides the data and the seed."""
        starts = [start.start or 0 for start in self.all_starts()]
        settings = [training_flags(self.system, self.variant, start) for start in starts]
        return {"flags": flags, "settings": settings, "stages": stages(self.system)}

    @property
    def _begun(self) -> bool:
        return any(self.folder.rglob("checkpoints/*.pt"))

    def check_settings(self, flags: list[str]) -> None:
        """Whether it can go on with these flags.

        Raises:
            InputError: it was begun with others, or the files of CONFIGS have changed since.
        """
        noted = self.folder / "asked.json"
        if not (self._begun and noted.exists()):
            return
        before = json.loads(noted.read_text())
        if before == self._asked(flags):
            return
        what = "other settings than configs/benchmarks has now"
        if before["flags"] != flags:
            old, new = (" ".join(words) or "none" for words in (before["flags"], flags))
            what = f"other flags after -- ({old}; now {new})"
        raise InputError(
            f"{self.name} was trained with {what}: give another --output, or remove {self.folder}"
        )

    def note_settings(self, flags: list[str]) -> None:
        """Write down what it is trained with, before it is."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self._begun:
            write_json(self.folder / "asked.json", self._asked(flags))


def finished_runs(output: Path, asked: str) -> list[Run]:
    """Every run in a folder that has a result, whichever call it is from."""
    systems = {s.name: s for systems in systems_by_name().values() for s in systems}
    runs = []
    for system in systems.values():
        part = system.part(asked)
        for variant in variants():
            folder = system.folder(output, part) / variant
            seeds = [path.name.removeprefix("seed") for path in folder.glob("seed*")]
            for seed in sorted(int(seed) for seed in seeds if seed.isdigit()):
                runs.append(Run(system, variant, seed, output, part))
    return [run for run in runs if run.result.exists()]


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(json.dumps(content, indent=1))
    os.replace(unfinished, path)


def learning_curve(folder: Path) -> list[dict[str, Any]]:
    """Upstream's record of each validation, in order; the last one of an epoch that was redone."""
    found = {e["epoch"]: e for e in _record(folder, "eval") if e["epoch"] is not None}
    return [found[epoch] for epoch in sorted(found)]


def seconds_per_epoch(folder: Path) -> float:
    """Mean time of the steps of an epoch, the first one of the record left out."""
    times: dict[int, float] = defaultdict(float)
    for entry in _record(folder, "opt"):
        times[entry["epoch"]] += entry["time"]
    later = [time for epoch, time in times.items() if epoch > 0]
    return sum(later) / len(later) if later else float("nan")


def _record(folder: Path, mode: str) -> Iterator[dict[str, Any]]:
    """Entries of one kind in upstream's record of a training, one JSON object per line."""
    for path in sorted((folder / "results").glob("*_train.txt")):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            if entry["mode"] == mode:
                yield entry
