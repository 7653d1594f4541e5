"""The parts of bench.py, bench_data.py and bench_peer.py, one subject per file."""
