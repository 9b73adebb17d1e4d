"""Layer images shown file by file, for kernels that mount no EROFS image from files."""
