"""Tenant budgets: metering of spend, and the replicas that the limits allow."""
