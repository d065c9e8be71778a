"""Run studies/multitask.toml, or one trial of it: `python -m cs330ray.studies.multitask --help`."""

from cs330ray.cli.app import study_main

if __name__ == "__main__":
    study_main("multitask")
