"""What the simulator costs, and how fast it is: `make bench-sim`.

The last line is `BENCH` and the figures as JSON.
"""

from figures import benchmark
from tessera_lab.sim.self_benchmark import measure

if __name__ == "__main__":
    benchmark(measure, short={"steps": 200, "chunks": 2})
