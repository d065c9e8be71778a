"""Run studies/maml.toml, or one trial of it: `python -m cs330ray.studies.maml --help`."""

from cs330ray.cli.app import study_main

if __name__ == "__main__":
    study_main("maml")
