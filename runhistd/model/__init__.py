"""What a run is: pure rules without input, output or a clock (`now_us` is always an argument)."""
