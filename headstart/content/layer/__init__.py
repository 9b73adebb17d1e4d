"""What a layer says: its entries, and the tree that they make."""
