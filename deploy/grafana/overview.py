"""For whoever is on call: is anything wrong, and where."""

from functools import partial

from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.grafana.layout import dashboard
from deploy.grafana.panels import GREEN, RED, YELLOW, Query, Steps, lines, number, states

SERVERS = 'up{job="energy-ood"}'
OBJECTIVE = 0.001
"""Share of requests that may fail; 14.4 times that wakes somebody, as in OodErrorsHigh."""
SLOW_OBJECTIVE = 0.01
"""Share of verdicts that may take over a second; 14.4 times that wakes somebody, as in OodLatencyHigh."""
OOD_SHARE = 0.1
"""Share of images out of distribution that alarms are tuned for unless told otherwise: OOD_WATCH_OOD_SHARE."""
tile = partial(number, span=4)

NOW = (
    tile(
        "Alerts",
        "Alerts that are firing; each has an entry in deploy/runbook.md.",
        'count(ALERTS{alertname=~"Ood.*", alertstate="firing"}) or vector(0)',
        steps=Steps(red=1),
    ),
    tile(
        "Servers down",
        "Servers whose metrics cannot be read.",
        f"count({SERVERS} == 0) or vector(0)",
        steps=Steps(red=1),
    ),
    tile(
        "Models not ready",
        "Models that failed to load, died or hang, counted on each server.",
        "count(ood_model_up == 0) or vector(0)",
        steps=Steps(red=1),
    ),
    tile(
        "Changed flag rates",
        "Models whose flag rate has risen for longer than chance explains (e-CUSUM), counted on each server.",
        "sum(ood_shift)",
        steps=Steps(red=1),
    ),
    tile(
        "Errors",
        "Share of requests for verdicts that were answered with 5xx in the last 5 minutes.",
        "max(job:ood_errors:ratio_rate5m)",
        unit=units.PercentUnit,
        steps=Steps(yellow=OBJECTIVE, red=14.4 * OBJECTIVE),
    ),
    tile(
        "Slow verdicts",
        "Share of requests that took over a second in the last 5 minutes, of the slowest model.",
        "max(job_model:ood_slow:ratio_rate5m)",
        unit=units.PercentUnit,
        steps=Steps(yellow=SLOW_OBJECTIVE, red=14.4 * SLOW_OBJECTIVE),
    ),
    tile(
        "Flagged",
        "Share of images flagged as out of distribution in the last 5 minutes, of the model with the most.",
        "max(job_model:ood_images_flagged:ratio_rate5m)",
        unit=units.PercentUnit,
    ),
    tile(
        "In distribution",
        "The share that is flagged in distribution, as bundles state it; of the model with the most.",
        "max(ood_alpha)",
        unit=units.PercentUnit,
    ),
    tile(
        "Truly OOD",
        "Estimated share of the last hour's images that are out of distribution, of the model with the most.",
        "max(job_model:ood_share:estimate_rate1h)",
        unit=units.PercentUnit,
        steps=Steps(red=OOD_SHARE),
    ),
    tile(
        "Truly OOD, at least",
        "The lower end of its 95 % interval: above 0 it is more than chance, of images and of the calibration set.",
        'max(job_model:ood_share:interval_rate1h{bound="lower"})',
        unit=units.PercentUnit,
        steps=Steps(red=OOD_SHARE),
    ),
    tile("Images", "Images judged a second.", "sum(job_model:ood_images:rate5m)", unit="img/s"),
    tile(
        "Rejects",
        "Share of requests that found no room (429) in the last half hour.",
        "max(job:ood_rejects:ratio_rate30m)",
        unit=units.PercentUnit,
        steps=Steps(yellow=0.01, red=0.05),
    ),
)
ALERTS = (
    states(
        "Alerts over time",
        "Pending until an alert has held for its time, then firing.",
        Query(
            'max by (alertname, instance, model) (ALERTS{alertname=~"Ood.*", alertstate="pending"} '
            'or 2 * ALERTS{alertname=~"Ood.*", alertstate="firing"})',
            "{{alertname}} {{model}} {{instance}}",
        ),
        {1: ("pending", YELLOW), 2: ("firing", RED)},
    ),
    states(
        "Models over time",
        "Whether each model answers on each server.",
        Query("ood_model_up", "{{model}}@{{version}} {{instance}}"),
        {0: ("not ready", RED), 1: ("ready", GREEN)},
    ),
)
TRAFFIC = (
    lines(
        "Flagged",
        "Share of images flagged as out of distribution, over 5 minutes, of all servers; dashed what is stated for "
        "images in distribution.",
        (
            Query("job_model:ood_images_flagged:ratio_rate5m", "{{model}}@{{version}}"),
            Query("max by (model, version) (ood_alpha)", "{{model}}@{{version}} in distribution", dashed=True),
        ),
        unit=units.PercentUnit,
        span=8,
    ),
    lines(
        "Truly OOD",
        "Estimated share of the last hour's images that are out of distribution, were they detected as often as the "
        "bundle's OOD sets; dashed its 95 % interval.",
        (
            Query("job_model:ood_share:estimate_rate1h", "{{model}}@{{version}}"),
            Query("job_model:ood_share:interval_rate1h", "{{model}}@{{version}} {{bound}}", dashed=True),
        ),
        unit=units.PercentUnit,
        span=8,
    ),
    lines(
        "Images",
        "Images judged a second, of all servers.",
        (Query("job_model:ood_images:rate5m", "{{model}}@{{version}}"),),
        unit="img/s",
        span=8,
    ),
)
CLIENTS = (
    lines(
        "Requests by status",
        "Requests for verdicts a second, of all servers: 429 found no room, 5xx is the server's failure, other 4xx the "
        "client's.",
        (Query("job_status:ood_judgement_requests:rate5m > 0", "{{status}}"),),
        unit=units.RequestsPerSecond,
    ),
    lines(
        "Time to a verdict",
        "Half and all but a hundredth of requests take less; the objective is a second.",
        tuple(
            Query(
                f'job_model_stage:ood_stage_seconds:quantile_rate5m{{stage="total", quantile="{quantile}"}}',
                f"{{{{model}}}}@{{{{version}}}} {name}",
            )
            for quantile, name in (("0.5", "median"), ("0.99", "99th percentile"))
        ),
        unit=units.Seconds,
        steps=Steps(red=1),
    ),
)


def overview() -> Dashboard:
    """Return the dashboard."""
    return dashboard(
        "energy-ood-overview",
        "Energy OOD: overview",
        "Is anything wrong, and where: alerts, models, traffic and clients of all servers.",
        (),
        (("Now", NOW), ("Alerts and models", ALERTS), ("Traffic", TRAFFIC), ("Clients", CLIENTS)),
    )
