"""The file system that shows the data devices of layer images while their bytes arrive."""
