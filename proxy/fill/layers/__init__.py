"""Layer images: made from blobs while they arrive, verified, and found by chain ID."""
