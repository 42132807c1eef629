"""Bytes at offsets: the format, the files and mappings, the allocator of the segment."""
