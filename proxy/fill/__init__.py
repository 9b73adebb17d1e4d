"""The filler: the one process that fetches, hashes and writes objects."""
