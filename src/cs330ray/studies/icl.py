"""Run studies/icl.toml, or one trial of it: `python -m cs330ray.studies.icl --help`."""

from cs330ray.cli.app import study_main

if __name__ == "__main__":
    study_main("icl")
