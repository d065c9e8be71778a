"""Run studies/baseline.toml, or one trial of it: `python -m cs330ray.studies.baseline --help`."""

from cs330ray.cli.app import study_main

if __name__ == "__main__":
    study_main("baseline")
