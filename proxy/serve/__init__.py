"""HTTP: what the mirror answers, and how the bytes of a hit leave without passing Python."""
