"""Who is here and what they hold: the store lock, clients and seats, pins, the barrier."""
