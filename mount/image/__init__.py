"""An image mounted for a person, without containerd."""
