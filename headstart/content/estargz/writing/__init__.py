"""eStargz out of a tar: the same tar, order and options give the same bytes.

Three steps: :func:`.scan.scan_tar` reads the tar once and says what it holds; the caller keeps its
bytes where they can be read again; :class:`.writer.EStargzWriter` makes the layer of them.
"""
