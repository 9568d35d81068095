"""`tessera mix`: how many replicas to reserve for a load."""
