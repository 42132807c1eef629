"""What does sharing real data through a store save? See `running`."""
