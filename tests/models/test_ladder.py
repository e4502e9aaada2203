"""Proposed widths: nearest to the target, checked against every width; and the command that prints them."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import kdbench

from kdbench import models
from kdbench.models import size
from kdbench.models.ladder import nearest, widened
from kdbench.suite.load import load

HEAD = "name: rungs\ndata: {name: digits}\nrecipe: {epochs: 1}\nmethods: {none: }\npairs:\n"
PAIRS = {
    "cnn": """
    teacher: {model: cnn, options: {widths: [32, 64, 128]}}
    student: {model: cnn, options: {widths: [4, 8, 16]}}
""",
    "mamba": """
    teacher: {model: mamba, options: {depth: 3, dim: 24}}
    student: {model: mamba, options: {depth: 1, dim: 8}}
""",
}
SUITE = HEAD + "".join(f"  {pair}:{block}" for pair, block in PAIRS.items())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "s.yaml").write_text(SUITE)
    return tmp_path


@pytest.mark.parametrize("target", [0, 1, 7, 50, 51, 99, 1000, 10**9])
def test_the_nearest_of_all_widths(target: int) -> None:
    def macs(width: int) -> int:
        return width * width + 3 * width

    expected = min(range(1, 513), key=lambda width: (abs(macs(width) - target), width))
    assert nearest(macs, target, widest=512) == expected


def test_lists_are_scaled_to_their_largest_entry() -> None:
    assert widened([4, 8, 16], 8) == [2, 4, 8]
    assert widened([4, 8, 16], 1) == [1, 1, 1]
    assert widened(64, 5) == 5


def macs_of(name: str, options: dict) -> int:
    return size.count(models.build(name, options, classes=10, channels=1, size=8), (1, 8, 8))[1]


@pytest.mark.parametrize("pair", ["cnn", "mamba"])
def test_the_printed_ladder_is_pasted_as_it_is_and_is_near_its_targets(folder: Path, pair: str) -> None:
    options = {"cnn": ("--option", "widths"), "mamba": ("--depths", "1,2,2")}[pair]
    done = kdbench(folder, "ladder", "s.yaml", pair, "--fractions", "0.03,0.1,0.3", *options)
    assert done.returncode == 0, done.stderr
    rungs = "\n".join("    " + line for line in done.stdout.splitlines())
    (folder / "s.yaml").write_text(f"{HEAD}  {pair}:{PAIRS[pair]}{rungs}\n")
    roles = load(folder / "s.yaml").file.pairs[pair].roles
    whole = macs_of(pair, roles["teacher"].options)
    shares = [macs_of(pair, roles[role].options) / whole for role in ("weak1", "weak2", "weak3")]
    assert shares == pytest.approx([0.03, 0.1, 0.3], rel=0.2)
    assert f"# {100 * shares[0]:.2f}% of the teacher's MACs" in done.stdout
    assert f"{100 * sum(shares):.1f}% so far" in done.stdout
    if pair == "mamba":
        assert [roles[f"weak{k}"].options["depth"] for k in (1, 2, 3)] == [1, 2, 2]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("cnnn", "--fractions", "0.1"), "there is no pair 'cnnn' (did you mean 'cnn'?)"),
        (("mamba", "--fractions", "0.1,x"), "--fractions 0.1,x: expects numbers such as 0.01,0.03,0.1"),
        (("mamba", "--fractions", "0.1", "--depths", "1,2"), "--depths gives 2 numbers for 1 fractions"),
        (("mamba", "--fractions", "1.5"), "--fractions are above 0 and at most 1"),
        (("cnn", "--fractions", "0.1"), "model 'cnn' has no option 'dim'"),
        (("mamba", "--fractions", "0.1", "--option", "block"), "must be one of"),
    ],
)
def test_mistakes_are_sentences(folder: Path, arguments: tuple[str, ...], sentence: str) -> None:
    done = kdbench(folder, "ladder", "s.yaml", *arguments)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
