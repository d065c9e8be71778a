"""The worker's side: drive a trial's generator in batches, checkpoint what the record already holds, report the end."""

from typing import Any

from ray import tune

from cs330ray.quiet import quiet
from cs330ray.service.messages import Assignment, as_result, assigned
from cs330ray.service.workers.alone import Alone, Runs
from cs330ray.service.workers.team import Team
from cs330ray.service.workers.trial_run import TrialRun
from cs330ray.trial.environment import log_into, see_no_more_gpus_than_asked


class TrialActor(tune.Trainable):
    """Tune's actor: one process that runs one trial after another. What leaves it as an exception is a lost worker."""

    def setup(self, config: dict[str, Any], store_url: str | None = None) -> None:
        """Take up the first trial. `store_url` may hold a password: Tune writes what trials are told to the disk."""
        quiet()  # on another node the driver's environment is not here, and a trainable may import MLflow
        self._store_url = store_url
        terms = assigned(config).terms
        see_no_more_gpus_than_asked(terms.gpus)
        self._runs: Runs = Team(terms.workers, terms.cpus, terms.gpus) if terms.workers > 1 else Alone()
        self._take_up(assigned(config))

    def _take_up(self, assignment: Assignment) -> None:
        log_into(assignment.terms.home)
        self._run = TrialRun(assignment, self._runs, self._store_url)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Leave the old trial and take up another."""
        self._run.close()
        self._take_up(assigned(new_config))
        return True

    def step(self) -> dict[str, Any]:
        """Run the trial until there is news of it."""
        return as_result(self._run.next_batch())

    def cleanup(self) -> None:
        """Leave the trial, and end what ran it."""
        self._run.close()
        self._runs.end()
