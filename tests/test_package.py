"""What `import mace_polmp` gives, and that it says nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

import mace_polmp


def test_short_names():
    from mace_polmp.calculators import MultipoleMACECalculator

    assert mace_polmp.MultipoleMACECalculator is MultipoleMACECalculator
    for name in mace_polmp.__all__:
        assert getattr(mace_polmp, name) is not None
        assert name in dir(mace_polmp)
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        mace_polmp.Nonsense  # noqa: B018


@pytest.mark.parametrize(
    "code",
    [
        "from mace_polmp import MultipoleMACECalculator",
        "import mace_polmp.training.session",
        "import mace_polmp.upstream.training",
        "from mace_polmp.cli.run_train import build_parser; build_parser()",
    ],
)
def test_importing_says_nothing(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "")


def test_importing_the_package_is_light():
    code = "import sys, mace_polmp; assert 'torch' not in sys.modules and 'mace' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_version(capsys):
    from mace_polmp.cli.main import main

    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out.strip() == f"mace_polmp {mace_polmp.__version__}"


def test_the_changelog_knows_the_version():
    text = (Path(__file__).parents[1] / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\n## {mace_polmp.__version__}," in text
