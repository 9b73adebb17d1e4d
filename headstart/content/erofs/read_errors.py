"""What is wrong with an image that is read."""


class ImageDamaged(Exception):
    """The image is damaged, or not one of ours; ``str()`` is one line that says where."""
