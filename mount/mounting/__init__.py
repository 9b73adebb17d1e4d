"""How a layer image becomes a directory: mount(2), loop devices, modes, who uses which layer."""
