"""Where trials run: Tune's actor, one process alone or a team."""
