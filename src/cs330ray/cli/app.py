"""The command line. Rooms with heavy dependencies are entered inside the commands, so that `--help` is quick."""

import contextlib
import sys
from typing import Any

import typer

from cs330ray.cli import cluster, prepare, results, run, screen, stop, upkeep
from cs330ray.errors import Cs330rayError, Diverged
from cs330ray.quiet import quiet

app = typer.Typer(
    help="Hyperparameter studies of multi-task, meta- and few-shot learning on Ray, Optuna and MLflow.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for _room in (run, stop, results, upkeep, prepare, cluster):
    for _name, _command in _room.COMMANDS.items():
        app.command(_name)(_command)
app.add_typer(cluster.cluster_app, name="cluster")


def main() -> None:
    """Run the command line: what a person can act on is one line and exit code 2."""
    quiet()  # before a command imports Ray or MLflow
    guarded(app)


def guarded(command: Any, *arguments: Any) -> None:
    """Run `command`; an error of ours becomes its one line on stderr and exit code 2."""
    screen.settle()
    try:
        try:
            command(*arguments)
        except BaseException as ended:
            has_failed = not isinstance(ended, SystemExit) or ended.code  # then that is said, not who still reads
            with contextlib.suppress(screen.ScreenLost) if has_failed else contextlib.nullcontext():
                sys.stdout.flush()
            raise
        sys.stdout.flush()
    except screen.ScreenLost as error:
        raise SystemExit(screen.end(error)) from None
    except (Cs330rayError, Diverged) as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(2) from None
    except RuntimeError as error:  # Python's, for a user whom the system does not know; libraries look when imported
        if "home directory" not in str(error):
            raise
        sys.stderr.write("HOME: expected the home directory of this user, got none; set HOME to a directory\n")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        raise SystemExit(130) from None


def study_main(trainable: str, arguments: list[str] | None = None) -> None:
    """What `python -m cs330ray.studies.NAME` does: run studies/NAME.toml, or one trial alone with `--trial`."""
    quiet()  # before the study imports Ray
    from cs330ray.cli.trial import study_command

    guarded(study_command, trainable, sys.argv[1:] if arguments is None else arguments, run.run_study)
