"""The router beside the proxies that people use today: `python -m benchmarks.router --help`."""
