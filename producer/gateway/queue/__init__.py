"""Penstock's own routes: jobs, lanes, dead letters, consumers."""
