"""The control API: access, health, metrics, pulls with their verdicts, the cache's contents."""
