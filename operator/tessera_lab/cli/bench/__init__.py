"""`tessera bench`: a load test of one or more OpenAI servers."""
