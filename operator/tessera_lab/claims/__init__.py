"""Claims about the cost of inference, tried: conditions as data, scenarios, computed verdicts.

`claims.json` has every claim with its conditions; `scenarios` compute figures from these,
`verdict` compares the figures with the claimed ranges, and `record` keeps what a whole run gave.
"""
