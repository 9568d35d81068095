"""Money of tenants: what was spent, what may still be, and what that means."""
