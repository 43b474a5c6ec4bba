"""Move an LLM workload from a paid API to an open model you serve yourself."""
