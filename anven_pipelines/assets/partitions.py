"""The two partition sets: both are registered at run time, so that loading the code reads no file."""

import dagster as dg

workloads = dg.DynamicPartitionsDefinition(name="workload")
log_days = dg.DynamicPartitionsDefinition(name="log_day")
