"""The layout solver in a process of its own, so that the event loop stays responsive."""

import asyncio
import multiprocessing
import os
import signal
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from tessera.domain.layout.problem import LayoutProblem, LayoutSolution
from tessera.domain.layout.solution import solve
from tessera.domain.mig.integer_program import SolverMissingError
from tessera.ports import LayoutPlanningError

# A thousand GPUs take a few seconds, full pools of three GPU models with 300 services 90 seconds.
_TIMEOUT = timedelta(minutes=5)
# Serving requests and renewing the Lease have priority over planning.
_NICENESS = 10


class LayoutSolverProcess:
    """`Layouts` over a worker process that starts on first use and solves one problem at a time."""

    def __init__(self, timeout: timedelta = _TIMEOUT) -> None:
        self._timeout = timeout
        self._worker: BaseProcess | None = None
        self._pipe: Connection | None = None

    @property
    def worker_pid(self) -> int | None:
        """Return the process id of the worker; None if it does not run."""
        return self._worker.pid if self._worker else None

    async def solve(self, problem: LayoutProblem) -> LayoutSolution:
        """Return the worker's solution.

        Raises LayoutPlanningError if the worker ends, exceeds the timeout or lacks the solver.
        """
        pipe = self._ensure_worker()
        try:
            async with asyncio.timeout(self._timeout.total_seconds()):
                solution = await asyncio.to_thread(_request_solution, pipe, problem)
        except TimeoutError as error:
            self.close()
            limit = self._timeout.total_seconds()
            raise LayoutPlanningError(f"planning layouts exceeded {limit:g} s") from error
        except (EOFError, OSError) as error:
            code = self._reap_worker()
            raise LayoutPlanningError(f"the layout solver exited with code {code}") from error
        except asyncio.CancelledError:
            # The thread waits for the worker; closing the worker ends it.
            self.close()
            raise
        if isinstance(solution, str):
            raise LayoutPlanningError(solution)
        return solution

    def close(self) -> None:
        """Kill the worker; a pending `solve` raises LayoutPlanningError."""
        if self._worker is not None:
            self._worker.kill()
        self._reap_worker()

    def _ensure_worker(self) -> Connection:
        if self._pipe is not None and self._worker is not None and self._worker.is_alive():
            return self._pipe
        self._reap_worker()
        context = multiprocessing.get_context("spawn")
        self._pipe, worker_pipe = context.Pipe()
        self._worker = context.Process(
            target=_serve_requests, args=(worker_pipe,), name="layouts", daemon=True
        )
        self._worker.start()
        worker_pipe.close()
        return self._pipe

    def _reap_worker(self) -> int | None:
        """Drop the worker, which has ended or is about to, and return its exit code."""
        worker, self._worker, self._pipe = self._worker, None, None
        if worker is None:
            return None
        worker.join(1)
        return worker.exitcode


def _request_solution(pipe: Connection, problem: LayoutProblem) -> LayoutSolution | str:
    pipe.send(problem)
    solution: LayoutSolution | str = pipe.recv()
    return solution


def _serve_requests(pipe: Connection) -> None:
    """Solve problems from the pipe until its other end is closed."""
    # Ctrl+C in a terminal goes to the whole process group; the operator ends the worker itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(_NICENESS)
    # HiGHS 1.16 prints a banner before it takes options; the operator's output is its log.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    while True:
        try:
            problem = pipe.recv()
        except EOFError:
            return
        pipe.send(_solve_problem(problem))


def _solve_problem(problem: LayoutProblem) -> LayoutSolution | str:
    try:
        return solve(problem)
    except SolverMissingError:
        return "the layout solver is not installed: add highspy to the image of the operator"
    except (ArithmeticError, ValueError) as error:
        return f"planning layouts failed ({error}); please report it"
