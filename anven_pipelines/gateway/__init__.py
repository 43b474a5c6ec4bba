"""The LiteLLM proxy plugin: sticky assignment, breaker, shadow, event log; imports no orchestrator."""
