"""`python -m cs330ray` is `cs330ray`."""

from cs330ray.cli.app import main

main()
