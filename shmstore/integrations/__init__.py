"""Other libraries that work on stores: each module is imported by who wants it."""
