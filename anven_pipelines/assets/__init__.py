"""Dagster assets and their checks: load, decide, store, report."""
