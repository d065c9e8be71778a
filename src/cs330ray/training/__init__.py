"""What a system needs as it trains: the device, streams of random numbers, its state, and its partners."""
