"""Whatever a user writes ends in sentences: what, where, what to do; never in a traceback."""

from __future__ import annotations

import random
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import Done, kdbench
from training import LITTLE

from kdbench import models
from kdbench.cli.options import MOST_SEEDS, parse_seeds
from kdbench.errors import HIDDEN, UserError, shown
from kdbench.models import build
from kdbench.suite.fields import SECOND_ORDER, Optimizer
from kdbench.suite.load import load
from kdbench.train.devices import pick_device, pick_devices
from kdbench.train.recipe import try_optimizer

SUITE = """\
name: s
data: {name: digits, options: {a: 1}}
recipe: {epochs: 2, optimizer: {name: sgd}}
pairs:
  p: {teacher: {model: mamba, options: {depth: 2}}, student: mamba, ladder: [{depth: 1}]}
methods: {kd: {temperature: 4}, none: {}}
tune: {space: {temperature: [1, 2], student.options.depth: [1, 2]}}
"""


def lines(folder: Path, old: str = "", new: str = "") -> list[str]:
    """What `check` says of the suite with `old` made `new`."""
    assert old in SUITE
    (folder / "s.yaml").write_text(SUITE.replace(old, new, 1), encoding="utf-8", newline="")
    try:
        load(folder / "s.yaml")
    except UserError as error:
        return [line.removeprefix(f"{folder}/") for line in str(error).splitlines()]
    return []


def refused(done: Done, *parts: str) -> None:
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert all(part in done.stderr for part in parts), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not HIDDEN.search(done.stderr.rstrip("\n"))


def test_the_suite_itself_is_fine(tmp_path: Path) -> None:
    assert lines(tmp_path) == []


def test_text_is_shown_with_its_control_characters_spelt_out() -> None:
    assert shown("a\x1b[31mb\x00\n\ud800\u202ec é 漢") == "a\\x1b[31mb\\x00\\n\\ud800\\u202ec é 漢"
    assert str(UserError("a\nb", "c\x07")) == "a\\nb\nc\\x07"
    assert shown("x" * 300, 10) == "xxxxxxx..."


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("a: 1", "a: .inf", "s.yaml:2:35: data.options.a: expects a finite number, got inf"),
        ("a: 1", "a: [{b: .nan}]", "s.yaml:2:40: data.options.a[0].b: expects a finite number, got nan"),
        (
            "temperature: 4",
            "temperature: 1e999",
            "s.yaml:6:29: methods.kd.temperature: expects a finite number, got inf",
        ),
        ("[1, 2], s", "[1, .inf], s", "s.yaml:7:33: tune.space.temperature[1]: expects a finite number, got inf"),
        (
            "name: sgd",
            "options: {x: -.inf}",
            "s.yaml:3:46: recipe.optimizer.options.x: expects a finite number, got -inf",
        ),
    ],
)
def test_numbers_are_finite_wherever_they_stand(tmp_path: Path, old: str, new: str, line: str) -> None:
    assert lines(tmp_path, old, new) == [line]


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ("depth: 2", "depth: 1000000000000000000", "pairs.p.teacher.options.depth"),
        ("depth: 2", "depth: 1e18", "pairs.p.teacher.options.depth"),
        ("depth: 2", "widths: [-2000000]", "pairs.p.teacher.options.widths[0]"),
        ("[{depth: 1}]", "[{depth: 1000001}]", "pairs.p.ladder[0].depth"),
        ("student.options.depth: [1, 2]", "student.options.depth: [1, 2000000]", "tune.space.student.options.depth[1]"),
    ],
)
def test_sizes_in_options_of_models_have_a_limit(tmp_path: Path, old: str, new: str, path: str) -> None:
    (line,) = lines(tmp_path, old, new)
    assert f"{path}: must be at most 1,000,000 in size, got " in line


def test_a_network_that_cannot_fit_is_refused_while_it_is_built() -> None:
    with pytest.raises(UserError, match="model 'mlp' cannot be built") as caught:
        build("mlp", {"hidden": [1_000_000, 1_000_000]}, classes=10, channels=1, size=1)
    assert "\n" not in str(caught.value)


def test_the_limit_on_parameters_counts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "MOST_TENSORS", 6)
    built = build("mlp", {"hidden": [4, 4]}, classes=10, channels=1, size=8)
    assert len(list(built.parameters())) == 6
    monkeypatch.setattr(models, "MOST_TENSORS", 5)
    with pytest.raises(UserError, match="too large: over 0 MiB in 6 tensors"):
        build("mlp", {"hidden": [4, 4]}, classes=10, channels=1, size=8)
    with pytest.raises(UserError, match=r"timm model 'resnet10t' cannot be built .* too large"):
        build("resnet10t", {}, classes=10, channels=1, size=32)
    torch.nn.Linear(1, 1).register_parameter("another", torch.nn.Parameter(torch.zeros(1)))  # the hook is gone


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            "name: s\n",
            'name: s\ndescription: "s\\0"\n',
            "s.yaml:2:14: description: has a control character (U+0000) in it: remove it",
        ),
        ("a: 1", 'a: "\\ud800"', "s.yaml:2:35: data.options.a: has a control character (U+D800) in it: remove it"),
        ("a: 1", '"a\\e": 1', "s.yaml:2:32: data.options.?: has a control character (U+001B) in it: remove it"),
        ("a: 1", 'a: "\\uFFFFFFFF"', ""),
        ("a: 1", 'a: "\\UFFFFFFFF"', "s.yaml:2:38: there is no character of that number"),
        ("name: s\n", '"a\\nb": 1\nname: s\n', "s.yaml:1:1: a\\nb: unknown field"),
        ("name: s\n", "</x>: 1\nname: s\n", "s.yaml:1:1: </x>: unknown field"),
        ("name: s\n", "<map>: 1\nname: s\n", "s.yaml:1:1: <map>: unknown field"),
        ("name: s\n", '"[key]": 1\nname: s\n', "s.yaml:1:1: [key]: unknown field"),
        ("temperature: 4", "<bool>: 4", "s.yaml:6:16: methods.kd.<bool>: unknown knob"),
    ],
)
def test_characters_and_keys_that_are_not_usual(tmp_path: Path, old: str, new: str, line: str) -> None:
    assert lines(tmp_path, old, new) == ([line] if line else [])


def test_a_raw_control_character_in_the_file_has_a_position(tmp_path: Path) -> None:
    assert lines(tmp_path, "name: s", "name: s\0") == ["s.yaml:1:8: a control character (U+0000) cannot stand here"]


@pytest.mark.parametrize("field", ["model: ./{}.py:build", "model: mlp, weights: {}", "model: {}"])
def test_names_longer_than_the_file_system_allows(tmp_path: Path, field: str) -> None:
    for length in (300, 5000):
        found = lines(tmp_path, "model: mamba, options: {depth: 2}", field.format("x" * length))
        assert len(found) == 1
        assert found[0].startswith("s.yaml:5:")


def test_extends_of_a_name_that_is_too_long(tmp_path: Path) -> None:
    assert "no such file" in lines(tmp_path, "name: s\n", f"name: s\nextends: {'x' * 300}.yaml\n")[0]


LONG = "x" * 5000


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("check", LONG), "too long"),
        (("check", "x" * 300), "too long"),
        (("status", "s.yaml", "--results", LONG), "--results"),
        (("run", "s.yaml", "--runs", "x" * 300), "--runs"),
        (("run", "s.yaml", "--data-root", LONG), "--data-root"),
        (("merge", LONG), "too long"),
        (("status", "s.yaml", "--results", "s.yaml"), "--results s.yaml: s.yaml is a file; expects a folder"),
        (("board", "s.yaml", "--results", "s.yaml/a"), "--results s.yaml/a: s.yaml is a file; expects a folder"),
        (("run", "s.yaml", "--runs", "s.yaml"), "--runs s.yaml: s.yaml is a file"),
        (("check", "a\x1b[31m.yaml"), "'a\\x1b[31m.yaml': a control character"),
        (("run", "s.yaml", "--only", "a\ud800"), "'a\\ud800': a control character"),
        (("fro\nb",), "'fro\\nb'"),
    ],
)
def test_paths_and_words_of_the_command_line(tmp_path: Path, arguments: tuple[str, ...], part: str) -> None:
    (tmp_path / "s.yaml").write_text(LITTLE)
    done = kdbench(tmp_path, *arguments)
    refused(done, part)
    assert len(done.stderr) < 700


def test_a_path_in_the_options_of_data_that_is_too_long(tmp_path: Path) -> None:
    text = LITTLE.replace("{name: digits, fraction: 0.2}", f"{{name: folder, options: {{path: {'x' * 300}}}}}")
    (tmp_path / "s.yaml").write_text(text)
    done = kdbench(tmp_path, "run", "s.yaml")
    first, _, rest = done.stderr.partition("\n")
    assert first.startswith("little: 4 of 4 jobs to do")
    refused(replace(done, stderr=rest), "xxx")


@pytest.mark.parametrize(
    "text", ["0-99999999", f"0-{MOST_SEEDS}", "0-4999,6000-11000", "1" * 30, "9" * 5000, "-1", "²"]
)
def test_seeds_are_so_many_at_most(text: str) -> None:
    with pytest.raises(UserError, match="--seeds") as caught:
        parse_seeds(text)
    assert len(str(caught.value)) < 300
    assert len(parse_seeds(f"0-{MOST_SEEDS - 1}")) == MOST_SEEDS


@pytest.mark.parametrize(
    "name", ["hpu", "privateuseone", "meta", "cpu:99", "cpu:-1", "cuda:99999999999", "fpga", "", "xla"]
)
def test_devices_that_cannot_train(name: str) -> None:
    with pytest.raises(UserError, match="--device "):
        pick_device(name)
    with pytest.raises(UserError, match="--devices "):
        pick_devices(name)


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ("name: adamw, options: {betas: []}", "betas are a list"),
        ("name: adamw, options: {betas: {a: 1}}", "betas are a list"),
        ("name: adamw, options: {betas: [a, b]}", "betas are a list"),
        ("name: adamw, options: {betas: [0.9, 1]}", "betas are a list"),
        ("nesterov: true, momentum: 0", "nesterov needs momentum"),
        ("name: adahessian", "'adahessian' needs second derivatives"),
        ("name: Lookahead_AdaHessian", "needs second derivatives"),
    ],
)
def test_optimisers_that_cannot_work_are_refused_by_check(tmp_path: Path, fields: str, part: str) -> None:
    (line,) = lines(tmp_path, "name: sgd", fields)
    assert line.startswith("s.yaml:3:")
    assert part in line
    (line,) = lines(tmp_path, "student: mamba", f"student: mamba, recipe: {{optimizer: {{{fields}}}}}")
    assert line.startswith("s.yaml:5:")


def test_an_optimiser_that_fails_in_its_first_step_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdbench.suite.fields.SECOND_ORDER", ())
    with pytest.raises(UserError, match="'adahessian' fails in its first step"):
        try_optimizer(Optimizer(name="adahessian", lr=0.01))


@pytest.mark.slow
def test_second_order_is_what_fails_in_its_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of timm's optimisers that need nothing else to be installed and no CUDA."""
    from timm.optim import list_optimizers

    monkeypatch.setattr("kdbench.suite.fields.SECOND_ORDER", ())
    fail = []
    for name in list_optimizers(exclude_filters=["bnb*", "fused*"]):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                try_optimizer(Optimizer(name=name, lr=0.01))
            except UserError as error:
                fail.append(f"{name}: {error}")
    assert [line.partition(":")[0] for line in fail] == list(SECOND_ORDER)
    assert all("fails in its first step" in line for line in fail), fail


def test_other_options_that_fail_in_the_first_step_are_a_sentence() -> None:
    for options in ({"eps": "small"}, {"eps": [1]}):
        with pytest.raises(UserError, match=r"recipe\.optimizer: 'adamw'"):
            try_optimizer(Optimizer(name="adamw", options=options))


def test_a_batch_larger_than_the_data_is_told(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(LITTLE.replace("batch_size: 32", "batch_size: 100000"))
    said = " ".join(kdbench(tmp_path, "run", "s.yaml", "--dry-run").stderr.split())
    assert said.count("recipe.batch_size 100,000 is more than the ") == 1


def test_mutated_suites_are_fine_or_refused(tmp_path: Path) -> None:
    rng, spare = random.Random(0), list("{}[],:&*!|>'\"%@`#-?\n\t \0\x1b~<\ufeff\u2028漢0")
    words = [
        "1e999",
        ".nan",
        "null",
        "9" * 25,
        "-1",
        "<map>",
        "[key]",
        "*a",
        "&a",
        "{}",
        "[]",
        "x" * 300,
        '"\\0"',
        "? ",
    ]
    refusals = 0
    for _ in range(500):
        text = SUITE
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(text))
            end = at + rng.choice([0, 0, 1, 5])
            text = text[:at] + rng.choice(rng.choice([spare, words])) + text[end:]
        (tmp_path / "s.yaml").write_text(text, encoding="utf-8", newline="")
        try:
            load(tmp_path / "s.yaml")
            said = []
        except UserError as error:
            said = str(error).split("\n")
        except Exception as error:
            pytest.fail(f"{error!r} of {text!r}")
        refusals += bool(said)
        assert all(line.startswith(f"{tmp_path}/s.yaml:") and not HIDDEN.search(line) for line in said), (text, said)
    assert refusals > 300
