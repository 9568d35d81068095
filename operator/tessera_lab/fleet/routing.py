"""How requests get to replicas."""

from array import array
from bisect import bisect_right
from itertools import pairwise

from tessera.domain.gateway.requests import RequestShape
from tessera.domain.observed.demand import ARRIVALS_SPAN
from tessera.domain.picking.pick import pick
from tessera.domain.picking.prediction import RequestMeans
from tessera_lab.engine.requests import EngineRequest
from tessera_lab.fleet.model import Router
from tessera_lab.fleet.simulated_replica import EndedRequest, SimulatedReplica
from tessera_lab.fleet.trace import Trace

_SECONDS = round(ARRIVALS_SPAN.total_seconds())


class Door:
    """The gateway: it sends each request to a replica, or holds it while there is none."""

    def __init__(self, trace: Trace, router: Router, ttft: "array[float]") -> None:
        self.serving: list[SimulatedReplica] = []
        """Replicas that get requests, in the order in which they became ready."""
        self.arrived = 0
        self.refused = 0
        self.queue: list[int] = []
        """Requests that wait for a ready replica."""
        self._trace, self._ttft = trace, ttft
        self._route = {
            Router.LEAST_TTFT: self._least_ttft,
            Router.LEAST_REQUESTS: self._least_requests,
            Router.ROUND_ROBIN: self._round_robin,
        }[router]
        self._means = RequestMeans()
        self._turn = 0

    def admit_until(self, moment: float) -> None:
        """Send the requests that arrive by this moment."""
        arrivals, count, index = self._trace.arrivals, len(self._trace), self.arrived
        while index < count and arrivals[index] <= moment:
            if self.serving:
                self._send(index, arrivals[index])
            else:
                self.queue.append(index)
            index += 1
        self.arrived = index

    def arrivals_by_second(self, moment: float) -> tuple[int, ...]:
        """Return the requests that came in each second of the last minute, oldest first."""
        edges = [moment - second for second in range(_SECONDS, -1, -1)]
        counts = [bisect_right(self._trace.arrivals, edge, hi=self.arrived) for edge in edges]
        return tuple(later - earlier for earlier, later in pairwise(counts))

    def flush(self, moment: float) -> None:
        """Send the requests that were held, now that there is a replica."""
        queue, self.queue = self.queue, []
        for index in queue:
            self._send(index, moment)

    def learn(self, ended: list[EndedRequest]) -> None:
        """Take the lengths of requests that ended into the means."""
        for request in ended:
            self._means = self._means.after(request.prompt_tokens, request.output_tokens)

    def _send(self, index: int, moment: float) -> None:
        ttft, trace = self._ttft, self._trace
        for replica in self.serving:
            if replica.due <= moment:
                replica.advance(moment, ttft)
        prompt, output = trace.input_tokens[index], trace.output_tokens[index]
        replica = self._route(prompt, output, moment)
        replica.advance(moment, ttft)
        request = EngineRequest(
            id=index,
            prompt_tokens=prompt,
            output_tokens=output,
            shared_prefixes=trace.prefixes[index] if trace.prefixes is not None else (),
        )
        if not replica.submit(request, trace.arrivals[index], moment):
            self.refused += 1

    def _least_ttft(self, prompt: int, output: int, moment: float) -> SimulatedReplica:
        shape = RequestShape(model="", input_tokens=prompt, max_output_tokens=output)
        self._turn += 1
        states = [replica.state for replica in self.serving]
        choice = pick(shape, states, moment, turn=self._turn, means=self._means)
        if choice is None:
            raise ValueError("a replica that serves is not ready")
        return next(replica for replica in self.serving if replica.state is choice.state)

    def _least_requests(self, prompt: int, output: int, moment: float) -> SimulatedReplica:
        del prompt, output, moment
        return min(self.serving, key=lambda replica: replica.state.requests)

    def _round_robin(self, prompt: int, output: int, moment: float) -> SimulatedReplica:
        del prompt, output, moment
        self._turn += 1
        return self.serving[self._turn % len(self.serving)]
