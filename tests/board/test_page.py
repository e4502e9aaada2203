"""Board -> markdown: well-formed tables, every sentence in its place, the same bytes for the same records."""

from __future__ import annotations

import dataclasses
import io
import random
import re

import pytest
from board_records import (
    BAD,
    DKD,
    KD,
    MACHINE,
    NONE,
    PAIR,
    TEACHER,
    heading,
    ladder,
    record,
    records,
    reported,
    settings,
    tuning,
)
from rich.console import Console

from kdbench.board import publish
from kdbench.board.page import Summary, index, markdown
from kdbench.board.publish import tables as terminal
from kdbench.board.rank import rank
from kdbench.board.rows import Board, Heading, Tuned, Unconverged
from kdbench.board.statistics import Interval
from kdbench.board.text import amount, code, plain, prose, seeds, signed
from kdbench.errors import printable
from kdbench.suite.fields import Reported
from kdbench.tasks import Metric
from kdbench.tasks.classification import Classification
from kdbench.tasks.regression import Regression


def tables(page: str) -> list[list[list[str]]]:
    """Every pipe table as rows of cells, split at unescaped pipes."""
    found: list[list[list[str]]] = [[]]
    for line in page.splitlines():
        if line.startswith("|"):
            found[-1].append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif found[-1]:
            found.append([])
    return [rows for rows in found if rows]


def page(rows: dict[str, list[float]] = PAIR, n: int = 5, **changes: object) -> str:
    return markdown(rank(heading({"p": list(rows)}, n, **changes), records("p", rows)))


def test_every_table_has_equal_columns_and_aligned_raw_text() -> None:
    text = markdown(settings(6))
    assert len(tables(text)) == 6 * 3 + 1
    for rows in tables(text):
        assert {len(row) for row in rows} == {len(rows[0])}
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(line) for line in block.splitlines()}) == 1


def test_the_main_table() -> None:
    main = tables(page(reported={("p", "kd"): reported(70.66, "best test epoch")}))[0]
    assert main[0] == ["#", "method", "top-1 (%)", "over none", "over kd", "claim", "recovered", "n", "reported"]
    assert main[2] == ["", "**teacher**", "90.00", "", "", "", "", "", ""]
    by_name = {row[1]: row for row in main[3:]}
    assert list(by_name) == ["**`dkd`**", "`kd` (reference)", "`none` (floor)", "`bad`"]
    assert by_name["`kd` (reference)"] == [
        "2", "`kd` (reference)", "71.30 ± 0.50", "+1.06 ± 0.21", "", "", "5%", "5", "70.66"
    ]  # fmt: skip
    assert by_name["**`dkd`**"][5] == "better than kd"
    assert by_name["`bad`"][5] == "worse than kd"


def test_the_column_of_reported_numbers_is_there_only_with_one() -> None:
    assert "reported" not in tables(page())[0][0]


def test_the_details_table() -> None:
    details = tables(page())[1]
    assert details[2] == ["**teacher**", "", "", "0.250", "0.030", "20k", "800k", "", "", ""]
    assert details[4] == ["`kd` (reference)", "90.0%", "", "0.500", "0.020", "1k", "40k", "1.5k", "1.00×", "100 MiB"]


def test_rare_costs_have_a_column_where_a_row_has_one() -> None:
    done, given = records("p", PAIR), heading({"p": list(PAIR)}, 5)
    assert "zeros" not in (plain_page := markdown(rank(given, done)))
    assert "**queries**" not in plain_page
    changed = [
        dataclasses.replace(r, cost=dataclasses.replace(r.cost, zeros=900, queries=12_000)) if r.method == "kd" else r
        for r in done
    ]
    text = markdown(rank(given, changed))
    details = tables(text)[1]
    assert details[0][-2:] == ["zeros", "queries"]
    by_name = {row[0]: row[-2:] for row in details[2:]}
    assert (by_name["`kd` (reference)"], by_name["`none` (floor)"]) == (["90%", "12,000"], ["", ""])
    assert by_name["**teacher**"] == ["", ""]
    assert "**queries**: different examples about which the teacher was asked" in text


def test_every_seed_is_printed() -> None:
    seeds_table = tables(page())[2]
    assert seeds_table[0] == ["test top-1 (%)", *(f"seed {i}" for i in range(5))]
    assert [float(cell) for cell in seeds_table[2][1:]] == DKD


def test_alarms_stand_on_page_index_and_terminal() -> None:
    rows = {"none": [x + 22.0 for x in NONE], "kd": KD, "again": KD}
    big = [record("p", "big", seed, 88.0, macs=400_000) for seed in range(5)]
    board = rank(heading({"p": [*rows, "big"]}), [*records("p", rows), *big])
    teacher = "The teacher (90.00) is below the floor none (92.24), the student without it."
    same = "kd and again are the same run to six digits, seed by seed: what they differ in had no effect."
    text = markdown(board)
    assert f"> **Note**: {teacher}" in text
    assert f"> **Note**: {same}" in text
    assert tables(text)[0][-1][5] == "unranked: costs 10× the plain student's MACs"
    listed = index([Summary.of(board)])
    for sentence in (teacher, same, "big costs 10× the plain student's MACs, unranked."):
        assert f"- [demo](demo.md), p: {sentence}" in listed
    assert Summary.read(text) == Summary.of(board)
    assert "What to know" not in index([Summary.of(rank(heading({"p": list(PAIR)}), records("p", PAIR)))])
    out = Console(width=200, file=io.StringIO(), color_system=None)
    for shown in terminal(board):
        out.print(shown)
    said = " ".join(out.file.getvalue().split())  # type: ignore[attr-defined]
    assert teacher in said
    assert same in said
    assert "costs 10× the plain student's MACs" in said


def test_a_gain_over_fewer_seeds_has_its_own_n_and_leads_no_index() -> None:
    given = [r for r in records("p", PAIR) if r.method != "none" or r.seed in (0, 4)]
    board = rank(heading({"p": list(PAIR)}), given)
    dkd = next(row for row in tables(markdown(board))[0] if "dkd" in row[1])
    assert dkd[3].endswith(" (n=2)")
    assert "n=" not in dkd[4]
    assert (dkd[6], dkd[7]) == ("", "5")
    assert Summary.of(board).best == ()


def test_floor_and_reference_have_their_names_everywhere() -> None:
    rows = {"plain": NONE, "soft": KD, "dkd": DKD}
    text = page(rows, floor="plain", reference="soft")
    assert tables(text)[0][0][3:5] == ["over plain", "over soft"]
    assert {row[1] for row in tables(text)[0][3:]} == {"**`dkd`**", "`soft` (reference)", "`plain` (floor)"}
    assert "over none" not in text
    assert not re.search(r"\bkd\b|\bnone\b|\bKD\b", text)


def test_what_is_not_shared_and_what_was_counted_are_said() -> None:
    text = page(unpaired={"dkd": "it draws its examples itself", "gone": "it draws its examples itself"})
    assert "every augmentation, but for `dkd` (it draws its examples itself)." in text
    assert "all methods share" not in text
    assert "norms before their blocks (2.5 for each number) come on top, by formula" in page(
        roles={"p": {"student": "mamba(depth=2)"}}
    )
    assert "selective scan" not in page()


def test_what_the_seeds_allow() -> None:
    assert "What 5 seeds allow: the clearest of 3 comparisons is a claim from a mean difference of 1.8 times" in page()
    assert "allow: the clearest" not in page({k: v[:2] for k, v in PAIR.items()}, 2)


def test_unranked_rows_come_last_with_their_sentence() -> None:
    given = [*records("p", {"none": NONE, "kd": KD}), *records("p", {"dkd": DKD[:3]})]
    given += [record("p", "dkd", 3, 0, status="diverged", reason="the loss is NaN | at <epoch> 3", scores={})]
    text = markdown(rank(heading({"p": ["dkd", "none", "kd"]}), given))
    last = tables(text)[0][-1]
    assert (last[0], last[1], last[5]) == ("–", "`dkd`", "unranked: 3 of 5 seeds")
    assert "- `dkd`, seed 3: diverged: the loss is NaN \\| at \\<epoch\\> 3." in text
    assert "- `dkd`, seed 4: no result yet." in text
    assert tables(text)[2][-1] == ["`dkd`", "73.00", "74.10", "72.90", "diverged", "no result yet"]


def test_three_seeds_are_preliminary_and_two_unranked() -> None:
    assert {row[7] for row in tables(page({k: v[:3] for k, v in PAIR.items()}, 3))[0][3:]} == {"3, preliminary"}
    two = tables(page({k: v[:2] for k, v in PAIR.items()}, 2))[0][3:]
    assert {(row[0], row[5]) for row in two} == {("–", "unranked: only 2 seeds")}


def test_another_teacher_is_told_loudly() -> None:
    given = records("p", PAIR)
    given[0] = dataclasses.replace(given[0], teacher=dataclasses.replace(TEACHER, sha256="cd" * 32))
    text = markdown(rank(heading({"p": list(PAIR)}), given))
    assert "> **WARNING: not comparable, nothing is ranked.** 2 different teachers" in text
    assert {row[0] for row in tables(text)[0][3:]} == {"–"}
    assert all(row[3] == row[4] == "" for row in tables(text)[0][3:])


def test_the_notes_name_conditions_teacher_claims_and_knobs() -> None:
    text = page(reported={("p", "kd"): reported(70.66, "best test epoch")})
    for words in (
        "fingerprint f00d; split 0123",
        "epochs=30, optimizer={name=sgd, lr=0.05}",
        f"validation 89.50, test 90.00; sha256 `{TEACHER.sha256}`",
        "Reported, p `kd`: 70.66 (best test epoch; A paper, 2020)",
        "MACs are multiply-accumulates of convolutions, linear layers and attention products. Norms and",
        "Per seed, all methods share the student's initial weights",
        "Trained and timed on Test CPU, 2 threads in fp32.",
        "torch 2.11",
        "- `dkd`: dkd(knob=1)",
    ):
        assert words in text
    assert "**Mixed**" not in text
    assert "There is no" not in text


def test_missing_controls_and_mixed_machines_are_noted() -> None:
    given = records("p", {"dist": KD, "dkd": DKD})
    given[0] = dataclasses.replace(given[0], provenance={**given[0].provenance, "device_name": "GPU"})
    text = markdown(rank(heading({"p": ["dist", "dkd"]}), given))
    assert "There is no `none` in this suite" in text
    assert "There is no `kd` in this suite" in text
    assert "**Mixed**" in text


def test_pairs_with_recipes_of_their_own_are_told_apart() -> None:
    other = [dataclasses.replace(r, job={**r.job, "recipe": {"epochs": 60}}) for r in records("q", {"kd": KD})]
    text = markdown(rank(heading({"p": ["kd"], "q": ["kd"]}), records("p", {"kd": KD}) + other))
    assert "Recipe of p: epochs=30." in text
    assert "Recipe of q: epochs=60." in text


def test_across_settings_prints_p_values_only_from_six() -> None:
    few, enough = tables(markdown(settings(5)))[-1], tables(markdown(settings(6)))[-1]
    assert few[2][-1] == "too few settings"
    assert enough[2] == ["`dkd`", "1.00", enough[2][2], enough[2][3], "0.094"]
    assert enough[3][-1] == ""  # kd against itself
    assert "not listed: `sp`" in markdown(settings(6))


def test_the_bytes_do_not_depend_on_the_order_of_records() -> None:
    suite = heading({"p": list(PAIR), "q": list(PAIR)})
    given = records("p", PAIR) + records("q", {**PAIR, "dkd": BAD})
    first = markdown(rank(suite, given))
    for seed in range(3):
        random.Random(seed).shuffle(given)
        assert markdown(rank(suite, given)) == first


def test_a_board_without_results_is_a_page() -> None:
    text = markdown(rank(heading({"p": ["none", "kd"]}), []))
    assert "0 of 10 results" in text
    assert "- `kd`, seeds 0-4: no result yet." in text


def test_a_summary_survives_its_page_and_fills_the_index() -> None:
    suite: Heading = heading({"p": list(PAIR)}, description="A --> B")
    board = rank(suite, records("p", PAIR))
    text = markdown(board)
    assert text.splitlines()[0].count("-->") == 1
    assert Summary.read(text) == Summary.of(board)
    assert Summary.read("# hand-written\n") is None
    other = dataclasses.replace(Summary.of(board), suite="another")
    listed = tables(index([Summary.of(board), other]))[0]
    assert listed[0][0] == "board"
    assert [row[0] for row in listed[2:]] == ["[another](another.md)", "[demo](demo.md)"]
    assert listed[3][1:] == ["digits", "1", "4", "5", "20 of 20", "p: dkd +3.12 ± 0.30 over none"]
    assert index([other, Summary.of(board)]) == index([Summary.of(board), other])


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999, "999"), (1000, "1k"), (1234, "1.23k"), (999_600, "1M"), (41_200_000, "41.2M"), (None, "")],
)
def test_amounts(value: int | None, text: str) -> None:
    assert amount(value) == text


def test_seed_ranges_and_foreign_text() -> None:
    assert seeds([4, 0, 1, 2, 9]) == "0-2, 4, 9"
    assert prose("a|b\n <i>*x*</i>") == "a\\|b \\<i\\>\\*x\\*\\</i\\>"


def test_an_interval_without_spread_prints_a_dash() -> None:
    assert (plain(Interval(70.0, None, 1), 2), signed(Interval(-0.5, 0.25, 5), 2)) == ("70.00 ± –", "-0.50 ± 0.25")


STEPS = Reported(top1=75.0, macs_percent=63.0, prefixes={1: 58.0}, source="A paper, 2025")


def stepped(**changes: object) -> str:
    given = [*records("p", {"none": NONE, "kd": KD}), *ladder("p", "steps")]
    return markdown(rank(heading({"p": ["none", "kd", "steps"]}, **changes), given))


def test_the_prefix_table() -> None:
    text = stepped(reported={("p", "steps"): STEPS})
    _, _, _, prefixes, exits = tables(text)
    assert prefixes[0] == ["k", "role", "MACs %", "top-1 (%)", "alone", "NLL", "ECE", "params", "MACs", "reported"]
    assert prefixes[2][:3] == ["1", "`weak1`", "10.0%"]
    assert [row[0] for row in prefixes[2:]] == ["1", "2", "3"]
    assert [row[-1] for row in prefixes[2:]] == ["58.00", "", "75.00 at 63% MACs"]
    assert prefixes[4][3] == tables(text)[0][-1][2]  # the whole answer is the method's row
    assert exits[0] == ["threshold", "MACs %", "top-1 (%)", "val top-1", "after 1", "after 2", "after 3"]
    assert exits[2] == ["0.5", "12.5%", exits[2][2], "61.20", "80%", "15%", "5%"]
    assert "(demo.p.anytime.svg)" in text
    assert (
        "Reported, p `steps`: 75.00 at 63% of the teacher's MACs, by the number of roles that answer 1: 58.00 "
        "(protocol not noted; A paper, 2025)."
    ) in text


def test_prefixes_without_claims_and_pages_without_prefixes() -> None:
    assert tables(stepped())[3][0][-1] == "MACs"
    assert "anytime" not in page()
    assert "Prefixes" not in page()


def test_prefixes_of_few_seeds_say_so() -> None:
    given = [*records("p", {"none": NONE, "kd": KD}), *ladder("p", "steps", 4)]
    text = markdown(rank(heading({"p": ["none", "kd", "steps"]}), given))
    assert "Prefixes of `steps`, 4 seeds (unranked: 4 of 5 seeds):" in text
    assert "Prefixes of `steps`, 5 seeds (unranked: costs 6.0× the plain student's MACs):" in stepped()


def test_a_pair_s_note_stands_under_its_heading() -> None:
    text = page(notes={"p": "claims reproduced, architecture ours"})
    assert "## p\n\nclaims reproduced, architecture ours\n\nRoles: " in text


def two_tracks(**changes: object) -> Board:
    suite = heading({"p": list(PAIR)})
    tunings = {("p", label): tuning(**(changes if label == "bad" else {})) for label in PAIR}
    tunings["p", "none"] = tuning(1, overrides={}, configurations=1, sampler="grid", expected_best=(70.0,))
    second = rank(dataclasses.replace(suite, track="tuned", tunings=tunings), records("p", {**PAIR, "bad": DKD}))
    return dataclasses.replace(rank(suite, records("p", PAIR)), tuned=Tuned(second, (), ("q/kd has not been tuned",)))


def test_the_tuned_track_has_tables_of_its_own() -> None:
    text = markdown(two_tracks())
    default, second = text.split("## Tuned track")
    assert tables(default) == tables(page())
    main, chosen = tables(second)[:2]
    assert main[0] == [
        "#", "method", "top-1 (%)", "over none", "over kd", "claim", "recovered", "n", "trials", "seconds"
    ]  # fmt: skip
    by_name = {row[1]: row for row in main[3:]}
    assert by_name["`kd` (reference)"][-2:] == ["16", "120"]
    assert by_name["`none` (floor)"][-2:] == ["1", "120"]
    assert {row[0]: row[-1] for row in chosen[2:]} == {
        "`bad`": "recipe.optimizer.lr=0.02, temperature=2.5",
        "`dkd`": "recipe.optimizer.lr=0.02, temperature=2.5",
        "`kd`": "recipe.optimizer.lr=0.02, temperature=2.5",
        "`none`": "nothing to tune",
    }
    assert chosen[2][5:7] == ["70.25", "71.50"]
    assert tables(second)[2][0] == ["expected best", "of 1", "of 2", "of 4", "of 8", "of 16"]
    assert "- Sampler: tpe; grid where all configurations are tried." in second
    assert "- Not in this track: q/kd (has not been tuned)." in second
    assert "WARNING" not in second
    for rows in tables(second):
        assert {len(row) for row in rows} == {len(rows[0])}


def test_unequal_budgets_are_told_loudly() -> None:
    default, second = markdown(two_tracks(trials=8)).split("## Tuned track")
    assert "WARNING: not comparable, nothing is ranked.** 2 different tuning budgets in one pair" in second
    assert "(8 trials: bad; 16 trials: dkd, kd)" in second
    assert {row[0] for row in tables(second)[0][3:]} == {"–"}
    assert "WARNING" not in default


def test_the_index_lists_tuned_tracks_in_a_table_apart() -> None:
    summary = Summary.of(two_tracks())
    text = index([summary, dataclasses.replace(summary, suite="untuned", tuned=None)])
    boards, tuned = tables(text)
    assert [row[0] for row in boards[2:]] == ["[demo](demo.md)", "[untuned](untuned.md)"]
    assert tuned[2] == ["[demo](demo.md#tuned-track)", "4", "16", "480", "20 of 20", "p: bad +3.12 ± 0.30 over none"]
    assert len(tuned) == 3
    assert Summary.read(markdown(two_tracks())) == summary
    assert '"tuned"' not in dataclasses.replace(summary, tuned=None).line


def test_a_paper_may_say_nothing_of_the_whole_answer() -> None:
    text = stepped(reported={("p", "steps"): Reported(prefixes={1: 50.0})})
    assert [row[-1] for row in tables(text)[3][2:]] == ["50.00", "", ""]
    assert tables(text)[0][3][-1] == ""
    assert "- Reported, p `steps`: by the number of roles that answer 1: 50.00 (protocol not noted)." in text


HOSTILE = "<img src=x onerror=alert(1)> | a\n\n# H [x](javascript:alert(1)) \x1b[31m \u202e `"


def test_texts_of_records_are_shown_and_never_obeyed() -> None:
    from markdown_it import MarkdownIt

    table = {"none": [70.0] * 5, "kd": [71.0] * 4}
    machine = {**MACHINE, "device_name": HOSTILE, "precision": HOSTILE, "split": HOSTILE, "versions": {"git": HOSTILE}}
    found = [dataclasses.replace(result, provenance=machine) for result in records("p", table)]
    found.append(record("p", "kd", 4, 0.0, status="failed", reason=HOSTILE))
    page = markdown(rank(heading({"p": ["none", "kd"]}), found))
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert page.count("alert(1)") >= 5
    shown = MarkdownIt("commonmark").enable("table").render(page.partition("\n")[2])
    assert "<img src=x" not in shown
    assert 'href="javascript' not in shown
    assert "<h1>H" not in shown
    assert shown.count("<h1>") == 1


def test_code_spans_hold_backticks_and_pipes() -> None:
    assert code("a=1") == "`a=1`"
    assert code("a`b``c|d\n") == "``` a`b``c\\|d ```"
    assert prose("# heading") == "\\# heading"
    assert prose("- item") == "\\- item"


def test_a_terminal_is_told_nothing_by_a_text() -> None:
    assert printable("a\x1b[31m\u202e\n b\x00\udcff") == r"a\x1b[31m\u202e b\x00\udcff"
    assert printable("größer ± 1 → 2") == "größer ± 1 → 2"


def test_the_terminals_table_takes_no_markup() -> None:
    from rich.console import Console

    found = [record("p", "none", 0, 70.0), record("p", "kd", 0, 0.0, status="failed", reason="[red]x[/bad] \x1b[2J")]
    console = Console(file=io.StringIO(), force_terminal=True, width=200)
    for table in publish.tables(rank(heading({"p": ["none", "kd"]}, seeds=1), found)):
        console.print(table)
    text = console.file.getvalue()
    assert r"[red]x[/bad] \x1b[2J" in text
    assert "\x1b[2J" not in text


LESS = {"none": [8.1, 8.3, 8.2, 8.0, 8.4], "kd": [7.1, 7.25, 7.2, 7.0, 7.45], "worse": [9.1, 9.35, 9.2, 9.0, 9.4]}


def errors(**changes: object) -> Board:
    """A board of root mean squared errors, the teacher at 6."""
    teacher = dataclasses.replace(TEACHER, scores={"test/rmse": 6.0, "test/mae": 4.0})
    task = {"headline": Regression.headline, "metrics": Regression.metrics, "followed": Regression.followed}
    given = [
        record("p", label, seed, 0.0, scores={"test/rmse": value, "test/mae": value - 1}, teacher=teacher)
        for label, values in LESS.items()
        for seed, value in enumerate(values)
    ]
    return rank(heading({"p": list(LESS)}, **{**task, **changes}), given)


def test_where_less_is_better_gains_places_and_shares_follow_the_direction() -> None:
    board = errors()
    rows = board.tables[0].rows
    assert [(row.label, row.place) for row in rows] == [("kd", 1), ("none", 2), ("worse", 3)]
    assert rows[0].gain is not None
    assert rows[0].gain.mean == pytest.approx(1.0)
    assert rows[0].recovered == pytest.approx(1.0 / 2.2)
    assert [row.claim for row in rows] == ["", "worse than", "worse than"]
    text = markdown(board)
    main, details = tables(text)[:2]
    assert main[0][2] == "RMSE"
    assert main[2][2] == "6.000"
    assert main[3][2:4] == ["7.200 ± 0.211", "+1.000 ± 0.044"]
    assert details[0][1:5] == ["MAE", "R²", "to the teacher", "params"]
    assert "**RMSE**: test RMSE, less is better after" in text
    assert "**MAE**: less is better." in text
    assert "top-1" not in text
    assert Summary.of(board).best == ("p: kd +1.000 ± 0.044 (RMSE) over none",)


def test_a_metric_is_added_in_the_file_of_its_task_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    more = (*Classification.metrics, Metric("margin", "bits", digits=1, title="margin"))
    monkeypatch.setattr(Classification, "metrics", more)
    given = [
        dataclasses.replace(one, scores={**one.scores, "test/margin": 2.25 + one.seed}) for one in records("p", PAIR)
    ]
    text = markdown(rank(heading({"p": list(PAIR)}), given))
    details = tables(text)[1]
    at = details[0].index("margin (bits)")
    assert {row[at] for row in details[3:]} == {"4.2"}
    assert "**margin**: more is better." in text


def test_a_floor_whose_rate_is_too_low_is_told() -> None:
    told = "The floor's learning rate is not converged: x2 gains 1.70 points on validation"
    board = rank(heading({"p": list(PAIR)}, unconverged={"p": Unconverged(2.0, 1.7)}), records("p", PAIR))
    assert told in board.tables[0].warnings  # kd claims 1.06 over the floor
    less = rank(heading({"p": list(PAIR)}, unconverged={"p": Unconverged(2.0, 1.0)}), records("p", PAIR))
    assert less.tables[0].warnings == ()
