"""What a report holds, block by block, before it is HTML or Markdown."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from cs330ray.analysis import answer, confirmed, frames, notes
from cs330ray.analysis.comparison import Comparison, in_words
from cs330ray.analysis.confirmed import said
from cs330ray.analysis.statistics import over_seeds
from cs330ray.analysis.table import Sheet
from cs330ray.ledger.confirm import on_test
from cs330ray.report import cells, variance
from cs330ray.report.figures.all import figures
from cs330ray.report.figures.marks import Figure
from cs330ray.spec.columns import RUN
from cs330ray.spec.study import Study
from cs330ray.spec.tables import Choice, Domain

if TYPE_CHECKING:
    from cs330ray.report.open_study import Opened


WIDTH = 640  # of a figure as SVG, in pixels
BESIDE = ThreadPoolExecutor(1)  # Vega draws without holding Python up


@dataclass(frozen=True)
class Heading:
    """The title of a section."""

    text: str


@dataclass(frozen=True)
class Words:
    """A paragraph; `code` is written between backticks."""

    text: str
    strong: bool = False


@dataclass(frozen=True)
class Points:
    """A list of paragraphs."""

    texts: Sequence[str]


@dataclass(frozen=True)
class Code:
    """Lines to be typed, in a language."""

    text: str
    language: str = "sh"


@dataclass(frozen=True)
class Drawn:
    """A figure, and the line of Python that draws it again."""

    figure: Figure
    again: str

    @cached_property
    def picture(self) -> "Future[str]":
        """The chart as SVG on white, drawn in a thread of its own from when it is first asked for."""
        import vl_convert

        return BESIDE.submit(vl_convert.vegalite_to_svg, {**self.specification, "width": WIDTH, "background": "white"})

    @cached_property
    def specification(self) -> dict[str, Any]:
        """The chart as Vega-Lite."""
        return dict(self.figure.chart.to_dict())


Block = Heading | Words | Points | Code | Sheet | Drawn


@dataclass(frozen=True)
class Page:
    """A report: its title, the question, and its blocks."""

    title: str
    question: str
    blocks: Sequence[Block]

    @property
    def answer(self) -> str:
        """The paragraph that stands out."""
        return next((block.text for block in self.blocks if isinstance(block, Words) and block.strong), "")


def page(study: "Opened") -> Page:
    """The report of one study."""
    return Page(study.name, question(study.study, study.goals), list(_blocks(study)))


def question(study: Study, goals: dict[str, str]) -> str:
    """The question in the study's own words, else as its tables put it."""
    if study.question:
        return study.question
    best = " and ".join(f"the {'highest' if goal == 'max' else 'lowest'} {name}" for name, goal in goals.items())
    asked = " and ".join(f"{name} ({', '.join(map(str, values))})" for name, values in study.compare.items())
    by = f" with the best {', '.join(study.searched)}" if study.searched else ""
    if asked:
        return f"Which {asked} gives {best}{by}?"
    return f"Which {', '.join(study.searched) or 'result'} gives {best}?"


def _blocks(study: "Opened") -> Iterator[Block]:
    drawn = {}
    for figure in figures(study):
        drawn[figure.name] = Drawn(figure, f'cs330ray.open("{study.name}").figure("{figure.name}")')
        drawn[figure.name].picture  # noqa: B018 - is drawn beside those that come
    yield Heading("Answer")
    yield Words(study.answer, strong=True)
    if minded := notes.notes(study):
        yield Points(minded)
    yield from _confirmation(study, drawn)
    yield Heading("What was searched")
    yield _asked(study.study)
    yield from _of(drawn, "parameters", "importance", "front")
    yield Heading("How it went")
    yield _states(study)
    if saved := notes.saved(study):
        yield Words(saved)
    yield from _of(drawn, "curves", "progress", "cost")
    yield from drawn.values()
    yield from _again(study)


def _of(drawn: dict[str, Drawn], *names: str) -> Iterator[Drawn]:
    """Take the figures of these names, and those below them: `parameters/lr` is of `parameters`."""
    for name in names:
        for found in [one for one in drawn if one == name or one.startswith(f"{name}/")]:
            yield drawn.pop(found)


def _confirmation(study: "Opened", drawn: dict[str, Drawn]) -> Iterator[Block]:
    table = confirmed.table(study.ledger, study.study)
    if table is None:
        return
    yield Heading("Confirmed on fresh seeds")
    yield Words(
        "The best of each search, trained again on seeds that it had not seen. Validation chooses; test is reported "
        "and chooses nothing. `ci95_seeds` is Student's t over the seeds, `ci95_tasks` is over the independent units "
        "of the test (tasks, users, stories); `optimism` is what the search had promised too much: the winner's curse."
    )
    yield Sheet(None, table.columns, table.rows)
    yield from _of(drawn, "confirmed")
    if len(study.study.compared) > 1 and study.claim is not None:
        yield Words(cells.words(study.claim))
        yield cells.sheet(study.claim)
    yield from _of(drawn, "replicates")
    for index, name in enumerate(study.study.objective if len(study.study.cells) == 1 else ()):
        comparison = confirmed.compared(study.ledger, study.study, index)
        if comparison is not None:
            if not index:
                yield Words(DIFFERENCES)
            yield Words(answer.how_sure(comparison, name, f"By {name}, {comparison.best}"))
            yield differences(comparison, name)
    if study.sources is not None:
        yield Words(variance.words(study.sources, study.study))
        yield variance.sheet(study.sources, study.study)
        yield from _of(drawn, "variance")
    yield from _of(drawn, "axis")
    if (tested := _test_metrics(study)) is not None:
        yield tested


DIFFERENCES = (
    "Each alternative against the best, paired. `p` is the paired t-test's, Holm's p is adjusted for "
    "all pairs. The chance to be best is the share of 10,000 bootstrap draws over the pairs in which its mean wins; "
    "with few of them it is too sure. Test differences are shown and chose nothing."
)


def differences(comparison: Comparison, metric: str) -> Sheet:
    """The alternatives in their order with their distance to the best."""
    apart = {one.name: one for one in comparison.differences}
    rows = []
    for name in comparison.order:
        chance = comparison.probability_best[name]
        row = [name, said(comparison.means[name]), "" if chance is None else f"{chance:.3f}"]
        if name in apart:
            one = apart[name]
            row += [
                f"{one.validation.mean:+.3g} {one.validation}",
                "" if one.p is None else f"{one.p:.2g}", "" if one.p_holm is None else f"{one.p_holm:.2g}",
                "" if one.test is None else f"{one.test.mean:+.3g} {one.test}",
                "" if one.test_items is None else str(one.test_items),
                in_words(one.seeds_needed, comparison.unit),
            ]  # fmt: skip
        else:
            row += [""] * 6
        rows.append(row)
    columns = [
        "alternative", f"mean {metric}", "chance to be best", "best minus it", "p", "Holm's p",
        f"the same on {on_test(metric)}", "ci95_tasks", f"{comparison.unit}s to tell",
    ]  # fmt: skip
    return Sheet(None, columns, rows)


def _test_metrics(study: "Opened") -> Sheet | None:
    """Every other test metric of the confirmed choices, but those that a figure has."""
    place = ["cell", "replicate", "trial"]
    chosen = study.confirmed[study.confirmed["chosen"]][place].drop_duplicates()
    runs = study.runs.merge(chosen, on=place)
    several = study.study.repeat.searches > 1
    if several:  # a search is one draw, however many seeds confirm it
        runs = runs.groupby(["cell", "replicate"], sort=False).mean(numeric_only=True).reset_index()
    held = [name for name in runs.columns if name not in RUN and name not in study.study.objective]
    drawn = {name for _, _, places in frames.axes(held) for name in places}
    shown = {on_test(name) for name in study.study.objective} | drawn
    names = [name for name in held if name not in shown]
    if not names or not len(runs):
        return None
    table = {
        str(cell): [said(over_seeds(list(of[name].dropna()))) if of[name].notna().any() else "" for name in names]
        for cell, of in runs.groupby("cell", sort=False)
    }
    over = "searches" if several else "fresh seeds"
    return metrics_table(f"Other test metrics of the choices, over {over}", names, table)


def metrics_table(title: str, names: Sequence[str], table: Mapping[str, Sequence[str]]) -> Sheet:
    """Metrics of several cells; a row a metric where there are more metrics than cells."""
    if len(names) <= len(table):
        return Sheet(title, ["cell", *names], [[cell, *row] for cell, row in table.items()])
    return Sheet(
        title, ["metric", *table], [[name, *(row[at] for row in table.values())] for at, name in enumerate(names)]
    )


def _asked(study: Study) -> Sheet:
    rows = [["objective", ", ".join(study.objective)], ["system", ", ".join(study.trainables())]]
    rows += [[f"compared: {name}", ", ".join(map(str, values))] for name, values in study.compare.items()]
    for name, domain in study.search.items():
        if isinstance(domain, dict):
            rows += [[f"searched by {name}: {own}", _domain(inner)] for own, inner in domain.items()]
        else:
            rows.append([f"searched: {name}", _domain(domain)])
    for name, value in study.fixed.items():
        own_values = value if isinstance(value, dict) else {"": value}
        rows += [[f"fixed: {'.'.join(filter(None, [name, own]))}", str(fixed)] for own, fixed in own_values.items()]
    budget, confirm = study.budget, study.confirm
    pruned = "nothing is pruned" if study.prune.kind == "none" else f"{study.prune.kind} prunes"
    searched = f"{study.sampler.kind} asks, " if study.search else ""
    rows.append(["budget", f"{budget.trials} trials a cell of {budget.steps} steps; {searched}{pruned}"])
    if study.start:
        rows.append(["tried first", ", ".join(map(str, study.start))])
    if study.repeat.searches > 1:
        split = f", each on a split of its own ({study.repeat.split})" if study.repeat.split else ""
        rows.append(["done again", f"{study.repeat.searches} replicates of all that{split}"])
    if confirm is not None:
        most = confirm.most(len(study.objective))
        rows.append(
            [
                "confirmed",
                f"{'the front' if most is None else f'the best {most}'} of each cell on {confirm.seeds} seeds",
            ]
        )
    return Sheet(None, ["what", "value"], rows)


def _domain(domain: Domain) -> str:
    when = f" when {', '.join(f'{key}={value}' for key, value in domain.when.items())}" if domain.when else ""
    if isinstance(domain, Choice):
        return ", ".join(map(str, domain.choices)) + when
    scale = " on a log scale" if domain.log else f" in steps of {domain.step:g}" if domain.step else ""
    return f"{domain.low:g} to {domain.high:g}{scale}{when}"


def _states(study: "Opened") -> Sheet:
    """How many trials of each cell ended how, and the seconds that they took."""
    rows = []
    for cell in study.study.compared:
        own = study.trials[study.trials["cell"] == cell.title]
        stand = own[~own["superseded"].astype(bool)]
        counts = [str(int((stand["state"] == state).sum())) for state in ("COMPLETE", "PRUNED", "FAIL", "RUNNING")]
        rows.append([cell.title, *counts, f"{own['seconds'].sum():.0f}"])
    return Sheet(None, ["cell", "complete", "pruned", "failed", "running", "seconds of trials"], rows)


def _again(study: "Opened") -> Iterator[Block]:
    yield Heading("Again")
    best = study.best
    name, cell = study.name, ""
    if best is not None and len(study.study.compared) > 1:
        cell = f" --cell {shlex.quote(best.cell.title)}"
    if best is not None and best.cell.replicate:
        cell += f" --replicate {best.cell.replicate}"
    lines = [f"cs330ray show {name}", f"cs330ray report {name}"]
    if best is not None:
        lines[1:1] = [f"cs330ray reproduce {name} {best.trial}{cell}", f"cs330ray best {name} --export {name}-best"]
    yield Code("\n".join(lines))
    yield Code(
        f'import cs330ray\n\nstudy = cs330ray.open("{name}")\nstudy.trials, study.best, study.figure("confirmed")',
        "python",
    )
    starts = study.starts
    if len(starts):
        rows = [
            [what, ", ".join(sorted({str(value) for value in starts[what].dropna()}))]
            for what in ("code", "data", "versions", "python", "device", "threads")
        ]
        yield Sheet("On what it ran", ["what", "value"], [["study", study.study.digest], *rows])
