"""The report as files: what stands in them, what no text in them can do, and how a browser shows them."""

import json
import re
from pathlib import Path

import pytest
from benchmarks.made import METRICS, fill

from cs330ray.analysis.table import Sheet
from cs330ray.cli.app import main
from cs330ray.errors import SpecError
from cs330ray.ledger.writer import Writer
from cs330ray.mirror.sync import Mirror
from cs330ray.report import html, markdown, splits
from cs330ray.report.files import write
from cs330ray.report.open_study import Opened, opened
from cs330ray.report.page import Code, Drawn, Heading, Page, Points, Words, page
from tests.browser import browser
from tests.made_study import made

MARKS = ", ".join(f".mark-{kind} path, .mark-{kind} line" for kind in ("symbol", "line", "rule", "rect", "bar"))
DRAWN = "document.body.dataset.drawn !== undefined"
NASTY = '</script><script>alert(1)</script> | `x` & "y" <img src=http://example.com/x.png>'


@pytest.fixture(scope="session")
def written(made_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the made study's report."""
    folder = tmp_path_factory.mktemp("report")
    write(page(opened("made", made_home)), folder)
    return folder


def test_a_report_has_the_question_the_answer_and_a_section_for_each_part(study: Opened) -> None:
    whole = page(study)
    assert whole.question == "How many ways may a task have?"
    headings = [block.text for block in whole.blocks if isinstance(block, Heading)]
    assert headings == ["Answer", "Confirmed on fresh seeds", "What was searched", "How it went", "Again"]
    assert Words(study.answer, strong=True) in whole.blocks
    assert any(isinstance(block, Points) and "2 of 16 trials failed" in block.texts[0] for block in whole.blocks)
    assert any(isinstance(block, Code) and "cs330ray reproduce made" in block.text for block in whole.blocks)


def test_a_study_without_words_of_its_own_is_asked_in_those_of_its_tables(tmp_path: Path) -> None:
    fill(tmp_path, made(question=None, confirm=None, budget={"trials": 1, "steps": 8}))
    assert page(opened("made", tmp_path)).question == (
        "Which ways (2, 5) gives the highest val_accuracy with the best body, lr?"
    )


def test_each_cell_stands_in_the_table_of_cells_and_of_one_search_each_nothing_is_told(study: Opened) -> None:
    tables = [block for block in page(study).blocks if isinstance(block, Sheet)]
    (table,) = [table for table in tables if table.columns == ["cell", "test_accuracy", "val_accuracy"]]
    assert [row[0] for row in table.rows] == ["ways=2", "ways=5"]
    assert not any("told apart" in table.columns for table in tables)


def test_candidates_of_a_single_cell_are_compared_as_configurations(tmp_path: Path) -> None:
    fill(tmp_path, made(compare={}, fixed={"ways": 2}))
    study = opened("made", tmp_path)
    (table,) = [block for block in page(study).blocks if isinstance(block, Sheet) and block.columns[0] == "alternative"]
    best, *others = table.rows
    comparison = study.comparison
    assert comparison is not None
    assert best[3:] == [""] * 6
    assert others[0][3].startswith(f"{comparison.differences[0].validation.mean:+.3g} ")
    assert sum(float(row[2]) for row in table.rows) == pytest.approx(1, abs=0.002)


def test_the_markdown_names_each_figure_that_lies_beside_it(written: Path) -> None:
    text = (written / "report.md").read_text()
    named = set(re.findall(r"\]\((figures/[^)]+)\)", text))
    assert named == {f"figures/{file.name}" for file in (written / "figures").iterdir()}
    assert "figures/confirmed.svg" in named
    assert text.startswith(
        "# made\n\nHow many ways may a task have?\n\n## Answer\n\n**One search each, so whether the cells "
    )


def test_every_row_of_a_markdown_table_has_as_many_cells_as_its_head(written: Path) -> None:
    for table in re.findall(r"(?:^\|.*\n)+", (written / "report.md").read_text(), re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_a_second_report_takes_the_place_of_the_first_and_of_figures_that_are_no_more(
    study: Opened, tmp_path: Path
) -> None:
    write(page(study), tmp_path)
    (tmp_path / "figures" / "old.svg").write_text("<svg/>")
    (tmp_path / "mine.txt").write_text("mine")
    before = {file: file.read_text() for file in tmp_path.rglob("*.svg") if file.name != "old.svg"}
    write(page(study), tmp_path)
    assert {file for file in tmp_path.rglob("*") if file.is_file()} == {
        *before, tmp_path / "report.html", tmp_path / "report.md", tmp_path / "mine.txt"
    }  # fmt: skip


def test_without_the_page_there_are_the_summary_and_its_figures(study: Opened, tmp_path: Path) -> None:
    write(page(study), tmp_path, with_page=False)
    assert {file.name for file in tmp_path.iterdir()} == {"report.md", "figures"}


def test_a_folder_that_cannot_be_is_one_line(study: Opened, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpecError, match=r"a folder for the report is needed, but .*; name another with --to"):
        write(Page("x", "y", []), tmp_path / "file")


def test_the_command_writes_the_report_under_the_study_and_says_the_answer(
    made_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CS330RAY_HOME", str(made_home))
    monkeypatch.setattr("sys.argv", ["cs330ray", "report", "made", "--to", str(tmp_path / "here")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)
    said = capsys.readouterr().out
    assert said.startswith("made: One search each, so whether the cells differ is not known. Validation picks ways=2: ")
    assert (tmp_path / "here" / "report.html").exists()


def test_a_study_that_is_not_there_is_refused_with_exit_code_2(
    made_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CS330RAY_HOME", str(made_home))
    monkeypatch.setattr("sys.argv", ["cs330ray", "report", "other"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "other: a study in" in capsys.readouterr().err
    assert not (made_home / "other").exists()


# In a browser ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (380, True)])
def test_a_browser_draws_every_figure_says_nothing_and_asks_the_network_for_nothing(
    written: Path, width: int, dark: bool
) -> None:
    (figures,) = re.findall(r'id="figures">(.*?)</script>', (written / "report.html").read_text(), re.DOTALL)
    figures = json.loads(figures)
    with browser(width=width, height=900, dark=dark) as chromium:
        shown = chromium.open((written / "report.html").as_uri(), wait_for=DRAWN, timeout_s=60)
        assert shown.console == []
        assert [url for url in shown.requests if not url.startswith(("file:", "data:"))] == []
        assert shown.eval("document.body.dataset.drawn") == str(len(figures))
        assert shown.eval("document.querySelectorAll('.chart svg.marks').length") == len(figures) > 5
        marked = f"(svg) => svg.querySelector('{MARKS}')"
        assert shown.eval(f"[...document.querySelectorAll('.chart svg.marks')].every({marked})")
        assert shown.eval("document.documentElement.scrollWidth") <= width
        ground = shown.eval("getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(20, 23, 28)" if dark else "rgb(255, 255, 255)")


def test_the_numbers_of_a_figure_are_a_table_when_they_are_asked_for(written: Path, study: Opened) -> None:
    with browser() as chromium:
        shown = chromium.open((written / "report.html").as_uri(), wait_for=DRAWN, timeout_s=60)
        shown.click("details[data-of=parameters-lr] summary")
        shown.wait("document.querySelector('details[data-of=parameters-lr] table') !== null")
        rows = shown.eval("document.querySelectorAll('details[data-of=parameters-lr] tbody tr').length")
        assert rows == len(study.table("parameters/lr"))


def test_no_text_of_a_trial_becomes_part_of_the_page(tmp_path: Path, study: Opened) -> None:
    blocks = [Heading(NASTY), Words(NASTY), Points([NASTY]), Code(NASTY), Sheet(NASTY, [NASTY], [[NASTY]])]
    drawn = [block for block in page(study).blocks if hasattr(block, "figure")][:1]
    write(Page(NASTY, NASTY, [*blocks, *drawn]), tmp_path)
    with browser() as chromium:
        shown = chromium.open((tmp_path / "report.html").as_uri(), wait_for=DRAWN, timeout_s=60)
        assert shown.console == []
        assert shown.requests == [(tmp_path / "report.html").as_uri()]
        assert shown.eval("document.images.length") == 0
        assert shown.eval("document.querySelector('h1').textContent") == NASTY
    summary = re.sub(r"```.*?```", "", (tmp_path / "report.md").read_text(), flags=re.DOTALL)
    assert "<script" not in summary
    assert "<img" not in summary
    assert summary.count("\n# ") == 0


def test_a_page_without_figures_carries_no_library(tmp_path: Path) -> None:
    ledger = Writer.at(tmp_path)
    ledger.open(made(), {"benchmarks.sleeper": METRICS})
    whole = page(opened("made", tmp_path))
    assert whole.answer == "No trial is COMPLETE yet. There is nothing to compare."
    assert len(html.text(whole)) < 20_000


def test_whole_numbers_keep_all_their_digits(tmp_path: Path) -> None:
    study = made(compare={}, confirm=None, search={"width": {"low": 1_234_567, "high": 1_234_569}})
    fill(tmp_path, study, ends=lambda cell, number: "COMPLETE", rows=1)
    write(page(opened("made", tmp_path)), tmp_path)
    with browser() as chromium:
        shown = chromium.open((tmp_path / "report.html").as_uri(), wait_for=DRAWN, timeout_s=60)
        shown.click("details[data-of=parameters-width] summary")
        shown.wait("document.querySelector('details[data-of=parameters-width] table') !== null")
        assert "123456" in shown.eval("document.querySelector('details[data-of=parameters-width] tbody').textContent")
        assert "1234600" not in shown.eval(
            "document.querySelector('details[data-of=parameters-width] tbody').textContent"
        )


def test_every_test_metric_of_a_choice_stands_somewhere(study: Opened) -> None:
    blocks = page(study).blocks
    text = markdown.text(Page("", "", blocks))
    for name in ("test_accuracy", "test_loss"):
        assert name in text
    drawn = [block.figure.name for block in blocks if isinstance(block, Drawn)]
    assert "axis/test_accuracy/shots" in drawn


def test_the_page_may_load_nothing_whatever_stands_in_it(written: Path) -> None:
    text = (written / "report.html").read_text()
    assert f'http-equiv="Content-Security-Policy" content="{html.POLICY}"' in text
    assert "default-src 'none'" in html.POLICY
    assert "connect-src" not in html.POLICY


# Several splits -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def split_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("splits") / "runs"
    for split in range(3):
        fixed = {"data_seed": split}
        fill(home, made(name=f"split-{split}", fixed=fixed, seed=split, budget={"trials": 2, "steps": 8}), rows=2)
    return home


def test_several_studies_are_averaged_over_their_splits(split_home: Path) -> None:
    studies = [opened(f"split-{split}", split_home) for split in range(3)]
    whole = splits.page(studies)
    assert whole.title == "split-0 and 2 more splits"
    (table,) = [block for block in whole.blocks if isinstance(block, Sheet) and block.columns[0] == "alternative"]
    for row in table.rows:
        means = []
        for study in studies:
            chosen = study.confirmed[(study.confirmed["cell"] == row[0]) & study.confirmed["chosen"]]
            means.append(chosen["validation"].iloc[0])
        assert float(row[1].split()[0]) == pytest.approx(sum(means) / 3, rel=1e-3)
        assert "(n 3)" in row[1]
    (answer,) = [block.text for block in whole.blocks if isinstance(block, Words) and block.strong]
    assert answer.startswith("Over 3 splits ways=2 has the best mean val_accuracy of ")
    assert "Whether the cells differ is not known" in answer
    assert answer == whole.answer


def test_a_report_over_splits_is_drawn_too(split_home: Path, tmp_path: Path) -> None:
    write(splits.page([opened(f"split-{split}", split_home) for split in range(3)]), tmp_path)
    assert (tmp_path / "figures" / "splits-val_accuracy.svg").read_text().startswith("<svg")
    with browser(width=700) as chromium:
        shown = chromium.open((tmp_path / "report.html").as_uri(), wait_for=DRAWN, timeout_s=60)
        assert shown.console == []
        assert shown.eval("document.querySelectorAll('.chart svg.marks').length") == 1


def test_of_studies_of_one_cell_their_choices_are_averaged_and_not_paired_by_number(tmp_path: Path) -> None:
    for split, best in enumerate((0, 1)):  # the choice is trial 0 on one split, and trial 1 on the other
        study = made(name=f"one-{split}", compare={}, fixed={"data_seed": split}, budget={"trials": 2, "steps": 8})
        numbers: dict[float, int] = {}
        quality = lambda cell, params, best=best, numbers=numbers: (  # noqa: E731
            0.9 if numbers.setdefault(params["lr"], len(numbers)) == best else 0.3
        )
        fill(tmp_path, study, quality, ends=lambda cell, number: "COMPLETE", rows=1, luck=0.0)
    studies = [opened(f"one-{split}", tmp_path) for split in (0, 1)]
    assert [study.best.trial for study in studies if study.best] == [0, 1]
    said = splits.page(studies).answer
    assert said.startswith(
        "Over 2 splits the confirmed choice reaches a mean val_accuracy of 0.8835 ±0, and "
    )  # .9 (1 - e^-4)
    assert said.endswith("Each split has a choice of its own, so nothing is compared.")


def test_studies_of_two_questions_are_refused(split_home: Path, tmp_path: Path) -> None:
    fill(tmp_path, made(name="one", budget={"trials": 1, "steps": 8}), rows=1)
    fill(tmp_path, made(name="two", budget={"trials": 1, "steps": 9}, fixed={"data_seed": 1}), rows=1)
    with pytest.raises(SpecError, match=r"but two differs from one: budget.steps: 8 -> 9"):
        splits.page([opened("one", tmp_path), opened("two", tmp_path)])


def test_two_studies_of_one_split_are_refused(split_home: Path) -> None:
    study = opened("split-0", split_home)
    with pytest.raises(SpecError, match=r"each study needs a split of its own, but fixed.data_seed is 0, 0"):
        splits.page([study, study])


# In MLflow ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_report_of_a_mirrored_study_is_attached_to_its_run_and_mlflow_being_gone_is_a_notice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "runs"
    monkeypatch.setenv("CS330RAY_HOME", str(home))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    ledger = fill(home, made(compare={}, confirm=None, budget={"trials": 2, "steps": 8}), rows=1)
    Mirror(ledger, "made", home).sync()
    monkeypatch.setattr("sys.argv", ["cs330ray", "report", "made"])
    with pytest.raises(SystemExit):
        main()
    (attached,) = (home / "artifacts").rglob("report.html")
    assert attached.read_bytes() == (home / "made" / "report" / "report.html").read_bytes()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////proc/none/mlflow.db")
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)
    assert "the report is written, but not attached" in capsys.readouterr().err
