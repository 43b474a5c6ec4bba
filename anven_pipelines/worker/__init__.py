"""What runs inside an inference worker: one engine protocol and the engines behind it, without the orchestrator."""
