from __future__ import annotations

import math
from pathlib import Path

import pytest

from kdbench.errors import UserError
from kdbench.suite.nodes import Node, Problems, dotted
from kdbench.suite.yaml import read


def parse(folder: Path, text: str | bytes) -> tuple[Node, list[str]]:
    """The node and the problems, without the folder's name."""
    path = folder / "s.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    problems = Problems()
    node = read(path, problems)
    return node, [line.removeprefix(f"{folder}/") for line in problems.lines()]


def refusal(folder: Path, text: str | bytes) -> str:
    with pytest.raises(UserError) as caught:
        parse(folder, text)
    return str(caught.value).removeprefix(f"{folder}/")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1e3", 1000.0),
        ("-0.5e+10", -5e9),
        (".5", 0.5),
        ("1.", 1.0),
        ("+12", 12),
        ("012", 12),
        ("0o17", 15),
        ("0x1F", 31),
        ("1_000", "1_000"),
        ("0b1", "0b1"),
        ("12:30:45", "12:30:45"),
        ("2001-01-01", "2001-01-01"),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("No", "No"),
        ("true", True),
        ("FALSE", False),
        ("tRue", "tRue"),
        ("null", None),
        ("~", None),
        ("", None),
        ("=", "="),
        ('"10"', "10"),
        ("'1e-3'", "1e-3"),
        ('""', ""),
        ("|\n  12\n", "12\n"),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("1e400", math.inf),
        ("9223372036854775807", 2**63 - 1),
        ("-9223372036854775808", -(2**63)),
    ],
)
def test_scalars_follow_yaml_1_2(tmp_path: Path, text: str, value: object) -> None:
    node, lines = parse(tmp_path, f"key: {text}\n")
    got = node.plain()["key"]
    assert (type(got), got, lines) == (type(value), value, [])


def test_nan_is_a_number(tmp_path: Path) -> None:
    assert math.isnan(parse(tmp_path, "key: .nan\n")[0].plain()["key"])


def test_a_yaml_1_1_directive_changes_nothing(tmp_path: Path) -> None:
    assert parse(tmp_path, "%YAML 1.1\n---\na: on\n")[0].plain() == {"a": "on"}


def test_positions_of_keys_and_values(tmp_path: Path) -> None:
    node, _ = parse(tmp_path, "a:\n  b: [1, {c: 2}]\nd:\n")
    mark = node.at(("a", "b", 1, "c"))
    assert mark is not None
    assert mark.key is not None
    assert (mark.mark.line, mark.mark.column, mark.key.line, mark.key.column) == (2, 14, 2, 11)
    assert str(node.nearest(("a", "b", 7)).where).endswith("s.yaml:2:3")  # the list's key
    assert str(node.nearest(("d",)).where).endswith("s.yaml:3:1")  # an absent value stands at its key
    assert node.at(("a", "x")) is None
    assert dotted(("a", "b", 1, "c")) == "a.b[1].c"


def test_every_duplicate_key_is_told_and_the_first_stays(tmp_path: Path) -> None:
    node, lines = parse(tmp_path, "a: 1\nb: {c: 1, c: 2}\na: 2\na: 3\n")
    assert lines == [
        "s.yaml:2:11: b.c: is given twice; the first is on line 2",
        "s.yaml:3:1: a: is given twice; the first is on line 1",
        "s.yaml:4:1: a: is given twice; the first is on line 1",
    ]
    assert node.plain() == {"a": 1, "b": {"c": 1}}


def test_anchors_and_aliases(tmp_path: Path) -> None:
    node, lines = parse(tmp_path, "a: &x {k: 1, l: [2]}\nb: *x\nc: [*x]\n")
    assert node.plain() == {"a": {"k": 1, "l": [2]}, "b": {"k": 1, "l": [2]}, "c": [{"k": 1, "l": [2]}]}
    assert lines == []
    assert str(node.nearest(("b", "k")).where).endswith("s.yaml:1:11")  # where the text to correct is
    assert str(node.nearest(("b",)).mark).endswith("s.yaml:2:4")


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (
            "a: &x {k: 1}\nb:\n  <<: *x\n",
            ["s.yaml:3:3: b: merge keys (`<<`) are not YAML 1.2: write the fields out, or use `extends`"],
        ),
        ("a: !!str 10\n", ["s.yaml:1:4: a: the tag !!str is not supported: YAML is data here"]),
        ("a: !run {b: 1}\n", ["s.yaml:1:4: a: the tag !run is not supported: YAML is data here"]),
        ("1.5: a\n", ['s.yaml:1:1: expects text as a key, got 1.5: write "1.5"']),
        ("012: a\n", ['s.yaml:1:1: expects text as a key, got 12: write "012"']),
        ("a:\n  ? [x]\n  : 1\n", ["s.yaml:2:5: a: expects text as a key, got a list"]),
        ("a: 9223372036854775808\n", ["s.yaml:1:4: a: is a whole number that does not fit 64 bits"]),
        (f"a: {'9' * 5000}\n", ["s.yaml:1:4: a: is a whole number that does not fit 64 bits"]),
    ],
)
def test_what_is_not_data_is_refused(tmp_path: Path, text: str, lines: list[str]) -> None:
    assert parse(tmp_path, text)[1] == lines


def test_a_whole_number_is_its_own_text_as_a_key(tmp_path: Path) -> None:
    node, lines = parse(tmp_path, "a: {1: 72, 12: 93.5}\nb:\n  1: x\n  '1': y\n")
    assert node.plain() == {"a": {"1": 72, "12": 93.5}, "b": {"1": "x"}}
    assert lines == ["s.yaml:4:3: b.1: is given twice; the first is on line 3"]


def test_a_quoted_merge_key_is_a_key(tmp_path: Path) -> None:
    assert parse(tmp_path, "'<<': 1\n") == (parse(tmp_path, '"<<": 1\n')[0], [])


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a:\n\tb: 1\n", "s.yaml:2:1: a tab cannot indent YAML: use spaces"),
        ("a: @b\n", "s.yaml:1:4: a value cannot start with @: put it in quotes"),
        (
            "a: b: c\n",
            "s.yaml:1:5: a second `key: value` on this line: fix the indentation, or put the value in quotes",
        ),
        ("a: 1\nb: {c: 1\n", "s.yaml:2:4: a bracket or a quote that opens here is not closed"),
        ('a: "x\n', "s.yaml:1:4: a bracket or a quote that opens here is not closed"),
        ("- a\nb: 1\n", "s.yaml:2:1: the indentation does not fit the lines above"),
        ("a: *x\n", "s.yaml:1:4: the alias *x has no complete anchor before it"),
        ("a: &x [*x]\n", "s.yaml:1:8: the alias *x has no complete anchor before it"),
        ("b: &base 1\na: *bse\n", "s.yaml:2:4: the alias *bse has no complete anchor before it (did you mean 'base'?)"),
        ("a: 1\n---\nb: 2\n", "s.yaml:2:1: a second document starts here: a suite file is one document"),
        ("ab: \x01\n", "s.yaml:1:5: a control character (U+0001) cannot stand here"),
        ("", "s.yaml:1:1: is empty: a suite file needs name, data, recipe, pairs and methods"),
        ("# only this\n", "s.yaml:1:1: is empty: a suite file needs name, data, recipe, pairs and methods"),
        ("- a\n", "s.yaml:1:1: expects a map (`name: ...`) at the top level, got a list"),
        ("hello\n", "s.yaml:1:1: expects a map (`name: ...`) at the top level, got 'hello'"),
        ("a: " + "[" * 60 + "]" * 60, "s.yaml:1:54: is nested more than 50 deep"),
        (b"a: 1\nb: \xc3\xa9\xff\n", "s.yaml:2:5: is not UTF-8 text (byte 0xFF)"),
    ],
)
def test_what_is_not_yaml_is_one_sentence(tmp_path: Path, text: str | bytes, line: str) -> None:
    assert refusal(tmp_path, text) == line


def test_aliases_cannot_blow_up(tmp_path: Path) -> None:
    layers = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
    assert "its aliases expand to 1.23e+11 values" in refusal(tmp_path, f"a0: &a0 1\n{layers}")


def test_a_byte_order_mark_and_windows_lines_are_no_trouble(tmp_path: Path) -> None:
    node, _ = parse(tmp_path, b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    assert node.plain() == {"a": 1, "b": 2}
    assert str(node.nearest(("b",)).mark).endswith(":2:4")


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "digits.yaml").write_text("a: 1\n")
    (tmp_path / "digts.txt").write_text("a: 1\n")
    with pytest.raises(UserError) as caught:
        read(tmp_path / "digts.yaml", Problems())
    assert str(caught.value) == f"{tmp_path}/digts.yaml: no such file (did you mean 'digits.yaml'?)"
    for name in ("nowhere/digts.yaml", "quite_else.yaml"):
        with pytest.raises(UserError, match=r"no such file$"):
            read(tmp_path / name, Problems())


def test_a_folder_lists_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("a: 1\n")
    (tmp_path / "a.yml").write_text("a: 1\n")
    with pytest.raises(UserError) as caught:
        read(tmp_path, Problems())
    assert str(caught.value) == f"{tmp_path}: is a folder: name a suite file; it has a.yml, b.yaml"
