"""Which object is where: the slot table and the key index."""
