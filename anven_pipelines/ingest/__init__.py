"""One reader per log format, each yielding the canonical request table."""
