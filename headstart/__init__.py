"""What the mirror and the mount share: content, registry, store and the command line."""

__version__ = "0.1.0"
