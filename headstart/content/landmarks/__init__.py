"""Prefetch lists: which files of an image, and which ranges of them, a start of it reads."""
