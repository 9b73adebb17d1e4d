"""The file system and the containerd snapshotter."""
