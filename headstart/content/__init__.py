"""What bytes are: names, digests, manifests, ranges, sizes. Pure: no input, no output."""
