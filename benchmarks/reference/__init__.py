"""What the benchmarks race against: straightforward programs, written for the purpose."""
