"""Converts images: read from one place, written to another."""
