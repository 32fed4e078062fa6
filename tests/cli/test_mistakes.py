"""Mistakes in the words of a command are one line that says what was meant."""

import pytest

from mace_polmp.cli import run_train
from mace_polmp.cli.main import main


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        (run_train.main, ["--name=a", "--multipole_lmx=2"], "--multipole_lmx; did you mean --mul"),
        (main, ["md", "--modl", "m.model", "--structure", "a.xyz"], "--modl; did you mean --model"),
        (main, ["md", "--structure", "a.xyz"], "required: --model"),
        (main, ["spectrm"], "invalid choice: 'spectrm'"),
        (main, ["evaluate", "--device"], "--device: expected one argument"),
        (main, ["md", "--steps", "many", "--model", "a", "--structure", "b"], "--steps: invalid"),
    ],
)
def test_one_line_that_names_what_was_meant(capsys, command, words, message):
    with pytest.raises(SystemExit) as stopped:
        command(words)
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1, error
