"""Bytes on this node: extents, maps, the index, leases, and the client of ``fill.sock``."""
