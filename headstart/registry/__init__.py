"""The upstream registries: what is asked of them, by which credentials, and what they may say."""
