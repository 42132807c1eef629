"""iceoryx2."""

PEERS: list = []
