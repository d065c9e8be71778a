"""Studies on a cluster: files for `ray up`, and jobs."""
