"""The process that holds ``/dev/fuse`` and keeps a daemon running behind it."""
