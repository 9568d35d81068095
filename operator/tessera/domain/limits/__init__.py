"""Rates, concurrency and sizes of requests, and the fair queue of those that wait.

`scopes` gathers the limits of one request, `account` is the shared state of a limit, from which
`gateway_limits` borrows for one second at a time, and `fair_queue` orders the tenants.
"""
