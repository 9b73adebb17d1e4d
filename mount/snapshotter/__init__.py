"""The containerd snapshots plugin: layers that are mounted instead of unpacked."""
