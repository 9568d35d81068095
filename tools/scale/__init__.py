"""What policies cost and attain on public traces: cases, runs, and the table of them."""
