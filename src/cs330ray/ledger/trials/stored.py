"""Trials as Optuna's tables store them: read as far as they have changed, and written in a few statements.

Optuna's own storage reads and writes a trial object by object, in transactions of its own. Here a trial enters, or
ends, by one statement for each table, within the caller's transaction. What is written is what Optuna would write, and
what is returned is what Optuna would read.
"""

import copy
import datetime
import functools
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sql
from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.storages._rdb import models
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from cs330ray.errors import LedgerError
from cs330ray.ledger.database import Database
from cs330ray.ledger.trials.held import Held

STUDIES = models.StudyModel.__table__
DIRECTIONS = models.StudyDirectionModel.__table__
TRIALS = models.TrialModel.__table__
PARAMS = models.TrialParamModel.__table__
VALUES = models.TrialValueModel.__table__
REPORTS = models.TrialIntermediateValueModel.__table__
USER = models.TrialUserAttributeModel.__table__
SYSTEM = models.TrialSystemAttributeModel.__table__
UNFINISHED = (TrialState.RUNNING, TrialState.WAITING)


def refresh(database: Database, study_id: int, held: Held, *, running: bool) -> bool:
    """Bring the trials that are held up to date; whether any has changed.

    What has ended does not change any more. Those that run are read again where they have ended, or all if `running`.
    """
    known = held.known
    since = min([held.read_to + 1, *(key for key, trial in known.items() if trial.state in UNFINISHED)])
    of_study = (TRIALS.c.study_id == study_id) & (TRIALS.c.trial_id >= since)
    found = database.select(sql.select(TRIALS).where(of_study).order_by(TRIALS.c.trial_id))
    held.read_to = max(held.read_to, *(int(row.trial_id) for row in found)) if found else held.read_to
    stale = [
        row
        for row in found
        if row.trial_id not in known or known[row.trial_id].state != row.state or (running and row.state in UNFINISHED)
    ]
    if not stale:
        return False
    ids = sql.select(TRIALS.c.trial_id).where(of_study)
    parts = {
        table: _by_trial(database.select(sql.select(table).where(table.c.trial_id.in_(ids)).order_by(order)))
        for table, order in (
            (PARAMS, PARAMS.c.param_id),
            (VALUES, VALUES.c.objective),
            (REPORTS, REPORTS.c.step),
            (USER, USER.c.key),
            (SYSTEM, SYSTEM.c.key),
        )
    }
    for row in stale:
        known[row.trial_id] = _read(row, {table: of.get(row.trial_id, []) for table, of in parts.items()})
    return True


def _by_trial(rows: Sequence[Any]) -> dict[int, list[Any]]:
    found: dict[int, list[Any]] = {}
    for row in rows:
        found.setdefault(row.trial_id, []).append(row)
    return found


def _read(row: Any, parts: Mapping[sql.Table, Sequence[Any]]) -> FrozenTrial:
    """Put a trial together from its rows, as Optuna does."""
    distributions = {sys.intern(each.param_name): _distribution(each.distribution_json) for each in parts[PARAMS]}
    return FrozenTrial(
        number=row.number,
        state=row.state,
        value=None,
        values=[models.TrialValueModel.stored_repr_to_value(each.value, each.value_type) for each in parts[VALUES]]
        or None,
        datetime_start=_local(row.datetime_start),
        datetime_complete=_local(row.datetime_complete),
        params={
            name: distributions[name].to_external_repr(each.param_value)
            for name, each in zip(distributions, parts[PARAMS], strict=True)
        },
        distributions=distributions,
        user_attrs={sys.intern(each.key): json.loads(each.value_json) for each in parts[USER]},
        system_attrs={sys.intern(each.key): json.loads(each.value_json) for each in parts[SYSTEM]},
        intermediate_values={each.step: _reported(each) for each in parts[REPORTS]},
        trial_id=row.trial_id,
    )


@functools.lru_cache(maxsize=1000)
def _distribution(text: str) -> BaseDistribution:
    """The distribution of a text, one object for all trials that have it."""
    return json_to_distribution(text)


def _reported(row: Any) -> float:
    repr_to_value = models.TrialIntermediateValueModel.stored_repr_to_intermediate_value
    return float(repr_to_value(row.intermediate_value, row.intermediate_value_type))


def find(database: Database, name: str) -> int | None:
    """The id of Optuna's study of a name, or None."""
    found = database.select(sql.select(STUDIES.c.study_id).where(STUDIES.c.study_name == name))
    return int(found[0].study_id) if found else None


# Writing ------------------------------------------------------------------------------------------------------------


def make(database: Database, name: str, directions: Sequence[StudyDirection]) -> None:
    """Make Optuna's study of a name; one that is there stays as it is."""
    with database.at_once():
        if find(database, name) is None:
            study_id = database.add(STUDIES, {"study_name": name})
            rows = [{"study_id": study_id, "objective": at, "direction": way} for at, way in enumerate(directions)]
            database.insert(DIRECTIONS, rows)


def enter(database: Database, study_id: int, trial: FrozenTrial) -> FrozenTrial:
    """Enter a RUNNING trial whole; as Optuna reads it, with its number."""
    texts = {name: distribution_to_json(distribution) for name, distribution in trial.distributions.items()}
    inner = {name: trial.distributions[name].to_internal_repr(value) for name, value in trial.params.items()}
    attrs = {table: _as_json(of) for table, of in ((USER, trial.user_attrs), (SYSTEM, trial.system_attrs))}
    start = _utc(trial.datetime_start)
    with database.at_once():
        study = sql.select(STUDIES.c.study_id).where(STUDIES.c.study_id == study_id)  # SQLite has one writer at a time
        if not database.select(study.with_for_update() if database.engine.dialect.name == "postgresql" else study):
            raise LedgerError(
                "ledger: expected Optuna's study that the trials are in, got none: it was deleted; see `cs330ray "
                "restore --help`"
            )
        of_study = sql.select(TRIALS.c.number + 1).where(TRIALS.c.study_id == study_id)
        place = sql.func.coalesce(of_study.order_by(TRIALS.c.trial_id.desc()).limit(1).scalar_subquery(), 0)
        row = {"study_id": study_id, "number": place, "state": TrialState.RUNNING, "datetime_start": start}
        trial_id = database.add(TRIALS, row)
        number = database.select(sql.select(TRIALS.c.number).where(TRIALS.c.trial_id == trial_id))[0].number
        params = [
            {"trial_id": trial_id, "param_name": name, "param_value": value, "distribution_json": texts[name]}
            for name, value in inner.items()
        ]
        database.insert(PARAMS, params)
        for table, values in attrs.items():
            database.insert(table, [{"trial_id": trial_id, "key": key, "value_json": on} for key, on in values.items()])
    distributions = {sys.intern(name): _distribution(texts[name]) for name in trial.params}
    return FrozenTrial(
        number=number,
        state=TrialState.RUNNING,
        value=None,
        datetime_start=_local(start),
        datetime_complete=None,
        params={name: distributions[name].to_external_repr(inner[name]) for name in distributions},
        distributions=distributions,
        user_attrs={sys.intern(key): json.loads(text) for key, text in attrs[USER].items()},
        system_attrs={sys.intern(key): json.loads(text) for key, text in attrs[SYSTEM].items()},
        intermediate_values={},
        trial_id=trial_id,
    )


def mark(database: Database, trial: FrozenTrial, key: str, value: Any) -> FrozenTrial:
    """Set an attribute of a trial; the trial with it."""
    (text,) = _as_json({key: value}).values()
    database.put(USER, {"trial_id": trial._trial_id, "key": key, "value_json": text}, ("trial_id", "key"))
    return _with(trial, user_attrs={**trial.user_attrs, key: json.loads(text)})


def report(database: Database, trial: FrozenTrial, step: int, value: float) -> FrozenTrial:
    """Report the objective of a trial at a step; the trial with it."""
    stored, kind = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(value)
    row = {"trial_id": trial._trial_id, "step": step}
    database.put(REPORTS, {**row, "intermediate_value": stored, "intermediate_value_type": kind}, ("trial_id", "step"))
    return _with(trial, intermediate_values=dict(sorted({**trial.intermediate_values, step: value}.items())))


def forget_reports(database: Database, trial: FrozenTrial, after_step: int) -> FrozenTrial:
    """Forget what was reported of a trial after a step; the trial without."""
    database.execute(REPORTS.delete().where((REPORTS.c.trial_id == trial._trial_id) & (REPORTS.c.step > after_step)))
    kept = {step: value for step, value in trial.intermediate_values.items() if step <= after_step}
    return _with(trial, intermediate_values=kept)


def end(
    database: Database, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
) -> FrozenTrial | None:
    """End a trial; the trial with its end, or None where it has ended in Optuna's tables before."""
    complete = _utc(datetime.datetime.now())
    runs = (TRIALS.c.trial_id == trial._trial_id) & TRIALS.c.state.in_(UNFINISHED)
    if not database.execute(TRIALS.update().where(runs).values(state=state, datetime_complete=complete)):
        return None
    rows = []
    for objective, value in enumerate(values or ()):
        stored, kind = models.TrialValueModel.value_to_stored_repr(value)
        rows.append({"trial_id": trial._trial_id, "objective": objective, "value": stored, "value_type": kind})
    database.insert(VALUES, rows)
    return _with(trial, state=state, datetime_complete=_local(complete), values=list(values) if values else None)


def _with(trial: FrozenTrial, **changes: Any) -> FrozenTrial:
    """A trial with some things changed; others may hold it as it was."""
    changed = copy.copy(trial)
    for name, value in changes.items():
        setattr(changed, name, value)
    return changed


def _as_json(values: Mapping[str, Any]) -> dict[str, str]:
    return {key: json.dumps(value) for key, value in values.items()}


def _utc(local: datetime.datetime | None) -> datetime.datetime | None:
    """As Optuna's tables have it."""
    return None if local is None else local.astimezone(datetime.UTC).replace(tzinfo=None)


def _local(utc: datetime.datetime | None) -> datetime.datetime | None:
    """As Optuna's trials have it."""
    return None if utc is None else utc.replace(tzinfo=datetime.UTC).astimezone().replace(tzinfo=None)
