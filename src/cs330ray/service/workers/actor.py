"""The worker's side: drive a trial's generator in batches, checkpoint what the record already holds, report the end."""

import gc
from typing import Any

from ray import tune

from cs330ray.errors import WorkerSpent
from cs330ray.quiet import quiet
from cs330ray.service.messages import Assignment, as_result, assigned
from cs330ray.service.workers import leftovers, log
from cs330ray.service.workers.alone import Alone, Runs
from cs330ray.service.workers.cohort import CohortRun
from cs330ray.service.workers.team import Team, share_what_is_free
from cs330ray.service.workers.trial_run import TrialRun
from cs330ray.trial.environment import Told, see_no_more_gpus_than_asked

CLOSE_S = 60.0  # a trial that takes longer to be left has its worker lost
CLEANUP_S = 4.0  # below TUNE_FORCE_TRIAL_CLEANUP_S
ANSWER_S = 0.5  # for the answer to reach the driver


class TrialActor(tune.Trainable):
    """Tune's actor: one process that runs one trial after another. What leaves it as an exception is a lost worker."""

    def setup(self, config: dict[str, Any], store_url: str | None = None) -> None:
        """Begin with no trial. `store_url` may hold a password: Tune writes what trials are told to the disk.

        The trial for which Tune starts a worker may be given to another one that is free before this one is up, so
        nothing of it is touched here: see `step`.
        """
        quiet()  # on another node the driver's environment is not here, and a trainable may import MLflow
        leftovers.adopt()
        share_what_is_free()
        self._store_url, self._told = store_url, Told()
        terms = assigned(config).terms
        see_no_more_gpus_than_asked(terms.gpus)
        self._runs: Runs = Team(terms.workers, terms.cpus, terms.gpus) if terms.workers > 1 else Alone()
        self._assignment = assigned(config)
        self._run: TrialRun | CohortRun | None = None

    def _take_up(self, assignment: Assignment) -> TrialRun | CohortRun:
        leftovers.mark(assignment.terms.home)
        if assignment.command is not None and assignment.begun:  # a worker on this node may have been killed
            leftovers.remove(leftovers.of_trials(assignment.terms.home))
        log.log_into(assignment.terms.home)
        gc.freeze()  # what is imported by now stays: to search it at the end of each trial takes .16 s
        if assignment.beside:
            return CohortRun(assignment, self._store_url, self._told)
        return TrialRun(assignment, self._runs, self._store_url, self._told)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Leave the old trial for another. Raises WorkerSpent where the old one left something running."""
        with leftovers.exit_unless_done(CLOSE_S):
            self._close()
        if leftovers.sweep():
            raise WorkerSpent("a trial left threads or processes in this worker")
        self._assignment = assigned(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Run the trial until there is news of it; the first step takes it up."""
        if self._run is None:
            self._run = self._take_up(self._assignment)
        return as_result(self._run.next_batch())

    def _close(self) -> None:
        if self._run is not None:
            self._run.close()
        self._run = None

    def cleanup(self) -> None:
        """Leave the trial, end what ran it and what it left, and this process: Python would wait for its threads."""
        leftovers.exit_within(CLEANUP_S)
        self._close()
        self._runs.end()
        log.bound()
        leftovers.sweep()
        leftovers.exit_within(ANSWER_S)
