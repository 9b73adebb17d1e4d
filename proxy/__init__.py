"""The mirror: what `headstart serve` runs."""
