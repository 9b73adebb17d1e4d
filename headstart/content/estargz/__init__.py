"""Layers that carry a table of contents (TOC): eStargz, stargz and zstd:chunked."""
