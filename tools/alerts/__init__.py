"""The alerts of the chart: rule, promtool tests and runbook of each from one value."""

from alerts.alert import Alert
from alerts.energy import ENERGY
from alerts.gateway import GATEWAY
from alerts.layouts import LAYOUTS
from alerts.operator import OPERATOR
from alerts.routes import ROUTES
from alerts.services import SERVICES
from alerts.slo import SLO
from alerts.speed import SPEED

# By the group of the PrometheusRule.
GROUPS: dict[str, tuple[Alert, ...]] = {
    "tessera.operator.alerts": OPERATOR,
    "tessera.services.alerts": SERVICES,
    "tessera.layouts.alerts": LAYOUTS,
    "tessera.speed.alerts": SPEED,
    "tessera.slo.alerts": SLO,
    "tessera.gateway.alerts": GATEWAY,
    "tessera.routes.alerts": ROUTES,
    "tessera.energy.alerts": ENERGY,
}
ALERTS: tuple[Alert, ...] = tuple(alert for group in GROUPS.values() for alert in group)
