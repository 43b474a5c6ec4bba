"""Dagster sensors: they ask, the step they launch decides again."""
