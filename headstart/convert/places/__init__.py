"""Where images are: registries, OCI layouts, archives. One small source and target for each.

Places move bytes and documents; which of an image's manifests and blobs is the caller's business.
"""
