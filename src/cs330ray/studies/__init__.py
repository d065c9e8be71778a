"""`python -m cs330ray.studies.NAME` runs studies/NAME.toml, or one trial alone; the systems are in `course.systems`."""
