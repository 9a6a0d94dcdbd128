"""What `scripts/benchmark.py` measures: training steps, losses, growth, and the page that shows the figures."""
