"""Statistics on plain arrays; knows nothing of language models."""
