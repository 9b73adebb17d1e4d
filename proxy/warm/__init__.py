"""Warm jobs: images that are brought into the cache before anybody asks for them."""
